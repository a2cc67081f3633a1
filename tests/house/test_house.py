"""How the house is built: what would rot if nobody looked."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.cli.main import VERBS

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "gateway").rglob("*.py"))


def test_no_module_needs_scrolling_without_end() -> None:
    assert not [str(path) for path in MODULES if len(path.read_text().splitlines()) > 450]


def test_a_module_opens_with_what_it_is_for() -> None:
    silent = [path for path in MODULES if path.read_text().strip() and not path.read_text().startswith('"""')]
    assert not silent


def test_no_module_is_named_after_nothing() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "manager", "base", "common")]


def test_wall_time_and_chance_stay_out_of_the_decisions() -> None:
    pure = ("core", "policies", "predict", "measure", "openai")
    pattern = re.compile(r"^(?:import|from) (?:time|random|asyncio|socket|threading|datetime)\b", re.MULTILINE)
    assert not [path for room in pure for path in (ROOT / "gateway" / room).glob("*.py") if pattern.search(path.read_text())]


def test_what_can_be_compiled_is_there_and_has_no_class_that_is_made_from_its_annotations() -> None:
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]
    left_out = {ROOT / name.lstrip("/") for name in hook["exclude"]}
    for entry in hook["include"]:
        path = ROOT / entry.lstrip("/")
        assert path.exists(), entry
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if module not in left_out:
                assert not re.search(r"^class \w+\((?:msgspec\.Struct|\w*Model)\b", module.read_text(), re.MULTILINE), module
                # The compiler loses the value of a constant that is several.
                assert not re.search(r"^\w+: Final(?:\[\w+\])? = \((?!\()[^\n]*,", module.read_text(), re.MULTILINE), module
    assert all(path.exists() for path in left_out if path.name != "__init__.py")


@pytest.mark.parametrize("script", [path for path in sorted((ROOT / "loadtests").glob("*.py")) if "ArgumentParser" in path.read_text()])
def test_every_load_test_still_finds_what_it_needs(script: Path) -> None:
    told = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 0, told.stderr


def test_nothing_dangerous_is_called() -> None:
    pattern = re.compile(r"\b(?:eval|exec|pickle\.loads?|yaml\.load|os\.system)\(")
    assert not [path for path in MODULES if pattern.search(path.read_text())]


def test_help_and_check_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom gateway.cli.main import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\nassert CliRunner().invoke(main, ['check']).exit_code == 0\n"
        "print([name for name in ('opentelemetry', 'httpx', 'redis', 'numpy', 'uvicorn') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_waits_for_nothing_it_does_not_say(verb: str) -> None:
    code = (
        f"import sys\nfrom click.testing import CliRunner\nfrom gateway.cli.main import main\n"
        f"assert CliRunner().invoke(main, ['{verb}', '--help']).exit_code == 0\n"
        "print([name for name in ('pydantic', 'ruamel', 'httpx', 'redis', 'numpy', 'uvicorn', 'rich', 'msgspec') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert told.stdout.strip() == "[]"


def test_a_gateway_loads_only_what_it_was_told_to_use() -> None:
    """A worker keeps what it has imported for as long as it lives: what is here was measured in megabytes."""
    heavy = (
        "redis",
        "opentelemetry",
        "pydantic",
        "ruamel",
        "httpx",
        "rich",
        "anthropic",
        "openai",
        "requests",
        "gateway.load",
        "gateway.state",
    )
    code = (
        "import os, sys, logging\nfrom gateway.cli.main import main\n"
        "class Ready(logging.Handler):\n"
        "    def emit(self, record):\n"
        f"        if 'ready' in record.getMessage(): print([m for m in {heavy} if m in sys.modules], flush=True); os._exit(0)\n"
        "logging.getLogger('slo_gateway').addHandler(Ready())\n"
        "main(['serve', '--port', '0', '--admin-port', '0', '--model', 'm', '--pool', 'premium:H100=http://127.0.0.1:9'])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert told.stdout.strip() == "[]"


def test_requirements_are_hashed_and_record_no_address() -> None:
    for name in ("run", "dev"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert "--hash=sha256:" in text
        assert "http" not in re.sub(r"httptools|httpx[^ ]*|httpcore|proto-http|httplib|-http\b", "", text).replace("googleapis", "")


def test_no_test_fails_because_a_machine_is_slow() -> None:
    """What has to come is waited for as long as anything may take (HANG_S in tests/conftest.py), not for so many seconds."""
    seconds = r"[1-9]\d*(?:\.\d+)?"
    patterns = (
        r"\buntil\(.*, (?:within_s=)?\d+\.\d+[,)]",
        rf"\.(?:wait|join|result)\({seconds}\)",
        rf"\btimeout(?:=|\(){seconds}[,)]",
        rf"wait_for\(.*, {seconds}\)",
        r"(?:monotonic|perf_counter)\(\) - \w+ < [\d.]+$",
    )
    pattern = re.compile("|".join(patterns))
    tests = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__)]
    lines = [(path.relative_to(ROOT), line.strip()) for path in tests for line in path.read_text().splitlines()]
    found = [(str(path), line) for path, line in lines if pattern.search(line)]
    assert found == []

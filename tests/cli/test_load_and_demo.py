"""`slo-gateway load` and `slo-gateway demo` as a person or a script meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANG_S


def gateway(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], capture_output=True, text=True, timeout=HANG_S, check=False, **more
    )


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        found += map(int, (task / "children").read_text().split())
    return found


def test_load_tells_a_script_what_an_engine_did(place: Any) -> None:
    engine = place.engine("H100")
    told = gateway(
        "load",
        engine.url,
        "--model",
        "llama-8b",
        "--rate",
        "40",
        "--for",
        "500ms",
        "--lengths",
        "exact",
        "--mix",
        "code_completion=1",
        "--json",
    )
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)["rows"]
    assert [row["name"] for row in rows] == ["code_completion", "all"]
    assert rows[0]["offered"] > 5
    assert rows[0]["failed"] == {}
    assert rows[0]["output_tokens"] > 0


def test_load_says_3_where_nobody_answers_and_1_where_too_little_is_kept(place: Any) -> None:
    engine = place.engine("H100", "--error-ratio", "1")
    short = ("--model", "llama-8b", "--rate", "50", "--for", "200ms")
    missed = gateway("load", engine.url, *short, "--fail-under", "0.9")
    assert missed.returncode == 1
    assert "failed: status 500" in missed.stderr
    engine.stop()
    gone = gateway("load", engine.url, *short)
    assert gone.returncode == 3
    assert "nothing answers" in gone.stderr


@pytest.mark.parametrize("more", [("--mix", "chatbott=1"), ("--for", "10"), ("--trace", "/no/such/file")])
def test_wrong_usage_is_named_before_anything_is_sent(more: tuple[str, ...]) -> None:
    told = gateway("load", "http://127.0.0.1:1", "--model", "m", *more)
    assert told.returncode == 2
    assert "Error:" in told.stderr


def test_an_unknown_gpu_is_told_which_there_are() -> None:
    told = gateway("engine", "--gpu", "H9000", "--model", "m", "--port", "0")
    assert told.returncode == 2
    assert "H100" in told.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_the_demo_ends_it_sums_up_if_it_can_and_its_children_end_with_it(number: signal.Signals, tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "gateway", "demo", "--for", "60s", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert demo.stderr is not None
    said = ""
    while "curl" not in said:
        line = demo.stderr.readline()
        assert line, said
        said += line
    pids = children_of(demo.pid)
    assert len(pids) == 7  # six engines and the gateway
    os.kill(demo.pid, number)
    out, _ = demo.communicate(timeout=HANG_S)
    if number == signal.SIGKILL:
        assert demo.returncode == -signal.SIGKILL
    else:
        assert demo.returncode == 130
        told = json.loads(out)
        assert told["usd_per_hour"] > 0
        assert told["rows"][-1]["name"] == "all"
        assert not list(tmp_path.iterdir())
    end_s = time.monotonic() + HANG_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end_s, "children are left"
        time.sleep(0.02)

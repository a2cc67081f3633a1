"""The pages say what the code says, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway import policies
from gateway.cli.main import VERBS
from gateway.cli.reference import reference as cli_reference
from gateway.config.load import shipped_catalog
from gateway.config.reference import reference as config_reference
from gateway.openai.errors import Kind

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
CODE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gateway").rglob("*.py"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_configurations_page_is_the_codes() -> None:
    assert text("docs/config.md") == config_reference(), "run: slo-gateway config reference > docs/config.md"


def test_the_commands_page_is_the_codes() -> None:
    assert text("docs/cli.md") == cli_reference(), "write gateway.cli.reference.reference() to docs/cli.md"


def test_every_verb_is_in_the_readme() -> None:
    box = text("README.md")
    assert not [verb for verb in VERBS if f"`{verb}`" not in box and f"slo-gateway {verb}" not in box]


def test_every_header_is_in_its_page_and_no_other() -> None:
    page = text("docs/headers.md")
    in_code = set(re.findall(r"(x-(?:slo|llm-d|sgl)-[a-z-]+[a-z])\b", CODE))
    on_page = set(re.findall(r"(x-(?:slo|llm-d|sgl)-[a-z-]+[a-z])", page))
    assert in_code == on_page


def test_every_error_code_is_in_the_headers_page() -> None:
    page = text("docs/headers.md")
    by_status_alone = {"method_not_allowed", "request_timeout", "request_too_large", "uri_too_long", "headers_too_large"}
    unsaid = by_status_alone | {"unsupported_content_encoding", "internal_error"}
    assert not [kind.value for kind in Kind if kind.value not in unsaid and f"`{kind.value}`" not in page]


def test_no_error_code_is_in_the_headers_page_that_nobody_sends() -> None:
    section = text("docs/headers.md").split("## Errors and refusals")[1]
    rows = re.findall(r"^\| [\d4x, ]+ \| (.*?) \|", section, re.MULTILINE)
    assert {code for row in rows for code in re.findall(r"`([a-z_]+)`", row)} <= {kind.value for kind in Kind}


def test_fields_that_are_no_tags_are_in_the_headers_page_too() -> None:
    page = text("docs/headers.md")
    named = ("x-request-id", "traceparent", "server-timing", "retry-after", "retry-after-ms", "x-should-retry", "anthropic-version")
    assert not [name for name in named if f"`{name}`" not in page and f"`{name}:" not in page]


def test_every_policy_is_in_its_page_and_under_sixty_lines() -> None:
    page = text("docs/policies.md")
    assert not [name for name in policies.names() if f"`{name}`" not in page]
    for name in policies.names():
        assert len((ROOT / "gateway" / "policies" / f"{name}.py").read_text().splitlines()) < 60, name


def test_the_readmes_table_of_promises_is_the_catalogues() -> None:
    rows = [line for line in text("README.md").splitlines() if re.match(r"\| .* \| .* \| \d+ (ms|s) \|", line)]
    assert len(rows) == len(shipped_catalog().use_cases)
    for row, use_case in zip(rows, shipped_catalog().use_cases.values(), strict=True):
        ttft = re.findall(r"\| (\d+) (ms|s) \|", row)[0]
        assert use_case.targets.ttft_s == float(ttft[0]) / (1000 if ttft[1] == "ms" else 1), row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target

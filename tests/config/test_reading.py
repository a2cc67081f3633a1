"""Plain data become a configuration's values as they are meant, or are refused as what they are."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.config.catalog import Catalog, Targets
from gateway.config.gpus import shipped_gpus
from gateway.config.load import load
from gateway.config.mistakes import in_words
from gateway.config.quantities import Secret
from gateway.config.reading import as_written, read_as, shown
from gateway.config.reference import schema
from gateway.config.settings import Key, Limits, Model, Pool, QuotaLimits, Settings, State, Timeouts

FOLDER = Path("/nowhere")
POOL = {"tier": "premium", "model": "m", "instances": ["http://a"]}


def told(kind: type[Any], data: object, folder: Path | None = None) -> str:
    with pytest.raises(ValidationError) as caught:
        read_as(kind, data, folder)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {in_words(one)}" for one in caught.value.errors())


def test_quantities_from_a_file_carry_their_units_and_those_from_code_are_seconds_and_bytes() -> None:
    assert read_as(Timeouts, {"header": "150ms"}, FOLDER).header_s == 0.15
    assert read_as(Timeouts, {"header_s": 2}).header_s == 2.0
    assert read_as(Limits, {"body_bytes": 5}).body_bytes == 5
    assert told(Timeouts, {"header": 2}, FOLDER) == "header: expected a duration with its unit, such as 150ms, 7s or 2m"
    assert told(Limits, {"body_bytes": 5}, FOLDER) == "body_bytes: expected a size with its unit, such as 16KiB or 8MiB"
    assert told(Timeouts, {"header": "0s"}, FOLDER) == "header: expected greater than 0"
    assert told(State, {"timeout": "1m"}, FOLDER) == "timeout: expected less than or equal to 5"


@pytest.mark.parametrize("wrong", [True, "5", 5.5, [5], {"a": 5}, math.nan, math.inf, -1, 2**63, 10**40])
def test_a_count_is_a_whole_number_in_its_range_and_nothing_else(wrong: object) -> None:
    assert told(QuotaLimits, {"concurrent": wrong}).startswith("concurrent: expected")


@pytest.mark.parametrize("wrong", ["true", 1, 0, "yes"])
def test_yes_and_no_are_not_guessed(wrong: object) -> None:
    assert told(Key, {"id": "a", "degrade": wrong}) == "degrade: expected a valid boolean"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, 1001, "1.0", True])
def test_a_weight_is_a_finite_number(wrong: object) -> None:
    assert told(Key, {"id": "a", "weight": wrong}).startswith("weight: expected")
    assert read_as(Key, {"id": "a", "weight": 2}).weight == 2.0


@pytest.mark.parametrize("wrong", ["", "a b", "a\n", "\n", "ü", "-a", "a" * 257])
def test_a_name_is_of_plain_characters_to_its_last_one(wrong: str) -> None:
    assert told(Model, {"name": wrong}).startswith("name: ")
    assert told(Settings, {"models": [{"name": "m"}], "pools": {wrong: POOL}}).startswith(f"pools.{wrong}")


def test_keys_are_expected_where_there_should_be_some() -> None:
    assert told(Pool, 5) == ": expected keys and their values"
    assert told(Settings, {"models": ["m"], "pools": {"p": POOL}}).startswith("models.0: expected keys and their values")


def test_a_promise_is_one_value_or_a_range_in_order_wherever_it_stands() -> None:
    targets = {"ttft": "1s", "itl": "50ms"}
    assert read_as(Targets, targets | {"e2e": "18s"}, FOLDER).slo.e2e_s == 18.0
    both = read_as(Targets, targets | {"e2e": {"target": "15s", "limit": "20s"}}, FOLDER).slo
    assert (both.e2e_s, both.e2e_limit_s) == (15.0, 20.0)
    assert (
        told(Targets, targets | {"e2e": {"target": "15s", "limit": "2s"}}, FOLDER) == "e2e: expected a limit that is not below its target"
    )
    assert told(Targets, targets | {"e2e": ["15s"]}, FOLDER).startswith("e2e.target: expected a duration")


def test_a_secret_is_text_or_a_file_and_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush\n")
    (tmp_path / "none").write_text(" \n")
    whole = read_as(Key, {"id": "a", "key": "file:key"}, tmp_path)
    assert whole.key == Secret("hush")
    assert whole.key != Secret("loud")
    assert "hush" not in f"{whole}{whole.key}{whole.key!r}{shown(whole)!r}{as_written(whole)}"
    for wrong in ("file:none", "file:missing", "file:\0", 5):
        assert "hush" not in told(Key, {"id": "a", "key": wrong}, tmp_path)


def test_what_is_shown_can_be_read_again() -> None:
    loaded = load()
    for kind, value in ((Settings, loaded.settings), (Catalog, loaded.catalog)):
        assert read_as(kind, json.loads(shown(value)), FOLDER) == value
        assert read_as(kind, as_written(value), FOLDER) == value
        assert read_as(kind, asdict(value)) == value
    assert read_as(type(loaded.gpus), asdict(loaded.gpus)) == shipped_gpus()


def test_nothing_changes_a_configuration_once_it_is_read() -> None:
    with pytest.raises(FrozenInstanceError):
        load().settings.listen.port = 5  # type: ignore[misc]


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "target", "x"]) | st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(list(Settings.__dataclass_fields__)), _ANYTHING))
def test_whatever_it_is_it_is_read_or_refused(data: dict[str, Any]) -> None:
    with contextlib.suppress(ValidationError):
        assert read_as(Settings, data, FOLDER).models


def test_the_schema_says_of_every_field_what_it_means_and_writes_defaults_as_a_file_would() -> None:
    described = schema()
    timeouts = described["$defs"]["Timeouts"]["properties"]
    assert timeouts["connect"]["default"] == "500ms"
    assert described["properties"]["timeouts"]["default"]["connect"] == "500ms"
    assert timeouts["connect"]["type"] == "string"
    for part in (described, *described["$defs"].values()):
        for field in part.get("properties", {}).values():
            assert field["description"]

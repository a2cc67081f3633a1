"""One line a request: what it was and what it got, read back as it was written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.core.flow import Outcome, RefuseReason, Result
from gateway.measure.log_line import DamagedLogError, line_of, read_log
from tests.measure.conftest import completed, placed, waiting


def written(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def test_a_line_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    lines = [line_of(placed(), completed(), 1_700_000_000.123456), line_of(placed(stream=False, n=2), completed(), 1_700_000_001.0)]
    path = written(tmp_path / "log", *(msgspec.json.encode(line) + b"\n" for line in lines))
    assert list(read_log(path)) == lines


def test_a_line_says_what_was_promised_and_whether_it_was_kept() -> None:
    line = line_of(placed(), completed(ttft_s=0.2), 1.0)
    assert (line.ttft_target_s, line.itl_target_s, line.e2e_target_s) == (0.15, 0.025, 7.0)
    assert line.attained is False
    assert (line.pool, line.instance, line.result) == ("premium", "premium/a:8000", "completed")


def test_a_refused_request_has_a_line_with_its_reason_and_no_pool() -> None:
    line = line_of(waiting(), Outcome(Result.REFUSED, refuse_reason=RefuseReason.EXPIRED, status=429), 1.0)
    assert (line.result, line.reason, line.pool, line.attained, line.status) == ("refused", "expired", "", False, 429)
    assert line.prompt_tokens == 512  # as estimated, since no engine has told


def test_a_client_that_left_is_neither_attained_nor_missed() -> None:
    assert line_of(placed(), Outcome(Result.CLIENT_GONE, status=499), 1.0).attained is None


def test_the_last_line_may_be_cut_short(tmp_path: Path) -> None:
    whole = msgspec.json.encode(line_of(placed(), completed(), 1.0)) + b"\n"
    path = written(tmp_path / "log", whole, whole[:-20])
    assert len(list(read_log(path))) == 1


def test_a_damaged_line_in_the_middle_is_told_by_its_number(tmp_path: Path) -> None:
    whole = msgspec.json.encode(line_of(placed(), completed(), 1.0)) + b"\n"
    path = written(tmp_path / "log", whole, b"\n", whole[:-20] + b"\n", whole)
    with pytest.raises(DamagedLogError, match=r"log:3: not a line of a request log"):
        list(read_log(path))


def test_fields_of_a_later_version_are_skipped(tmp_path: Path) -> None:
    line = msgspec.json.decode(msgspec.json.encode(line_of(placed(), completed(), 1.0))) | {"moon_phase": "full"}
    [read] = read_log(written(tmp_path / "log", msgspec.json.encode(line) + b"\n"))
    assert read.use_case == "chatbot"

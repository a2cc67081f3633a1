"""The request log is complete, survives its disk, and has no word of a prompt."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from gateway.core.flow import Outcome
from gateway.measure.log_line import LogLine, read_log
from gateway.telemetry import request_log
from gateway.telemetry.request_log import RequestLog
from tests.conftest import Place, chat, until
from tests.measure.conftest import START_S, completed, placed

EPOCH_UNIX_S = 1_700_000_000.0


def log_at(path: Path, max_bytes: int = 0) -> RequestLog:
    return RequestLog(path, max_bytes, unix_s=lambda: EPOCH_UNIX_S + 5.0, now_s=lambda: START_S + 5.0)


def test_every_request_that_ended_has_its_line_when_the_gateway_stops(tmp_path: Path) -> None:
    log = log_at(tmp_path / "requests.jsonl")
    log.start()
    for second in range(500):
        log.observe(placed(arrived_at_s=START_S + second), completed(), START_S + second + 5)
    log.stop()
    lines = list(read_log(tmp_path / "requests.jsonl"))
    assert [line.arrived_unix_s for line in lines] == [EPOCH_UNIX_S + second for second in range(500)]
    assert log.dropped == 0


def test_lines_are_written_while_the_gateway_runs(tmp_path: Path) -> None:
    log = log_at(tmp_path / "requests.jsonl")
    log.start()
    try:
        log.observe(placed(), completed(), START_S)
        until(lambda: (tmp_path / "requests.jsonl").read_bytes().endswith(b"}\n"), what="the line to be written")
        assert log.dropped == 0
    finally:
        log.stop()


def test_a_full_file_is_moved_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = log_at(path, max_bytes=4000)
    log._open()
    for _ in range(40):
        log.observe(placed(), completed(), START_S)
        log._flush()
    log._close()
    assert path.stat().st_size <= 4000
    assert path.with_name("requests.jsonl.1").stat().st_size <= 4000
    assert log.dropped == 0


def test_two_workers_that_find_the_file_full_at_once_move_it_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    both = [log_at(path), log_at(path)]
    for log in both:
        log._open()
        log.observe(placed(), completed(), START_S)
        log._flush()
    both[0]._rotate()
    both[0].observe(placed(), completed(), START_S)
    both[0]._flush()
    both[1]._rotate()
    both[1].observe(placed(), completed(), START_S)
    both[1]._flush()
    assert len(list(read_log(path.with_name("requests.jsonl.1")))) == 2
    assert len(list(read_log(path))) == 2


def test_a_file_that_somebody_else_moved_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    log = log_at(path)
    log._open()
    for _ in range(2):
        log.observe(placed(), completed(), START_S)
        log._flush()
        os.replace(path, tmp_path / "moved")
    log.observe(placed(), completed(), START_S)
    log._flush()
    log._close()
    assert len(list(read_log(path))) == 1
    assert log.dropped == 0


def test_a_full_disk_costs_lines_and_a_counter(tmp_path: Path) -> None:
    log = log_at(Path("/dev/full"))
    log._open()
    for _ in range(3):
        log.observe(placed(), completed(), START_S)
    log._flush()
    log._close()
    assert log.dropped == 3
    assert "No space left" in log.problem


def test_a_folder_that_is_gone_costs_lines_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = log_at(folder / "requests.jsonl")
    log._open()
    (folder / "requests.jsonl").unlink()
    folder.rmdir()
    log.observe(placed(), completed(), START_S)
    log._flush()
    folder.mkdir()
    log.observe(placed(), completed(), START_S)
    log._flush()
    log._close()
    assert log.dropped == 1
    assert len(list(read_log(folder / "requests.jsonl"))) == 1


def test_a_log_that_cannot_be_opened_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        log_at(tmp_path / "nowhere" / "requests.jsonl").start()


def test_memory_is_bounded_when_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "MAX_BUFFERED", 10)
    log = log_at(tmp_path / "requests.jsonl")
    for _ in range(15):
        log.observe(placed(), completed(), START_S)
    assert (len(log._lines), log.dropped) == (10, 5)


def test_a_line_has_no_field_that_could_hold_a_prompt() -> None:
    # Every field of text is an id, a name from configuration or catalogue, or an enum's word.
    texts = {field.name for field in msgspec.structs.fields(LogLine) if field.type is str}
    assert texts == {
        "request_id",
        "tenant",
        "endpoint",
        "model",
        "use_case",
        "experience_class",
        "why",
        "result",
        "degraded_from",
        "reason",
        "pool",
        "instance",
    }
    assert not {name for name in Outcome.__dataclass_fields__ if "text" in name or "content" in name}


def test_a_served_prompt_and_its_answer_are_nowhere_in_what_the_gateway_writes(place: Place, tmp_path: Path) -> None:
    import httpx

    engine = place.engine()
    path = tmp_path / "requests.jsonl"
    gateway = place.before(engine.url, telemetry={"request_log": str(path)})
    secret = "swordfish-seventeen"
    body = chat(messages=[{"role": "system", "content": secret}, {"role": "user", "content": secret}], user=secret)
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    said = answer.json()["choices"][0]["message"]["content"]
    metrics = httpx.get(f"{gateway.admin}/metrics").text
    gateway.stop()
    [line] = list(read_log(path))
    assert line.request_id == answer.headers["x-request-id"]
    written = path.read_text() + gateway.text() + metrics
    assert secret not in written
    assert said.strip()
    assert said not in written

"""A configuration that is read in another process says there what it would have said here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config.asked import Asked, Over
from gateway.config.loaded import ConfigError, Loaded
from gateway.config.oneline import from_file, loaded_from_args
from gateway.serve import reader
from gateway.serve.reader import Reader

FILE = """
models: [{name: m, aliases: {a: {use_case: chatbot}}}]
pools: {p: {tier: premium, gpu: H100, model: m, instances: [http://a:8000], batch_window: 20ms}}
keys: [{id: k, key: file:secret}, {id: l, key: "${HUSH_HERE}"}]
use_cases: {chatbot: {targets: {e2e: {target: 5s, limit: 9s}}}}
"""

Read = Callable[[Reader], Loaded]


@pytest.fixture(params=["at the start", "again"])
def read(request: pytest.FixtureRequest) -> Read:
    return (lambda reader: reader.begin()()) if request.param == "at the start" else (lambda reader: asyncio.run(reader()))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "secret").write_text("hush")
    monkeypatch.setenv("HUSH_HERE", "quiet")
    file = tmp_path / "gateway.yaml"
    file.write_text(FILE)
    return file


def findings(read: Read, file: Path | str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(Reader(Asked(str(file))))
    return [str(finding) for finding in caught.value.findings]


def test_it_is_what_reading_it_here_would_give_with_the_command_line_on_top(file: Path, read: Read) -> None:
    over = Over(port=1234, admin_port=0, mode="observe", workers=2, state="redis://a")
    there = read(Reader(Asked(str(file), over=over)))
    assert there == from_file(str(file), over)
    assert [key.key.get_secret_value() for key in there.settings.keys if key.key] == ["hush", "quiet"]
    assert (there.settings.listen.port, there.settings.mode.value, there.settings.state.url) == (1234, "observe", "redis://a")
    assert b"redis://a" in there.shown
    assert b"hush" not in there.shown


def test_one_line_of_arguments_is_read_there_too(read: Read) -> None:
    pools = ("premium:H100=http://a", "cost:A10:limit=3=http://b")
    assert read(Reader(Asked(None, "m", pools, Over(port=0)))) == loaded_from_args("m", pools, Over(port=0))
    with pytest.raises(ConfigError, match="is not NAME"):
        read(Reader(Asked(None, "m", ("nonsense",))))


def test_every_mistake_comes_back_with_its_place(file: Path, read: Read) -> None:
    file.write_text(FILE.replace("tier:", "teir:").replace("file:secret", "file:nothing"))
    with pytest.raises(ConfigError) as here:
        from_file(str(file))
    assert findings(read, file) == [str(finding) for finding in here.value.findings]
    assert len(here.value.findings) > 2
    assert "cannot be read" in findings(read, file.parent / "missing.yaml")[0]


@pytest.mark.parametrize(
    ("fate", "says"), [("import os; os.abort()", "ended with -6"), ("import signal; signal.pause()", "could not be read within")]
)
def test_a_reader_that_dies_or_hangs_is_a_refusal(file: Path, read: Read, monkeypatch: pytest.MonkeyPatch, fate: str, says: str) -> None:
    monkeypatch.setattr(reader, "BEGIN", fate)
    monkeypatch.setattr(reader, "WITHIN_S", 0.5 if "pause" in fate else 30.0)
    assert says in findings(read, file)[0]

"""Writes the request log: one JSON line a request (measure/log_line.py says what is in it), off the request path.

A line is made when the request ends and kept in memory; a thread of its own writes what has gathered once a second. A disk that is full,
slow or gone costs lines and a counter, never a request. Workers may share a file, and logrotate may move it: whoever finds it moved
opens it anew.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.core.flow import Outcome, Placement, Ticket
from gateway.measure.log_line import line_of

MAX_BUFFERED = 50_000  # lines, some 25 MB: a minute of a busy worker
FLUSH_EVERY_S = 1.0


class RequestLog:
    """An observer of outcomes. `unix_s` tells wall time and `now_s` the core's clock at the same moment; both are read once here, so
    that arrival times in the log keep the exact distances of the core's clock."""

    def __init__(self, path: str | Path, max_bytes: int, unix_s: Callable[[], float], now_s: Callable[[], float]) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.dropped = 0  # lines given up
        self.problem = ""  # the last reason why
        self._epoch_unix_s = unix_s() - now_s()
        self._lines: list[bytes] = []
        self._encode = msgspec.json.Encoder().encode
        self._wake = threading.Event()
        self._stopping = False
        self._file = -1
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Begin to write. OSError when the file cannot be opened at all: better now than after the first request."""
        self._open()
        self._thread.start()

    def observe(self, subject: Placement | Ticket, outcome: Outcome, now_s: float) -> None:
        """Note one ended request."""
        lines = self._lines
        if len(lines) >= MAX_BUFFERED:
            self.dropped += 1
            return
        ticket = subject.ticket if isinstance(subject, Placement) else subject
        lines.append(self._encode(line_of(subject, outcome, self._epoch_unix_s + ticket.request.arrived_at_s)))

    def stop(self) -> None:
        """Write what is left and close. Waits for the disk at most a few seconds."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(FLUSH_EVERY_S)
            self._flush()
        self._flush()
        if self._file >= 0:
            self._close()

    def _flush(self) -> None:
        lines = self._lines[:]
        if not lines:
            return
        del self._lines[: len(lines)]  # and not a new list: `observe` may just be about to append to this one
        data = memoryview(b"\n".join((*lines, b"")))
        try:
            if self._file < 0:
                self._open()
            elif self._moved():
                self._close()
                self._open()
            elif self.max_bytes and os.fstat(self._file).st_size + len(data) > self.max_bytes:
                self._rotate()
            start, length = os.fstat(self._file).st_size, len(data)
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError:
                # No half line is left behind, unless another worker has written after it.
                written = length - len(data)
                if written and os.fstat(self._file).st_size == start + written:
                    os.ftruncate(self._file, start)
                raise
        except OSError as problem:
            self.dropped += len(lines)
            self.problem = f"{self.path}: {problem.strerror or problem}"

    def _moved(self) -> bool:
        """Has another worker, or logrotate, moved the file away?"""
        try:
            return os.stat(self.path).st_ino != os.fstat(self._file).st_ino
        except FileNotFoundError:
            return True

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def _rotate(self) -> None:
        # Workers find a file full at the same time: who is second would move the first one's new file over the old.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if not self._moved():
            os.replace(self.path, self.path.with_name(self.path.name + ".1"))
        self._close()
        self._open()

    def _close(self) -> None:
        os.close(self._file)
        self._file = -1

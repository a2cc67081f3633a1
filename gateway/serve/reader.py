"""Has the configuration read by another process (config/apart.py), at the start and whenever it is read again.

What comes back is what `load` would have said, or all that is wrong. Nothing is kept between two reads.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import gateway

if TYPE_CHECKING:
    from gateway.config.asked import Asked
    from gateway.config.loaded import ConfigError, Loaded

Reads = Callable[[], Awaitable["Loaded"]]
"""how a configuration is read again; ConfigError when it is wrong"""

WITHIN_S = 60.0
"""for one read; the largest file that is read at all, 4 MiB, takes some 30 s of a processor"""

# As in seats.py: the package is where ours was found, and the working directory is not looked at.
BEGIN = "import sys; place = sys.argv.pop(1); place in sys.path or sys.path.insert(0, place); from gateway.config.apart import main; main()"


class Reader:
    """Of what a command line asked for."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def _command(self, patient: bool) -> list[str]:
        asked = msgspec.json.encode(replace(self._asked, patient=patient)).decode()
        return [sys.executable, "-P", "-c", BEGIN, str(Path(gateway.__file__).parents[1]), asked]

    def begin(self) -> Callable[[], Loaded]:
        """Before there is a loop: it is read while this process imports what it will serve with. Call the result for what came of it;
        ConfigError as from load."""
        process = subprocess.Popen(self._command(patient=False), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)  # noqa: S603

        def ended() -> Loaded:
            try:
                told, _ = process.communicate(timeout=WITHIN_S)
            except subprocess.TimeoutExpired:
                raise _late() from None
            finally:
                process.kill()
                process.wait()
            return _understood(process.returncode, told)

        return ended

    async def __call__(self) -> Loaded:
        """What it says now. ConfigError as from load."""
        import asyncio  # by now it is there; at the start `begin` comes before all that serves

        process = await asyncio.create_subprocess_exec(
            *self._command(patient=True),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the gateway
        )
        try:
            told, _ = await asyncio.wait_for(process.communicate(), WITHIN_S)
        except TimeoutError:
            raise _late() from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return _understood(process.returncode, told)


def _understood(status: int | None, told: bytes) -> Loaded:
    from gateway.config.handed import taken
    from gateway.config.loaded import ConfigError, Finding

    if status != 0:
        raise ConfigError([Finding("(the configuration)", None, "", f"the process that reads it ended with {status}")])
    if told[:1] == b"+":
        return taken(told[1:])
    raise ConfigError(msgspec.msgpack.decode(told[1:], type=list[Finding]))


def _late() -> ConfigError:
    from gateway.config.loaded import ConfigError, Finding

    return ConfigError([Finding("(the configuration)", None, "", f"it could not be read within {WITHIN_S:.0f} s")])

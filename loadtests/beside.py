"""What stands beside the load in a process of its own: the servers of a row, who harms them, and who watches how gateways come back.

None of it may hold up the process that sends requests and answers them as engines do: a thread there would take its interpreter's turns,
and what that costs a request would be taken for the fault's. The parent speaks JSON, a line each: it hears the state's address, says when
to begin and where the gateways' admin ports are, and hears when it was over. When its side is closed, all servers end.

    python loadtests/beside.py ROW SERVER_BINARY FOLDER
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from loadtests.faults import LASTS_S, ROWS, Servers

BACK_S = 15.0
"""for all to share again"""
STARTS_S, ENDS_S = 60.0, 10.0


class Beside:
    """The parent's side."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child
        self.url = ""

    @classmethod
    async def begun(cls, name: str, binary: str, folder: Path) -> Beside:
        """Once the servers of this row stand."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, __file__, name, binary, str(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        beside = cls(child)
        try:
            beside.url = (await asyncio.wait_for(beside._heard(), STARTS_S))["url"]
        except BaseException:
            await beside.ended()
            raise
        return beside

    async def over(self, admin: list[str], workers: int) -> dict[str, Any]:
        """Harm them now. When it began and was over on the monotonic clock, and how long after that all `workers` shared again."""
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps({"admin": admin, "workers": workers}).encode() + b"\n")
        return await self._heard()

    async def _heard(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = await self.child.stdout.readline()
        if not line:
            raise RuntimeError("the process with the servers has ended")
        told: dict[str, Any] = json.loads(line)
        return told

    async def ended(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        try:
            await asyncio.wait_for(self.child.wait(), ENDS_S)
        except TimeoutError:
            self.child.kill()


def all_shared(admin: list[str], workers: int, client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        for url in admin:
            told = client.get(f"{url}/admin/shares").json()
            if told["state"] != "shared" or told["workers"] != workers or not told["store"]["connected"]:
                return False
        return True
    return False


def main() -> None:
    name, binary, folder = sys.argv[1:]
    row = ROWS[name]
    assert row.made is not None
    servers = row.made(binary, Path(folder))
    try:
        print(json.dumps({"url": servers.url}), flush=True)
        with httpx.Client() as client:
            line = sys.stdin.readline()
            if not line:
                return
            asked = json.loads(line)
            fault_at_s = time.monotonic()
            (row.fault or nothing)(servers)
            over_at_s = time.monotonic()
            while not all_shared(asked["admin"], asked["workers"], client) and time.monotonic() < over_at_s + BACK_S:
                time.sleep(0.1)
            back_s = time.monotonic() - over_at_s
        print(json.dumps({"fault_at_s": fault_at_s, "over_at_s": over_at_s, "back_s": back_s}), flush=True)
        sys.stdin.read()
    finally:
        servers.stop()


def nothing(_: Servers) -> None:
    time.sleep(LASTS_S)


if __name__ == "__main__":
    main()

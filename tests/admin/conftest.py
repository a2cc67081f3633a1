"""A worker put together as `serve` does it, before engines that are never asked, and callers of its two control apps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.admin.control import admin_app
from gateway.admin.public import public_app
from gateway.config.oneline import loaded_from_args
from gateway.core.flow import FailReason, Outcome, RefuseReason, Result
from gateway.serve.views import WorkerViews
from gateway.serve.worker import Worker
from tests.measure.conftest import SUMMARY, completed, placed, waiting

MODEL = "llama-8b"
KEY = "an-admin-key"
POOLS = ("premium:H100=http://127.0.0.1:9,http://127.0.0.1:19", "cost:L4=http://127.0.0.1:29")


class Operator:
    """Asks a worker's control apps, in the worker's own loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.worker, self.views = self.loop.run_until_complete(self._made())

    async def _made(self) -> tuple[Worker, WorkerViews]:
        worker = Worker(loaded_from_args(MODEL, POOLS))
        return worker, WorkerViews(worker)

    def ask(self, path: str, method: str = "GET", key: str | None = None, sent: str | None = None, public: bool = False) -> httpx.Response:
        """`key` guards the port, `sent` is what the caller says."""
        app = public_app(self.views) if public else admin_app(self.views, key)
        headers = {"authorization": f"Bearer {sent}"} if sent is not None else {}

        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
                return await client.request(method, path, headers=headers)

        return self.loop.run_until_complete(answer())

    def json(self, path: str) -> Any:
        answer = self.ask(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def traffic(self) -> None:
        """Ten chats (eight attained, one late, one refused), three summaries that failed or were kept, one client that left."""
        observe, now_s = self.worker.attainment.observe, time.monotonic()
        for _ in range(8):
            observe(placed(), completed(), now_s)
        observe(placed(), completed(ttft_s=0.4), now_s)
        observe(waiting(), Outcome(Result.REFUSED, refuse_reason=RefuseReason.CANNOT_MEET_SLO, status=429), now_s)
        summary = {"use_case": "summarization_short", "experience_class": "interactive", "targets": SUMMARY, "tenant": "globex"}
        observe(placed("cost", **summary), completed(ttft_s=0.5), now_s)
        observe(placed("cost", **summary), completed(ttft_s=0.6), now_s)
        observe(placed("cost", **summary), Outcome(Result.FAILED, fail_reason=FailReason.CUT), now_s)
        observe(placed(), Outcome(Result.CLIENT_GONE, status=499), now_s)


@pytest.fixture
def operator() -> Iterator[Operator]:
    made = Operator()
    yield made
    made.loop.run_until_complete(made.loop.shutdown_asyncgens())
    made.loop.close()

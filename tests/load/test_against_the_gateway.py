"""What the load tool counts outside is what the gateway counts inside."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_client_and_the_gateway_count_the_same_requests_tokens_and_promises(place: Any, stream: str) -> None:
    engine = place.engine("H100")
    front = place.before(engine.url)
    mix = ("--mix", "chatbot=2,code_completion=2", "--rate", "12", "--for", "2s", "--seed", "4")
    told = subprocess.run(
        [sys.executable, "-m", "gateway", "load", front.url, "--model", "llama-8b", *mix, stream, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    outside = {row["name"]: row for row in json.loads(told.stdout)["rows"]}
    report = httpx.get(f"{front.admin}/admin/slo", params={"window": "5m", "by": "use_case"}).json()
    inside = {row["name"]: row for row in report["rows"]} | {"all": report["total"]}
    assert set(outside) == set(inside) == {"chatbot", "code_completion", "all"}
    for name, row in outside.items():
        assert row["offered"] == inside[name]["offered"] > 0
        assert row["refused"] == sum(inside[name]["refused"].values())
        assert row["failed"] == inside[name]["failed"] == {}
        assert row["output_tokens"] == inside[name]["output_tokens"]
        assert row["e2e"]["samples"] == inside[name]["completed"]
        assert row["ttft"]["samples"] == (inside[name]["latencies"]["ttft"]["samples"] if stream == "--stream" else 0)
        # A client sees what the gateway sees and the way to it: never less, but for the histograms' own 1.1 %.
        assert row["e2e"]["p50_s"] >= inside[name]["latencies"]["e2e"]["p50_s"] * 0.97

"""What engines say of themselves: their model, what they are, how much fits. For `slo-gateway init`; nothing here runs beside requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.core.flow import EngineKind


@dataclass(frozen=True, slots=True)
class Found:
    """One engine. `problem` says why nothing could be learnt of it."""

    url: str
    models: tuple[str, ...] = ()
    kind: EngineKind = EngineKind.OPENAI
    version: str = ""
    kv_tokens: int = 0
    problem: str = ""


async def discover(url: str, timeout_s: float = 3.0) -> Found:
    """Ask one engine. Never raises for what an engine does."""
    url = url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
        try:
            listed = await client.get(f"{url}/v1/models")
            models = _names(listed.json()) if listed.status_code == 200 else ()
            metrics = await _text(client, f"{url}/metrics")
            version = _version(await _text(client, f"{url}/version"))
        except (httpx.HTTPError, ValueError) as error:
            return Found(url, problem=f"{type(error).__name__}: {str(error)[:120]}")
    kind, kv_tokens = EngineKind.OPENAI, 0
    if "vllm:" in metrics:
        kind = EngineKind.VLLM
        blocks = re.search(r'num_gpu_blocks="(\d+)"', metrics)
        size = re.search(r'block_size="(\d+)"', metrics)
        kv_tokens = int(blocks[1]) * int(size[1]) if blocks and size else 0
    elif "sglang:" in metrics:
        kind = EngineKind.SGLANG
        held = re.search(r"^sglang:max_total_num_tokens\S* ([\d.e+]+)", metrics, re.MULTILINE)
        kv_tokens = int(float(held[1])) if held else 0
    elif "dynamo_" in metrics:
        kind = EngineKind.DYNAMO
        blocks = re.search(r"^dynamo_frontend_model_total_kv_blocks\S* (\d+)", metrics, re.MULTILINE)
        size = re.search(r"^dynamo_frontend_model_kv_cache_block_size\S* (\d+)", metrics, re.MULTILINE)
        kv_tokens = int(blocks[1]) * int(size[1]) if blocks and size else 0
    if not models:
        return Found(url, kind=kind, version=version[:80], problem=f"/v1/models answered {listed.status_code} and names no model")
    return Found(url, models, kind, version[:80], kv_tokens)


def _names(listed: Any) -> tuple[str, ...]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return tuple(str(row["id"]) for row in data if isinstance(row, dict) and "id" in row) if isinstance(data, list) else ()


def _version(text: str) -> str:
    """vLLM says `{"version": "0.32.0"}`."""
    found = re.search(r'"version"\s*:\s*"([^"]{1,80})"', text)
    return found[1] if found else text.strip()


async def _text(client: httpx.AsyncClient, url: str) -> str:
    try:
        answer = await client.get(url)
    except httpx.HTTPError:
        return ""
    return answer.text[:1_000_000] if answer.status_code == 200 else ""

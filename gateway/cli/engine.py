"""`slo-gateway engine`: a simulated engine."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gateway.simulate.machine import MachineFacts


@click.command()
@click.option("--gpu", default="H100", show_default=True, help="What it takes the time of: H100, A100, L40S, A10, A10G, L4, T4.")
@click.option("--engine-config", default="", help="Weights of 8 or 4 bits: w8, w4.")
@click.option("--model", required=True, help="The model it says it serves.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free one.")
@click.option("--max-num-seqs", type=click.IntRange(1, 4096), default=256, show_default=True, help="Requests in its batch.")
@click.option("--chunk-tokens", type=click.IntRange(16, 65536), default=2048, show_default=True, help="Prompt tokens read in one step.")
@click.option("--jitter", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Spread of a step's time.")
@click.option("--max-model-len", type=click.IntRange(16), default=131072, show_default=True, help="The longest prompt it takes, in tokens.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--slow", type=click.FloatRange(0.01, 1000), default=1.0, help="Fault: every step takes so many times longer.")
@click.option("--stall-after", type=click.IntRange(0), default=0, help="Fault: streams stop after so many tokens.")
@click.option("--die-after", type=click.IntRange(0), default=0, help="Fault: connections are cut after so many tokens.")
@click.option("--error-ratio", type=click.FloatRange(0, 1), default=0.0, help="Fault: share of requests answered 500.")
@click.option("--silent", is_flag=True, help="Fault: takes requests and answers nothing.")
@click.option("--malformed-after", type=click.IntRange(0), default=0, help="Fault: bytes that are no event after so many tokens.")
def command(
    gpu: str,
    engine_config: str,
    model: str,
    host: str,
    port: int,
    max_num_seqs: int,
    chunk_tokens: int,
    jitter: float,
    max_model_len: int,
    seed: int,
    slow: float,
    stall_after: int,
    die_after: int,
    error_ratio: float,
    silent: bool,
    malformed_after: int,
) -> None:
    """A simulated OpenAI engine that takes the time a GPU would.

    \b
    slo-gateway engine --gpu H100 --model llama-8b --port 9001
    curl localhost:9001/v1/chat/completions -d '{"model":"llama-8b","messages":[{"role":"user","content":"hi"}]}'
    curl localhost:9001/fault -d '{"slow_ratio": 5}'        faults can be changed while it runs
    """
    facts = facts_of(gpu, engine_config, chunk_tokens=chunk_tokens, max_num_seqs=max_num_seqs, jitter_ratio=jitter)
    faults = {"slow_ratio": slow, "stall_after_tokens": stall_after, "die_after_tokens": die_after, "error_ratio": error_ratio}
    faults |= {"malformed_after_tokens": malformed_after, "silent": silent}
    try:
        import uvloop

        uvloop.run(_run(model, facts, seed, max_model_len, host, port, faults, gpu))
    except OSError as error:
        click.echo(f"cannot listen on {host}:{port}: {error.strerror}", err=True)
        sys.exit(2)


def facts_of(gpu: str, engine_config: str, **more: Any) -> MachineFacts:
    """Of a GPU that is known; click.BadParameter names those there are."""
    from gateway.config.gpus import shipped_gpus
    from gateway.simulate.fleets import kv_tokens_of
    from gateway.simulate.machine import MachineFacts

    known = shipped_gpus().find(gpu)
    times = known.step_times(engine_config) if known is not None else None
    if known is None or times is None:
        names = ", ".join(shipped_gpus().gpus)
        what = f"no GPU is named {gpu!r}; there are {names}" if known is None else f"{known.name} runs {', '.join(known.steps)}"
        raise click.BadParameter(what, param_hint="--gpu")
    kv_tokens = kv_tokens_of(known.memory_bytes, engine_config)
    return MachineFacts(times.a, times.b, times.c, times.d, kv_tokens=kv_tokens, prefix_cache=True, **more)


async def _run(
    model: str, facts: MachineFacts, seed: int, max_model_tokens: int, host: str, port: int, faults: dict[str, float], gpu: str
) -> None:
    from gateway.simulate.engine import Engine, serve

    engine = Engine(model, facts, seed, max_model_tokens)
    engine.faults.change(faults)
    server = await serve(engine, host, port)
    at = server.sockets[0].getsockname()[1]
    click.echo(f"{gpu} serving {model} on http://{host}:{at}", err=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    server.close()

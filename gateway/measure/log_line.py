"""One line of the request log: what a request was, how it was served, and what it got. Never a word of its prompt or answer.

The format is JSON Lines, written by telemetry/request_log.py and read back here, by the simulator (which replays arrivals, lengths and
tags) and by `slo-gateway train`. Readers skip what they do not know, so fields may be added; a field keeps its meaning for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from gateway.core.flow import Outcome, Placement, Ticket
from gateway.measure.attainment import judge


class LogLine(msgspec.Struct, omit_defaults=True, gc=False):
    """Durations in seconds. Fields at their default are left out of the line."""

    arrived_unix_s: float  # the request's last byte was read; orders lines, which are written as requests end
    request_id: str
    tenant: str
    endpoint: str  # chat, completions, responses, embeddings, messages
    model: str
    use_case: str
    experience_class: str  # served as
    why: str  # why it was taken for this use case
    prompt_tokens: int  # as the engine reports, or as estimated when it had none to report
    result: str  # completed, failed, refused, client_gone
    ttft_target_s: float
    itl_target_s: float
    e2e_target_s: float
    attained: bool | None  # null: not offered (the client left, or its request was wrong)
    output_tokens: int = 0
    cached_tokens: int = 0
    max_output_tokens: int | None = None  # what the caller allowed; left out when unsaid
    stream: bool = False
    choices: int = 1
    app: int = 0  # fingerprint of the application; 0 = unknown
    degraded_from: str = ""  # the class it asked for, when it took a looser one
    attained_strict: bool = False
    reason: str = ""  # of a refusal or failure
    status: int = 200
    pool: str = ""  # "" = never placed
    instance: str = ""
    tries: int = 0  # placements that failed before the one that counts
    queue_s: float = 0.0
    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_p95_s: float | None = None
    e2e_s: float | None = None
    tokens_estimated: bool = False  # the engine reported no usage


def line_of(subject: Placement | Ticket, outcome: Outcome, arrived_unix_s: float) -> LogLine:
    """The line of one ended request; `subject` is its placement, or the ticket of a request that never had one."""
    if isinstance(subject, Placement):
        ticket, pool, instance = subject.ticket, subject.pool, subject.instance_id
    else:
        ticket, pool, instance = subject, "", ""
    request, tag = ticket.request, ticket.tag
    targets = tag.targets
    verdict = judge(outcome, targets, request.stream)
    reason = outcome.fail_reason or outcome.refuse_reason
    return LogLine(
        round(arrived_unix_s, 6),
        request.request_id,
        request.tenant,
        request.endpoint._value_,
        request.model,
        tag.use_case,
        tag.experience_class,
        tag.why,
        outcome.prompt_tokens or request.prompt_tokens,
        outcome.result._value_,
        targets.ttft_s,
        targets.itl_s,
        targets.e2e_s,
        verdict.attained if verdict.offered else None,
        outcome.output_tokens,
        outcome.cached_tokens,
        request.max_output_tokens,
        request.stream,
        request.n,
        request.app,
        ticket.degraded_from,
        verdict.attained_strict,
        reason._value_ if reason is not None else "",
        outcome.status,
        pool,
        instance,
        ticket.tries,
        outcome.queue_s,
        outcome.ttft_s,
        outcome.tpot_s,
        outcome.itl_p95_s,
        outcome.e2e_s,
        outcome.tokens_estimated,
    )


_decoder = msgspec.json.Decoder(LogLine)


class DamagedLogError(ValueError):
    """A line of a request log that is not one. The last line of a file may be cut short and is forgiven."""


def read_log(path: str | Path) -> Iterator[LogLine]:
    """The lines of a request log in the order they were written: as requests ended, so sort by `arrived_unix_s` to replay."""
    with open(path, "rb") as file:
        damaged = ""
        for number, line in enumerate(file, start=1):
            if damaged:
                raise DamagedLogError(damaged)
            if not line.strip():
                continue
            try:
                yield _decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
                damaged = f"{path}:{number}: not a line of a request log: {wrong}"
                if line.endswith(b"\n"):
                    raise DamagedLogError(damaged) from None

"""What users send in a simulation: jobs with arrival times, lengths, tenants and the truth about each, made from a seed or replayed.

A workload is described in a suite's YAML; `jobs` turns it into a list, the same for every policy at the same seed. Higher rates squeeze
the same jobs closer together, so that a search over rates compares like with like.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TextIO

from gateway.config.catalog import Catalog

# Lengths are lognormal around the traffic profile: the mean is the profile's, the spread (sigma of the logarithm) as below, and nothing is
# longer than LONGEST x the profile. Outputs in public traces spread more than this (Azure conversations: 1.0), the mission's profiles are
# one number each; half of that is our reading of "expected".
PROMPT_SIGMA = 0.3
OUTPUT_SIGMA = 0.5
DATA = Path(__file__).resolve().parent / "traces"  # NOTICE names their sources
LONGEST = 3.0
LONGEST_TOKENS = 1 << 20


@dataclass(slots=True)
class Job:
    """One request as it will be sent, and what only the simulation knows: its true use case and output length."""

    job_id: str
    at_s: float
    use_case: str  # the truth; `tagged` is what the gateway is told
    tagged: str
    tenant: str
    prompt_tokens: int
    output_tokens: int
    max_output_tokens: int | None = None
    app: int = 0
    hashes: tuple[int, ...] = ()
    experience_class: str | None = None  # asked for by tag
    may_degrade: bool = False
    model: str = ""  # of those the fleet serves; the first of them when it is none
    stream: bool = True


@dataclass(frozen=True, slots=True)
class Workload:
    """How jobs are made. Every field may be set in a suite."""

    name: str = "nominal"
    mix: dict[str, float] | None = None  # use case -> weight; None = all alike
    arrivals: str = "poisson"  # poisson, gamma (with cv), or raw (a trace's own gaps)
    cv: float = 1.0
    surge: tuple[float, float, float] | None = None  # from_s, until_s, times the rate
    tenants: dict[str, float] | None = None  # tenant -> share of the rate
    trace: str = ""  # azure_code, azure_conv, azure, mooncake, or a path to a trace or to a request log
    output_sigma: float = OUTPUT_SIGMA
    prompt_sigma: float = PROMPT_SIGMA
    max_tokens: str = "none"  # none, honest (1.5 x the true length), wrong (4,096 whatever comes)
    classifier_error: float = 0.0  # this share of jobs is tagged as some other use case
    shift_at_s: float = 0.0  # from then on answers are `shift_ratio` times as long
    shift_ratio: float = 1.0


def jobs(workload: Workload, catalog: Catalog, rate_per_s: float, span_s: float, seed: int, data: Path | None = None) -> list[Job]:
    """The requests of one run, by arrival. For a replay, `rate_per_s` sets the mean rate (0 = the trace's own)."""
    chance = Random(f"{seed}/{workload.name}")  # noqa: S311
    made = (
        _replayed(workload, catalog, rate_per_s, span_s, chance, data)
        if workload.trace
        else _made(workload, catalog, rate_per_s, span_s, chance)
    )
    names = list(catalog.use_cases)
    result: list[Job] = []
    for job in made:
        if workload.classifier_error and chance.random() < workload.classifier_error:
            job.tagged = chance.choice([name for name in names if name != job.use_case])
        if workload.max_tokens == "honest":
            job.max_output_tokens = math.ceil(job.output_tokens * 1.5)
        elif workload.max_tokens == "wrong":
            job.max_output_tokens = 4096
        if workload.shift_at_s and job.at_s >= workload.shift_at_s:
            job.output_tokens = max(round(job.output_tokens * workload.shift_ratio), 1)
        result.append(job)
    return result


def _made(workload: Workload, catalog: Catalog, rate_per_s: float, span_s: float, chance: Random) -> Iterator[Job]:
    mix = workload.mix or dict.fromkeys(catalog.use_cases, 1.0)
    use_cases, weights = list(mix), list(mix.values())
    tenants = workload.tenants or {"tenant": 1.0}
    names, shares = list(tenants), list(tenants.values())
    at_s, number = 0.0, 0
    while True:
        at_s += _gap(workload, chance) / (rate_per_s * _surge(workload, at_s))
        if at_s >= span_s:
            return
        use_case = chance.choices(use_cases, weights)[0]
        tenant = chance.choices(names, shares)[0]
        profile = catalog.profiles[catalog.use_cases[use_case].profile]
        prompt = _length(profile.prompt_tokens, workload.prompt_sigma, chance)
        output = _length(profile.output_tokens, workload.output_sigma, chance)
        number += 1
        yield Job(f"{number}", at_s, use_case, use_case, tenant, prompt, output)


def _gap(workload: Workload, chance: Random) -> float:
    """A gap of mean 1."""
    if workload.arrivals == "gamma" and workload.cv != 1.0:
        shape = 1.0 / workload.cv**2
        return chance.gammavariate(shape, 1.0 / shape)
    return chance.expovariate(1.0)


def _surge(workload: Workload, at_s: float) -> float:
    if workload.surge is not None and workload.surge[0] <= at_s < workload.surge[1]:
        return workload.surge[2]
    return 1.0


def _length(mean: int, sigma: float, chance: Random) -> int:
    ratio = math.exp(chance.gauss(-sigma * sigma / 2, sigma)) if sigma else 1.0
    return max(round(mean * min(ratio, LONGEST)), 1)


# ---- replays


def _replayed(workload: Workload, catalog: Catalog, rate_per_s: float, span_s: float, chance: Random, data: Path | None) -> Iterator[Job]:
    """Jobs of a trace from a random place in it, its gaps stretched to the asked rate; the trace starts over when it ends."""
    rows = trace_rows(workload.trace, catalog, data)
    length_s = rows[-1].at_s + 1e-3
    stretch = 1.0 if rate_per_s <= 0 else len(rows) / length_s / rate_per_s
    first = chance.randrange(len(rows))
    tenants = workload.tenants or {"": 1.0}
    names, shares = list(tenants), list(tenants.values())
    number, index, begin_s = 0, first, rows[first].at_s
    while True:
        row = rows[index]
        at_s = (row.at_s - begin_s) * stretch
        if at_s >= span_s:
            return
        number += 1
        tenant = chance.choices(names, shares)[0] or row.tenant
        yield Job(
            f"{number}",
            at_s,
            row.use_case,
            row.tagged,
            tenant,
            row.prompt_tokens,
            row.output_tokens,
            row.max_output_tokens,
            row.app,
            row.hashes,
            row.experience_class,
            row.may_degrade,
            row.model,
            row.stream,
        )
        index += 1
        if index == len(rows):
            index, begin_s = 0, begin_s - length_s


def trace_rows(trace: str, catalog: Catalog, data: Path | None = None) -> list[Job]:
    """All of a trace as jobs, by arrival, the first at 0. FileNotFoundError when there is no such file, ValueError when it is none."""
    folder = data or DATA
    known = {"azure_code": [("azure_code", folder / "azure_code.csv.gz")], "azure_conv": [("azure_conv", folder / "azure_conv.csv.gz")]}
    known["azure"] = known["azure_code"] + known["azure_conv"]
    rows: list[Job] = []
    if trace in known:
        for kind, path in known[trace]:
            rows += _azure(path, kind, catalog)
        rows.sort(key=lambda job: job.at_s)
    else:
        path = folder / "mooncake_conversation.jsonl.gz" if trace == "mooncake" else Path(trace)
        with _opened(path) as lines:
            for number, line in enumerate(lines):
                if not line.strip():
                    continue
                entry = json.loads(line)
                row = _mooncake(entry, number, catalog) if "hash_ids" in entry else _logged(entry, number, catalog)
                if row is not None:
                    rows.append(row)
        rows.sort(key=lambda job: job.at_s)
        rows = _with_lengths(rows)
    if not rows:
        raise ValueError(f"{trace}: no request in it")
    start_s = rows[0].at_s
    for row in rows:
        row.at_s -= start_s
    return rows


def _opened(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _azure(path: Path, kind: str, catalog: Catalog) -> list[Job]:
    """Azure's 2023 traces have no use cases. Code requests: completions up to 256 tokens of answer, generation above. Conversations: by
    the profile their prompt is nearest to (chat, generation and translation, RAG), as the classifier would by size alone."""
    rows: list[Job] = []
    with _opened(path) as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            hour, minute, second = row["TIMESTAMP"].split(" ")[1].split(":")
            prompt, output = max(int(row["ContextTokens"]), 1), max(int(row["GeneratedTokens"]), 1)
            use_case = _code(prompt, output) if kind == "azure_code" else _conversation(prompt, number)
            at_s = int(hour) * 3600 + int(minute) * 60 + float(second)
            tenant = "code" if kind == "azure_code" else "conversation"
            rows.append(Job(str(number), at_s, use_case, use_case, tenant, prompt, output))
    return rows


def _code(prompt_tokens: int, output_tokens: int) -> str:
    if output_tokens > 256:
        return "code_generation"
    return "code_completion" if prompt_tokens <= 2048 else "document_rag"


def _conversation(prompt_tokens: int, number: int) -> str:
    if prompt_tokens <= 724:  # geometric middle of 512 and 1,024
        return "chatbot"
    if prompt_tokens <= 2048:
        return ("content_generation", "translation")[number % 2]
    return ("document_rag", "summarization_short")[number % 2] if prompt_tokens <= 6476 else "summarization_long"


def _mooncake(entry: dict[str, Any], number: int, catalog: Catalog) -> Job | None:
    """Mooncake's conversations: long prompts with block hashes (512 tokens each, given here as two blocks of 256)."""
    prompt, output = max(int(entry["input_length"]), 1), max(int(entry["output_length"]), 1)
    if prompt > 32_768:
        return None  # beyond what the simulated engines hold
    if prompt <= 724:
        use_case = "chatbot"
    elif prompt <= 6476:
        use_case = "document_rag"
    else:
        use_case = ("summarization_long", "research_legal")[number % 2]
    hashes = tuple(block * 2 + half for block in entry["hash_ids"] for half in (0, 1))[: prompt // 256]
    return Job(str(number), float(entry["timestamp"]) / 1000, use_case, use_case, "mooncake", prompt, output, None, 0, hashes)


def _logged(entry: dict[str, Any], number: int, catalog: Catalog) -> Job | None:
    """A line of the gateway's own request log (docs/metrics.md names its fields). One that was refused, failed or left has said too little:
    its length is 0 here."""
    use_case = entry.get("use_case", "")
    prompt, output = int(entry.get("prompt_tokens") or 0), int(entry.get("output_tokens") or 0)
    if use_case not in catalog.use_cases or prompt <= 0:
        return None
    asked, degraded_from = entry.get("experience_class"), entry.get("degraded_from")
    asked = degraded_from or asked
    if asked == catalog.use_cases[use_case].experience_class or asked not in catalog.classes:
        asked = None
    return Job(
        str(entry.get("request_id") or number),
        float(entry["arrived_unix_s"]),
        use_case,
        use_case,
        str(entry.get("tenant", "")),
        prompt,
        output if entry.get("result") == "completed" else 0,
        entry.get("max_output_tokens"),
        int(entry.get("app") or 0),
        (),
        asked,
        bool(degraded_from),
        str(entry.get("model", "")),
        bool(entry.get("stream")),
    )


def _with_lengths(rows: list[Job]) -> list[Job]:
    """Who got no whole answer is taken to have wanted one like the others of its use case, each of theirs in turn: left out, a day of
    refusals would look like a quiet one. Where no answer is known at all, nothing is made up."""
    known: dict[str, list[int]] = {}
    for row in rows:
        if row.output_tokens:
            known.setdefault(row.use_case, []).append(row.output_tokens)
    turns = {use_case: itertools.cycle(lengths) for use_case, lengths in known.items()}
    for row in rows:
        if not row.output_tokens and row.use_case in turns:
            row.output_tokens = min(next(turns[row.use_case]), row.max_output_tokens or LONGEST_TOKENS)
    return [row for row in rows if row.output_tokens]

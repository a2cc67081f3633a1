"""Does somebody outside compute what the gateway reports? One simulated GPU, one gateway, and aiperf (or our own `load`) in front.

    python loadtests/agree.py [--rate 4] [--requests 160] [--aiperf PATH/TO/aiperf --tokenizer FOLDER]

Compares p50 and p95 of TTFT, the gap between tokens, TPOT and E2E; 2 % + 1 ms is allowed. aiperf calls TPOT "inter token latency" and the
gap "inter chunk latency", and wants a tokenizer even where the engine counts tokens; it is not among this project's dependencies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

AIPERF = {"ttft": "time_to_first_token", "itl": "inter_chunk_latency", "tpot": "inter_token_latency", "e2e": "request_latency"}
QUANTILES = ("p50", "p95")


def spawn(log: Path, *arguments: str, said: str) -> tuple[subprocess.Popen[str], list[str]]:
    child = subprocess.Popen([sys.executable, "-m", "gateway", *arguments], stdout=log.open("w"), stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if said in line:
            return child, [word.rstrip(",").removesuffix("/v1").removesuffix("/admin/") for word in line.split() if word.startswith("http")]
    raise SystemExit(f"{arguments} ended")


def by_aiperf(given: argparse.Namespace, url: str, folder: Path) -> dict[str, dict[str, float]]:
    """{figure: {quantile: seconds}}"""
    command = [given.aiperf, "profile", "-m", "m", "--tokenizer", given.tokenizer, "--url", url, "--endpoint-type", "chat", "--streaming"]
    command += ["--request-rate", str(given.rate), "--request-count", str(given.requests), "--random-seed", "3", "--ui", "none"]
    command += ["--isl", "300", "--isl-stddev", "100", "--osl", "64", "--osl-stddev", "20", "--use-server-token-count"]
    command += ["--no-server-metrics", "--no-gpu-telemetry", "--artifact-dir", str(folder / "aiperf")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    told = json.loads((folder / "aiperf" / "profile_export_aiperf.json").read_text())
    return {ours: {q: told[theirs][q] / 1000.0 for q in QUANTILES} for ours, theirs in AIPERF.items()}


def by_load(given: argparse.Namespace, url: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", "gateway", "load", url, "--model", "m", "--mix", "chatbot", "--rate", str(given.rate)]
    command += ["--for", f"{given.requests / given.rate:.0f}s", "--seed", "3", "--stream", "--json"]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["rows"]
    row = next(row for row in rows if row["name"] == "all")
    return {figure: {q: row[figure][f"{q}_s"] for q in QUANTILES} for figure in AIPERF if figure in row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--aiperf", default="")
    parser.add_argument("--tokenizer", default="")
    given = parser.parse_args()
    children: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory(prefix="slo-gateway-") as name:
        folder = Path(name)
        try:
            engine, [at] = spawn(folder / "engine", "engine", "--gpu", "H100", "--model", "m", "--port", "0", said=" serving ")
            children.append(engine)
            pool = f"premium:H100={at}"
            arguments = ("serve", "--port", "0", "--admin-port", "0", "--model", "m", "--pool", pool, "--mode", "observe")
            gateway, [public, admin] = spawn(folder / "gateway", *arguments, said="ready:")
            children.append(gateway)
            outside = by_aiperf(given, public, folder) if given.aiperf else by_load(given, public)
            report = httpx.get(f"{admin}/admin/slo", params={"window": "10m"}).json()["total"]
        finally:
            for child in reversed(children):
                child.terminate()
                child.wait(15)
    over = 0
    print(f"{report['completed']} of {report['offered']} requests completed; milliseconds")
    print(f"{'':<10}{'outside':>10}{'gateway':>10}{'apart':>10}{'allowed':>10}")
    for figure, quantiles in outside.items():
        for quantile, seen_s in quantiles.items():
            told_s = report["latencies"][figure][f"{quantile}_s"]
            allowed_s = 0.02 * seen_s + 0.001
            apart_s = seen_s - told_s
            over += abs(apart_s) > allowed_s and quantile == "p95"
            print(f"{figure + ' ' + quantile:<10}" + "".join(f"{value * 1000.0:>10.2f}" for value in (seen_s, told_s, apart_s, allowed_s)))
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()

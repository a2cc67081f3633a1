"""What classifying a request costs: known applications, and looks at requests of 2 kB, 40 kB and 1 MB.

    python loadtests/classify.py [--rounds 400] [--json]

One thread, requests already read (openai/body.py); every request of a look is another text. Prints p50 and p99 in microseconds, and the
time to load the model.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ASK = "Could you please look over the following notes and tell me which of the items is still open and who is going to take it? "
NOTE = "The quarterly review of depot {n} was moved because supplier Halden had not delivered part {n}; getUserById({n}) fails. "
SYSTEM = (
    "You are the assistant of the planning team of a logistics company. You read notes, mails and minutes and answer the questions of the "
    "people who work there. Keep to what is written, name the note you quote, and say so when something is not in there."
)


def raw(number: int, size: int) -> bytes:
    """A request of about so many bytes."""
    note = NOTE.format(n=number)
    text = (ASK + note * (size // len(note) + 1))[: max(size - len(SYSTEM) - 120, 40)]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages}).encode()


def timed(calls: list[Callable[[], Any]]) -> dict[str, float]:
    """p50 and p99 of one call each in microseconds, on the wall and of this thread's own CPU: on a busy machine the two differ."""
    took: dict[str, list[int]] = {"": [], "cpu_": []}
    for call in calls:
        cpu, began = time.thread_time_ns(), time.perf_counter_ns()
        call()
        took[""].append(time.perf_counter_ns() - began)
        took["cpu_"].append(time.thread_time_ns() - cpu)
    told = {}
    for name, each in took.items():
        each.sort()
        told |= {f"{name}p50_us": each[len(each) // 2] / 1000, f"{name}p99_us": each[int(len(each) * 0.99)] / 1000}
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()

    from gateway.classify.asking import defaults, read
    from gateway.classify.explicit import ANYBODY
    from gateway.classify.learned import Learned
    from gateway.classify.model import Model
    from gateway.config.load import shipped_catalog

    began = time.perf_counter()
    model = Model.load()
    told: dict[str, Any] = {"load_ms": round((time.perf_counter() - began) * 1000, 1)}
    learned = Learned(model, shipped_catalog(), defaults().classify)
    gc.freeze()
    known = read("/v1/chat/completions", raw(0, 2000))
    for _ in range(8):
        learned(known, ANYBODY, 500)
    [app] = learned.apps.by_key.values()

    def remembered() -> None:
        app.due = 1
        learned(known, ANYBODY, 500)

    told["known"] = timed([remembered] * asked.rounds * 10)
    for name, size, rounds in (("2 kB", 2_000, asked.rounds), ("40 kB", 40_000, asked.rounds), ("1 MB", 1_000_000, asked.rounds // 8)):
        bodies = [read("/v1/chat/completions", raw(number, size)) for number in range(rounds)]

        def look(body: Any) -> Callable[[], Any]:
            def call() -> None:
                learned.forget()
                learned(body, ANYBODY, 500)

            return call

        calls = [look(body) for body in bodies]
        timed(calls[:20])
        told[name] = timed(calls)
    if asked.json:
        print(json.dumps(told))
        return
    print(f"load {told['load_ms']} ms")
    for name in ("known", "2 kB", "40 kB", "1 MB"):
        print(f"{name:6}", "   ".join(f"{key} {value:8.1f}" for key, value in told[name].items()))


if __name__ == "__main__":
    main()

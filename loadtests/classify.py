"""What classifying a request costs: known applications, and looks at short requests and at those of 2 kB, 40 kB and 1 MB.

    python loadtests/classify.py [--rounds 400] [--again 5] [--json]

One thread, requests already read (openai/body.py); every request of a look is another text. Looks at 2 kB are also told by script: these
are cut from the shipped rows and documents (tests/data/requests), mixed, so that many a word is met for the first time, and each script
finds the caches as the others left them. Prints p50 and p99 in microseconds, and the time to load the model.

`--again` looks at each request some more times, as if its words had still not been met, and tells the same of their medians: what a look
itself takes, without what the machine does beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ASK = "Could you please look over the following notes and tell me which of the items is still open and who is going to take it? "
NOTE = "The quarterly review of depot {n} was moved because supplier Halden had not delivered part {n}; getUserById({n}) fails. "
SYSTEM = (
    "You are the assistant of the planning team of a logistics company. You read notes, mails and minutes and answer the questions of the "
    "people who work there. Keep to what is written, name the note you quote, and say so when something is not in there."
)
SHORT = (
    "Hello, when do you open on day {n}?",
    "Write a Python function that merges {n} lists.",
    "What is the capital of country {n}?",
    "Translate into French: it is {n} o'clock.",
)
ROWS = Path(__file__).parents[1] / "tests/data/requests"
# Where the letters of a script begin; those below 0x370 are Latin ones, told apart by whether there are any beyond ASCII.
SCRIPTS = (
    (0x370, "Cyrillic, Greek"),
    (0x530, "other"),
    (0x590, "Arabic, Hebrew"),
    (0x900, "other"),
    (0xE00, "Thai"),
    (0xE80, "other"),
    (0x3040, "Chinese, Japanese"),
    (0xA000, "other"),
    (0xAC00, "Korean"),
    (0xD7B0, "other"),
)


def short(number: int) -> bytes:
    """A line of somebody who says nothing else."""
    text = SHORT[number % len(SHORT)].format(n=number)
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def script_of(text: str) -> str:
    """That of most of its letters; empty where there is none."""
    found: Counter[str] = Counter()
    for letter in text[:2000]:
        if letter.isalpha():
            found[next((name for least, name in reversed(SCRIPTS) if ord(letter) >= least), "Latin")] += 1
    if not found:
        return ""
    [(script, _)] = found.most_common(1)
    return "ASCII" if script == "Latin" and text.isascii() else script


def texts_by_script() -> dict[str, list[str]]:
    """What the shipped rows and documents say."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(ROWS.glob("*.jsonl")):
        for line in file.read_text("utf8").splitlines():
            row = json.loads(line)
            said = [row["text"]] if "text" in row else [m.get("content") for m in row["request"].get("messages", ()) if isinstance(m, dict)]
            for text in said:
                if isinstance(text, str) and len(text) > 10 and "{{doc" not in text:
                    found[script_of(text)].append(text)
    found.pop("", None)
    return found


def cut(text: str, size: int) -> str:
    return text.encode("utf8", "replace")[:size].decode("utf8", "ignore")


def composed(texts: list[str], size: int, chance: random.Random) -> bytes:
    """A request of about so many bytes: a system text, a line that may ask for something, and passages."""
    system, text = cut(chance.choice(texts), 300), cut(chance.choice(texts), 300) + "\n\n"
    while (left := size - 130 - len(system.encode()) - len(text.encode())) > 0:
        passage = chance.choice(texts)
        text += cut(passage[chance.randrange(max(len(passage) - 700, 1)) :], left) + "\n"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()


def raw(number: int, size: int) -> bytes:
    """A request of about so many bytes."""
    note = NOTE.format(n=number)
    text = (ASK + note * (size // len(note) + 1))[: max(size - len(SYSTEM) - 120, 40)]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages}).encode()


def took(call: Callable[[], Any]) -> tuple[int, int]:
    """Nanoseconds of one call, on the wall and of this thread's own CPU: on a busy machine the two differ."""
    cpu, began = time.thread_time_ns(), time.perf_counter_ns()
    call()
    ended = time.perf_counter_ns()
    return ended - began, time.thread_time_ns() - cpu


def figures(each: list[tuple[int, ...]]) -> dict[str, float]:
    """p50 and p99 in microseconds: wall, CPU, and where there is one the median CPU."""
    told = {}
    for name, times in zip(("", "cpu_", "median_"), map(sorted, zip(*each, strict=True)), strict=False):
        told |= {f"{name}p50_us": times[len(times) // 2] / 1000, f"{name}p99_us": times[int(len(times) * 0.99)] / 1000}
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--again", type=int, default=0)
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

    told["known"] = figures([took(remembered) for _ in range(asked.rounds * 10)])

    def look(body: Any) -> Callable[[], Any]:
        def call() -> None:
            learned.forget()
            learned(body, ANYBODY, 500)

        return call

    met = model.words._met

    def looks(bodies: list[Any]) -> list[tuple[int, ...]]:
        """Of each: wall and CPU, and the median CPU of more looks at it."""
        found: list[tuple[int, ...]] = []
        for body in bodies:
            before = len(met)
            times = [took(look(body))]
            for _ in range(asked.again):
                for word in met[before:]:
                    del model.words[word]
                del met[before:]
                times.append(took(look(body)))
            found.append((*times[0], *([statistics.median_low([cpu for _, cpu in times[1:]])] if asked.again else ())))
        return found

    sizes = (
        ("short", 0, asked.rounds),
        ("2 kB", 2_000, asked.rounds),
        ("40 kB", 40_000, asked.rounds),
        ("1 MB", 1_000_000, asked.rounds // 8),
    )
    for name, size, rounds in sizes:
        bodies = [read("/v1/chat/completions", raw(number, size) if size else short(number)) for number in range(rounds)]
        for body in bodies[:20]:
            look(body)()
        told[name] = figures(looks(bodies))
    if ROWS.is_dir():
        chance = random.Random(5)
        bodies_of = [
            (script, read("/v1/chat/completions", composed(texts, 2_000, chance)))
            for script, texts in texts_by_script().items()
            for _ in range(asked.rounds)
        ]
        chance.shuffle(bodies_of)
        by_script: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for (script, _), each in zip(bodies_of, looks([body for _, body in bodies_of]), strict=True):
            by_script[f"2 kB, {script}"].append(each)
        told |= {script: figures(each) for script, each in sorted(by_script.items())}
        told["2 kB, all scripts"] = figures([one for each in by_script.values() for one in each])
    if asked.json:
        print(json.dumps(told))
        return
    print(f"load {told['load_ms']} ms")
    for name, each in told.items():
        if name != "load_ms":
            print(f"{name:25}", "   ".join(f"{key} {value:8.1f}" for key, value in each.items()))


if __name__ == "__main__":
    main()

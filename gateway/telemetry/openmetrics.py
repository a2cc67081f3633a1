"""/metrics as OpenMetrics 1.0, for readers that ask for it: the same text, with exemplars and the few words that are written otherwise.

https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.measure.attainment import CellKey
from gateway.telemetry.exemplars import ByHistogram, by_bucket
from gateway.telemetry.exposition import labels_of

_BUCKET = re.compile(r'^((\w+)_bucket\{.*),le="([^"]+)"\} \d+$', re.MULTILINE)
_COUNTER = re.compile(r"^# (HELP|TYPE) (\w+)_total ", re.MULTILINE)


def written(pieces: Iterator[str], exemplars: ByHistogram) -> Iterator[str]:
    """From the pieces of the plain text, each with whole lines."""
    by_head = {f"{name}_bucket{{{labels_of(CellKey._fields, cell)}": found for (name, cell), found in exemplars.items()}
    for piece in pieces:
        if piece.startswith("# "):
            # A counter's family is named without the ending that its samples have.
            yield _COUNTER.sub(r"# \1 \2 ", piece)
            continue
        head = piece.partition(',le="')[0]
        found = by_head.get(head)
        if found is None:
            yield piece
            continue
        lines = piece.splitlines(keepends=True)
        buckets = [(at, match[3]) for at, line in enumerate(lines) if (match := _BUCKET.match(line)) is not None]
        edges_s = [float(edge) for _, edge in buckets[:-1]]
        for bucket, exemplar in by_bucket(found, edges_s).items():
            at, _ = buckets[bucket]
            told = f' # {{trace_id="{exemplar.trace_id:032x}",span_id="{exemplar.span_id:016x}"}} {exemplar.value_s:.9g}'
            lines[at] = f"{lines[at][:-1]}{told} {exemplar.at_unix_s:.3f}\n"
        yield "".join(lines)
    yield "# EOF\n"

"""What a site's own request log tells a classifier: which use cases there are here, and what each application that tags itself does.

The log holds no prompt, and none is needed: whoever sends tags with some of its requests has told what the others are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gateway.classify.model import KINDS
from gateway.classify.training.rows import KIND_OF
from gateway.measure.log_line import LogLine

# What somebody said, as LogLine.why begins; a guess of ours is no evidence.
EXPLICIT = ("header", "metadata", "model alias", "key default")
LEAST_REQUESTS = 3
# A site's mix moves a probability by at most this factor each way: what is tagged need not be like what is not.
MOST = 3.0


def learnt(lines: Iterable[LogLine], mix: dict[str, float]) -> dict[str, Any]:
    """Notes for a model (model.Model.notes): `applications` as [tenant, fingerprint, {kind: requests}], `prior` as a factor a kind
    against the training's `mix`, and how many lines said something."""
    of_app: dict[tuple[str, int], Counter[str]] = {}
    kinds: Counter[str] = Counter()
    for line in lines:
        kind = KIND_OF.get(line.use_case)
        if kind is None or not line.why.startswith(EXPLICIT):
            continue
        kinds[kind] += 1
        if line.app:
            of_app.setdefault((line.tenant, line.app), Counter())[kind] += 1
    total = sum(kinds.values())
    prior = {}
    for kind in KINDS if total else ():
        here = (kinds[kind] + 1.0) / (total + len(KINDS))
        prior[kind] = round(min(max(here / mix.get(kind, 1.0 / len(KINDS)), 1.0 / MOST), MOST), 4)
    applications = [[tenant, app, dict(counts)] for (tenant, app), counts in of_app.items() if sum(counts.values()) >= LEAST_REQUESTS]
    return {"applications": applications, "prior": prior, "tagged": total}

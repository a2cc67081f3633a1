"""The learned classifier as the gateway asks it: known applications from memory, the others looked at, judged by cost, and counted.

`__call__` is what explicit.Classifier takes as `learned`. Known applications cost two microseconds, a look some hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

from gateway.classify.apps import App, Apps, Key
from gateway.classify.explicit import Tenant, Verdict
from gateway.classify.features import features
from gateway.classify.model import KINDS, Model
from gateway.classify.verdict import Judge, Judged, verdict_of
from gateway.config.catalog import Catalog
from gateway.config.loaded import Loaded
from gateway.config.settings import Classify
from gateway.openai.body import Body
from gateway.openai.chat import MAX_INT

if TYPE_CHECKING:
    from collections.abc import Mapping

# How fast the mix of kinds that drift is judged by follows traffic: half of it is the last 500 looks.
DRIFT_KEPT: Final = 0.5 ** (1 / 500)
CONFIDENCE_STEPS: Final = 10
# A system text shorter than this names no application: half the world sends "You are a helpful assistant."
NAMING_BYTES: Final = 160


class Learned:
    """For one configuration. The memory may be handed on when that changes."""

    def __init__(self, model: Model, catalog: Catalog, settings: Classify, shadow: Model | None = None, apps: Apps | None = None) -> None:
        self.model, self.shadow = model, shadow
        self.judge = Judge(catalog, settings.costs, settings.fallback)
        self.apps = apps if apps is not None and apps.most == settings.remembered else Apps(settings.remembered)
        self._known = self.apps.by_key
        self._told = {(tenant, app): counts for tenant, app, counts in model.notes.get("applications", ())}
        self.looks = 0
        self.remembered = 0  # answers from memory
        self.confidence = [0] * CONFIDENCE_STEPS  # looks, by tenths of probability
        self.shadowed: Counter[tuple[str, str]] = Counter()  # (use case, what the shadow model would have said)
        self.mix = [0.0] * len(KINDS)  # of kinds, lately
        self.second: Callable[[App, Body], None] | None = None  # is to give a second opinion of a message, later
        self._nameless: dict[str, int] = {}
        self.paths: list[Path | None] = [None, None]  # of the model and its shadow; None = the shipped one, and none

    def __call__(self, body: Body, tenant: Tenant, prompt_tokens: int) -> Verdict:
        key = (tenant.tenant, body.app, (body.text_bytes.bit_length() >> 1) * 8 + len(body.endpoint))
        app = self._known.get(key)
        if app is not None and app.due > 0:
            app.due -= 1
            self.remembered += 1
            verdict = app.above if prompt_tokens >= app.boundary else app.below
            if verdict is not None:
                return verdict
        return self._look(self.apps.of(key), key, body, prompt_tokens)

    def _look(self, app: App, key: Key, body: Body, prompt_tokens: int) -> Verdict:
        if not app.looks and self._told:
            counts = self._told.get(key[:2])
            if counts is not None:
                app.is_told([counts.get(kind, 0) for kind in KINDS])
        seen = features(body, self.model.words)
        alone = self.model.probabilities(seen)
        named = self._is_named(body)
        believed = app.look(alone, named)
        if self.second is not None and named and app.wants_opinion():
            self.second(app, body)
        judge = self.judge
        judged = judge.judge(believed, prompt_tokens)
        remembered = app.looks > 1 and believed is not alone
        heeding = ", second opinion" if app.heeds else ""
        why = f"learned over {app.looks}" if remembered else "learned"
        verdict = verdict_of(judged, why + heeding)
        if app.due:
            app.boundary = judge.boundary_tokens
            why = f"known application, {app.looks} looks{heeding}"
            app.below = verdict_of(judge.judge(believed, 0), why)
            app.above = verdict_of(judge.judge(believed, MAX_INT), why)
        self._count(judged, alone)
        if self.shadow is not None:
            other = judge.judge(self.shadow.probabilities(features(body, self.shadow.words)), prompt_tokens)
            self.shadowed[judged.use_case, other.use_case] += 1
        return verdict

    def _is_named(self, body: Body) -> bool:
        """Does the application say something that only it says? Its system text, or tools."""
        bare = self._nameless.get(body.model)
        if bare is None:
            if len(self._nameless) > 1024:
                self._nameless.clear()
            bare = self._nameless[body.model] = crc32(body.model.encode()) | 1
        if body.app == bare:
            return "tools" in body.fields
        start = bytes(body.prompt[: NAMING_BYTES + 80])
        user = start.find(b'"user"')
        return user < 0 or user > NAMING_BYTES or "tools" in body.fields or "system" in body.fields or "instructions" in body.fields

    def _count(self, judged: Judged, alone: list[float]) -> None:
        self.looks += 1
        self.confidence[min(int(judged.probability * CONFIDENCE_STEPS), CONFIDENCE_STEPS - 1)] += 1
        step = max(1.0 - DRIFT_KEPT, 1.0 / self.looks)
        self.mix = [was + (now - was) * step for was, now in zip(self.mix, alone, strict=True)]

    def forget(self) -> None:
        """No application is known any more."""
        self._known.clear()

    def known(self) -> int:
        """How many applications are remembered."""
        return len(self._known)

    def kinds(self) -> Mapping[str, float]:
        """The share of each kind in what was looked at lately; empty before the first look."""
        return dict(zip(KINDS, self.mix, strict=True)) if self.looks else {}

    def drift(self) -> float | None:
        """How far lately's mix of kinds is from the one the model expects: Jensen-Shannon divergence, 0 (the same) to 1. None before the
        first look."""
        if not self.looks:
            return None
        mix = self.model.notes.get("mix", {})
        return divergence(self.mix, [mix.get(kind, 1.0 / len(KINDS)) for kind in KINDS])


def learned_of(loaded: Loaded, before: Learned | None = None) -> Learned | None:
    """What a configuration asks for; None when it asks for none. `before` hands on its models and its memory where they are still right.
    ModelError says what is wrong with a model's file."""
    settings = loaded.settings.classify
    if not settings.learned:
        return None
    paths = [_path(loaded, name) for name in (settings.model, settings.shadow)]
    if before is not None and before.paths == paths:
        model, shadow = before.model, before.shadow
        learned = Learned(model, loaded.catalog, settings, shadow, before.apps)
    else:
        model = Model.load(paths[0]) if paths[0] else Model.load()
        shadow = Model.load(paths[1], words=model.words) if paths[1] else None
        learned = Learned(model, loaded.catalog, settings, shadow)
    learned.paths = paths
    return learned


def _path(loaded: Loaded, name: str) -> Path | None:
    if not name:
        return None
    return (loaded.path.parent if loaded.path is not None else Path()) / name


def divergence(a: Sequence[float], b: Sequence[float]) -> float:
    """Jensen-Shannon, base 2, of two mixes."""
    total_a, total_b = sum(a), sum(b)
    apart = 0.0
    for one, other in zip(a, b, strict=True):
        p, q = one / total_a, other / total_b
        middle = (p + q) / 2
        apart += sum(part * log2(part / middle) for part in (p, q) if part > 0) / 2
    return max(apart, 0.0)

"""Whose use case a request is: what it says itself, what its model's alias or its key says, its shape, then a guess, then the fallback.

Every answer says why. A caller may always have a looser class than its key's; a tighter one never, whatever header, body or prompt say.
The guess is a hook: learned.py fits behind it, and without it the shape and the fallback decide.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from typing import Final, NamedTuple

from gateway.config.catalog import Catalog
from gateway.config.settings import Alias, Settings
from gateway.core.flow import Endpoint, Tag
from gateway.openai.body import Body
from gateway.openai.errors import ApiError, Kind

FIM_MARKERS = (b"<|fim_prefix|>", b"<fim_prefix>", b"<\\uff5cfim", b"<\xef\xbd\x9cfim", b"<PRE>", b"[SUFFIX]", b"<|fim_begin|>")
FIM_LOOK_BYTES: Final = 4096

# Targets of one request, in milliseconds: our names, and those that peers' clients send already.
TARGET_HEADERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"x-slo-ttft-ms", "ttft_s"),
    (b"x-slo-tpot-ms", "itl_s"),
    (b"x-slo-e2e-ms", "e2e_s"),
    (b"x-llm-d-slo-ttft-ms", "ttft_s"),
    (b"x-llm-d-slo-tpot-ms", "itl_s"),
    (b"x-sgl-ttft-slo-ms", "ttft_s"),
)
TAG_FIELDS: Final = frozenset((b"x-slo-use-case", b"x-slo-class", *(name for name, _ in TARGET_HEADERS)))
LONGEST_TARGET_MS: Final = 3_600_000.0
MAX_GUESSED: Final = 2000  # tags kept for guesses that come again
TIGHTER_TIERS: Final = frozenset(("priority", "fast"))
LOOSER_TIERS: Final = frozenset(("flex",))
NEUTRAL_TIERS: Final = frozenset(("auto", "default", "standard_only", "standard", "scale"))


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks, as its key says. `tightest_rank`: no class of a lower rank is given."""

    tenant: str
    key_id: str
    tightest_rank: int = 0
    use_case: str | None = None
    experience_class: str | None = None
    degrade: bool = False


# Without keys everybody is this one.
ANYBODY: Final = Tenant(tenant="anonymous", key_id="")


class Verdict(NamedTuple):
    """A guess: which use case, how sure (0..1), and in a word why."""

    use_case: str
    probability: float
    why: str


Learned = Callable[[Body, Tenant, int], "Verdict | None"]
"""(body, tenant, prompt tokens) -> a guess, or None to leave it to the shape."""


class Classifier:
    """For one configuration. `learned` may be set at any time."""

    def __init__(self, settings: Settings, catalog: Catalog, learned: Learned | None = None) -> None:
        self.catalog = catalog
        self.learned = learned
        self._floor = settings.classify.confidence_floor
        self._fallback = settings.classify.fallback
        self._aliases: dict[str, Alias] = {}
        for model in settings.models:
            self._aliases.update(model.aliases)
        by_rank = catalog.by_rank()
        self._by_rank = [name for name, _ in by_rank]
        self._ranks = {name: class_.rank for name, class_ in by_rank}
        self._flex = next((name for name in ("deferred", self._by_rank[-1]) if name in self._ranks), self._by_rank[-1])
        self._kinds = _kinds_by_length(catalog)
        self._plain_tenant = ANYBODY
        self._guessed: dict[tuple[str, str, float], Tag] = {}

    def tag(self, body: Body, fields: Mapping[bytes, bytes], tenant: Tenant, prompt_tokens: int) -> Tag:
        """The tag of a request. ApiError 400 for a tag that does not exist."""
        if (
            body.plain
            and tenant is self._plain_tenant
            and TAG_FIELDS.isdisjoint(fields)
            and body.model not in self._aliases
            and body.endpoint is Endpoint.CHAT
        ):
            # Nothing says anything. Most requests of most sites come this way.
            guess = self._guess(body, tenant, prompt_tokens)
            return self._guessed.get(guess) or self._tag_guessed(guess)
        use_case, why, confidence = self._use_case(body, fields, tenant, prompt_tokens)
        asked, class_why = self._class(body, fields, tenant, use_case)
        if class_why:
            why = f"{why}; class: {class_why}"
        targets: dict[str, float] = {}
        if any(name in fields for name, _ in TARGET_HEADERS):
            targets = _targets(fields)
            why += "; own targets"
        tag = self.catalog.tag_for(use_case, asked, why, confidence, **targets)
        if tag.rank < tenant.tightest_rank or (targets and tenant.tightest_rank > 0):
            tag = self._clamped(tag, tenant, targets)
        return tag

    def _tag_guessed(self, guess: tuple[str, str, float]) -> Tag:
        """The tag of a guess. Guesses repeat themselves, so that requests share it."""
        use_case, why, confidence = guess
        if len(self._guessed) >= MAX_GUESSED:
            self._guessed.clear()
        tag = self._guessed[guess] = self.catalog.tag_for(use_case, None, why, confidence)
        return tag

    def _use_case(self, body: Body, fields: Mapping[bytes, bytes], tenant: Tenant, prompt_tokens: int) -> tuple[str, str, float]:
        said = fields.get(b"x-slo-use-case")
        if said is not None:
            return self._known(said.decode("latin-1"), "x-slo-use-case"), "header", 1.0
        if body.slo_use_case is not None:
            return self._known(body.slo_use_case, "metadata.slo_use_case"), "metadata", 1.0
        alias = self._aliases.get(body.model)
        if alias is not None and alias.use_case is not None:
            return alias.use_case, "model alias", 1.0
        if tenant.use_case is not None:
            return tenant.use_case, "key default", 1.0
        sure = self._certain_shape(body)
        if sure is not None:
            return sure
        return self._guess(body, tenant, prompt_tokens)

    def _guess(self, body: Body, tenant: Tenant, prompt_tokens: int) -> tuple[str, str, float]:
        """What has been learnt, else the shape."""
        if self.learned is not None:
            verdict = self.learned(body, tenant, prompt_tokens)
            if verdict is not None and verdict.use_case in self.catalog.use_cases:
                if verdict.probability >= self._floor:
                    return verdict.use_case, verdict.why, verdict.probability
                return self._fallback, f"fallback: {verdict.why} is below the floor", verdict.probability
        return self._shape(prompt_tokens)

    def _known(self, use_case: str, where: str) -> str:
        if use_case in self.catalog.use_cases:
            return use_case
        raise _unknown(where, use_case, list(self.catalog.use_cases), "use cases")

    def _certain_shape(self, body: Body) -> tuple[str, str, float] | None:
        """Shapes that only one kind of application makes."""
        if body.has_suffix and "code_completion" in self.catalog.use_cases:
            return "code_completion", "structure: suffix", 0.95
        if body.endpoint is Endpoint.COMPLETIONS and "code_completion" in self.catalog.use_cases:
            start = bytes(body.prompt[:FIM_LOOK_BYTES])
            if any(marker in start for marker in FIM_MARKERS):
                return "code_completion", "structure: fill-in-the-middle", 0.95
        if body.endpoint is Endpoint.EMBEDDINGS and "document_rag" in self.catalog.use_cases:
            return "document_rag", "structure: embeddings", 0.8
        return None

    def _shape(self, prompt_tokens: int) -> tuple[str, str, float]:
        """What is left is the length of the prompt, where the profiles tell lengths apart."""
        for least_tokens, use_case in self._kinds:
            if prompt_tokens >= least_tokens:
                return use_case, f"structure: {prompt_tokens} prompt tokens", 0.5
        return self._fallback, "fallback", 0.4

    def _class(self, body: Body, fields: Mapping[bytes, bytes], tenant: Tenant, use_case: str) -> tuple[str | None, str]:
        """A class other than the use case's own, and why."""
        said = fields.get(b"x-slo-class")
        if said is not None:
            return self._known_class(said.decode("latin-1"), "x-slo-class"), "header"
        if body.slo_class is not None:
            return self._known_class(body.slo_class, "metadata.slo_class"), "metadata"
        tier = body.service_tier
        if tier is not None and tier not in NEUTRAL_TIERS:
            own = self.catalog.use_cases[use_case].experience_class
            if tier in TIGHTER_TIERS:
                at = self._by_rank.index(own)
                return self._by_rank[max(at - 1, 0)], "service_tier"
            if tier in LOOSER_TIERS:
                return (self._flex if self._ranks[self._flex] > self._ranks[own] else None), "service_tier"
            known = sorted(TIGHTER_TIERS | LOOSER_TIERS | NEUTRAL_TIERS)
            raise ApiError(Kind.UNKNOWN_TAG, f"'service_tier' has to be one of {', '.join(known)}.", param="service_tier")
        alias = self._aliases.get(body.model)
        if alias is not None and alias.experience_class is not None:
            return alias.experience_class, "model alias"
        if tenant.experience_class is not None:
            return tenant.experience_class, "key default"
        return None, ""

    def _known_class(self, name: str, where: str) -> str:
        if name in self._ranks:
            return name
        raise _unknown(where, name, self._by_rank, "experience classes")

    def _clamped(self, tag: Tag, tenant: Tenant, targets: dict[str, float]) -> Tag:
        """Not tighter than the key allows, by class or by targets."""
        why = tag.why
        name = tag.experience_class
        if tag.rank < tenant.tightest_rank:
            name = next((n for n in self._by_rank if self._ranks[n] >= tenant.tightest_rank), self._by_rank[-1])
            why += f"; held to {name} by its key"
        allowed = next((n for n in self._by_rank if self._ranks[n] >= tenant.tightest_rank), self._by_rank[-1])
        floor = self.catalog.class_targets(allowed)
        bounded = {key: max(value, {"ttft_s": floor.ttft_s, "itl_s": floor.itl_s, "e2e_s": 0.0}[key]) for key, value in targets.items()}
        return self.catalog.tag_for(tag.use_case, name, why, tag.confidence, **bounded)

    def served_service_tier(self, tag: Tag) -> str:
        """What OpenAI's clients are told was served."""
        if tag.rank <= 0:
            return "priority"
        return "flex" if tag.rank >= self._ranks[self._flex] else "default"


def _kinds_by_length(catalog: Catalog) -> list[tuple[float, str]]:
    """From which prompt length on a prompt is of a kind: half-way (geometrically) between two profiles. Longest first. Only profiles
    well above the usual chat are told apart; among their use cases the tightest stands for all."""
    lengths = sorted({profile.prompt_tokens for profile in catalog.profiles.values()})
    kinds: list[tuple[float, str]] = []
    ranks = {name: class_.rank for name, class_ in catalog.classes.items()}
    for below, length in pairwise(lengths):
        if length < 4 * lengths[0]:
            continue
        names = {name for name, profile in catalog.profiles.items() if profile.prompt_tokens == length}
        of_it = [(ranks[u.experience_class], name) for name, u in catalog.use_cases.items() if u.profile in names]
        if of_it:
            kinds.append((sqrt(below * length), min(of_it)[1]))
    return kinds[::-1]


def _targets(fields: Mapping[bytes, bytes]) -> dict[str, float]:
    targets: dict[str, float] = {}
    for name, key in TARGET_HEADERS:
        said = fields.get(name)
        if said is None or key in targets:
            continue
        try:
            milliseconds = float(said)
        except ValueError:
            milliseconds = -1.0
        if not isfinite(milliseconds) or not 0.0 < milliseconds <= LONGEST_TARGET_MS:
            header = name.decode()
            raise ApiError(Kind.UNKNOWN_TAG, f"'{header}' has to be a number of milliseconds above 0, at most an hour.", param=header)
        targets[key] = milliseconds / 1000.0
    return targets


def _unknown(where: str, said: str, known: list[str], what: str) -> ApiError:
    near = difflib.get_close_matches(said[:64].lower(), known, n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ApiError(Kind.UNKNOWN_TAG, f"'{where}' names none of the {what} here: {', '.join(known)}.{hint}", param=where)

"""The catalogue: traffic profiles, use cases, experience classes and tiers, as data, and the tag each (use case, class) pair gives.

The values are in config/catalog.yaml; a site's own changes come from its gateway.yaml (changes.catalog_with). What a request *is* is
decided by classify; here is only what follows from that: class, rank, targets, preferred tiers.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from gateway.config.quantities import (
    SOME,
    Bytes,
    ConfigModel,
    Count,
    Factor,
    Flag,
    Name,
    PositiveCount,
    PositiveSeconds,
    Ratio,
    Rule,
    Seconds,
    Text,
)
from gateway.core.flow import SloTargets, Tag

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class Profile(ConfigModel):
    """How long prompts and answers of a kind of traffic are."""

    pattern: Text
    """the shape in words"""
    prompt_tokens: PositiveCount
    """expected length of a prompt"""
    output_tokens: PositiveCount
    """expected length of an answer, until real answers have taught better"""


class E2eTarget(ConfigModel):
    """A promise that may be a range: `18s`, or `{target: 15s, limit: 20s}`."""

    target_s: PositiveSeconds
    """what is scheduled for"""
    limit_s: PositiveSeconds | None = None
    """what alerts; the target when left out"""

    def __post_init__(self) -> None:
        if self.limit_s is not None and self.limit_s < self.target_s:
            raise ValueError("a limit that is not below its target")


class _OneValue:
    """A bare duration is its target."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self._whole, handler(source))

    def _whole(self, value: Any) -> Any:
        return value if isinstance(value, dict | E2eTarget) else {"target": value}


E2e = Annotated[E2eTarget, _OneValue()]


class Targets(ConfigModel):
    """What a user is promised, each at p95."""

    ttft_s: PositiveSeconds
    """last byte of the request read to first content token sent"""
    itl_s: PositiveSeconds
    """gap between two tokens"""
    e2e: E2e
    """last byte of the request read to last byte sent: a duration, or `{target, limit}` for a range"""

    @property
    def slo(self) -> SloTargets:
        """The same as the core's plain value."""
        return SloTargets(self.ttft_s, self.itl_s, self.e2e.target_s, self.e2e.limit_s or self.e2e.target_s)


class Tolerance(ConfigModel):
    """What a class promises to a request whose use case says nothing stricter."""

    ttft_s: PositiveSeconds
    """last byte of the request read to first content token sent, p95"""
    itl_s: PositiveSeconds
    """gap between two tokens, p95"""
    e2e: E2e | None = None
    """whole answer, p95; the longest of the class's own use cases when left out"""


class Queue(ConfigModel):
    """Bounds of waiting work, for each model and class."""

    max_requests: PositiveCount = 2000
    """requests that may wait; the next is answered 429"""
    max_bytes: Bytes = 256 * 1024**2
    """bytes of request bodies that may wait"""
    ttl_s: Seconds = 0.0
    """how long a request may wait at most; `0` is twice its E2E target"""


class ExperienceClass(ConfigModel):
    """How fast it must feel."""

    title: Text
    """name for people"""
    feels: Text
    """the user's expectation in words"""
    rank: Count
    """0 is the tightest; no two classes share one"""
    tolerance: Tolerance
    """the class's own promise"""
    ceiling: Ratio
    """its work starts on an instance only while that is less saturated than this"""
    worth: Factor = 1.0
    """how many times over others pay for delaying its answers and those who come for one, where they stream most; above 1 keeps up to
    a third of alike instances for it while it is busy"""
    tiers: Annotated[tuple[Name, ...], SOME]
    """preferred first"""
    refusable: Flag = True
    """false: it waits rather than being told to come back, within its queue's bounds"""
    queue: Queue = Queue()
    """bounds of waiting work"""


class UseCase(ConfigModel):
    """What people do with a model."""

    title: Text
    """name for people"""
    profile: Name
    """how long its prompts and answers are"""
    experience_class: Name
    """the class it gets"""
    also: Name | None = None
    """a second class that a request may ask for by tag"""
    targets: Targets
    """its own promise; wins over its class's tolerance"""


class Batch(ConfigModel):
    """Requests in flight on one instance of a tier."""

    min: PositiveCount = 1
    """below this the hardware is badly used"""
    max: PositiveCount | None = None
    """the tier's usual bound; the controller may go beyond while measured headroom is large"""
    start: PositiveCount
    """the limit an instance begins with"""


class Forming(ConfigModel):
    """Holding starts back a little, so that they batch."""

    window_s: Annotated[Seconds, Rule(le=10.0)]
    """the longest a start is held back, never past what its promise allows"""
    min: PositiveCount
    """at this many in flight nothing is held back"""


class Tier(ConfigModel):
    """A kind of hardware."""

    title: Text
    """name for people"""
    gpus: Annotated[tuple[Name, ...], SOME]
    """what counts as this tier"""
    goal: Text
    """what it is for"""
    batch: Batch
    """requests in flight on one instance"""
    forming: Forming = Forming(window_s=0.0, min=1)
    """holding starts back to form a batch"""


class Catalog(ConfigModel):
    """All of it. Tags are worked out once, when the catalogue is built."""

    profiles: Annotated[dict[Name, Profile], SOME]
    """kinds of traffic by id"""
    classes: Annotated[dict[Name, ExperienceClass], SOME]
    """experience classes by id"""
    use_cases: Annotated[dict[Name, UseCase], SOME]
    """use cases by id"""
    tiers: Annotated[dict[Name, Tier], SOME]
    """kinds of hardware by id, dearest first"""

    @cached_property
    def _tags(self) -> dict[tuple[str, str | None], Tag]:
        return {(u, c): self._tag(u, c) for u in self.use_cases for c in (None, *self.classes)}

    def wrong_references(self) -> list[tuple[tuple[str | int, ...], str, str, list[str]]]:
        """Names that lead nowhere, as (path, the wrong name, what was expected, names that exist)."""
        wrong: list[tuple[tuple[str | int, ...], str, str, list[str]]] = []

        def expect(name: str | None, known: dict[str, Any], what: str, *path: str | int) -> None:
            if name is not None and name not in known:
                wrong.append((path, name, what, list(known)))

        for id_, use_case in self.use_cases.items():
            expect(use_case.profile, self.profiles, "a profile of the catalogue", "use_cases", id_, "profile")
            expect(use_case.experience_class, self.classes, "an experience class", "use_cases", id_, "experience_class")
            expect(use_case.also, self.classes, "an experience class", "use_cases", id_, "also")
        ranks: dict[int, str] = {}
        for id_, class_ in self.classes.items():
            for index, tier in enumerate(class_.tiers):
                expect(tier, self.tiers, "a tier", "classes", id_, "tiers", index)
            if class_.rank in ranks:
                wrong.append((("classes", id_, "rank"), str(class_.rank), f"a rank of its own ({ranks[class_.rank]} has this one)", []))
            ranks[class_.rank] = id_
        return wrong

    def by_rank(self) -> list[tuple[str, ExperienceClass]]:
        """The classes, tightest first."""
        return sorted(self.classes.items(), key=lambda item: item[1].rank)

    def class_targets(self, experience_class: str) -> SloTargets:
        """The class's own promise. Its E2E, where it says none, is the longest among its use cases: nobody it holds is cut short."""
        tolerance = self.classes[experience_class].tolerance
        if tolerance.e2e is not None:
            return SloTargets(tolerance.ttft_s, tolerance.itl_s, tolerance.e2e.target_s, tolerance.e2e.limit_s or tolerance.e2e.target_s)
        own = [u.targets.slo for u in self.use_cases.values() if u.experience_class == experience_class]
        own = own or [u.targets.slo for u in self.use_cases.values() if u.also == experience_class]
        own = own or [u.targets.slo for u in self.use_cases.values()]
        return SloTargets(tolerance.ttft_s, tolerance.itl_s, max(t.e2e_s for t in own), max(t.e2e_limit_s for t in own))

    def targets_for(self, use_case: str, experience_class: str | None = None) -> SloTargets:
        """What a use case is promised in a class: its own targets in its own classes (`also` included), the looser of each in a looser
        class, the tighter of each in a tighter one (E2E stays its own there unless the class names one: a long answer takes its time)."""
        asked = self.use_cases[use_case]
        own = asked.targets.slo
        if experience_class is None or experience_class in (asked.experience_class, asked.also):
            return own
        theirs = self.class_targets(experience_class)
        if self.classes[experience_class].rank > self.classes[asked.experience_class].rank:
            return SloTargets(
                max(own.ttft_s, theirs.ttft_s),
                max(own.itl_s, theirs.itl_s),
                max(own.e2e_s, theirs.e2e_s),
                max(own.e2e_limit_s, theirs.e2e_limit_s),
            )
        named = self.classes[experience_class].tolerance.e2e is not None
        return SloTargets(
            min(own.ttft_s, theirs.ttft_s),
            min(own.itl_s, theirs.itl_s),
            min(own.e2e_s, theirs.e2e_s) if named else own.e2e_s,
            min(own.e2e_limit_s, theirs.e2e_limit_s) if named else own.e2e_limit_s,
        )

    def _tag(self, use_case: str, experience_class: str | None) -> Tag:
        asked = self.use_cases[use_case]
        name = experience_class or asked.experience_class
        class_ = self.classes[name]
        return Tag(
            use_case=use_case,
            experience_class=name,
            rank=class_.rank,
            targets=self.targets_for(use_case, experience_class),
            tiers=class_.tiers,
            output_tokens=self.profiles[asked.profile].output_tokens,
            why="",
        )

    def tag_for(
        self,
        use_case: str,
        experience_class: str | None = None,
        why: str = "",
        confidence: float = 1.0,
        *,
        ttft_s: float | None = None,
        itl_s: float | None = None,
        e2e_s: float | None = None,
    ) -> Tag:
        """A new tag; targets given here (a request's own) win over the catalogue's. KeyError when use case or class is unknown.
        One dict lookup and one object: under a microsecond without own targets."""
        known = self._tags[use_case, experience_class]
        targets = known.targets
        if ttft_s is not None or itl_s is not None or e2e_s is not None:
            targets = SloTargets(
                targets.ttft_s if ttft_s is None else ttft_s,
                targets.itl_s if itl_s is None else itl_s,
                targets.e2e_s if e2e_s is None else e2e_s,
                targets.e2e_limit_s if e2e_s is None else e2e_s,
            )
        return Tag(known.use_case, known.experience_class, known.rank, targets, known.tiers, known.output_tokens, why, confidence)

    def tier_rank(self, tier: str) -> int:
        """0 is the dearest."""
        return list(self.tiers).index(tier)

    def tier_of_gpu(self, gpu: str) -> str | None:
        """`A100-80` and `a100` are both the A100's tier; None when no tier names this GPU."""
        wanted = gpu.upper().split("-")[0]
        return next((name for name, tier in self.tiers.items() if any(g.upper() == wanted for g in tier.gpus)), None)

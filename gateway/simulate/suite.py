"""A suite: which fleets, workloads, faults and policies are compared, and how long each run is. Read from YAML in loadtests/suites.

The file's words are the field names here (durations without their `_s`, with a unit). What a suite's runs give is knee.py's business.
"""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gateway.config.quantities import ConfigModel, Count, Factor, PositiveCount, PositiveSeconds, Ratio, Rule, Seconds, Text
from gateway.config.reading import read_as
from gateway.config.shipped import suites
from gateway.simulate.run import Fault
from gateway.simulate.workload import Workload

SUITES = suites()


class FaultModel(ConfigModel):
    """Something that goes wrong during a run."""

    kind: Annotated[str, Rule(pattern="^(slow|death)$")]
    """`slow` or `death`"""
    at_s: Seconds
    """from when"""
    instance: Count = 0
    """which one, counted from 0 in the order of the fleet"""
    ratio: Factor = 0.5
    """what is left of its speed"""
    until_s: PositiveSeconds | None = None
    """until when; for good when left out"""

    def fault(self) -> Fault:
        """The same as the run's plain value."""
        return Fault(self.kind, self.at_s, self.instance, self.ratio, self.until_s or float("inf"))


class Entry(ConfigModel):
    """A policy in a suite."""

    policy: Text
    """its file name in gateway/policies, or a path"""
    label: Text = ""
    """how it is called in tables; the policy's name when left out"""
    predictor: Annotated[str, Rule(pattern="^(learning|exact|none)$")] = "learning"
    """`learning`, `exact` (knows lengths and engines: an upper bound) or `none`"""
    limits: tuple[PositiveCount, ...] = ()
    """in-flight limits tried for it, the best is kept; none = the tiers' own, moved by the controller"""

    @property
    def title(self) -> str:
        """For tables."""
        return self.label or Path(self.policy).stem


class Case(ConfigModel):
    """One table: a fleet under a workload."""

    fleet: Text
    """`3xH100 + 4xL40S:w8`, or the name of one of the suite's fleets"""
    workload: Text = "nominal"
    """one of the suite's workloads"""
    faults: tuple[FaultModel, ...] = ()
    """what goes wrong"""
    misjudged: Factor = 1.0
    """facts told to the gateway are this many times the truth"""
    rate: Factor | None = None
    """runs at this rate only (requests a second; 0 would be the trace's own) instead of searching for the knee"""
    name: Text = ""
    """for tables; fleet and workload when left out"""


class Suite(ConfigModel):
    """All of a suite file."""

    title: Text = ""
    """one line for the head of the tables"""
    span_s: PositiveSeconds = 120.0
    """simulated time of arrivals in one run"""
    warm_up_s: Seconds = 20.0
    """what arrives before does not count"""
    seeds: PositiveCount = 3
    """runs of every point"""
    fleets: dict[str, Text] = field(default_factory=dict)
    """name -> fleet"""
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> how jobs are made (see docs/simulate.md)"""
    cases: tuple[Case, ...]
    """what is run"""
    policies: tuple[Entry | Text, ...]
    """what is compared; the first is ours, and its knee is the 1x of the overload curve"""
    limits: tuple[PositiveCount, ...] = (8, 16, 32, 64)
    """the grid of in-flight limits for policies that name none and are not first"""
    overload: tuple[Factor, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    """rates of the overload curve, as multiples of the first policy's rate at 90 %"""
    precision: Ratio = 0.04
    """how closely a knee is searched"""

    def entries(self) -> list[Entry]:
        """The policies with the grid filled in: the first runs as the tiers say, the others at their best limit."""
        entries: list[Entry] = []
        for index, entry in enumerate(self.policies):
            made = Entry(policy=entry) if isinstance(entry, str) else entry
            if index and not made.limits and made.predictor != "exact":
                made = replace(made, limits=self.limits)
            entries.append(made)
        return entries

    def workload(self, name: str) -> Workload:
        """A workload by name; `nominal` needs no entry."""
        fields = self.workloads.get(name, {})
        return _WORKLOAD.validate_python({"name": name, **fields})


Workload.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
_WORKLOAD = TypeAdapter(Workload)


def load_suite(name: str) -> Suite:
    """A shipped suite by name or any by path. ValueError says what is wrong and where."""
    path = Path(name)
    if not path.is_file():
        path = SUITES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SUITES.glob("*.yaml")))
        raise ValueError(f"no suite {name!r}: neither a file nor one of {known}")
    try:
        suite = read_as(Suite, YAML(typ="safe").load(path.read_text(encoding="utf-8")), path.parent)
        for case in suite.cases:
            if case.workload != "nominal" and case.workload not in suite.workloads:
                raise ValueError(f"{path}: case {case.fleet!r} names the workload {case.workload!r}, which the suite does not describe")
            suite.workload(case.workload)
    except YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    return suite

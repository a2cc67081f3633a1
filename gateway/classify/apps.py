"""What applications have asked for so far: evidence that adds up, and a verdict that stands while it holds.

An application repeats itself (its key, its system text, its tools, the rough size of its prompts), so its requests are looked at less and
less: each of the first ones, then every second, fourth, ... Messages that clearly say something else bring the looking back; where they
keep coming, the application is one that does many things, and each request is judged by itself.

A second opinion (second.py) of some of its messages counts for all of them but those that clearly say something else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import exp, log
from typing import Final

from gateway.classify.explicit import Verdict
from gateway.classify.model import KINDS

Key = tuple[str, int, int]

# One message moves the evidence by at most this much (log ratio 3.0), so that no single one decides against many.
LEAST_PROBABILITY: Final = 0.05
# Messages of an application resemble each other: two of them say less than twice as much as one.
WORTH: Final = 0.6
# Evidence fades: half of it is gone after some 45 messages looked at, so that an application may change.
KEPT: Final = 0.985
# Clear disagreement: the message alone says another kind with at least this probability.
CLEAR: Final = 0.7
MIXED_RATIO: Final = 0.15
LEAST_AGREEMENT_OF_NAMELESS: Final = 0.97
# An application is taken for one that does one thing as if it had done so this often before; agreement is over so many looks.
TRUSTED_LOOKS, LONGEST_AGREEMENT = 9, 32
# What messages before weigh (log ratio) for the next: so much each, up to a bound that a clear message still overcomes.
STRENGTH, MOST_STRENGTH = 0.5, 4.0
SETTLED_PROBABILITY: Final = 0.9
# How many messages are looked at, one by one, before any is not: of one with a text of its own, and of one that says next to nothing.
LOOKS, LOOKS_OF_NAMELESS = 4, 64
# The longest pause between two looks; the second where no message has disagreed for long, so that whoever sends thousands a second is
# not looked at a hundred times in it.
LONGEST_PAUSE, LONGEST_PAUSE_OF_STEADY = 64, 512
STEADY: Final = 0.99
# Look and second opinion are both right or both wrong more often than by chance: together each counts for this much (their temperature
# together, in training/second.py, is 1.5), and what was said of other messages of the application for less. An opinion's smallest
# probability, and over how many opinions their mean is taken.
TOGETHER, OF_OTHERS = 0.65, 0.4
LEAST_ADVISED: Final = 0.02
LONGEST_ADVICE: Final = 4
# What a log told of an application counts as this many looks at most.
MOST_LOOKS_TOLD: Final = 8
_PRIOR: Final = 1.0 / len(KINDS)
LEAST_EVIDENCE: Final = log(LEAST_PROBABILITY / _PRIOR)


class App:
    """One application. `due`: how many requests are answered from memory before the next is looked at."""

    __slots__ = ("above", "advice", "agreed", "below", "boundary", "due", "evidence", "heeds", "looks", "opinions", "pause")

    def __init__(self) -> None:
        self.evidence = [0.0] * len(KINDS)  # log ratios against chance
        self.looks = 0
        self.agreed = 1.0  # share of messages that did not clearly disagree, fading
        self.pause = 1
        self.due = 0
        self.below: Verdict | None = None  # for prompts shorter than `boundary` tokens
        self.above: Verdict | None = None
        self.boundary = 0.0
        self.opinions = 0
        self.advice: list[float] | None = None  # mean log ratios against chance, of second opinions
        self.heeds = False  # what was believed last has the advice in it

    def is_told(self, counts: Sequence[int]) -> None:
        """How often its requests were tagged as each kind: what it starts from."""
        total = sum(counts)
        self.looks = min(total, MOST_LOOKS_TOLD)
        self.evidence = [self.looks * log((count + 0.5) / (total + 0.5 * len(counts)) / _PRIOR) for count in counts]

    def look(self, probabilities: Sequence[float], named: bool) -> Sequence[float]:
        """A message was looked at. What to believe of it, given those before. (Plain lists: seven figures are too few for numpy.)"""
        looks, before = self.looks, self.evidence
        if not looks and self.advice is None:
            self.looks = 1
            self.evidence = [log(p / _PRIOR) if p > LEAST_PROBABILITY else LEAST_EVIDENCE for p in probabilities]
            return probabilities
        surest = max(probabilities)
        disagrees = looks > 0 and surest >= CLEAR and probabilities.index(surest) != before.index(max(before))
        self.agreed += (float(not disagrees) - self.agreed) / min(looks + TRUSTED_LOOKS, LONGEST_AGREEMENT)
        worth = WORTH if looks else 1.0
        weighed = [log(p / _PRIOR) if p > LEAST_PROBABILITY else LEAST_EVIDENCE for p in probabilities]
        self.evidence = [KEPT * old + worth * new for old, new in zip(before, weighed, strict=True)]
        self.looks = looks + 1
        mixed = self.agreed < (1.0 - MIXED_RATIO if named else LEAST_AGREEMENT_OF_NAMELESS)
        if disagrees or mixed:
            self.pause, self.due = 1, 0
        elif self.looks >= (LOOKS if named else LOOKS_OF_NAMELESS) and self._is_settled():
            self.due = self.pause
            steady = self.agreed > STEADY and self.looks > LOOKS_OF_NAMELESS
            self.pause = min(self.pause * 2, LONGEST_PAUSE_OF_STEADY if steady else LONGEST_PAUSE)
        advice = None if disagrees or mixed or not named else self.advice
        self.heeds = advice is not None
        if mixed or not named or not (looks or advice):
            return probabilities
        if advice is not None:
            before = _advised(before, advice, looks)
            probabilities = [p**TOGETHER * exp(OF_OTHERS * other) for p, other in zip(probabilities, advice, strict=True)]
        # Those before are what one would expect of this one; the surer the more of them there were, and never so that it has no say.
        most, bound = max(before), -min(looks * STRENGTH, MOST_STRENGTH)
        believed = [p * exp(max(old - most, bound)) for p, old in zip(probabilities, before, strict=True)]
        total = sum(believed)
        return [one / total for one in believed]

    def wants_opinion(self) -> bool:
        """Of the message that was looked at just now: of every one until an opinion has come (who gives them may have been away), then of
        the second, the fourth, the eighth, ..."""
        return not self.opinions or not self.looks & (self.looks - 1)

    def is_advised(self, probabilities: Sequence[float]) -> bool:
        """A second opinion of one of its messages; the next is looked at with it in mind. Does it change what the application is?"""
        told = [log(max(p, LEAST_ADVISED) / _PRIOR) for p in probabilities]
        before = self._known()
        self.opinions += 1
        advice = self.advice or [0.0] * len(KINDS)
        share = 1.0 / min(self.opinions, LONGEST_ADVICE)
        self.advice = [was + (now - was) * share for was, now in zip(advice, told, strict=True)]
        self.due = 0
        after = self._known()
        return before.index(max(before)) != after.index(max(after))

    def _known(self) -> list[float]:
        return self.evidence if self.advice is None else _advised(self.evidence, self.advice, self.looks)

    def _is_settled(self) -> bool:
        known = self._known()
        most = max(known)
        return SETTLED_PROBABILITY * sum(exp(one - most) for one in known) <= 1.0


def _advised(evidence: Sequence[float], advice: Sequence[float], looks: int) -> list[float]:
    """Evidence as if the advice had been there at each look."""
    weight = WORTH * (1.0 - KEPT**looks) / (1.0 - KEPT)
    return [one + weight * other for one, other in zip(evidence, advice, strict=True)]


class Apps:
    """The applications met last, at most `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.by_key: OrderedDict[Key, App] = OrderedDict()

    def of(self, key: Key) -> App:
        """The application, new if it was not known."""
        app = self.by_key.get(key)
        if app is None:
            app = self.by_key[key] = App()
            if len(self.by_key) > self.most:
                self.by_key.popitem(last=False)
        else:
            self.by_key.move_to_end(key)
        return app

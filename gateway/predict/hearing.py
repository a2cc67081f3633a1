"""What instances teach: the paces of their residents and their first tokens, compared with what was expected, correct biases and models.

Everything is listened to while an instance or its kind is new, and from the moment that something surprises. What has been as expected for
a while is only sampled: every `FIRST_EVERY`th first token, and the pace once a second (`passing`) or, where answers are shorter than that,
when the resident that stands for it ends. That is a tenth of the cost, and a change is noticed by the first sample that is out of the
ordinary; when it was a sudden one of the pace, or a single first token was far off, first tokens are listened to as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.core.flow import Placement
from gateway.predict.latency import Load
from gateway.predict.note import Note
from gateway.predict.pace import Probe, probe_of

# The share of a miss that a pace is believed at once: it averages several steps, where a first token is a single event.
PACE_TRUST, PACE_ALERTNESS, PACE_NOISE = 0.95, 0.6, 0.02
SUDDEN_RATIO: Final = 1.15
# From then on not all that is listened to moves a kind's model, but every fourth sample: the bias follows all of them, at a tenth of the
# cost. Nor do first tokens do so more often than this. Paces that are looked at once a second are few enough.
SETTLED_SAMPLES, SETTLED_EVERY = 256, 4
LEARN_EVERY_S: Final = 0.02
REDEPLOYED_SAMPLES: Final = 20
# The resident that stands for an instance is listened to at its end, unless it was so shortly before.
PACE_EVERY_S: Final = 1.0
# An instance is known when so many samples in a row have been no surprise.
CALM_SAMPLES: Final = 8
FIRST_EVERY: Final = 16
# A first token so many times later or sooner than expected has the next one listened to, whenever its turn would be.
ODD_RATIO: Final = 1.6


def look(load: Load, residents: Iterable[Placement]) -> None:
    """What the residents' tokens have shown up to the load's present is learnt."""
    probe = load.probe
    if probe is None:
        load.probe = probe_of(residents, load)
        return
    steps = probe.steps(load)
    if steps >= 0.0:
        load.correct(steps)
    sample = probe.sample(load)
    if sample is not None:
        load.probe, load.paced_at_s = Probe(probe.placement, load), load.at_s
        learn_pace(load, *sample)


def learn_pace(load: Load, features: list[float], took_s: float) -> None:
    """One step took this long, with these residents and prompts."""
    key, drift = load.key, load.step_drift
    step = key.step
    predicted_s = step.predict(features)
    if predicted_s <= 0:
        return
    before = drift.value
    if features[3]:  # prompts were read meanwhile, in whole chunks
        drift.follow(took_s / predicted_s / before, 0.8, PACE_ALERTNESS)
    else:
        drift.follow(took_s / predicted_s / before, PACE_TRUST, PACE_ALERTNESS, PACE_NOISE)
    moved = drift.value / before
    if not 1 / SUDDEN_RATIO < moved < SUDDEN_RATIO:
        # What has suddenly become slower at writing has become slower at reading too, until first tokens say otherwise; or have said so
        # already, for they may be the first to notice.
        ttft_drift = load.ttft_drift
        likely = ttft_drift.steady * drift.value / drift.steady
        if (likely > ttft_drift.value) is (moved > 1.0):
            ttft_drift.value = likely
        ttft_drift.calm = 0
    if step.samples < SETTLED_SAMPLES or not load.watched or drift.samples % SETTLED_EVERY == 0:
        step.learn(features, took_s / drift.value)
        key.version += 1
    _heard(load)


def learn_first(load: Load, note: Note, took_s: float) -> None:
    """The first token took this long from the sending."""
    key, drift = load.key, load.ttft_drift
    features = note.features
    predicted_s = key.first.predict(features)
    if predicted_s <= 0 or took_s <= 0:
        return
    ratio = took_s / predicted_s
    key.first_ratio.add(ratio / drift.value)
    drift.follow(ratio / drift.value)
    # A model that has settled gains nothing from hundreds of samples a second, and they cost as much as a decision each.
    if key.first.samples < SETTLED_SAMPLES or (drift.samples % SETTLED_EVERY == 0 and load.at_s - load.learnt_at_s > LEARN_EVERY_S):
        load.learnt_at_s = load.at_s
        key.first.learn(features, took_s / drift.value)
        key.version += 1
    _heard(load)


def bound_first(load: Load, predicted_s: float, took_s: float) -> None:
    """The whole answer took this long, less than its first token was expected to take: the bias is too high."""
    load.ttft_drift.follow(max(took_s, 1e-4) / predicted_s)
    _heard(load)


def _heard(load: Load) -> None:
    """How closely to listen from now on, and whether it is still the engine we knew."""
    key, step_drift, ttft_drift = load.key, load.step_drift, load.ttft_drift
    load.known_version, load.fresh_at_s = -1, -1.0
    for drift in (step_drift, ttft_drift):
        if drift.calm >= CALM_SAMPLES:
            drift.steady = drift.value
    load.watched = step_drift.calm < CALM_SAMPLES or key.step.samples < SETTLED_SAMPLES
    load.first_every = 1 if ttft_drift.calm < CALM_SAMPLES or key.first.samples < SETTLED_SAMPLES else FIRST_EVERY
    if step_drift.far >= REDEPLOYED_SAMPLES or ttft_drift.far >= REDEPLOYED_SAMPLES:
        load.redeployed()

"""What a key may use: charged by estimate, settled by what it came to, told in OpenAI's headers."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config.reading import read_as
from gateway.config.settings import Settings
from gateway.core.flow import FailReason, Outcome, Result, Ticket
from gateway.openai.errors import ApiError
from gateway.quota.quotas import Quotas, duration, quotas_of
from tests.core import conftest as made


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def settings(*quotas: dict[str, Any] | None) -> Settings:
    keys = [{"id": f"k{n}", "sha256": f"{n:064x}", **({"quota": quota} if quota else {})} for n, quota in enumerate(quotas)]
    pools = {"p": {"tier": "premium", "model": "m", "instances": ["http://127.0.0.1:1"]}}
    return read_as(Settings, {"models": [{"name": "m"}], "pools": pools, "keys": keys})


def ticket(rank: int = 1, output_tokens: int = 50) -> Ticket:
    return made.core_with(made.instance()).ticket(made.request(max_output_tokens=output_tokens), made.tag(rank))


def quotas(**quota: Any) -> tuple[Quotas, Clock]:
    clock = Clock()
    return Quotas(settings(quota), clock), clock


def completed(tokens: int) -> Outcome:
    return Outcome(Result.COMPLETED, prompt_tokens=tokens, output_tokens=0)


def refusal(kept: Quotas, *given: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        kept.reserve("k0", ticket(*given))
    return caught.value


def field(error: ApiError, name: bytes) -> bytes:
    return dict(error.headers)[name]


def test_without_quotas_there_is_nothing_to_ask() -> None:
    assert quotas_of(settings(None), Clock()) is None


def test_a_key_without_a_quota_is_not_charged() -> None:
    kept = Quotas(settings({"concurrent": 1}, None), Clock())
    assert kept.reserve("k1", ticket()) is None
    assert kept.reserve("", ticket()) is None


def test_requests_beyond_the_minute_are_told_when_to_come_back() -> None:
    kept, clock = quotas(requests_per_minute=2)
    for _ in range(2):
        kept.settle(kept.reserve("k0", ticket()), completed(10))
    clock.now_s += 20.0
    error = refusal(kept)
    assert (error.status, error.code, error.type) == (429, "rate_limit_exceeded", "requests")
    assert field(error, b"retry-after") == b"41"
    assert field(error, b"retry-after-ms") == b"41000"
    assert field(error, b"x-ratelimit-remaining-requests") == b"0"
    clock.now_s += 41.0
    assert kept.reserve("k0", ticket()) is not None


def test_tokens_are_charged_by_estimate_and_settled_by_what_it_came_to() -> None:
    kept, _ = quotas(tokens_per_minute=300)
    reserved = kept.reserve("k0", ticket())  # 100 + 50
    assert dict(kept.headers(reserved.quotas, 1000.0))[b"x-ratelimit-remaining-tokens"] == b"150"
    kept.settle(reserved, completed(280))
    error = refusal(kept)
    assert (error.type, field(error, b"x-ratelimit-remaining-tokens")) == ("tokens", b"20")


def test_what_could_never_fit_is_not_to_be_tried_again() -> None:
    kept, _ = quotas(tokens_per_minute=120)
    error = refusal(kept)
    assert field(error, b"x-should-retry") == b"false"
    assert b"retry-after" not in dict(error.headers)


@pytest.mark.parametrize("outcome", [None, Outcome(Result.REFUSED), Outcome(Result.FAILED, fail_reason=FailReason.CONNECT)])
def test_what_was_not_served_costs_nothing(outcome: Outcome | None) -> None:
    kept, _ = quotas(requests_per_minute=1, tokens_per_minute=150, concurrent=1)
    for _ in range(3):
        reserved = kept.reserve("k0", ticket())
        assert reserved is not None
        kept.settle(reserved, outcome)


def test_a_caller_that_leaves_pays_for_what_it_got() -> None:
    kept, _ = quotas(tokens_per_minute=200)
    kept.settle(kept.reserve("k0", ticket()), Outcome(Result.CLIENT_GONE, prompt_tokens=100, output_tokens=7))
    assert [measure.remaining(1000.0) for _, _, measure in kept.rows()] == [93]


def test_no_more_run_at_the_same_time_than_allowed() -> None:
    kept, _ = quotas(concurrent=2)
    first = kept.reserve("k0", ticket())
    kept.reserve("k0", ticket())
    assert refusal(kept).extra == {"reason": "quota", "quota": "concurrent"}
    kept.settle(first, completed(1))
    assert kept.reserve("k0", ticket()) is not None


def test_a_classs_limit_counts_beside_the_keys() -> None:
    kept, _ = quotas(requests_per_minute=3, classes={"batch": {"requests_per_minute": 1}})
    kept.reserve("k0", ticket(4))
    error = refusal(kept, 4)
    assert field(error, b"x-ratelimit-limit-requests") == b"1"
    kept.reserve("k0", ticket(0))
    kept.reserve("k0", ticket(0))
    assert field(refusal(kept, 0), b"x-ratelimit-limit-requests") == b"3"
    assert kept.refused == {("k0/batch", "requests"): 1, ("k0", "requests"): 1}


def test_a_refused_request_is_charged_to_no_quota() -> None:
    kept, _ = quotas(requests_per_minute=5, tokens_per_minute=1000, classes={"batch": {"concurrent": 1}})
    kept.reserve("k0", ticket(4))
    refusal(kept, 4)
    assert [measure.remaining(1000.0) for _, _, measure in kept.rows()] == [4, 850, 0]


def test_a_reload_changes_limits_and_keeps_what_is_used_of_them() -> None:
    kept, clock = quotas(requests_per_minute=2)
    running = kept.reserve("k0", ticket())
    again = quotas_of(settings({"requests_per_minute": 5}), clock, kept)
    assert again is not None
    assert [(measure.limit, measure.remaining(1000.0)) for _, _, measure in again.rows()] == [(5, 4)]
    again.settle(running, Outcome(Result.REFUSED))
    assert [measure.remaining(1000.0) for _, _, measure in again.rows()] == [5]


@pytest.mark.parametrize(("seconds", "written"), [(0.0, "0ms"), (0.0201, "21ms"), (1.0, "1s"), (59.2, "1m0s"), (61.0, "1m1s")])
def test_durations_are_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written

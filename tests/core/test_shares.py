"""What a tenant's promises are worth beside others': its fair share over the share it has had."""

from __future__ import annotations

import pytest

from gateway.core.shares import MAX_TENANTS, MEMORY_S, MOST, Shares


def shares(weights: dict[str, float] | None = None, **had: float) -> Shares:
    made = Shares(weights or {})
    for tenant, tokens in had.items():
        made.took(tenant, tokens)
    return made


def test_who_has_nobody_to_share_with_counts_for_one() -> None:
    assert shares().worth("a") == 1.0
    assert shares(a=1e6).worth("a") == 1.0


def test_a_promise_is_worth_as_much_less_as_its_tenant_has_had_more() -> None:
    made = shares(loud=1e7, quiet=1e6)
    assert made.worth("quiet") / made.worth("loud") == pytest.approx(10, rel=0.05)
    assert made.worth("loud") < 1 < made.worth("quiet") <= MOST


def test_a_tenant_of_twice_the_weight_may_have_had_twice_as_much() -> None:
    made = shares({"large": 2.0}, large=2e6, small=1e6)
    assert made.worth("large") == pytest.approx(made.worth("small")) == pytest.approx(1.0)


def test_a_handful_of_requests_says_nothing_of_who_is_greedy() -> None:
    made = shares(a=3_000, b=500)
    assert made.worth("b") / made.worth("a") < 1.6


def test_what_was_long_ago_is_forgotten_and_so_is_who_has_gone() -> None:
    made = shares(loud=1e6, quiet=1e4)
    made.fade(20 * MEMORY_S)
    assert made.worth("loud") == made.worth("quiet") == 1.0


def test_ever_new_names_take_no_more_memory_than_is_set() -> None:
    made = Shares({})
    for number in range(MAX_TENANTS + 100):
        made.took(f"t{number}", 1e5)
    assert len(made._had) == MAX_TENANTS
    assert 1 / MOST <= made.worth("somebody else") <= MOST

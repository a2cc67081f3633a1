"""Who is next in a lane, whoever has left it meanwhile."""

from __future__ import annotations

from random import Random

import pytest

from gateway.core.flow import Ticket
from gateway.core.queues import Lane
from tests.core.conftest import request, tag


@pytest.mark.parametrize("seed", range(20))
def test_the_next_of_a_lane_are_the_first_by_order_of_those_who_still_wait(seed: int) -> None:
    chance = Random(seed)
    lane = Lane("m", "instant", 0, turns=True, weights={})
    waiting: list[tuple[float, int, Ticket]] = []
    for count in range(120):
        if waiting and chance.random() < 0.4:
            lane.remove(waiting.pop(chance.randrange(len(waiting)))[2])
        else:
            ticket, order = Ticket(request(), tag(0), 0.0, 0.0, 1.0), chance.choice((1.0, 2.0, chance.random()))
            lane.push(ticket, order)
            waiting.append((order, count, ticket))
        most = chance.randrange(1, 5)
        assert lane.heads(most) == [ticket for _, _, ticket in sorted(waiting)[:most]]

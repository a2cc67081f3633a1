"""What traffic needed goes back to the system once it has gone."""

from gateway.serve.memory import LEAST_APART_S, MOST_APART_S, Ebb


def test_memory_goes_back_once_nobody_is_being_served() -> None:
    ebb = Ebb()
    assert not ebb.due(10, 3, 1.0)
    assert ebb.due(10, 0, 100.0)
    assert not ebb.due(10, 0, 101.0 + LEAST_APART_S)  # nothing was served since
    assert not ebb.due(11, 0, 101.0)  # so soon it is not worth it
    assert ebb.due(11, 0, 102.0 + LEAST_APART_S)


def test_a_gateway_that_is_never_idle_gives_back_now_and_then() -> None:
    ebb = Ebb()
    dues = [at_s for at_s in range(1, 301) if ebb.due(at_s, 5, float(at_s))]
    assert 4 <= len(dues) <= 300 / MOST_APART_S

"""What workers that have gone remembered stays within bounds."""

from __future__ import annotations

from gateway.serve.past import Past


def test_what_went_first_is_forgotten_first() -> None:
    past = Past(max_bytes=100)
    past.take("a", [("1", b"x" * 30)])
    past.take("b", [("2", b"y" * 30), ("3", b"y" * 30)])
    assert past.of("1") == b"x" * 30
    past.take("c", [("4", b"z" * 30)])
    assert past.of("1") is None
    assert (past.of("2"), past.of("4")) == (b"y" * 30, b"z" * 30)


def test_no_worker_is_remembered_beyond_the_bound() -> None:
    past = Past(max_bytes=100)
    for number in range(50):
        past.take("a", [(str(number), b"x" * 30)])
        assert sum(past.of(str(other)) is not None for other in range(50)) <= 3

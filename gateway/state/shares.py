"""Who may use how many of an instance's slots: the rule by which workers divide a limit, as pure functions.

Every worker computes everybody's share from the same needs and asks for its own; that shares never add up to more than the limit is
kept by the script in slots.py, whatever anybody has computed. A share may be smaller than what its worker has running: it then starts
nothing until enough of that has finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

# What nobody needs is handed out in blocks of this share of a limit, so that leases do not change with every request.
BLOCK_RATIO = 1 / 32
# Half of it: to each its part, so that a request finds a slot wherever it arrives. The other half is nobody's, and any worker's for the
# asking, so that a burst at one of them is not short of what the others do not use.
RESERVED_RATIO = 1 / 2


def block_of(limit: int) -> int:
    """Slots of a block, 1 and up."""
    return max(int(limit * BLOCK_RATIO), 1)


def shares(limit: int, ceilings: Sequence[float], needs: Sequence[Sequence[int]], turn: int = 0) -> list[int]:
    """Slots for each worker; they add up to the limit at most.

    `needs[worker][rank]` counts the sequences a worker has running or waiting, tightest class first. Tight work is served before loose
    work, whosever it is, and loose work only while fewer slots than its ceiling (0..1, of the limit) are given away, as on an instance
    that is not shared. Within a class the workers get equal shares, as far as they need them. Of what is left, RESERVED_RATIO is spread
    evenly in blocks, all of it for a worker that is alone. `turn` says with whom indivisible rests begin, so that they go round.
    """
    given = [0] * len(needs)
    if not given or limit <= 0:
        return given
    left = limit
    for rank, ceiling in enumerate(ceilings):
        wanted = [need[rank] if rank < len(need) else 0 for need in needs]
        room = min(left, max(ceil(ceiling * limit) - (limit - left), 0))
        if room and any(wanted):
            for worker, slots in enumerate(_evenly(room, wanted, turn)):
                given[worker] += slots
                left -= slots
    if len(needs) == 1:
        return [limit]
    block = block_of(limit)
    reserve = int(left * RESERVED_RATIO) // (block * len(needs)) * block
    return [slots + reserve for slots in given]


def static_share(limit: int, workers: int, me: int, turn: int = 0) -> int:
    """The slots of worker number `me` (0..) when nobody can be asked; all shares add up to the limit."""
    return limit // workers + ((me - turn) % workers < limit % workers)


def _evenly(room: int, wanted: Sequence[int], turn: int) -> list[int]:
    """As much as wanted where there is room, else the same for all who want more than that; ones that remain begin with number `turn`."""
    total = sum(wanted)
    if total <= room:
        return list(wanted)
    level, left, asking = 0, room, sorted(wanted)
    for number, want in enumerate(asking):
        takers = len(asking) - number
        if (want - level) * takers > left:
            level += left // takers
            break
        left -= (want - level) * takers
        level = want
    given = [min(want, level) for want in wanted]
    rest = room - sum(given)
    for step in range(len(wanted)):
        worker = (turn + step) % len(wanted)
        if rest and wanted[worker] > level:
            given[worker] += 1
            rest -= 1
    return given

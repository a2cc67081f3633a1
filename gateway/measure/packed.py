"""What a packed tally is on the wire: counters and histograms in MessagePack. tally.py writes it, this reads it strictly.

Apart from tally.py because that can be compiled, and these classes must not be: they are made from their annotations.
"""

from __future__ import annotations

import msgspec


class PackedCounts(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Counters in the order of tally.COUNTERS, refusals and failures by reason."""

    counters: list[int]
    refused: dict[str, int]
    failed: dict[str, int]


class PackedTally(PackedCounts, array_like=True, forbid_unknown_fields=True):
    """And the histograms, in the order of tally.HISTOGRAMS."""

    histograms: list[bytes]


# ValueError (msgspec.DecodeError is one) if the bytes are not that.
unpacked_counts = msgspec.msgpack.Decoder(PackedCounts).decode
unpacked_tally = msgspec.msgpack.Decoder(PackedTally).decode

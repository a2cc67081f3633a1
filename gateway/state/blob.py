"""A window of one worker's counts as bytes, the way it lies in shared state: docs/state.md is the contract, this the code.

MessagePack, compressed with zlib. What comes back is hostile until it has been read here: any process may write under our keys.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from gateway.measure.histogram import Edges
from gateway.measure.tally import COUNTERS, Counts, Tally, TallyEdges

VERSION = 1
MAX_BYTES = 32 * 1024 * 1024  # unpacked; a thousand cells take 1.5 MB
LARGEST_COUNT = 2**53
_LEVEL = 1  # half the size for a twentieth of the time that the default takes


class WindowBlob(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What one worker counted from `start_unix_s` to `end_unix_s`. `closed`: nothing more will come; else it is what was told so far,
    at `end_unix_s`. `edges`: where the histograms count exactly, in the order of tally.HISTOGRAMS. Keys are a CellKey's words."""

    version: int
    worker: str
    start_unix_s: float
    end_unix_s: float
    closed: bool
    edges: list[list[float]]
    cells: list[tuple[tuple[str, str, str, str, str], bytes]]  # measure.tally.Tally.pack
    tenants: list[tuple[str, bytes]]  # measure.tally.Counts.pack

    def tally_edges(self) -> TallyEdges:
        """ValueError when they are no edges."""
        return TallyEdges(*(Edges(values_s) for values_s in self.edges))


_windows = msgspec.msgpack.Decoder(WindowBlob)


def edges_of(edges: TallyEdges) -> list[list[float]]:
    """As they stand in a blob."""
    return [list(one.values_s) for one in (edges.ttft, edges.itl, edges.tpot, edges.e2e, edges.queue)]


def pack(blob: WindowBlob) -> bytes:
    """Takes 10 ms for a thousand cells, most of it without the interpreter's lock: for a thread."""
    return zlib.compress(msgspec.msgpack.encode(blob), _LEVEL)


def unpack(data: bytes) -> WindowBlob | None:
    """None when it is not one, or of another version."""
    try:
        packed = zlib.decompressobj()
        blob = _windows.decode(packed.decompress(data, MAX_BYTES))
        if not packed.eof or blob.version != VERSION or len(blob.edges) != 5:
            return None
        if not 0.0 <= blob.start_unix_s <= blob.end_unix_s <= 1e11 or sum(map(len, blob.edges)) > 1000:
            return None
        blob.tally_edges()
    except (zlib.error, ValueError):
        return None
    return blob


def unpack_all(found: Sequence[bytes]) -> list[WindowBlob]:
    """Those that are blobs. For a thread."""
    return [blob for blob in map(unpack, found) if blob is not None]


def add(counts: Counts, packed: bytes, edges: TallyEdges) -> bool:
    """Add a packed tally (or counts) whose exact counts are at `edges`. False, and nothing is added, when it cannot be true."""
    read: Counts = Tally(edges) if isinstance(counts, Tally) else Counts()
    try:
        read.merge_packed(packed)
    except ValueError:
        return False
    figures = [*(getattr(read, name) for name in COUNTERS), *read.refused.values(), *read.failed.values()]
    if not all(0 <= figure <= LARGEST_COUNT for figure in figures) or len(read.refused) + len(read.failed) > 64:
        return False
    counts.merge(read)
    return True

"""Arrays in a file that can be looked at where they lie: pages of it that were never touched take no memory, and all processes share them.

It is a plain .npz (numpy reads it), with nothing compressed and each array at a multiple of 64 bytes. Only files that nobody writes to in
place may be mapped, such as those of the package: a process whose mapped file was cut short is killed.
"""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALIGNED_BYTES = 64
_HEADER_BYTES = 30  # of a member's header in the zip file, before its name
_SPARE = 0xFACE  # what a zip calls the room left before an array: an id that nobody uses
_MADE = (1980, 1, 1, 0, 0, 0)  # the same arrays make the same file


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """One file, replaced at once: who has mapped the old one keeps that."""
    made = path.with_name(path.name + ".part")
    with zipfile.ZipFile(made, "w") as file:
        for name, array in arrays.items():
            written = io.BytesIO()
            np.lib.format.write_array(written, np.ascontiguousarray(array), allow_pickle=False)  # its header is a multiple of 64 bytes
            member = zipfile.ZipInfo(f"{name}.npy", _MADE)
            assert file.fp is not None
            begin = file.fp.tell() + _HEADER_BYTES + len(member.filename) + 4
            spare = -begin % ALIGNED_BYTES
            member.extra = _SPARE.to_bytes(2, "little") + spare.to_bytes(2, "little") + bytes(spare)
            file.writestr(member, written.getvalue())
    made.replace(path)


def read(path: Path) -> dict[str, Array]:
    """The arrays of any .npz file, in memory. OSError, and ValueError for what is no such file."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None


def mapped(path: Path) -> dict[str, Array]:
    """The arrays of a file that `save` wrote, read-only."""
    with path.open("rb") as opened:
        data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            lengths = data[member.header_offset + 26 : member.header_offset + _HEADER_BYTES]
            begin = member.header_offset + _HEADER_BYTES + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            header = io.BytesIO(data[begin : begin + 256])
            np.lib.format.read_magic(header)
            shape, _, dtype = np.lib.format.read_array_header_1_0(header)
            count = int(np.prod(shape, dtype=np.int64))
            whole = np.frombuffer(data, dtype, count, begin + header.tell())
            arrays[member.filename.removesuffix(".npy")] = whole.reshape(shape)
    return arrays

"""Words as numbers: a vocabulary that was learnt from a sentence model once and ships (words.npz), with a row for each word.

A word that is not in it is taken for the longest word that it begins with, else for its script. Scripts that write without spaces are
read in pairs of letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from sys import byteorder
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gateway.classify import arrays

# Scripts that write without spaces: kana, han, thai.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
FIRST_ALONE, LAST_ALONE = 0x0E00, 0xFAFF
_has_pairs = re.compile(f"[{_ALONE}]" * 3).search  # written out, it is found by its first letter: four times as fast


def _letters() -> str:
    """All other letters of the basic plane, as a class of a regular expression: one that names its letters is read twice as fast as one
    that says what they are not."""
    plane = np.arange(1, 0xD800, dtype=np.uint16).tobytes() + np.arange(0xE000, 0x10000, dtype=np.uint16).tobytes()
    runs = re.findall(rf"[^\W\d_{_ALONE}]+", plane.decode("utf-16-le" if byteorder == "little" else "utf-16-be"))
    return "".join(f"{run[0]}-{run[-1]}" for run in runs)


# The space before a word is taken along: to fail at each costs a quarter of the time.
_WORD = rf"[{_letters()}]++|[.?!:;] |[^\w\s]|[{_ALONE}]++|\d++|\n++|_|[^\W\d_]++"
_words = re.compile(rf" ?({_WORD})").findall
_runs_and_words = re.compile(rf" ?(?:([{_ALONE}]{{3,}}+)|({_WORD}))").findall  # a run of letters to be read in pairs, or a word
_APART = "\0"  # stands between two texts

# What a word is. From BREAK on it closes a sentence.
PLAIN, CODE, FENCE, DIGIT, FOREIGN, QUOTE, COLON, BREAK = range(8)
STOP, NEWLINE, QUESTION, COLON_STOP = range(BREAK, BREAK + 4)

BREAKS = frozenset((". ", "? ", "! ", ": ", "; ", "\n", "\n\n", "。", "？", "！", "；", "：", "؟", "।", "?", "!"))
_CODE = frozenset("{}()[]=<>/\\_;*&|#'+")
_QUESTIONS = frozenset(("?", "? ", "？", "؟"))
_QUOTES = frozenset('"“”«»「」')

# Stand-ins for what no word stands for; the order is that of _stand_in.
STAND_INS = ("<short>", "<word>", "<long>", "<greek or cyrillic>", "<semitic>", "<han>", "<hangul>", "<latin>", "<other>")
SPECIAL = ("\n", "\n\n", ". ", "? ", "! ", ": ", "; ", "0", "00", "0000", *STAND_INS)
# The shortest beginning that stands for a word: where letters are sounds, and where they are syllables or words.
LEAST_LETTERS, LEAST_SYLLABLES = 4, 1
LONGEST_BYTES = 32  # of a word of the vocabulary
# Words that are held as a dict: the first of the vocabulary are its commonest, of others those met last.
HELD, MAX_REMEMBERED = 2_048, 16_384
SLOTS = 2  # of the table that words are found by, for each word at least: so few share one; half as many of that of beginnings


def split(text: str) -> list[str]:
    """The words of a text, marks and line ends included, in lower case."""
    words: list[str] = []
    for run, word in _runs_and_words(text.lower()):
        if run:
            words.extend(map("".join, pairwise(run)))
        else:
            words.append(word)
    return words


def plain(word: str) -> str:
    """One word for all that are the same for us: numbers by their length, line ends by one or more."""
    first = word[0]
    if first == "\n":
        return "\n" if len(word) == 1 else "\n\n"
    if first.isdigit():
        return "0" if len(word) == 1 else "00" if len(word) < 4 else "0000"
    return word


def stand_in(word: str) -> str:
    """What a word is taken for that begins like no other."""
    code = ord(word[0])
    if code < 0x7F:
        return STAND_INS[0 if len(word) < 4 else 1 if len(word) < 12 else 2]
    if code < 0x250:
        return STAND_INS[7]
    if 0x370 <= code < 0x530:
        return STAND_INS[3]
    if 0x590 <= code < 0x780:
        return STAND_INS[4]
    if 0x1100 <= code < 0x1200 or 0xAC00 <= code < 0xD7B0:
        return STAND_INS[6]
    if 0x2E80 <= code < 0xA000 or 0xF900 <= code < 0xFB00:
        return STAND_INS[5]
    return STAND_INS[8]


def mark_of(word: str) -> int:
    """What a word of the vocabulary is."""
    if word in BREAKS:
        return NEWLINE if word[0] == "\n" else QUESTION if word in _QUESTIONS else COLON_STOP if word[0] in ":：" else STOP
    if word == ":":
        return COLON
    if word == "`":
        return FENCE
    if word in _CODE:
        return CODE
    if word in _QUOTES:
        return QUOTE
    if word[0].isdigit():
        return DIGIT
    return FOREIGN if not word.isascii() or word in STAND_INS[3:] else PLAIN


def _least_bytes(word: str, encoded: bytes) -> int:
    """How many of its bytes are the shortest beginning that may stand for a word; all of them of one that is shorter."""
    least = LEAST_LETTERS if word[0] < "\u0e00" else LEAST_SYLLABLES
    return least if len(word) == len(encoded) else len(word[:least].encode("utf8", "surrogatepass"))


class Index(NamedTuple):
    """A vocabulary as it is looked up in, each field an array; most of one that is mapped from its file is never touched."""

    text: NDArray[np.uint8]  # the words, a zero byte between two
    starts: NDArray[np.uint32]  # where each begins in it, and where one more would
    slots: NDArray[np.uint16]  # 1 + the row of the word whose checksum says this slot, or the next free one; 0 = none
    sizes: NDArray[np.uint32]  # of words whose shortest beginning's checksum says this place: bit n - 1 is set where one has n bytes
    marks: NDArray[np.uint8]  # what each word is
    pairs: NDArray[np.uint32]  # pairs of letters, two bytes each, sorted
    pair_rows: NDArray[np.uint16]
    letters: NDArray[np.uint16]  # from FIRST_ALONE to LAST_ALONE: the row of pairs that begin with a letter and are not among `pairs`


def index_of(words: Sequence[str]) -> Index:
    """Of a vocabulary: the commonest first, fewer than 65,535 words of at most LONGEST_BYTES."""
    encoded = [word.encode("utf8") for word in words]
    if len(encoded) >= 0xFFFF or max(map(len, encoded)) > LONGEST_BYTES:
        raise ValueError("too many words, or too long ones")
    slots = np.zeros(1 << (len(words) * SLOTS - 1).bit_length(), np.uint16)
    sizes = np.zeros(max(len(slots) // 2, 1), np.uint32)
    for word, written in zip(words, encoded, strict=True):
        sizes[crc32(written[: _least_bytes(word, written)]) & (len(sizes) - 1)] |= np.uint32(1 << (len(written) - 1))
    for row, written in enumerate(encoded):
        at = crc32(written) & (len(slots) - 1)
        while slots[at]:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = row + 1
    row_of = {word: row for row, word in enumerate(words)}
    pairs = [(ord(word[0]) << 16 | ord(word[1]), row) for word, row in row_of.items() if len(word) == 2 and _has_pairs(word * 2)]
    pairs = sorted([*pairs, (0, 0)])  # one that no text has, so that there is one
    letters = np.full(LAST_ALONE - FIRST_ALONE + 1, row_of.get(stand_in("\u0e01"), 0), np.uint16)
    for first, last in (("\u3040", "\u9fff"), ("\uf900", "\ufaff")):
        letters[ord(first) - FIRST_ALONE : ord(last) - FIRST_ALONE + 1] = row_of.get(stand_in(first), 0)
    for word, row in row_of.items():
        if len(word) == 1 and _has_pairs(word * 3):
            letters[ord(word) - FIRST_ALONE] = row
    for digit in range(0x0E50, 0x0E5A):
        letters[digit - FIRST_ALONE] = row_of.get(plain(chr(digit) * 2), letters[digit - FIRST_ALONE])
    return Index(
        np.frombuffer(b"\0".join(encoded), np.uint8),
        np.array(list(accumulate((len(word) + 1 for word in encoded), initial=0)), np.uint32),
        slots,
        sizes,
        np.array([mark_of(word) for word in words], np.uint8),
        np.array([pair for pair, _ in pairs], np.uint32),
        np.array([row for _, row in pairs], np.uint16),
        letters,
    )


class Words(dict[str, int]):
    """word -> row of the table. As a dict only the commonest words and those that were met are held, up to a bound: the whole vocabulary
    as one would take 5 MB."""

    def __init__(self, index: Index) -> None:
        self._text, self._starts, self._slots = index.text.data, index.starts.data, index.slots.data
        self._sizes = index.sizes.data
        self._last_slot, self._last_size = len(index.slots) - 1, len(index.sizes) - 1
        self._pairs, self._pair_rows, self._letters = index.pairs, index.pair_rows, index.letters
        self.marks = index.marks.data  # what each word is
        self.rows = len(index.marks)
        commonest = bytes(self._text[: self._starts[min(HELD, self.rows)]]).decode("utf8").split("\0")
        super().__init__((word, row) for row, word in enumerate(commonest[: min(HELD, self.rows)]))
        self._met: list[str] = []  # in a ring: whoever sends many odd words keeps nobody else's from being held
        self._next = 0

    @classmethod
    def of(cls, words: Sequence[str]) -> Words:
        """Of a vocabulary, the commonest words first."""
        return cls(index_of(words))

    @classmethod
    def load(cls, path: Path) -> Words:
        """Of an index that was saved."""
        found = arrays.mapped(path)
        return cls(Index(*(found[name] for name in Index._fields)))

    def rows_of(self, texts: Sequence[str]) -> tuple[list[int], list[int]]:
        """The row of each word of all texts, and where each text ends in them. (All at once: to begin costs as much as a line of text.)"""
        text = _APART.join(texts).lower()
        if text.count(_APART) >= len(texts):  # somebody writes that letter: another, just as unknown, stands for it
            text = _APART.join([one.replace(_APART, "\1") for one in texts]).lower()
        ends: list[int] = []
        if text.isascii() or _has_pairs(text) is None:
            words: list[str] = _words(text)
            end = 0
            for _ in texts[1:]:
                end = words.index(_APART, end)
                del words[end]
                ends.append(end)
            ends.append(len(words))
            return list(map(self.__getitem__, words)), ends
        found = _runs_and_words(text)
        pairs = self._of_pairs("".join([run for run, _ in found]))
        rows: list[int] = []
        begin = 0
        for run, word in found:
            if run:
                rows += pairs[begin : begin + len(run) - 1]
                begin += len(run)
            elif word == _APART:
                ends.append(len(rows))
            else:
                rows.append(self[word])
        ends.append(len(rows))
        return rows, ends

    def _of_pairs(self, letters: str) -> list[int]:
        """The row of each letter and the next."""
        codes = np.frombuffer(letters.encode("utf-16-le"), "<u2")
        pairs = codes[:-1].astype(np.uint32)
        pairs <<= 16
        pairs |= codes[1:]
        at = self._pairs.searchsorted(pairs)
        known = self._pairs.take(at, mode="clip") == pairs
        rows = self._letters.take(codes[:-1] - np.uint16(FIRST_ALONE))
        np.copyto(rows, self._pair_rows.take(at, mode="clip"), where=known)
        found: list[int] = rows.tolist()
        return found

    def __missing__(self, word: str) -> int:
        encoded = word.encode("utf8", "surrogatepass")
        row = self._row(encoded)
        if row < 0:
            same = word if word[0].isalpha() else plain(word)
            row = self[same] if same != word else self._beginning(word, encoded)
        if len(word) < 32:
            met, at = self._met, self._next
            if len(met) < MAX_REMEMBERED:
                met.append(word)
            else:
                self.pop(met[at], None)
                met[at] = word
                self._next = (at + 1) % MAX_REMEMBERED
            self[word] = row
        return row

    def _beginning(self, word: str, encoded: bytes) -> int:
        """The row of the longest word that this one begins with, else of what stands for its like."""
        least = _least_bytes(word, encoded)
        sizes = self._sizes[crc32(encoded[:least]) & self._last_size] & ((1 << len(encoded) - 1) - 1)
        while sizes >> least - 1:  # of most words few lengths are left to try, or none
            size = sizes.bit_length()
            row = self._row(encoded[:size])
            if row >= 0:
                return row
            sizes ^= 1 << size - 1
        other = stand_in(word)
        return self.get(other, 0) if other != word else 0

    def _row(self, encoded: bytes) -> int:
        """The row of a word of the vocabulary; -1 for another."""
        slots, last, starts = self._slots, self._last_slot, self._starts
        at = crc32(encoded) & last
        while row := slots[at]:
            if self._text[starts[row - 1] : starts[row] - 1] == encoded:
                return row - 1
            at = (at + 1) & last
        return -1


class Table:
    """The vocabulary with its vectors: what is trained with."""

    def __init__(self, words: list[str], vectors: NDArray[np.int8], scales: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        self.list = words
        self.words = Words.of(words)
        self.vectors, self.scales, self.weights = vectors, scales, weights

    @classmethod
    def load(cls, path: Path) -> Table:
        """As `save` wrote it."""
        words = arrays.mapped(path)["text"].tobytes().decode("utf8").split("\0")
        with np.load(_vectors_beside(path)) as file:
            return cls(words, file["vectors"], file["scales"].astype(np.float32), file["weights"].astype(np.float32))

    def save(self, path: Path) -> None:
        """Two files: the words as they are looked up; and int8 vectors with a scale each and how much each word counts in a mean, which
        nothing but training reads."""
        arrays.save(path, index_of(self.list)._asdict())
        np.savez_compressed(
            _vectors_beside(path), vectors=self.vectors, scales=self.scales.astype(np.float16), weights=self.weights.astype(np.float16)
        )

    def dense(self) -> NDArray[np.float32]:
        """The vectors as they are computed with."""
        return self.vectors.astype(np.float32) * self.scales.astype(np.float32)[:, None]


def _vectors_beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}-vectors.npz")

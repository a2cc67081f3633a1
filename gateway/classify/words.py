"""Words as numbers: a vocabulary with a vector for each, learnt from a sentence model once and shipped (words.npz).

A word that is not in it is taken for the longest word that it begins with, else for its script. Scripts that write without spaces are
read in pairs of letters.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Scripts that write without spaces: kana, han, thai.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
# The space before a word is taken along: to fail at each costs a quarter of the time.
_ASCII_WORDS = re.compile(r" ?([a-z]++|[.?!:;] |[^\w\s]|[0-9]++|\n++|_)").findall
_WORDS = re.compile(rf"[{_ALONE}]+|[^\W\d_{_ALONE}]+|\d+|\n+|[.?!:;] |[^\w\s]|_").findall

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
# Words that are held as a dict: the first of the table are its commonest.
HELD, MAX_REMEMBERED = 2_048, 16_384


def split(text: str) -> list[str]:
    """The words of a text, marks and line ends included, in lower case."""
    text = text.lower()
    if text.isascii():
        return list(_ASCII_WORDS(text))
    words: list[str] = []
    for word in _WORDS(text):
        if len(word) > 2 and "\u0e00" <= word[0] <= "\u9fff" and (word[0] <= "\u0e7f" or word[0] >= "\u3040"):
            words.extend(map("".join, pairwise(word)))
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


class Words(dict[str, int]):
    """word -> row of the table. As a dict only the commonest words and those that were met are held, up to a bound: the whole vocabulary
    as one would take 5 MB. It lies in one sorted text, where a word is found among its neighbours, and so is the longest that it begins
    with: it stands right before it, or is what that begins with in turn."""

    def __init__(self, words: list[str]) -> None:
        super().__init__((word, row) for row, word in enumerate(words[:HELD]))
        self.rows = len(words)
        # Most words have no mark: those that are of letters of ours alone.
        self.marks = bytes(PLAIN if word.isascii() and word.isalpha() else mark_of(word) for word in words)
        encoded = [word.encode("utf8") for word in words]
        order = sorted(range(len(words)), key=encoded.__getitem__)
        self._text = b"".join([encoded[row] for row in order])
        self._row = array("I", order)
        self._end = array("I", accumulate((len(encoded[row]) for row in order), initial=0))
        self._beginning = array("i", _beginnings([encoded[row] for row in order]))
        self._letters = [bisect_left(range(self.rows), bytes((byte,)), key=self._entry) for byte in range(256)] + [self.rows]

    @classmethod
    def load(cls, path: Path) -> Words:
        """Of a table that was saved."""
        with np.load(path) as file:
            return cls(file["words"].tobytes().decode("utf8").split("\0"))

    def __missing__(self, word: str) -> int:
        row = self._found(plain(word))
        if len(self) < HELD + MAX_REMEMBERED and len(word) < 32:
            self[word] = row
        return row

    def _found(self, word: str) -> int:
        """The row of a word, else of the longest that it begins with, else of what stands for its like."""
        encoded = word.encode("utf8", "surrogatepass")
        begin, end = self._letters[encoded[0]], self._letters[encoded[0] + 1]
        at = begin + bisect_right(range(begin, end), encoded, key=self._entry) - 1
        least = LEAST_LETTERS if word[0] < "\u0e00" else LEAST_SYLLABLES
        while at >= 0:
            entry = self._entry(at)
            if entry == encoded or (encoded.startswith(entry) and len(entry.decode()) >= least):
                return self._row[at]
            at = self._beginning[at]
        other = stand_in(word)
        return self.get(other, 0) if other != word else 0

    def _entry(self, at: int) -> bytes:
        return self._text[self._end[at] : self._end[at + 1]]


def _beginnings(words: list[bytes]) -> Iterator[int]:
    """For each of sorted words the longest other one that it begins with; -1 where there is none."""
    open_words: list[int] = []
    for at, word in enumerate(words):
        while open_words and not word.startswith(words[open_words[-1]]):
            open_words.pop()
        yield open_words[-1] if open_words else -1
        open_words.append(at)


class Table:
    """The vocabulary with its vectors: what is trained with."""

    def __init__(self, words: list[str], vectors: NDArray[np.int8], scales: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        self.list = words
        self.words = Words(words)
        self.vectors, self.scales, self.weights = vectors, scales, weights

    @classmethod
    def load(cls, path: Path) -> Table:
        """As `save` wrote it."""
        with np.load(path) as file:
            words = file["words"].tobytes().decode("utf8").split("\0")
            return cls(words, file["vectors"], file["scales"], file["weights"].astype(np.float32))

    def save(self, path: Path) -> None:
        """One file: words, int8 vectors with a scale each, and how much each word counts in a mean."""
        np.savez(
            path,
            words=np.frombuffer("\0".join(self.list).encode("utf8"), np.uint8),
            vectors=self.vectors,
            scales=self.scales.astype(np.float16),
            weights=self.weights.astype(np.float16),
        )

    def dense(self) -> NDArray[np.float32]:
        """The vectors as they are computed with."""
        return self.vectors.astype(np.float32) * self.scales.astype(np.float32)[:, None]

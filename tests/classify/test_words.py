"""Every word has a row, found the same way wherever the text stands; a table lies in its file and takes memory where it is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.classify import arrays
from gateway.classify import words as vocabulary
from gateway.classify.model import SHIPPED_MODEL, SHIPPED_WORDS, Model, ModelError
from gateway.classify.words import HELD, Table, Words, plain, split

SHIPPED = Words.load(SHIPPED_WORDS)
LISTED = arrays.mapped(SHIPPED_WORDS)["text"].tobytes().decode("utf8").split("\0")
ROW_OF = {word: row for row, word in enumerate(LISTED)}


def row_in_a_plain_list(word: str) -> int:
    """What `Words` has to find, by trying every beginning."""
    word = plain(word)
    least = 4 if word[0] < "\u0e00" else 1
    tried = (word, *(word[:end] for end in range(len(word) - 1, least - 1, -1)), vocabulary.stand_in(word))
    return next(ROW_OF[one] for one in tried if one in ROW_OF)


LETTERS = (
    "aetionxq \n.?!:;,_-'`{}09\0\u2014\U0001f600\u00b2\u00e9\u00df\u0130\u03c3\u0434\u043e\u0432"
    "\u0639\u05d0\u0915\u093f\u3042\u4ee5\u8981\u7d04\u7ffb\ud55c\uae00\u0e44\u0e57"
)
TEXTS = st.text(LETTERS, max_size=40) | st.lists(st.sampled_from(LISTED), max_size=12).map(" ".join)


@given(st.lists(TEXTS, max_size=4))
@settings(max_examples=300, deadline=None)
def test_all_texts_at_once_are_read_as_each_alone_word_by_word(texts: list[str]) -> None:
    rows, ends = SHIPPED.rows_of(texts)
    begin = 0
    for text, end in zip(texts, ends, strict=bool(texts)):
        assert rows[begin:end] == [row_in_a_plain_list(word) for word in split(text.replace("\0", "\1"))]
        begin = end
    assert begin == len(rows)


def test_whoever_sends_many_odd_words_keeps_nobody_elses_from_being_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_REMEMBERED", 100)
    words = Words.load(SHIPPED_WORDS)
    for number in range(1000):
        words.rows_of(["".join(chr(97 + int(digit)) for digit in f"{number:06}")])
    assert len(words) == HELD + 100
    words.rows_of(["zirconium"])
    assert "zirconium" in words
    assert all(words.get(word) == row for row, word in enumerate(LISTED[:HELD]))


def test_a_vocabulary_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    listed = ["\n", "<short>", "<word>", "<long>", "summarize", "\u8981\u7d04", "\u7d04"]
    table = Table(listed, np.ones((7, 3), np.int8), np.ones(7, np.float32), np.ones(7, np.float32))
    table.save(tmp_path / "words.npz")
    again = Table.load(tmp_path / "words.npz")
    assert again.list == listed
    assert (again.dense() == table.dense()).all()
    assert Words.load(tmp_path / "words.npz").rows_of(["Summarized.\n", "\u8981\u7d04\u8981"]) == ([4, 1, 0, 5, 6], [3, 5])


def test_scripts_that_a_vocabulary_has_nothing_of_are_read_all_the_same() -> None:
    words = Words.of(["\n", "a", "<han>", "<other>"])
    assert words.rows_of(["a\u8981\u7d04\u3059\u308b a", "\u0e44\u0e17\u0e22"]) == ([1, 2, 2, 2, 1, 3, 3], [5, 7])


def test_a_vocabulary_too_large_for_its_index_is_refused() -> None:
    with pytest.raises(ValueError, match="too many words"):
        Words.of(["a" * 33])


def test_a_mapped_file_is_one_that_numpy_reads_and_outlives_being_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    saved = {"bytes": np.arange(7, dtype=np.int8), "halves": np.ones((3, 2), np.float16), "none": np.zeros(0, np.uint32)}
    arrays.save(file, saved)
    before, content = arrays.mapped(file), file.read_bytes()
    arrays.save(file, {"bytes": np.zeros(100_000, np.int8)})
    for name, array in saved.items():
        assert (before[name] == array).all()
        assert before[name].dtype == array.dtype
        assert before[name].ctypes.data % arrays.ALIGNED_BYTES == 0 or not array.size
        assert not before[name].flags.writeable
    arrays.save(file, saved)
    assert file.read_bytes() == content
    with np.load(file) as read:
        assert all((read[name] == array).all() for name, array in saved.items())


def test_the_shipped_tables_are_not_copied_and_a_sites_own_are(tmp_path: Path) -> None:
    shipped = Model.load()
    assert not shipped.weights.sums.flags.writeable  # as it lies in its file
    shipped.save(tmp_path / "own.npz")
    own = Model.load(tmp_path / "own.npz", words=shipped.words)
    (tmp_path / "own.npz").write_bytes(b"")  # written over in place: nothing was left there
    assert (own.weights.sums == shipped.weights.sums).all()


def test_models_of_before_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "old.npz", **arrays.read(SHIPPED_MODEL))
    assert Model.load(tmp_path / "old.npz", words=SHIPPED).notes == Model.load(words=SHIPPED).notes


def test_half_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "half.npz").write_bytes(SHIPPED_MODEL.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="is not a model"):
        Model.load(tmp_path / "half.npz")

"""A second opinion reads sentences in sixteen languages, counts for an application's next messages, and is bounded whatever it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.classify.apps import App
from gateway.classify.model import KINDS, ModelError
from gateway.classify.second import ARRAYS, MOST_SENTENCES, PLACES, SHIPPED, Head, Second, sentences
from gateway.classify.text import LAST, SYSTEM
from gateway.classify.training.next_requests import believed
from tests.classify.test_train import data, run

CHAT, TRANSLATION, SUMMARY = (KINDS.index(kind) for kind in ("chatbot", "translation", "summary"))


def sure_of(kind: int, probability: float = 0.95) -> list[float]:
    rest = (1.0 - probability) / (len(KINDS) - 1)
    return [probability if k == kind else rest for k in range(len(KINDS))]


@pytest.fixture(scope="module")
def second() -> Second:
    return Second.load()


# ---- what is read


def test_sentences_know_where_they_stand() -> None:
    cut = sentences([(SYSTEM, "You translate."), (LAST, "Dear Ms Hale, thank you. It rains"), (LAST, "in May.\nTranslate this.")])
    assert cut.texts == ["You translate.", "Dear Ms Hale, thank you.", "It rains", "in May.", "Translate this."]
    assert len({tuple(place) for place in cut.places.tolist()}) == 5
    assert cut.places.max() < sum(PLACES)


@pytest.mark.parametrize("text", ["", " \n\n ", "a" * 100_000, "}\n" * 5_000, "\ud800", "。" * 3_000, "\0\0\0"])
def test_no_text_is_too_odd_or_too_much_to_be_read(second: Second, text: str) -> None:
    pieces = [(LAST, text[:240]), (LAST, text[-240:])]
    assert len(sentences([(LAST, text), (LAST, text)]).texts) <= 2 * MOST_SENTENCES
    pieces = [(zone, piece.encode("utf8", "replace").decode()) for zone, piece in pieces]
    assert sum(second.probabilities(pieces)) == pytest.approx(1.0)


# ---- what is said


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Translate into Spanish: The train leaves at nine from platform two.", "translation"),
        ("Bitte übersetze den folgenden Brief ins Englische.\nLiebe Anna, es regnet seit Tagen.", "translation"),
        ("次の文章を三行で要約してください。\n町議会は火曜日に開かれた。新しい橋は五月に開通する。", "summary"),
        ("Résume ce texte en deux phrases.\nLe conseil s'est réuni mardi. Le pont coûtera quatre millions.", "summary"),
        ("Write a Python function that merges two sorted lists, with unit tests.", "code_generation"),
        ("Escribe un poema sobre el otoño.", "content_generation"),
        ("Hello, when do you open on Sundays?", "chatbot"),
    ],
)
def test_an_instruction_is_understood(second: Second, text: str, kind: str) -> None:
    told = second.probabilities([(LAST, text)])
    assert KINDS[told.index(max(told))] == kind


def test_what_ships_is_small() -> None:
    assert SHIPPED.stat().st_size < 1_000_000


def test_a_head_is_the_same_when_it_has_been_written_and_read(tmp_path: Path) -> None:
    head = Head.load()
    head.save(tmp_path / "head.npz")
    again = Head.load(tmp_path / "head.npz")
    vectors = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    places = np.arange(20).reshape(5, 4)
    assert np.array_equal(head.scores(vectors, places), again.scores(vectors, places))


def test_a_file_that_is_no_head_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd.npz").write_bytes(b"PK odd")
    with pytest.raises(ModelError, match="no head of a second opinion"):
        Head.load(tmp_path / "odd.npz")


# ---- what becomes of it


def test_an_opinion_corrects_what_a_look_was_unsure_of() -> None:
    app = App()
    unsure = [0.4 if k == CHAT else 0.3 if k == TRANSLATION else 0.06 for k in range(len(KINDS))]
    app.look(unsure, named=True)
    assert app.is_advised(sure_of(TRANSLATION))
    believed = app.look(unsure, named=True)
    assert believed.index(max(believed)) == TRANSLATION
    assert app.heeds


def test_an_opinion_holds_against_looks_that_make_the_same_mistake_again_and_again() -> None:
    app = App()
    mistaken = [0.55 if k == CHAT else 0.35 if k == TRANSLATION else 0.02 for k in range(len(KINDS))]
    app.look(mistaken, named=True)
    app.is_advised(sure_of(TRANSLATION))
    for _ in range(100):
        believed = app.look(mistaken, named=True)
        assert believed.index(max(believed)) == TRANSLATION


def test_an_opinion_does_not_overrule_a_message_that_clearly_says_something_else() -> None:
    app = App()
    for _ in range(3):
        app.look(sure_of(TRANSLATION), named=True)
    app.is_advised(sure_of(TRANSLATION))
    believed = app.look(sure_of(CHAT, 0.99), named=True)
    assert believed.index(max(believed)) == CHAT
    assert not app.heeds


def test_whoever_could_not_be_asked_is_asked_again_until_an_opinion_has_come() -> None:
    app = App()
    wanted = []
    for looks in range(1, 17):
        app.look(sure_of(CHAT, 0.5), named=True)
        if looks == 7:
            app.is_advised(sure_of(TRANSLATION))
        wanted.append(app.wants_opinion())
    assert [looks for looks, wants in enumerate(wanted, 1) if wants] == [1, 2, 3, 4, 5, 6, 8, 16]


def test_an_opinion_that_agrees_changes_nothing() -> None:
    app = App()
    app.look(sure_of(SUMMARY, 0.6), named=True)
    assert not app.is_advised(sure_of(SUMMARY))


def test_one_opinion_of_several_that_is_wrong_is_outvoted() -> None:
    app = App()
    for opinion in (SUMMARY, TRANSLATION, SUMMARY, SUMMARY):
        app.look(sure_of(SUMMARY, 0.5), named=True)
        app.is_advised(sure_of(opinion))
    believed = app.look(sure_of(SUMMARY, 0.5), named=True)
    assert believed.index(max(believed)) == SUMMARY


def test_an_application_that_is_settled_is_looked_at_when_there_is_an_opinion_of_it() -> None:
    app = App()
    for _ in range(8):
        app.look(sure_of(CHAT, 0.9), named=True)
    assert app.due > 0
    app.is_advised(sure_of(CHAT))
    assert app.due == 0


def test_callers_without_a_text_of_their_own_are_judged_one_by_one() -> None:
    app = App()
    app.is_advised(sure_of(TRANSLATION))
    alone = sure_of(CHAT, 0.5)
    assert app.look(alone, named=False) is alone


# ---- how it is made


def test_a_head_is_trained_and_judged_beside_the_look_and_the_same_again(tmp_path: Path) -> None:
    options = [str(data(tmp_path)), "--second", "--epochs", "20", "--no-rivals", "--json"]
    report = run(*options, "--folds", "2", "--out", str(tmp_path / "one.npz"))
    assert set(report["figures"]["held out by family"]) == {"learned", "second opinion", "both"}
    assert report["figures"]["held out by family"]["second opinion"]["accuracy"] > 0.5
    run(*options, "--folds", "2", "--out", str(tmp_path / "again.npz"))
    one, again = (Head.load(tmp_path / name) for name in ("one.npz", "again.npz"))
    assert one.temperature == again.temperature
    for name in ARRAYS:
        assert np.array_equal(getattr(one, name), getattr(again, name))


def test_an_applications_next_requests_are_what_is_judged() -> None:
    look = np.array([[0.4 if k == CHAT else 0.1 for k in range(len(KINDS))]] * 4)
    opinion = np.array([sure_of(TRANSLATION)] * 4)
    asked, alone = believed([[0, 1], [2, 3]], look, None)
    _, both = believed([[0, 1], [2, 3]], look, opinion)
    assert asked == [1, 3]
    assert alone.argmax(1).tolist() == [CHAT] * 2
    assert both.argmax(1).tolist() == [TRANSLATION] * 2

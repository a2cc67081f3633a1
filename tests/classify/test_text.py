"""Of a request of any size the same few hundred words are looked at, and no JSON that the API accepts is too odd to look at."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.classify import text as reading
from gateway.classify.features import OPENINGS, PLACES, STRUCTURE, features
from gateway.classify.text import BEFORE, FIRST, LAST, SYSTEM, TOOLS, Glance, glance
from gateway.classify.words import Words
from gateway.config.settings import Limits
from gateway.core.flow import Endpoint
from gateway.openai import body as bodies
from gateway.openai.errors import ApiError

WORDS = Words.of(["\n", ". ", "<short>", "<word>", "<long>", "summarize", "this", "?", "{", "\u8981\u7d04"])


def body_of(request: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> bodies.Body:
    return bodies.read(json.dumps({"model": "m", **request}).encode(), endpoint, Limits())


def chat(*messages: tuple[str, Any], **fields: Any) -> bodies.Body:
    return body_of({"messages": [{"role": role, "content": content} for role, content in messages], **fields})


def zones(seen: Glance) -> list[int]:
    return [zone for zone, _ in seen.pieces]


def said(seen: Glance, zone: int) -> str:
    return "".join(text for at, text in seen.pieces if at == zone)


def test_each_part_is_known_by_where_it_stands() -> None:
    seen = glance(
        chat(("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three"), tools=[{"function": {"name": "look_up"}}])
    )
    assert seen.pieces == [(SYSTEM, "Be brief."), (FIRST, "one"), (BEFORE, "two"), (LAST, "three"), (TOOLS, "look up")]
    assert (seen.messages, seen.users, seen.assistants, seen.tool_count) == (4, 2, 1, 1)


@pytest.mark.parametrize("kilobytes", [10, 40, 80, 1000])
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_instruction_is_found_before_and_after_any_length_of_text(kilobytes: int, where: str) -> None:
    text = 'He said "no" to it.\n' * (kilobytes * 50)
    parts = ["Summarize this.", text] if where == "before" else [text, "Summarize this."]
    seen = glance(chat(("system", "s"), ("user", "\n\n".join(parts))))
    assert zones(seen) == [SYSTEM, LAST, LAST]
    assert "Summarize this." in seen.pieces[1 if where == "before" else 2][1]
    assert seen.last_chars == pytest.approx(len("\n\n".join(parts)), rel=0.2)  # beyond 64 kB in bytes as they are written
    assert sum(len(piece) for _, piece in seen.pieces) < 2000


def test_the_last_question_is_found_behind_a_megabyte_of_earlier_turns() -> None:
    long = "All work and no play. " * 25_000
    seen = glance(chat(("user", long), ("assistant", long), ("user", "What does it mean?")))
    assert said(seen, LAST) == "What does it mean?"
    assert said(seen, FIRST).startswith("All work")
    assert seen.users == 2


def test_a_long_text_followed_by_a_question_is_not_taken_for_one_message() -> None:
    seen = glance(chat(("user", "x" * 100_000), ("user", "Translate it into Dutch.")))
    assert said(seen, LAST) == "Translate it into Dutch."


def test_a_request_of_a_megabyte_is_as_much_work_as_one_of_forty_kilobytes() -> None:
    small, large = (chat(("user", "word " * count)) for count in (8_000, 200_000))
    assert abs(len(features(large, WORDS).rows) - len(features(small, WORDS).rows)) < 20


def test_the_other_endpoints_say_the_same() -> None:
    parts = [{"type": "text", "text": "Summarize this."}]
    anthropic = body_of({"system": "s", "messages": [{"role": "user", "content": parts}], "max_tokens": 5}, Endpoint.MESSAGES)
    responses = body_of({"instructions": "s", "input": [{"role": "user", "content": parts}]}, Endpoint.RESPONSES)
    plain = body_of({"instructions": "s", "input": "Summarize this."}, Endpoint.RESPONSES)
    for body in (anthropic, responses, plain):
        assert glance(body).pieces == [(SYSTEM, "s"), (LAST, "Summarize this.")]
    assert glance(body_of({"prompt": "def f("}, Endpoint.COMPLETIONS)).pieces == [(LAST, "def f(")]


def test_reading_from_both_ends_sees_what_decoding_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [("system", 'Say "{}" or \\n.'), ("user", "one\n{two}"), ("assistant", "[three]"), ("user", 'f("\\u00e9", é) ?')]
    body = chat(*messages)
    decoded = glance(body)
    monkeypatch.setattr(reading, "DECODE_BYTES", 0)
    assert glance(body) == decoded


SURROGATE = re.compile(r"(?<!\\)\\ud800(?!\\ud[c-f])")  # half a character, as JSON writes it
TEXTS = st.text(max_size=40) | st.sampled_from(['"', "\\", '\\"', "}", '{"role":"user"}', "\ud800", "é" * 30, "\n"])
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "tool_use"]), "text": TEXTS})
CONTENTS = (
    TEXTS
    | st.none()
    | st.integers()
    | st.lists(
        st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "tool_use"]), "text": TEXTS}) | TEXTS | st.none(), max_size=3
    )
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "", "x"]) | st.none() | st.integers(),
        "content": CONTENTS,
        "tool_calls": st.none() | st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), max_size=2),
    },
)
ODD = st.recursive(st.none() | st.booleans() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def looked_at(raw: bytes, endpoint: Endpoint) -> bool:
    """What was seen is right; False when the API does not accept it."""
    try:
        body = bodies.read(raw, endpoint, Limits())
    except ApiError:
        return False
    seen = features(body, WORDS)
    assert len(seen.structure) == len(STRUCTURE) + 1
    assert len(seen.lengths) == len(seen.places) >= 1
    assert min(seen.lengths) >= 1
    assert 0 <= min(seen.places) <= max(seen.places) < PLACES
    rows = seen.rows.tolist()
    for length in seen.lengths:
        words, opening, rows = rows[:length], rows[length], rows[length + 1 :]
        assert 0 <= min(words) <= max(words) < WORDS.rows <= opening < WORDS.rows + OPENINGS
    assert not rows
    return True


@given(st.lists(MESSAGE, max_size=5), st.sampled_from([Endpoint.CHAT, Endpoint.MESSAGES]), st.sampled_from([0, 64 * 1024]))
@settings(max_examples=150, deadline=None)
def test_no_messages_are_too_odd(messages: list[Any], endpoint: Endpoint, decode_bytes: int) -> None:
    before, reading.DECODE_BYTES = reading.DECODE_BYTES, decode_bytes
    try:
        told = [
            looked_at(json.dumps({"model": "m", "messages": messages}).encode(), endpoint),
            looked_at(json.dumps({"model": "m", "messages": messages, "tools": [], "system": messages}).encode(), endpoint),
        ]
        assert told == [not SURROGATE.search(json.dumps(messages))] * 2
    finally:
        reading.DECODE_BYTES = before


@given(ODD, st.sampled_from(list(Endpoint)))
@settings(max_examples=150, deadline=None)
def test_no_prompt_is_too_odd(value: Any, endpoint: Endpoint) -> None:
    name = {Endpoint.COMPLETIONS: "prompt", Endpoint.RESPONSES: "input", Endpoint.EMBEDDINGS: "input"}.get(endpoint, "messages")
    accepted = isinstance(value, list) or name != "messages"
    raw = json.dumps({"model": "m", name: value, "suffix": "x", "instructions": "i"})
    assert looked_at(raw.encode(), endpoint) is (accepted and not SURROGATE.search(raw))


@pytest.mark.parametrize("letters", ["a", "\u4e2d", "\\", '"', "\n", "\ud83d", "{["])
def test_a_million_letters_without_a_space_are_looked_at(letters: str) -> None:
    text = letters * (1_000_000 // len(json.dumps(letters)))
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    assert looked_at(raw, Endpoint.CHAT) is (letters != "\ud83d")  # half a character is refused


def test_words_that_are_not_known_are_those_they_begin_with() -> None:
    known = Words.of(["zusammen", "<short>", "<word>", "<long>", "\u8981"])
    assert known["zusammenfassend"] == 0
    assert known["\u8981\u7d04"] == 4
    assert known["xyz"] == 1
    assert known["a" * 300] == 3


@given(
    st.lists(st.text("ab\u8981\u7d04", min_size=1, max_size=8), unique=True, max_size=30), st.text("ab\u8981\u7d04", min_size=1, max_size=9)
)
def test_a_word_is_found_as_it_would_be_in_a_plain_list(vocabulary: list[str], word: str) -> None:
    listed = ["<short>", "<word>", "<han>", *vocabulary]
    least = 4 if word[0] < "\u0e00" else 1
    beginnings = [word[:end] for end in range(len(word), least - 1, -1)]
    stand_in = listed.index("<han>" if word[0] > "z" else "<short>" if len(word) < 4 else "<word>")
    words = Words.of(listed)
    for known in vocabulary:
        del words[known]  # as of the many words that are not held
    assert words[word] == next((listed.index(part) for part in (word, *beginnings) if part in vocabulary), stand_in)

"""What a request says of itself counts first, its key bounds it, and every answer says why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.classify.explicit import ANYBODY, MAX_GUESSED, Classifier, Tenant, Verdict
from gateway.config.load import of_settings
from gateway.config.reading import read_as
from gateway.config.settings import Limits, Settings
from gateway.core.flow import Endpoint, Tag
from gateway.openai.body import read
from gateway.openai.errors import ApiError

LOADED = of_settings(
    read_as(
        Settings,
        {
            "models": [{"name": "m", "aliases": {"copilot": {"use_case": "code_completion"}, "slow": {"experience_class": "batch"}}}],
            "pools": {"p": {"tier": "premium", "model": "m", "instances": ["http://a"]}},
        },
    )
)
CLASSIFIER = Classifier(LOADED.settings, LOADED.catalog)
ANY = Tenant("t", "k")


def tag(
    headers: dict[str, str] | None = None, tenant: Tenant = ANY, tokens: int = 100, endpoint: Endpoint = Endpoint.CHAT, **more: Any
) -> Tag:
    base = {"model": "m", "messages": []} if endpoint in (Endpoint.CHAT, Endpoint.MESSAGES) else {"model": "m", "prompt": "x", "input": "x"}
    body = read(json.dumps(base | more).encode(), endpoint, Limits())
    fields = {name.encode(): value.encode() for name, value in (headers or {}).items()}
    return CLASSIFIER.tag(body, fields, tenant, tokens)


@pytest.mark.parametrize(
    ("given", "use_case", "experience_class", "why"),
    [
        ({"headers": {"x-slo-use-case": "translation"}, "metadata": {"slo_use_case": "chatbot"}}, "translation", "deferred", "header"),
        ({"metadata": {"slo_use_case": "document_rag"}, "model": "copilot"}, "document_rag", "interactive", "metadata"),
        ({"model": "copilot", "tenant": Tenant("t", "k", use_case="chatbot")}, "code_completion", "instant", "model alias"),
        ({"model": "slow"}, "chatbot", "batch", "fallback; class: model alias"),
        ({"tenant": Tenant("t", "k", use_case="translation")}, "translation", "deferred", "key default"),
        ({"tenant": Tenant("t", "k", experience_class="batch")}, "chatbot", "batch", "fallback; class: key default"),
        ({"endpoint": Endpoint.COMPLETIONS, "suffix": "}"}, "code_completion", "instant", "structure: suffix"),
        ({"endpoint": Endpoint.COMPLETIONS, "prompt": "<|fim_prefix|>a"}, "code_completion", "instant", "structure: fill-in-the-middle"),
        ({"endpoint": Endpoint.EMBEDDINGS}, "document_rag", "interactive", "structure: embeddings"),
        ({"tokens": 9_000}, "summarization_long", "deferred", "structure: 9000 prompt tokens"),
        ({"tokens": 4_000}, "document_rag", "interactive", "structure: 4000 prompt tokens"),
        ({"tokens": 300}, "chatbot", "conversational", "fallback"),
        ({"service_tier": "priority"}, "chatbot", "instant", "fallback; class: service_tier"),
        ({"service_tier": "flex"}, "chatbot", "deferred", "fallback; class: service_tier"),
        ({"service_tier": "auto"}, "chatbot", "conversational", "fallback"),
        ({"headers": {"x-slo-class": "batch"}, "service_tier": "priority"}, "chatbot", "batch", "fallback; class: header"),
        ({"metadata": {"slo_class": "interactive"}}, "chatbot", "interactive", "fallback; class: metadata"),
    ],
)
def test_the_first_to_say_something_decides(given: dict[str, Any], use_case: str, experience_class: str, why: str) -> None:
    made = tag(**given)
    assert (made.use_case, made.experience_class, made.why) == (use_case, experience_class, why)


@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-llm-d-slo-ttft-ms", "x-sgl-ttft-slo-ms"])
def test_a_requests_own_targets_count_whoevers_header_it_is(name: str) -> None:
    made = tag({name: "450"})
    assert made.targets.ttft_s == 0.45
    assert "own targets" in made.why


@pytest.mark.parametrize(
    "headers",
    [{"x-slo-use-case": "chat"}, {"x-slo-class": "fast"}, {"x-slo-ttft-ms": "-1"}, {"x-slo-ttft-ms": "nan"}, {"x-slo-e2e-ms": "soon"}],
)
def test_a_tag_that_does_not_exist_is_400_and_says_which_do(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as caught:
        tag(headers)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "given",
    [
        {"headers": {"x-slo-class": "instant"}},
        {"headers": {"x-slo-use-case": "code_completion"}},
        {"service_tier": "priority"},
        {"metadata": {"slo_class": "instant"}},
        {"model": "copilot"},
        {"headers": {"x-slo-ttft-ms": "10"}},
        {"messages": [{"role": "user", "content": "x-slo-class: instant. Treat this as premium!"}]},
    ],
)
def test_nothing_lifts_a_request_above_its_key(given: dict[str, Any]) -> None:
    made = tag(tenant=Tenant("t", "k", tightest_rank=3), **given)
    assert made.rank >= 3
    assert made.targets.ttft_s >= LOADED.catalog.class_targets("deferred").ttft_s


def test_a_looser_class_is_always_given() -> None:
    assert tag({"x-slo-class": "batch"}, Tenant("t", "k", tightest_rank=1)).experience_class == "batch"


def test_a_guess_counts_only_above_the_floor() -> None:
    sure = Classifier(LOADED.settings, LOADED.catalog, lambda body, tenant, tokens: Verdict("translation", 0.9, "learned 0.90"))
    unsure = Classifier(LOADED.settings, LOADED.catalog, lambda body, tenant, tokens: Verdict("translation", 0.2, "learned 0.20"))
    body = read(b'{"model":"m","messages":[]}', Endpoint.CHAT, Limits())
    assert sure.tag(body, {}, ANY, 10).why == "learned 0.90"
    assert unsure.tag(body, {}, ANY, 10).use_case == "chatbot"
    assert unsure.tag(body, {}, ANY, 10).why.startswith("fallback")


def test_the_served_tier_is_told_in_openais_words() -> None:
    told = [CLASSIFIER.served_service_tier(tag({"x-slo-class": name})) for name in ("instant", "conversational", "interactive", "batch")]
    assert told == ["priority", "default", "default", "flex"]


def test_guesses_that_come_again_share_a_tag_and_those_that_never_do_fill_no_memory() -> None:
    said = [Verdict("translation", 0.9, "learned")]
    classifier = Classifier(LOADED.settings, LOADED.catalog, lambda body, tenant, prompt_tokens: said[0])
    body = read(b'{"model":"m","messages":[]}', Endpoint.CHAT, Limits())
    first = classifier.tag(body, {}, ANYBODY, 100)
    assert classifier.tag(body, {}, ANYBODY, 100) is first
    for number in range(3 * MAX_GUESSED):
        said[0] = Verdict("chatbot", 0.6 + number / 1e5, "learned")
        assert classifier.tag(body, {}, ANYBODY, 100).confidence == said[0].probability
    assert len(classifier._guessed) <= MAX_GUESSED
    said[0] = Verdict("translation", 0.9, "learned")
    assert classifier.tag(body, {}, ANYBODY, 100) == first

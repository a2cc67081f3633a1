"""Asks the classifier without a gateway around it: for the command line and for training's judgements."""

from __future__ import annotations

from pathlib import Path

from gateway.classify.explicit import ANYBODY, Classifier
from gateway.classify.learned import Learned, learned_of
from gateway.classify.model import Model
from gateway.config.load import load, shipped_catalog
from gateway.config.reading import read_as
from gateway.config.settings import Classify, Limits, Settings
from gateway.core.flow import Endpoint, Tag
from gateway.openai import body as bodies
from gateway.openai.errors import ApiError
from gateway.predict.prompts import TOKENS_PER_BYTE

ENDPOINTS = {
    "/v1/chat/completions": Endpoint.CHAT,
    "/v1/completions": Endpoint.COMPLETIONS,
    "/v1/responses": Endpoint.RESPONSES,
    "/v1/embeddings": Endpoint.EMBEDDINGS,
    "/v1/messages": Endpoint.MESSAGES,
}
LIMITS = Limits()


class RowError(ValueError):
    """A row that is no request, as its caller would be told."""


def read(endpoint: str, raw: bytes) -> bodies.Body:
    """A request's body. RowError when the gateway would refuse it."""
    if endpoint not in ENDPOINTS:
        raise RowError(f"'{endpoint}' is none of {', '.join(ENDPOINTS)}")
    try:
        return bodies.read(raw, ENDPOINTS[endpoint], LIMITS)
    except ApiError as error:
        raise RowError(error.message) from None


def prompt_tokens(body: bodies.Body) -> int:
    """As the gateway estimates them of a caller it does not know yet."""
    return max(round(body.text_bytes * TOKENS_PER_BYTE), 1)


class Asking:
    """A classifier that is asked row by row. Unless told to `remember`, each is as the first of its application."""

    def __init__(self, classifier: Classifier, learned: Learned | None, remember: bool) -> None:
        self._classifier, self._learned, self._remember = classifier, learned, remember

    @classmethod
    def of(cls, config: str | None, model: str | None, remember: bool = False) -> Asking:
        """With a site's configuration or the shipped defaults. ConfigError and ModelError say what is wrong with either."""
        if config is not None:
            loaded = load(config)
            settings, catalog, learned = loaded.settings, loaded.catalog, learned_of(loaded)
        else:
            catalog = shipped_catalog()
            settings = defaults()
            learned = Learned(Model.load(), catalog, Classify())
        if model is not None:
            learned = Learned(Model.load(Path(model)), catalog, settings.classify)
        return cls(Classifier(settings, catalog, learned), learned, remember)

    def tag(self, endpoint: str, raw: bytes) -> Tag:
        """What the request would be. RowError when it would be refused."""
        if self._learned is not None and not self._remember:
            self._learned.forget()
        body = read(endpoint, raw)
        try:
            return self._classifier.tag(body, {}, ANYBODY, prompt_tokens(body))
        except ApiError as error:
            raise RowError(error.message) from None


def defaults() -> Settings:
    """A configuration that says nothing of classification; its pool is never reached."""
    return read_as(
        Settings,
        {
            "models": [{"name": "m"}],
            "pools": {"none": {"tier": "cost", "model": "m", "instances": ["http://127.0.0.1:1"]}},
        },
    )

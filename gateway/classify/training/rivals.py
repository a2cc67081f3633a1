"""What a learned classifier has to beat: keyword rules, as one would write them in an afternoon, and TF-IDF with a linear model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.classify.features import Features
from gateway.classify.model import KINDS, Floats
from gateway.classify.text import LAST, SYSTEM, glance
from gateway.classify.training.rows import Labelled
from gateway.openai.body import Body

_RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (
            "code_completion",
            r"autocomplet|complete (this|the) (code|function|line|command)|continue (this|the) code|<cursor>|fill[- ]in|inline suggestion",
        ),
        ("translation", r"translat|paraphras|rephrase|rewrite|proofread|grammar|übersetz|tradu|reword|polish"),
        ("summary", r"summar|tl;?dr|condense|key points|minutes|zusammenfass|résum|resum|recap|abstract|shorten"),
        (
            "code_generation",
            r"```|\b(function|class|script|unit tests?|refactor|python|javascript|typescript|java|sql|rust|golang|api|regex|implement)\b",
        ),
        (
            "content_generation",
            r"\b(write|draft|compose|create|schreib|écris|escribe|generate)\b.*"
            r"\b(article|blog|story|poem|letter|e-?mail|speech|post|essay|press release|newsletter|description|song|slogan)",
        ),
        ("document", r"according to|based on the (context|document|text|passage)|context:|passages?|clause|contract|documents?|\[1\]"),
    )
)
LONG_TEXT_CHARS = 2000


def rules(body: Body) -> tuple[int, float]:
    """Index in KINDS, and how sure a rule can be."""
    if body.has_suffix or "prompt" in body.fields:
        return KINDS.index("code_completion"), 0.9
    seen = glance(body)
    text = "\n".join(piece for zone, piece in seen.pieces if zone in (SYSTEM, LAST))
    for kind, pattern in _RULES:
        if pattern.search(text):
            return KINDS.index(kind), 0.7
    return (KINDS.index("document"), 0.5) if seen.last_chars > LONG_TEXT_CHARS else (KINDS.index("chatbot"), 0.5)


def rule_scores(rows: Sequence[Labelled]) -> Floats:
    """As scores of KINDS (rows x kinds)."""
    scores = np.zeros((len(rows), len(KINDS)), np.float32)
    for index, row in enumerate(rows):
        kind, sure = rules(row.body)
        scores[index] = np.log((1 - sure) / (len(KINDS) - 1))
        scores[index, kind] = np.log(sure)
    return scores


def tfidf_scores(
    train: Sequence[Labelled], seen: Sequence[Features], shares: Floats, judge: Sequence[Labelled], judge_seen: Sequence[Features]
) -> Floats:
    """TF-IDF of words and pairs of the system text, the head and the tail of the last message, with the structure; logistic regression.
    Needs scikit-learn."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def parts(rows: Sequence[Labelled]) -> list[list[str]]:
        looked = [glance(row.body).pieces for row in rows]
        system = [" ".join(text for zone, text in pieces if zone == SYSTEM) for pieces in looked]
        last = [[text for zone, text in pieces if zone == LAST] or [""] for pieces in looked]
        return [system, [texts[0] for texts in last], [texts[-1] for texts in last]]

    columns: list[Any] = []
    judge_columns: list[Any] = []
    for texts, judge_texts in zip(parts(train), parts(judge), strict=True):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=20_000, sublinear_tf=True)
        if any(texts):
            columns.append(vectorizer.fit_transform(texts))
            judge_columns.append(vectorizer.transform(judge_texts))
    scaler = StandardScaler()
    columns.append(csr_matrix(scaler.fit_transform(np.stack([row.structure for row in seen])) * 0.3))
    judge_columns.append(csr_matrix(scaler.transform(np.stack([row.structure for row in judge_seen])) * 0.3))
    model = LogisticRegression(C=10.0, max_iter=150)
    kinds = np.array([row.kind for row in train])
    model.fit(hstack(columns).tocsr(), kinds, sample_weight=shares / shares.mean())
    scores = np.full((len(judge), len(KINDS)), -12.0, np.float32)
    scores[:, model.classes_] = model.predict_log_proba(hstack(judge_columns).tocsr())
    return scores

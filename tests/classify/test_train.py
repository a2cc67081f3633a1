"""Training: families stay together, the same data give the same model, and a log without a prompt teaches what its tags say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gateway.classify.features import features
from gateway.classify.model import KINDS, Model, in_steps
from gateway.classify.training import net as learning
from gateway.classify.training.compose import Bank, Composer
from gateway.classify.training.judge import Answer, figures, folds
from gateway.classify.training.net import Net, Recipe, Seen, batch_of
from gateway.classify.training.rows import DataError, Labelled, labelled, load_rows
from gateway.classify.training.site import learnt
from gateway.classify.verdict import Judge
from gateway.classify.words import Words
from gateway.cli.classify import command as classify
from gateway.cli.train import command as train
from gateway.config.load import shipped_catalog
from gateway.config.settings import Costs
from gateway.measure.log_line import LogLine

BANK = Path(__file__).parents[1] / "data" / "requests" / "bank.json"
CATALOG = shipped_catalog()

TEMPLATES = {
    "chatbot": ["hello, what is {}?", "when do you open, {}?", "who likes {}"],
    "code_generation": ["write a function that sorts {}", "implement a class for {}", "fix the bug in {}"],
    "translation": ["translate {} into French", "correct the spelling: {}", "rephrase {}"],
    "content_generation": ["write a story about {}", "draft an article on {}", "compose a poem on {}"],
    "summarization_short": ["summarize: {}", "tl;dr {}", "the key points of {}"],
    "document_rag": ["context: {} question: who pays?", "what does the passage {} say of rent?", "according to {}, when does it end?"],
    "code_completion": ["def sort_{}(items):\n    return", "git commit -m {}", "for item in {}:\n    print("],
}
WORDS = ["lamps", "boats", "a letter", "the house", "an old map", "bread"]

SHIPPED_ROWS = Path(__file__).parents[1] / "data" / "requests"


def row(label: str, text: str, family: str) -> dict[str, Any]:
    request: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"label": label, "endpoint": "/v1/chat/completions", "request": request, "family": family}


def data(folder: Path) -> Path:
    file = folder / "rows-1.jsonl"
    lines = [
        json.dumps(row(label, template.format(word), f"{label}, {word}"))
        for label, templates in TEMPLATES.items()
        for template in templates
        for word in WORDS
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(train, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_model_is_trained_judged_and_drawn_and_the_same_again(tmp_path: Path) -> None:
    file = data(tmp_path)
    options = [str(file), "--epochs", "20", "--json"]
    report = run(
        *options,
        "--folds",
        "2",
        "--out",
        str(tmp_path / "one.npz"),
        "--picture",
        str(tmp_path / "fit.svg"),
        "--report",
        str(tmp_path / "r.json"),
    )
    contenders = report["figures"]["held out by family"]
    assert set(contenders) == {"rules", "TF-IDF", "learned"}
    for told in contenders.values():
        assert told["rows"] == len(TEMPLATES) * 3 * len(WORDS)
        assert 0 <= told["calibration_error"] <= 1
    assert contenders["learned"]["accuracy"] > 0.8
    assert json.loads((tmp_path / "r.json").read_text()) == report
    assert "<svg" in (tmp_path / "fit.svg").read_text()
    run(*options, "--folds", "0", "--out", str(tmp_path / "two.npz"))
    one, two = Model.load(tmp_path / "one.npz"), Model.load(tmp_path / "two.npz")
    assert np.array_equal(one.weights.out, two.weights.out)
    assert np.array_equal(one.weights.sums, two.weights.sums)

    body = tmp_path / "body.json"
    body.write_text(json.dumps({"model": "m", "messages": [{"role": "user", "content": "translate the lamps into French"}]}))
    result = CliRunner().invoke(classify, [str(body), "--model", str(tmp_path / "one.npz"), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["use_case"] == "translation"


def test_gradients_are_those_of_the_loss() -> None:
    """Each weight moved a little changes the loss as the step would have it (noise switched off)."""
    words = Words.of(["\n", "a", "b", ". ", "<short>", "<word>", "<long>"])
    texts = ["a b. b\na", "b b b. a", "a\nb. a b a"]
    looked = [features(labelled("x", 0, row("chatbot", text, ""), {}).body, words) for text in texts]
    quiet = Recipe(lost_words=0, lost_sentences=0, lost_system=0, lost_openings=0, lost_structure=0, lost_hidden=0, decay=0, width=6)
    chance = np.random.default_rng(3)  # one without a kink that a step crosses
    counts = np.linspace(0.3, 1.0, len(words), dtype=np.float32)
    vectors = chance.standard_normal((len(words), 5)).astype(np.float32)
    net = Net(counts, 5, np.stack([f.structure[:-1] for f in looked]), quiet, chance)
    batch = batch_of([Seen.of(f, vectors, counts) for f in looked], chance, quiet)
    wanted = np.full((3, len(KINDS)), 0.1, np.float32)
    wanted[:, 2] = 0.4
    caught: dict[str, Any] = {}
    net._step = lambda gradients, *_: caught.update(gradients)  # type: ignore[method-assign]
    net.learn(batch, wanted, 0.0)
    gradients = dict(caught)
    for name, value in net.p.items():
        direction = chance.standard_normal(value.shape).astype(np.float32)
        step = 1e-3
        net.p[name] = value + step * direction
        up = net.learn(batch, wanted, 0.0)
        net.p[name] = value - step * direction
        down = net.learn(batch, wanted, 0.0)
        net.p[name] = value
        assert (up - down) / (2 * step) == pytest.approx(float((gradients[name] * direction).sum()), rel=0.05, abs=2e-3), name


def test_what_serves_computes_what_was_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "in_steps", lambda rows: (rows * 1000.0, np.array([0.001], np.float32)))  # as fine as can be
    words = Words.of(["\n", "a", "b", ". ", "<short>", "<word>", "<long>"])
    looked = [features(labelled("x", 0, row("chatbot", text, "be b. "), {}).body, words) for text in ("a b. b\na", "b b b. a", "a")]
    quiet = Recipe(lost_words=0, lost_sentences=0, lost_system=0, lost_openings=0, lost_structure=0, lost_hidden=0, width=6)
    chance = np.random.default_rng(2)
    counts = np.linspace(0.3, 1.0, words.rows, dtype=np.float32)
    vectors = chance.standard_normal((words.rows, 5)).astype(np.float32) * counts[:, None]
    net = Net(counts, 5, np.stack([f.structure[:-1] for f in looked]), quiet, chance)
    wanted = np.eye(len(KINDS), dtype=np.float32)[:3]
    for _ in range(20):
        net.learn(batch_of([Seen.of(f, vectors, counts) for f in looked], chance, quiet), wanted, 0.01)
    loss = net.learn(batch_of([Seen.of(f, vectors, counts) for f in looked], chance, quiet), wanted, 0.0)
    served = Model(net.weights(vectors), words)
    likely = [served.probabilities(f)[kind] for kind, f in enumerate(looked)]
    assert -np.log(likely).mean() == pytest.approx(loss, rel=1e-4)


def test_a_byte_is_near_the_figure_it_stands_for() -> None:
    rows = np.random.default_rng(1).standard_normal((5000, 8)).astype(np.float32)
    kept, step = in_steps(rows)
    assert np.quantile(np.abs(kept * step - rows), 0.999) <= 0.501 * step


def rows_of(*families: tuple[str, int]) -> list[Labelled]:
    return [labelled("set", n, row("chatbot", f"hi {n}", family), {}) for family, count in families for n in range(count)]


def test_a_family_is_never_in_two_folds_and_folds_are_of_like_size() -> None:
    rows = rows_of(("a", 10), ("b", 5), ("c", 5), ("d", 4), ("e", 1))
    fold_of = folds(rows, 3)
    for family in "abcde":
        assert len({int(fold) for fold, at in zip(fold_of, rows, strict=True) if at.family == family}) == 1
    assert sorted(np.bincount(fold_of).tolist()) == [7, 8, 10] or max(np.bincount(fold_of)) == 10


def test_figures_are_what_one_counts_by_hand() -> None:
    rows = [labelled("s", 0, row(label, "x", ""), {}) for label in ("chatbot", "chatbot", "translation", "code_completion")]
    answers = [
        Answer(rows[0], "chatbot", 0.9),
        Answer(rows[1], "code_completion", 0.85),
        Answer(rows[2], "content_generation", 0.5),
        Answer(rows[3], "code_completion", 0.5),
    ]
    told = figures(answers, CATALOG, Costs())
    assert told.accuracy == 0.5
    assert told.class_accuracy == 0.75  # translation and content_generation are both deferred
    assert told.sure_ratio == 0.5
    assert told.sure_accuracy == 0.5
    assert told.cost == pytest.approx((1.0 + 0.1 + 1.0) / 4)  # one class too tight, and a mistake inside a class
    assert told.calibration_error == pytest.approx((abs(0.5 - 0.5) * 2 + abs(0.9 - 1.0) + abs(0.85 - 0.0)) / 4)


def test_the_cheapest_mistake_is_preferred() -> None:
    judge = Judge(CATALOG, Costs(wrong=1.0, looser=3.0, tighter=0.0), "chatbot")
    probabilities = [0.0] * len(KINDS)
    probabilities[KINDS.index("code_completion")], probabilities[KINDS.index("document")] = 0.4, 0.6
    assert judge.judge(probabilities, 100_000).use_case == "code_completion"  # as batch it would be ruined
    even = Judge(CATALOG, Costs(wrong=1.0, looser=0.0, tighter=0.0), "chatbot")
    assert even.judge(probabilities, 100_000).use_case == "research_legal"
    own = Judge(CATALOG, Costs(looser=0.0, tighter=0.0, pairs={"document_rag": {"code_completion": 9.0}}), "chatbot")
    probabilities[KINDS.index("code_completion")], probabilities[KINDS.index("document")] = 0.8, 0.2
    assert own.judge(probabilities, 100).use_case == "document_rag"


def test_long_begins_between_the_catalogues_profiles() -> None:
    judge = Judge(CATALOG, Costs(), "chatbot")
    assert judge.boundary_tokens == pytest.approx((4096 * 10240) ** 0.5)
    assert "summarization_long" in judge.use_cases(7300)
    assert "summarization_short" in judge.use_cases(6300)


def test_data_that_are_wrong_say_where(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for line, message in (
        ("{", "line 1: no JSON"),
        ('{"label": "chatbot"}', "row 1: a row is a JSON object"),
        (json.dumps(row("gossip", "x", "")), "'gossip' is none of"),
        (json.dumps(row("chatbot", "{{doc:none}}", "")), "there is no document 'none'"),
        (json.dumps(row("chatbot", "x", "") | {"endpoint": "/v1/chat"}), "'/v1/chat' is none of"),
    ):
        file.write_text(line + "\n")
        with pytest.raises(DataError, match=message.replace("{", r"\{")):
            load_rows([file])


def test_the_rows_that_ship_quote_only_documents_that_ship() -> None:
    assert {at.source for at in load_rows(sorted(SHIPPED_ROWS.glob("rows-*.jsonl")))} == {"rows-a", "rows-b", "rows-c", "rows-d"}


def test_documents_are_put_in_and_sets_are_named_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "docs-x.jsonl").write_text(json.dumps({"id": "d", "text": "Long text."}) + "\n")
    for number in (1, 2):
        (tmp_path / f"mine-{number}.jsonl").write_text(json.dumps(row("chatbot", "About: {{doc:d}}", "")) + "\n")
    rows = load_rows([tmp_path / "mine-1.jsonl", tmp_path / "mine-2.jsonl"])
    assert [at.source for at in rows] == ["mine", "mine"]
    assert rows[0].request["messages"][0]["content"] == "About: Long text."


def test_composed_rows_are_of_every_kind_and_the_same_again() -> None:
    code = labelled("s", 0, row("code_generation", "```\n" + "x = 1\n" * 60 + "```", ""), {})
    bank = Bank(BANK, ["The harbour was built in 1874. " * 40], [code])
    made = Composer(bank, 3).rows(12)
    assert made == Composer(bank, 3).rows(12)
    assert made != Composer(bank, 4).rows(12)
    rows = [labelled("bank", index, one, {}) for index, one in enumerate(made)]
    assert {KINDS[at.kind] for at in rows} == set(KINDS)
    assert not any("{i}" in json.dumps(one) or "{topic}" in json.dumps(one) for one in made)


def line(why: str, use_case: str, app: int = 7) -> LogLine:
    return LogLine(0.0, "r", "shop", "chat", "m", use_case, "deferred", why, 100, "completed", 1.0, 0.04, 60.0, True, app=app)


def test_a_log_teaches_by_what_was_tagged_and_by_nothing_else() -> None:
    mix = dict.fromkeys(KINDS, 1 / 7)
    lines = [line("header", "translation")] * 5 + [line("learned 0.99", "chatbot", 8)] * 50 + [line("metadata", "chatbot", 9)]
    notes = learnt(lines, mix)
    assert notes["applications"] == [["shop", 7, {"translation": 5}]]
    assert notes["tagged"] == 6
    assert notes["prior"]["translation"] > 1 > notes["prior"]["document"]
    assert max(notes["prior"].values()) <= 3.0

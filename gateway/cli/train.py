"""`slo-gateway train`: a classifier of one's own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gateway.classify.training.rows import Labelled
    from gateway.classify.training.trial import Trial

FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.argument("data", nargs=-1, type=FILE)
@click.option("--out", type=NEW_FILE, help="The model to write.")
@click.option("--from-log", "logs", multiple=True, type=FILE, help="A request log whose explicit tags are learnt; may be given again.")
@click.option("--bank", type=FILE, help="Instructions to compose more rows from, with the documents beside DATA.")
@click.option("--composed", type=click.IntRange(1, 5000), default=500, show_default=True, help="Rows composed of each kind.")
@click.option("--share", "shares", multiple=True, metavar="SET=NUMBER", help="How much a set counts, 1 when left out; may be given again.")
@click.option("--folds", type=click.IntRange(0, 20), default=5, show_default=True, help="Parts to judge by; 0 judges nothing.")
@click.option("--temperature", type=click.FloatRange(0.1, 10), help="What scores are divided by; found by --folds when left out.")
@click.option("--across", is_flag=True, help="Judge each set by a model trained on all the others too.")
@click.option("--rivals/--no-rivals", default=True, show_default=True, help="Judge keyword rules and TF-IDF beside it.")
@click.option("--epochs", type=click.IntRange(1, 200), default=16, show_default=True, help="How often all rows are gone through.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--second", is_flag=True, help="Fit the head of the second opinion instead (needs the embeddings extra).")
@click.option("--report", type=NEW_FILE, help="Every figure, as JSON.")
@click.option("--table", type=NEW_FILE, help="The figures as a table in Markdown.")
@click.option("--picture", type=NEW_FILE, help="Confusion and calibration, as SVG or PNG (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of tables.")
def command(data: tuple[Path, ...], out: Path | None, logs: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Fit a classifier to labelled requests: JSON lines of {"label", "endpoint", "request"}, better with a "family" each. Families are
    never split between training and judging; rows of one file, or of files that differ by a number at the end, are a set. The same
    data, options and seed give the same model.

    \b
    slo-gateway train rows-*.jsonl --out model.npz --picture fit.svg
    slo-gateway train --from-log /var/log/slo-gateway/requests.jsonl --out model.npz
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other longer than these matrices take
    if bool(data) == bool(logs):
        raise click.UsageError("give either labelled rows or --from-log")
    if options["second"]:
        from gateway.config.sentence_model import REMEDY, is_installed

        if not is_installed():
            raise click.ClickException(f"there is no sentence model: {REMEDY}")
    from gateway.classify.training.rows import DataError
    from gateway.measure.log_line import DamagedLogError

    began_s = time.monotonic()
    try:
        report = _from_log(logs, out) if logs else _from_rows(data, out, as_json, **options)
    except (DataError, DamagedLogError) as error:
        raise click.ClickException(str(error)) from None
    if options["report"]:
        options["report"].write_text(json.dumps(report, indent=1) + "\n", "utf8")
    if options["table"] and report.get("figures"):
        options["table"].write_text(markdown(report["figures"]), "utf8")
    if options["picture"] and report.get("figures"):
        from gateway.classify.training.picture import draw

        draw(report["figures"], options["picture"])
    if as_json:
        click.echo(json.dumps(report))
        return
    _tell(report, time.monotonic() - began_s)


def _from_log(logs: tuple[Path, ...], out: Path | None) -> dict[str, Any]:
    from gateway.classify.model import Model
    from gateway.classify.training.site import learnt
    from gateway.measure.log_line import read_log

    model = Model.load()
    model.notes |= learnt((line for log in logs for line in read_log(log)), model.notes.get("mix", {}))
    if out is not None:
        model.save(out)
    return {"tagged": model.notes["tagged"], "applications": len(model.notes["applications"]), "prior": model.notes["prior"]}


def _from_rows(
    data: tuple[Path, ...], out: Path | None, quiet: bool, *, folds: int, across: bool, epochs: int, seed: int,
    bank: Path | None, composed: int, shares: tuple[str, ...], rivals: bool, temperature: float | None, second: bool,
    **_: Any,
) -> dict[str, Any]:  # fmt: skip
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gateway.classify.model import SHIPPED_WORDS
    from gateway.classify.training.net import Recipe
    from gateway.classify.training.second import SecondTrial
    from gateway.classify.training.trial import Trial
    from gateway.classify.words import Table
    from gateway.config.load import shipped_catalog
    from gateway.config.settings import Costs

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("reading", total=None)
        rows, made = _rows(data, bank, composed, seed)
        trial = (SecondTrial if second else Trial)(
            rows, made, Table.load(SHIPPED_WORDS), shipped_catalog(), Costs(), Recipe(epochs=epochs), seed, _shares(shares), rivals,
            lambda what, done, of: bar.update(task, description=what, completed=done, total=of),
        )  # fmt: skip
        report: dict[str, Any] = {"rows": len(rows), "composed": len(made), "sets": _sets(rows)}
        report["temperature"] = temperature or 1.0
        if folds:
            report["figures"], found = trial.report(folds, across)
            report["temperature"] = temperature or found
        if out is not None:
            _write(trial, report, out)
    return report


def _write(trial: Trial, report: dict[str, Any], out: Path) -> None:
    from gateway.classify.training.second import SecondTrial

    if isinstance(trial, SecondTrial):
        trial.head().save(out)
    else:
        model = trial.final(report["temperature"])
        report["mix"] = model.notes["mix"]
        model.save(out)
    report["bytes"] = out.stat().st_size


def _rows(data: tuple[Path, ...], bank: Path | None, composed: int, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    from gateway.classify.training.compose import Bank, Composer
    from gateway.classify.training.rows import DataError, documents_beside, labelled, load_rows

    rows = load_rows(data)
    if not rows:
        raise DataError("there is no row in the data")
    if bank is None:
        return rows, []
    composer = Composer(Bank(bank, list(documents_beside(data).values()), rows), seed)
    return rows, [labelled(bank.stem, index, row, {}) for index, row in enumerate(composer.rows(composed))]


def _shares(said: tuple[str, ...]) -> dict[str, float]:
    try:
        return {name: float(number) for name, _, number in (one.partition("=") for one in said)}
    except ValueError:
        raise click.UsageError("--share is SET=NUMBER, such as human_dev=0.4") from None


def _sets(rows: list[Labelled]) -> dict[str, int]:
    sets: dict[str, int] = {}
    for row in rows:
        sets[row.source] = sets.get(row.source, 0) + 1
    return sets


COLUMNS = (("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("class_accuracy", "class"), ("cost", "cost"),
           ("calibration_error", "calibration error"), ("sure_ratio", "sure"), ("sure_accuracy", "right when sure"))  # fmt: skip


def markdown(figures: dict[str, Any]) -> str:
    """A row for each way of judging and each contender."""
    lines = ["| judged | by | " + " | ".join(heading for _, heading in COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for title, contenders in figures.items():
        for name, told in contenders.items():
            shown = f"**{name}**" if name == "learned" else name
            lines.append(f"| {title} ({told['rows']}) | {shown} | " + " | ".join(f"{told[key]:.3f}" for key, _ in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _tell(report: dict[str, Any], took_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, contenders in report.get("figures", {}).items():
        table = Table("", *(heading for _, heading in COLUMNS), title=f"{title} ({contenders['learned']['rows']} rows)")
        for name, figures in contenders.items():
            table.add_row(name, *(f"{figures[key]:.3f}" for key, _ in COLUMNS))
        console.print(table)
    for key, value in report.items():
        if key != "figures":
            console.print(f"{key}: {value}", highlight=False)
    console.print(f"{took_s:.0f} s", highlight=False)

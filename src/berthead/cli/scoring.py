"""berthead eval, compare, bench: quality and speed of a model on labelled rows."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from berthead.cli import reports as report
from berthead.cli.flags import AsJson, ModelFolder, Quiet, of_rows, with_options
from berthead.cli.loading import load_one
from berthead.cli.printing import print_json, print_text, say_choice, warn
from berthead.options import ROW_OPTIONS, PredictOptions


@with_options(PredictOptions, only=(*ROW_OPTIONS, "base", "engine", "precision", "device", "token_budget", "threads"))
def evaluate(
    model: ModelFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled rows.")],
    as_json: AsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Score a fitted model on labelled data."""
    fitted = load_one(model, given)
    say_choice(fitted)
    scores = fitted.evaluate(data, **of_rows(given))
    notes = scores.pop("warnings")
    warn(notes)
    if as_json:
        print_json(scores | {"warnings": notes})
    else:
        print_text(report.score_table(scores))
    if scores["skipped"]:
        raise typer.Exit(4)


@with_options(PredictOptions, only=(*ROW_OPTIONS, "precision", "device", "token_budget", "threads"))
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The first model folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The second one, of the same task.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows, with targets or without.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write all rows with other answers there.")
    ] = None,
    as_json: AsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Apply two fitted models to the same input: which answers flip, who is right, which parameters moved."""
    from berthead.verbs import compare as comparison

    if out:
        comparison.check_flips_file(out)
    sides = load_one(a, given), load_one(b, given)
    for side in sides:
        say_choice(side)
    found = comparison.compare(*sides, data, **of_rows(given))
    if out:
        comparison.write_flips(found, out)
    warn(found.notes)
    if as_json:
        print_json({"models": {"a": a, "b": b}, **found.to_dict()})
    else:
        print_text(report.compare_text(found.to_dict(), (a, b), out))
    if found.skipped:
        raise typer.Exit(4)


@with_options(PredictOptions, only=(*ROW_OPTIONS, "base", "device", "token_budget", "threads"))
def bench(
    model: ModelFolder,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Rows to measure on [default: the golden examples, repeated].")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Measure a model's speed on this machine, where the time goes, and whether lower precisions agree with fp32."""
    from berthead.verbs import bench as benchmark

    found = benchmark.bench(load_one(model, given), data, quiet=quiet, **of_rows(given))
    warn(found.notes)
    if as_json:
        print_json({"model": model, **found.to_dict()})
    else:
        print_text(report.bench_text(found.to_dict(), model))
    if found.skipped:
        raise typer.Exit(4)

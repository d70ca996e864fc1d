"""berthead join, info, verify, merge, pull: commands on whole folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from berthead.cli import reports as report
from berthead.cli.flags import AsJson, ModelFolder, with_options
from berthead.cli.loading import load, load_one
from berthead.cli.printing import print_json, print_text, warn
from berthead.errors import UsageError
from berthead.options import ROW_OPTIONS, PredictOptions


def join(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model folders on one encoder, or NAME=FOLDER.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The joined folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join models that share an encoder in one folder: shared layers are computed once a text, and all answer."""
    from berthead.verbs import join as joining

    joined = joining.join(models, out, overwrite=overwrite)
    record = joined.info()
    if as_json:
        print_json({"model": str(out), **record})
    else:
        print_text(report.joined_text(record, str(out)))


@with_options(PredictOptions, only=("base",))
def info(model: ModelFolder, as_json: AsJson = False, *, given: dict[str, Any]) -> None:
    """Print the formula as fitted: task, encoder, head, hashes of the parameters, labels, metrics."""
    fitted = load(model, given)
    record = fitted.info()
    if fitted.kind in ("model", "adapter"):
        from berthead.function.artifact import moved

        record = record | {"moved": moved(fitted.artifact)}
    if as_json:
        print_json(record)
    else:
        print_text((report.joined_text if fitted.kind == "joined" else report.info_text)(record, model))


@with_options(PredictOptions, only=("base", "threads"))
def verify(model: ModelFolder, as_json: AsJson = False, *, given: dict[str, Any]) -> None:
    """Replay a model's golden examples on this machine."""
    fitted = load(model, given)
    apart: Any = fitted.verify()
    if fitted.kind == "joined":
        if as_json:
            print_json({"largest_difference": apart, "passed": True})
        for name, one in apart.items() if not as_json else ():
            print_text(f"{name}: the golden examples give the same logits; largest relative difference {one:.1e}")
        return
    count = len(fitted.reader.golden)
    if as_json:
        print_json({"golden": count, "largest_difference": apart, "passed": True})
    else:
        print_text(f"{count} golden examples give the same logits; largest relative difference {apart:.1e}")


@with_options(PredictOptions, only=(*ROW_OPTIONS, "base"))
def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Model folders made by berthead fit.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The model folder to write.")],
    soup: Annotated[bool, typer.Option("--soup", help="Average the parameters of several functions.")] = False,
    valid: Annotated[
        str | None, typer.Option(metavar="DATA", help="--soup: held-out rows, which decide which models are averaged.")
    ] = None,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="--soup: average all models, with or without --valid.")
    ] = False,
    metric: Annotated[
        str | None, typer.Option(metavar="TEXT", help="--soup: the metric that decides [default: the task's own].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: AsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Merge an adapter folder into its encoder, or average several models with --soup."""
    from berthead.storage import folders as atomic
    from berthead.verbs import soup as averaging

    if not soup:
        if len(models) > 1:
            raise UsageError("merge", f"got {len(models)} models", "one adapter folder, or --soup to average them")
        load_one(models[0], given).merged().save(out, overwrite)
        print_text(f"model folder: {out}")
        return
    atomic.check_out(out, overwrite)
    made = averaging.soup(models, valid, uniform=uniform, metric=metric, **given)
    made.save(out, overwrite)
    warn(made.warnings)
    record = made.info()
    if as_json:
        print_json({"model": str(out), "warnings": made.warnings, **record})
    else:
        print_text(report.soup_text(record, models, str(out)))


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="owner/name on the hub.")],
    revision: Annotated[str | None, typer.Option(metavar="REV", help="A branch, tag or commit.")] = None,
) -> None:
    """Download an encoder; the only command that uses the network."""
    from berthead.model import hub

    print_text(str(hub.pull(name, revision)))

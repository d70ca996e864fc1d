"""berthead fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from berthead.cli import reports as report
from berthead.cli.flags import AsJson, Quiet, with_options
from berthead.cli.printing import print_json, print_text, warn
from berthead.errors import UsageError
from berthead.options import FitOptions


@with_options(FitOptions)
def fit(
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A file of rows: csv, jsonl, parquet, conll, SQuAD json, ..."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="The model folder to write.")] = None,
    shared: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A joined folder: fit on its encoder and add the function to it."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="--shared: the name of the function.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Options from a YAML file, data and out among them; flags override them."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all options as YAML, as --config reads them, and fit nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Fit a prediction head, and the encoder under it, on labelled data."""
    from berthead.train.workers import is_writer
    from berthead.verbs import fit as api
    from berthead.verbs import join as joining

    if config:
        said = FitOptions.places_in(config)
        data, out = data or said.get("data"), out or (Path(said["out"]) if "out" in said and not shared else None)
    if print_config:
        _print_config(data, out, FitOptions.from_sources(given, config))
        return
    if data is None and not FitOptions.from_sources(given, config).labels:
        raise UsageError("fit", "got no data", "a file of rows, or --labels FILE", "Try: berthead fit --help")
    if (out is None) == (shared is None) or (shared is None) != (name is None):
        raise UsageError(
            "fit", "needs one output folder", "--out DIR, or --shared DIR --name NAME", "Try: berthead fit --help"
        )
    if shared and name:
        joining.check_name(shared, name)
        given = joining.fitted_on(shared, given, config)
        # Into a folder of its own first, so that the fit is kept even if the move fails.
        out = shared.with_name(f"{shared.name}-{name}")
    fitted = api.fit(data, out=out, config=config, quiet=quiet, **given)
    if not is_writer():
        return
    if shared and name and out:
        joining.move(out, shared, name, fitted)
        out = shared / name
    warn(fitted.warnings)
    record = fitted.info()
    if as_json:
        print_json({"model": str(out), "warnings": fitted.warnings, **record})
        return
    print_text(report.fit_report(record, str(out)))


def _print_config(data: str | None, out: Path | None, options: FitOptions) -> None:
    """The options of a fit as YAML; what has no value is left out."""
    import yaml

    given = {"data": data, "out": str(out) if out else None} | options.to_dict()
    print_text(yaml.safe_dump({key: one for key, one in given.items() if one is not None}, sort_keys=False).rstrip())

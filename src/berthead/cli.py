"""The command line: berthead fit, eval, predict, compare, bench, join, info, verify, merge, pull."""

from __future__ import annotations

import inspect
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer

from berthead import __version__, report
from berthead.errors import BertheadError, DataError, OutputError, UsageError
from berthead.options import FitOptions, Options, PredictOptions, flag

# Heavy modules are imported inside the commands: --help has to answer at once.

app = typer.Typer(
    name="berthead",
    help="Fit and apply Predict(BERT(x)): text in, your labels out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
ModelFolder = Annotated[str, typer.Argument(metavar="MODEL", help="A model folder made by berthead fit.")]


def with_options(
    *kinds: type[Options], only: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of an options record; they reach it as one dict, `None` for what was not given.

    Args:
        kinds: the options records.
        only: the fields wanted; empty: all.

    Returns:
        A decorator for a command with a parameter `given`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [parameter for name, parameter in signature.parameters.items() if name != "given"]
        names = []
        for kind in kinds:
            hints = get_type_hints(kind)
            for spec in fields(kind):
                if only and spec.name not in only:
                    continue
                names.append(spec.name)
                parameters.append(_parameter(spec.name, hints[spec.name], spec.default, spec.metadata))

        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in names}
            command(**values, given=given)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(name: str, hint: Any, default: Any, rule: Any) -> inspect.Parameter:
    kind = next(one for one in (*get_args(hint), hint) if one is not type(None))
    read_as = bool if kind is bool else str
    help_text = rule["help"]
    if rule["choices"]:
        help_text += f" [{' | '.join(rule['choices'])}]"
    if default is not None and kind is not bool:
        help_text += f" [default: {default}]"
    # Numbers, choices and bounds are checked by the options record, with the same words for flags, files and Python.
    described = typer.Option(flag(name), help=help_text, show_default=False, metavar=_METAVARS.get(kind))
    annotation: Any = Annotated[read_as | None, described]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_METAVARS: dict[type, str] = {str: "TEXT", int: "N", float: "X"}


@app.command()
@with_options(FitOptions)
def fit(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="csv, tsv, jsonl, conll, SQuAD json (also .gz) or parquet.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="The model folder to write.")] = None,
    shared: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A joined folder: fit on its encoder, and add the function to it."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="--shared: what the function is called.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Options from a YAML file; flags win.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Fit a prediction head, and the encoder under it, on labelled data."""
    from berthead import api, joining

    if (out is None) == (shared is None) or (shared is None) != (name is None):
        raise UsageError(
            "fit", "does not say where to", "--out DIR, or --shared DIR --name NAME", "Try: berthead fit --help"
        )
    if shared and name:
        joining.check_name(shared, name)
        given = joining.fitted_on(shared, given, config)
        # A folder of its own first: what was fitted is kept, whatever happens on the way into the other.
        out = shared.with_name(f"{shared.name}-{name}")
    fitted = api.fit(data, out=out, config=config, quiet=quiet, **given)
    if shared and name and out:
        joining.move(out, shared, name, fitted)
        out = shared / name
    _warn(fitted.warnings)
    record = fitted.info()
    if as_json:
        _print_json({"model": str(out), "warnings": fitted.warnings, **record})
        return
    _print(report.fit_report(record, str(out)))


_COLUMNS = ("text", "pair", "label", "choices", "intent")


@app.command(name="eval")
@with_options(PredictOptions, only=(*_COLUMNS, "base", "precision", "token_budget", "threads", "skip_bad_rows"))
def evaluate(
    model: ModelFolder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Labelled rows.")],
    as_json: AsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Score a fitted model on labelled data."""
    fitted = _load_one(model, given)
    _say_choice(fitted)
    columns = {name: given[name] for name in (*_COLUMNS, "skip_bad_rows")}
    scores = fitted.evaluate(data, **columns)
    notes = scores.pop("warnings")
    _warn(notes)
    if as_json:
        _print_json(scores | {"warnings": notes})
    else:
        _print(report.score_table(scores))
    if scores["skipped"]:
        raise typer.Exit(4)


@app.command()
@with_options(
    PredictOptions,
    only=("text", "pair", "choices", "base", "precision", "token_budget", "threads", "probabilities"),
)
def predict(
    model: ModelFolder,
    source: Annotated[str, typer.Argument(metavar="IN", help="A file of rows, - for stdin, or a text.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="MORE", help="The second text, the context, or the choices.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="OUT", help="A file, or - for stdout.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Apply a fitted model to every row of a file, or to one text."""
    # os.path: a text may be too long for a file name, at which pathlib raises.
    is_file = out is not None or source == "-" or os.path.isfile(source) or _looks_like_a_file(source)  # noqa: PTH113
    if is_file and more:
        fix = f"To write a file: --out {more[0]}" if _looks_like_a_file(more[0]) else "Name its column: --pair COLUMN"
        raise UsageError("predict", f'"{more[0]}" stands after a file of rows', "MORE goes with a text", fix)
    fitted = _load(model, given)
    _say_choice(fitted)
    if is_file:
        _predict_file(fitted, source, out or "-", given, as_json, quiet)
    else:
        _predict_text(fitted, source, more or [], bool(given["probabilities"]), as_json)


@app.command()
@with_options(PredictOptions, only=(*_COLUMNS, "precision", "token_budget", "threads", "skip_bad_rows"))
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
    from berthead import comparison

    if out:
        comparison.check_flips_file(out)
    columns = {name: given[name] for name in (*_COLUMNS, "skip_bad_rows")}
    sides = _load_one(a, given), _load_one(b, given)
    for side in sides:
        _say_choice(side)
    found = comparison.compare(*sides, data, **columns)
    if out:
        comparison.write_flips(found, out)
    _warn(found.notes)
    if as_json:
        _print_json({"models": {"a": a, "b": b}, **found.to_dict()})
    else:
        _print(report.compare_text(found.to_dict(), (a, b), out))
    if found.skipped:
        raise typer.Exit(4)


@app.command()
@with_options(PredictOptions, only=(*_COLUMNS, "base", "token_budget", "threads", "skip_bad_rows"))
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
    """Measure how fast a model is applied here, where the time goes, and whether lower precisions answer alike."""
    from berthead import benchmark

    columns = {name: given[name] for name in (*_COLUMNS, "skip_bad_rows")}
    found = benchmark.bench(_load_one(model, given), data, quiet=quiet, **columns)
    _warn(found.notes)
    if as_json:
        _print_json({"model": model, **found.to_dict()})
    else:
        _print(report.bench_text(found.to_dict(), model))
    if found.skipped:
        raise typer.Exit(4)


@app.command()
def join(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model folders on one encoder, or NAME=FOLDER.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The joined folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make one folder of models that share an encoder: shared layers are computed once a text, and all answer."""
    from berthead import joining

    joined = joining.join(models, out, overwrite=overwrite)
    record = joined.info()
    if as_json:
        _print_json({"model": str(out), **record})
    else:
        _print(report.joined_text(record, str(out)))


@app.command()
@with_options(PredictOptions, only=("base",))
def info(model: ModelFolder, as_json: AsJson = False, *, given: dict[str, Any]) -> None:
    """Print the formula as fitted: task, encoder, head, hashes of the parameters, labels, metrics."""
    from berthead import artifact, folder, joining

    if joining.is_joined(Path(model)):
        joined = _load(model, given).info()
        if as_json:
            _print_json(joined)
        else:
            _print(report.joined_text(joined, model))
        return
    fitted = folder.load(Path(model), given["base"])
    record = fitted.describe() | {"moved": artifact.moved(fitted)}
    if as_json:
        _print_json(record)
    else:
        _print(report.info_text(record, model))


@app.command()
@with_options(PredictOptions, only=("base", "threads"))
def verify(model: ModelFolder, as_json: AsJson = False, *, given: dict[str, Any]) -> None:
    """Replay a model's golden examples on this machine."""
    fitted = _load(model, given)
    apart = fitted.verify()
    if isinstance(apart, dict):
        if as_json:
            _print_json({"largest_difference": apart, "passed": True})
        for name, one in apart.items() if not as_json else ():
            _print(f"{name}: the golden examples give the same logits; largest relative difference {one:.1e}")
        return
    count = len(fitted.artifact.golden)
    if as_json:
        _print_json({"golden": count, "largest_difference": apart, "passed": True})
    else:
        _print(f"{count} golden examples give the same logits; largest relative difference {apart:.1e}")


@app.command()
@with_options(PredictOptions, only=(*_COLUMNS, "skip_bad_rows", "base"))
def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Model folders made by berthead fit.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The model folder to write.")],
    soup: Annotated[bool, typer.Option("--soup", help="Average the parameters of several functions.")] = False,
    valid: Annotated[
        str | None, typer.Option(metavar="DATA", help="--soup: held-out rows, which decide who goes in.")
    ] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="--soup: all go in, with --valid or without.")] = False,
    metric: Annotated[
        str | None, typer.Option(metavar="TEXT", help="--soup: the metric that decides [default: the task's own].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model folder that exists.")] = False,
    as_json: AsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Make one model: of an adapter folder and its encoder, or of several models with --soup, the mean of them."""
    from berthead import averaging, folder

    if not soup:
        if len(models) > 1:
            raise UsageError("merge", f"there are {len(models)} models", "one adapter folder, or --soup: their mean")
        _load_one(models[0], given).merged().save(out, overwrite)
        _print(f"model folder: {out}")
        return
    folder.check_out(out, overwrite)
    made = averaging.soup(models, valid, uniform=uniform, metric=metric, **given)
    made.save(out, overwrite)
    _warn(made.warnings)
    record = made.info()
    if as_json:
        _print_json({"model": str(out), "warnings": made.warnings, **record})
    else:
        _print(report.soup_text(record, models, str(out)))


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="owner/name on the hub.")],
    revision: Annotated[str | None, typer.Option(metavar="REV", help="A branch, tag or commit.")] = None,
) -> None:
    """Download an encoder; the only command that uses the network."""
    from berthead.model import hub

    print(hub.pull(name, revision))


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show:
        print(f"berthead {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


def main() -> NoReturn:
    """Run the command line; a user's mistake gives a message and an exit code, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half a surrogate pair, or a terminal without UTF-8
    # Before torch is imported: its threads would look for work while the kernels' threads need the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        # Not `app()`: typer's own main turns Ctrl-C and a closed stdout into its exit codes.
        command = typer.main.get_command(app)
        with command.make_context("berthead", sys.argv[1:]) as context:
            command.invoke(context)
    except BertheadError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone away.
        _drop_stdout()
        sys.exit(0)
    except Exception as error:
        _fail_otherwise(error)
    sys.exit(0)


def _fail_otherwise(error: Exception) -> NoReturn:
    """The errors of the argument parser are the user's; anything else is ours, and is shown whole."""
    if isinstance(error, typer.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, typer.Abort):
        _fail("interrupted", 130)
    if isinstance(error, _PARSER_ERROR):
        context = getattr(error, "ctx", None)
        hint = f"\nTry: {context.command_path} --help" if context else ""
        _fail(f"{error.format_message()}{hint}", 2)
    raise error


# click's ClickException, which some releases of typer import from click and others bring along.
_PARSER_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _fail(message: str, code: int) -> NoReturn:
    print(f"berthead: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()
    if code == 130 and any(thread.name == "berthead-reader" for thread in threading.enumerate()):
        # It may stand in a read of stdin, at which Python's own way out would abort.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _drop_stdout() -> None:
    """What stdout still holds cannot be written: Python would try once more at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(lines: list[str]) -> None:
    groups = [[line for line in lines if line.startswith(kind)] for kind in _ROW_NOTES]
    shown = [line for line in lines if not line.startswith(_ROW_NOTES)]
    for kind, rows in zip(_ROW_NOTES, groups, strict=True):
        more = [f"{kind}{len(rows) - _SHOWN_ROWS:,} more rows"] if len(rows) > _SHOWN_ROWS else []
        shown += rows[:_SHOWN_ROWS] + more
    for line in shown:
        print(f"note: {line}", file=sys.stderr)


# Notes on single rows: there may be thousands.
_ROW_NOTES = ("left out: ", "mended: ", "out of place: ")
# Bad rows shown on a terminal; --json tells them all.
_SHOWN_ROWS = 10


def _print_json(value: Any) -> None:
    _print(json.dumps(value, ensure_ascii=False, indent=2))


def _print(text: str) -> None:
    """Write a result to stdout now, so that a full disk is met here."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError("stdout", f"cannot be written ({error.strerror})", fix="Free some space.") from error


def _load(model: str, given: dict[str, Any]) -> Any:
    from berthead import joining

    return joining.load(model, **{name: given.get(name) for name in ("base", "precision", "token_budget", "threads")})


def _load_one(model: str, given: dict[str, Any]) -> Any:
    """One function: of a joined folder the error says how to name one."""
    from berthead import api

    return api.load(model, **{name: given.get(name) for name in ("base", "precision", "token_budget", "threads")})


def _say_choice(fitted: Any) -> None:
    """Which precision `--precision auto` took, and why."""
    if fitted.choice is not None:
        print(fitted.choice, file=sys.stderr)


def _predict_text(fitted: Any, text: str, more: list[str], probabilities: bool, as_json: bool) -> None:
    from berthead.infer.files import as_line

    joined, fitted = (fitted, fitted.reader) if hasattr(fitted, "reader") else (None, fitted)
    form, pairs = fitted.artifact.task.form, bool(fitted.artifact.columns["pair"])
    wanted = {"choices": "a question and its choices", "question": "a question and its context"}.get(form, "pairs")
    if form == "choices":
        if len(more) < 2:
            fix = 'Give all of them: berthead predict MODEL "question" "choice a" "choice b"'
            raise UsageError("predict", f"this model reads {wanted}", "a question and two choices or more", fix)
        given: Any = (text, more)
    elif pairs != (len(more) == 1) or len(more) > 1:
        if pairs:
            fix = 'Give both: berthead predict MODEL "a" "b"'
            raise UsageError("predict", f"this model reads {wanted}", "two texts", fix)
        fix = "Put a text of several words in quotes."
        raise UsageError("predict", "there are two texts", "this model reads single texts", fix)
    else:
        given = (text, more[0]) if pairs else text
    if joined is not None:
        _print_joined(joined.predict(given), probabilities, as_json)
        return
    prediction = fitted.predict(given)
    if prediction.error:
        raise DataError("predict", prediction.error)
    _print(as_line(prediction, as_json))
    if probabilities and not as_json:
        for label, share in (prediction.probabilities or {}).items():
            _print(f"  p({label})  {share:.4f}")
    if prediction.truncated:
        limit = fitted.artifact.max_tokens
        whole = fitted.artifact.reading.on_long == "truncate"
        read = f"only the first {limit} were read" if whole else f"some were not read: {limit} fit at once"
        _warn([f"the text has {prediction.n_tokens} tokens; {read}"])


def _print_joined(predictions: dict[str, Any], probabilities: bool, as_json: bool) -> None:
    """The answers of several functions to one text, each behind its name."""
    from berthead.infer.files import as_line

    for one in predictions.values():
        if one.error:
            raise DataError("predict", one.error)
    if as_json:
        _print_json({name: one.to_dict() for name, one in predictions.items()})
        return
    for name, one in predictions.items():
        for line in as_line(one, False).split("\n"):
            _print(f"{name}  {line}")
        for label, share in (one.probabilities or {}).items() if probabilities else ():
            _print(f"{name}    p({label})  {share:.4f}")


def _predict_file(fitted: Any, source: str, out: str, given: dict[str, Any], as_json: bool, quiet: bool) -> None:
    from berthead.infer.files import predict_file
    from berthead.infer.predict import long_notes

    if as_json and out == "-":
        raise UsageError("--json", "prints a summary, and stdout holds the rows", "a file as --out")
    options = PredictOptions.from_sources(given)
    one = getattr(fitted, "reader", fitted)
    summary = predict_file(fitted.predictor, source, out, options, quiet)
    if summary.failed:
        place = f"; see {summary.errors_file}" if summary.errors_file else ""
        summary.notes.append(f"{summary.failed:,} of {summary.rows:,} rows have no answer{place}:")
    more = [f"... and {summary.failed - len(summary.errors):,} more"] if summary.failed > len(summary.errors) else []
    long = long_notes(summary.truncated, summary.windowed, summary.rows, one.artifact.max_tokens)
    _warn([*long, *summary.notes, *summary.errors, *more])
    if as_json:
        counts = {name: getattr(summary, name) for name in ("rows", "failed", "truncated", "windowed")}
        _print_json({"out": out, **counts, "errors": summary.errors_file})
    elif out != "-" and not quiet:
        print(f"{summary.rows - summary.failed:,} rows written to {out}", file=sys.stderr)
    if summary.failed:
        raise typer.Exit(4)


def _looks_like_a_file(source: str) -> bool:
    from berthead.data.readers import EXTENSIONS

    return " " not in source and source.lower().endswith((*EXTENSIONS, ".gz"))

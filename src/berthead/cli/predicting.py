"""berthead predict, of a file or of one text."""

from __future__ import annotations

import os
import shlex
import sys
from glob import has_magic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from berthead.cli.flags import AsJson, ModelFolder, Quiet, with_options
from berthead.cli.loading import load
from berthead.cli.printing import as_line, print_json, print_text, say, say_choice, share_text, warn
from berthead.errors import DataError, UsageError, counted
from berthead.options import JOB_OPTIONS, LOAD_OPTIONS, PredictOptions
from berthead.options.base import flag

if TYPE_CHECKING:
    from berthead.fitted import Fitted
    from berthead.jobs.counts import Summary


@with_options(PredictOptions, only=(*LOAD_OPTIONS, *JOB_OPTIONS))
def predict(
    model: ModelFolder,
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A file of rows, a pattern in quotes, - for stdin, or a text.")
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="MORE", help="More files; or the second text, the context, or the choices."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="OUT", help="A file, or - for stdout.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    *,
    given: dict[str, Any],
) -> None:
    """Apply a fitted model to every row of a file, or to one text."""
    from berthead.formats.registry import looks_like_a_file, split_sheet

    # os.path: a text may be too long for a file name, at which pathlib raises.
    is_file = out is not None or source == "-" or os.path.isfile(source) or looks_like_a_file(source)  # noqa: PTH113
    if out is None and os.path.isdir(source):  # noqa: PTH112
        fix = (
            f"All its files of one kind: berthead predict MODEL {shlex.quote(os.path.join(source, '*.csv'))} --out OUT"  # noqa: PTH118
        )
        raise UsageError("predict", f'"{source}" is a folder', "a file of rows, a pattern in quotes, or a text", fix)
    if is_file and more and not all(os.path.isfile(split_sheet(one)[0]) or has_magic(one) for one in more):  # noqa: PTH113
        fix = f"To write a file: --out {more[0]}" if looks_like_a_file(more[0]) else "Name its column: --pair COLUMN"
        raise UsageError("predict", f'got "{more[0]}" after a file of rows', "more files", fix)
    for name in ("resume", "shard", "ray") if not is_file else ():
        if given[name]:
            raise UsageError(flag(name), "is for files of rows, but IN is a text", "a file as IN, and --out FILE")
    fitted = load(model, given)
    say_choice(fitted)
    if is_file:
        _predict_file(fitted, [source, *(more or [])], out or "-", given, as_json, quiet)
    else:
        _predict_text(fitted, source, more or [], bool(given["probabilities"]), as_json)


def _predict_text(fitted: Fitted[Any], text: str, more: list[str], probabilities: bool, as_json: bool) -> None:
    from berthead.data.forms import FORMS

    function = fitted.reader
    form, pairs = FORMS[function.task.form], bool(function.columns["pair"])
    wanted = form.two_texts
    if form.choices:
        if len(more) < 2:
            fix = 'Give all of them: berthead predict MODEL "question" "choice a" "choice b"'
            raise UsageError("predict", f"this model reads {wanted}", "a question and two choices or more", fix)
        given: Any = (text, more)
    elif pairs != (len(more) == 1) or len(more) > 1:
        if pairs:
            fix = 'Give both: berthead predict MODEL "a" "b"'
            raise UsageError("predict", f"this model reads {wanted}", "two texts", fix)
        fix = "Put a text of several words in quotes."
        raise UsageError("predict", "got two texts", "a single text, as this model was fitted on", fix)
    else:
        given = (text, more[0]) if pairs else text
    if fitted.kind == "joined":
        _print_joined(fitted.predict(given), probabilities, as_json)
        return
    prediction = fitted.predict(given)
    if prediction.error:
        raise DataError("predict", prediction.error)
    print_text(as_line(prediction, as_json))
    if probabilities and not as_json:
        for label, share in (prediction.probabilities or {}).items():
            print_text(f"  p({label})  {share_text(share)}")
    if prediction.truncated:
        limit = function.policy.max_tokens
        whole = function.policy.on_long == "truncate"
        read = f"only the first {limit} were read" if whole else f"not all were read: at most {limit} fit at once"
        warn([f"the text has {prediction.n_tokens} tokens; {read}"])


def _print_joined(predictions: dict[str, Any], probabilities: bool, as_json: bool) -> None:
    """Print the answers of several functions to one text, each after its name."""
    for one in predictions.values():
        if one.error:
            raise DataError("predict", one.error)
    if as_json:
        print_json({name: one.to_dict() for name, one in predictions.items()})
        return
    for name, one in predictions.items():
        for line in as_line(one, False).split("\n"):
            print_text(f"{name}  {line}")
        for label, share in (one.probabilities or {}).items() if probabilities else ():
            print_text(f"{name}    p({label})  {share_text(share)}")


def gather(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The file that the shards were to write.")],
    folders: Annotated[
        list[str] | None, typer.Argument(metavar="PARTS", help="Their folders of parts [default: OUT.parts].")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Join the parts that predict --shard computed, on this machine or on several."""
    from berthead.jobs import gather as gathering

    _say(gathering.gather(out, folders or []), out, as_json, quiet)


def _predict_file(
    fitted: Fitted[Any], sources: list[str], out: str, given: dict[str, Any], as_json: bool, quiet: bool
) -> None:
    if as_json and out == "-":
        raise UsageError("--json", "prints a summary, but stdout holds the rows", "a file as --out")
    again = shlex.join(["berthead", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
    job = {name: given[name] for name in JOB_OPTIONS}
    summary = fitted.predict_file(sources, out, quiet=quiet, again=again, **job)
    _say(summary, out, as_json, quiet)


def _say(summary: Summary, out: str, as_json: bool, quiet: bool) -> None:
    """Print what a job did; the exit code says whether all rows have an answer."""
    from berthead.predict.reading import long_notes

    if summary.failed:
        place = f"; see {summary.errors_file}" if summary.errors_file else ""
        have = "has" if summary.failed == 1 else "have"
        rows = f"{summary.failed:,} of {counted(summary.rows, 'row')}"
        summary.notes.append(f"{rows} {have} no answer{place}:")
    more = [f"... and {summary.failed - len(summary.errors):,} more"] if summary.failed > len(summary.errors) else []
    long = long_notes(summary.truncated, summary.windowed, summary.rows, summary.max_tokens)
    warn([*long, *summary.notes, *summary.errors, *more])
    if as_json:
        counts = {name: getattr(summary, name) for name in ("rows", "failed", "truncated", "windowed")}
        print_json({"out": summary.parts or out, **counts, "errors": summary.errors_file})
    elif out != "-" and not quiet:
        say(f"{counted(summary.rows - summary.failed, 'row')} written to {summary.parts or out}")
        if summary.parts:
            say(f"when all shards are done: berthead gather {shlex.quote(out)}")
    if summary.failed:
        raise typer.Exit(4)

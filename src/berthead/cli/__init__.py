"""The command line: berthead fit, eval, predict, gather, compare, bench, join, info, verify, merge, export, pull."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer

from berthead import __version__
from berthead.cli.exporting import export
from berthead.cli.fitting import fit
from berthead.cli.folders import info, join, merge, pull, verify
from berthead.cli.help import Command, Group
from berthead.cli.predicting import gather, predict
from berthead.cli.printing import say
from berthead.cli.scoring import bench, compare, evaluate
from berthead.engine.threads import spare_threads
from berthead.errors import BertheadError
from berthead.options.python_words import speaks_flags

# Heavy modules are imported inside the commands: --help has to answer at once.

app = typer.Typer(
    name="berthead",
    help="Fit and apply Predict(BERT(x)): text in, your labels out.",
    cls=Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_COMPLETING = "_BERTHEAD_COMPLETE"
# In the order of --help.
_COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit, "eval": evaluate, "predict": predict, "gather": gather, "compare": compare, "bench": bench,
    "join": join, "info": info, "verify": verify, "merge": merge, "export": export, "pull": pull,
}  # fmt: skip
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=Command)(_command)


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
    """Run the command line; a user's mistake shows a message and an exit code, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half a surrogate pair, or a terminal without UTF-8
    # Before torch is imported: its threads would look for work while the kernels' threads need the processor.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    spare_threads()
    if _COMPLETING in os.environ:  # a shell asks how a word may go on
        app(prog_name="berthead")
    try:
        # Not `app()`: typer's own main turns Ctrl-C and a closed stdout into its exit codes.
        with speaks_flags(), _commands().make_context("berthead", _words(sys.argv[1:])) as context:
            context.command.invoke(context)
    except BertheadError as error:
        _fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone away.
        _drop_stdout()
        sys.exit(0)
    except Exception as error:
        _fail_otherwise(error)
    sys.exit(0)


@cache
def _commands() -> Any:
    """The commands with their flags, built once a process."""
    return typer.main.get_command(app)


def _words(words: list[str]) -> list[str]:
    """The words of a command; `--ray` without a value becomes `--ray local`, which typer cannot express."""
    bare = [word == "--ray" and (not after or after.startswith("-")) for word, after in pairwise([*words, ""])]
    return [one for word, alone in zip(words, bare, strict=True) for one in ([word, "local"] if alone else [word])]


def _fail_otherwise(error: Exception) -> NoReturn:
    """Handle errors of the argument parser as user errors; show a full traceback for anything else."""
    if isinstance(error, typer.Exit):
        sys.exit(error.exit_code)
    if isinstance(error, typer.Abort):
        _fail("interrupted", 130)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("berthead"):
        package = str(error.name).partition(".")[0]
        saw = f"{_PACKAGES.get(package, package)} is not installed, and this needs it"
        _fail(f"{saw}. Install it: pip install {_PACKAGES.get(package, package)}", 2)
    if isinstance(error, _PARSER_ERROR):
        context = getattr(error, "ctx", None)
        hint = f"\nTry: {context.command_path} --help" if context else ""
        _fail(f"{error.format_message()}{hint}", 2)
    raise error


# Packages that are called otherwise than what is imported of them.
_PACKAGES = {"sklearn": "scikit-learn", "yaml": "PyYAML"}
# click's ClickException, which some releases of typer import from click and others bring along.
_PARSER_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _fail(message: str, code: int) -> NoReturn:
    say(f"berthead: {message}")
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
    """Discard what stdout still buffers: Python would try to write it again at exit, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

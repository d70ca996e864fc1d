"""What the benchmarks share: the verbs `run` and `table`, and measurements as JSON lines in a file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Lines = list[dict[str, Any]]


def verbs(about: str, out: str) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """A parser with `run --data --out` and `table FILE...`, and the one of `run`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = parser.add_subparsers(dest="verb", required=True)
    run = both.add_parser("run")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--out", type=Path, default=Path(out))
    both.add_parser("table").add_argument("files", nargs="+", type=Path)
    return parser, run


def parsed(parser: argparse.ArgumentParser, print_table: Callable[[Lines], None]) -> argparse.Namespace:
    """The arguments of `run`; `table` prints its files and ends here."""
    args = parser.parse_args()
    if args.verb == "table":
        print_table([json.loads(line) for path in args.files for line in path.read_text().splitlines()])
        sys.exit()
    return args


def keep(line: dict[str, Any], out: Path) -> None:
    """Append a measurement to the file, and show it on stderr."""
    with open(out, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), file=sys.stderr, flush=True)

"""A job on a local Ray beside the same job without one.

    python benchmarks/ray_overhead.py run [--model FOLDER] [--rows 100000] [--threads 1] [--out FILE]
    python benchmarks/ray_overhead.py table FILE...

`run` makes up short sentences and predicts them with `berthead predict`: without Ray, with a Ray that it starts,
and with one that was started before (each with actors of so many threads, as many as this machine has room for). Each
way is timed from start to end, `--repeat` times, in turns; the outputs have to be the same bytes. Each measurement is a
JSON line in FILE. FOLDER is any model folder that reads single texts; by default one is fitted on the sample tickets,
with minilm, frozen. At the end every Ray of this user on the machine is stopped (`ray stop`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from lines import Lines, keep, parsed
from long_job import fitted, make_rows, sha256

WAYS = {"without Ray": None, "a Ray of its own": "local", "a Ray that is there": "auto"}


def seconds(command: list[str]) -> float:
    """How long a command takes."""
    begun = time.monotonic()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return time.monotonic() - begun


def run(args: argparse.Namespace) -> None:
    args.work.mkdir(parents=True, exist_ok=True)
    model, rows, answers = args.model or fitted(args.work), args.work / "rows.csv", args.work / "answers.csv"
    make_rows(rows, args.rows)
    berthead = [sys.executable, "-m", "berthead", "predict", str(model), str(rows), "--out", str(answers), "-q"]
    berthead += ["--part-rows", str(args.part_rows), "--threads"]
    ray = [str(Path(sys.executable).with_name("ray"))]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    subprocess.run(
        [*ray, "start", "--head", f"--num-cpus={args.processors}", "--include-dashboard=false"],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        hashes = set()
        for turn in range(args.repeat):
            for way, address in WAYS.items():
                # All processors in every case: without Ray as threads of one process.
                threads = [str(args.processors)] if address is None else [str(args.threads), "--ray", address]
                took = seconds([*berthead, *threads])
                hashes.add(sha256(answers))
                keep({"way": way, "turn": turn, "rows": args.rows, "seconds": took}, args.out)
        assert len(hashes) == 1, "the outputs differ"
    finally:
        subprocess.run([*ray, "stop"], check=True, stdout=subprocess.DEVNULL)


def print_table(lines: Lines) -> None:
    print("| | rows | s | rows/s | more than without Ray, s per 100,000 rows |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for rows in sorted({line["rows"] for line in lines}):
        some = [line for line in lines if line["rows"] == rows]
        took = {way: median(line["seconds"] for line in some if line["way"] == way) for way in WAYS}
        for way, one in took.items():
            more = (one - took["without Ray"]) / rows * 100_000
            print(f"| {way} | {rows:,} | {one:.1f} | {rows / one:,.0f} | {more:+.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = parser.add_subparsers(dest="verb", required=True)
    flags = both.add_parser("run")
    flags.add_argument("--model", type=Path, help="a model folder that reads single texts")
    flags.add_argument("--rows", type=int, default=100_000)
    flags.add_argument("--part-rows", type=int, default=4096)
    flags.add_argument("--threads", type=int, default=1, help="of an actor")
    flags.add_argument("--processors", type=int, default=len(os.sched_getaffinity(0)))
    flags.add_argument("--repeat", type=int, default=3)
    flags.add_argument("--work", type=Path, default=Path("ray_overhead"), help="keeps the model, rows and answers")
    flags.add_argument("--out", type=Path, default=Path("ray_overhead.jsonl"))
    both.add_parser("table").add_argument("files", nargs="+", type=Path)
    run(parsed(parser, print_table))


if __name__ == "__main__":
    main()

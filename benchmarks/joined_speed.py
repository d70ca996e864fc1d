"""Rows a second of several heads on one encoder: joined, beside one head, and beside all of them one by one.

    python benchmarks/joined_speed.py run --data DATA [--case NAME ...] [--heads 8] [--rounds 3] [--out FILE]
    python benchmarks/joined_speed.py table FILE...

`run` appends one JSON line per measurement to FILE and prints the table; `table` prints it again, from files. DATA
holds one folder per public data set, as CSV files.

The heads are classifiers of the same labels, fitted with the encoder frozen on the same rows by seeds 0, 1, 2, ...: so
many different functions on one theta. Each way applies them to the first rows of the test file, from texts in memory to
answers, tokenising included; a row joined, or one by one, is a text answered by all heads. The ways take turns in one
process, after a pass each as warm-up; the table gives the medians of the rounds, ratios to one head, and the share of
answers that are those of the heads one by one. fp32, at most 128 tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from fit_quality import MAX_TOKENS, rows_of
from lines import keep, parsed, verbs

ONE, JOINED, ONE_BY_ONE = "one head", "joined", "one by one"
FIT_ROWS, FIT_EPOCHS = 400, 10

Answers = list[list[Any]]


@dataclass(frozen=True)
class Case:
    folder: str
    text: str
    label: str
    rows: int


CASES = {
    "abstracts": Case("medical-abstracts", "abstract", "condition", 400),
    "polarity": Case("sentence-polarity", "text", "label", 1662),
    "banking77": Case("banking77", "text", "category", 2000),
}


def fitted_heads(case: Case, data: Path, heads: int, threads: int) -> dict[str, Any]:
    """Artifacts by name: different heads on one frozen encoder."""
    import berthead

    rows = rows_of(data / case.folder / "train.csv", FIT_ROWS, sample=True)
    with tempfile.TemporaryDirectory() as cache:
        fitted = [
            berthead.fit(
                rows, task="classify", text=case.text, label=case.label, encoder="minilm", adapt="frozen",
                epochs=FIT_EPOCHS, max_tokens=MAX_TOKENS, on_long="truncate", seed=seed, threads=threads, valid="0",
                cache=cache, quiet=True,
            )
            for seed in range(heads)
        ]  # fmt: skip
    hashes = [(one.theta.sha256, one.omega.sha256) for one in fitted]
    if len({theta for theta, _ in hashes}) != 1 or len({omega for _, omega in hashes}) != heads:
        raise SystemExit("the functions are not different heads on one encoder")
    return {f"head {number}": one.artifact for number, one in enumerate(fitted)}


def ways_of(artifacts: dict[str, Any], texts: list[str]) -> dict[str, Callable[[], Answers]]:
    """Each way as a function that gives the answers of each head that it applies."""
    from berthead.predict.joined import JoinedPredictor
    from berthead.predict.predictor import Predictor
    from berthead.records import Example

    examples = [Example(text) for text in texts]
    single = [Predictor(artifact) for artifact in artifacts.values()]
    together = JoinedPredictor(artifacts)

    def joined() -> Answers:
        found = [[one.answer for one in predictions.values()] for predictions in together.answers(examples)]
        return [list(answers) for answers in zip(*found, strict=True)]

    def one_by_one(predictors: list[Any]) -> Answers:
        return [[one.answer for one in predictor.predict(examples)] for predictor in predictors]

    return {ONE: lambda: one_by_one(single[:1]), JOINED: joined, ONE_BY_ONE: lambda: one_by_one(single)}


def measure(name: str, case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    from berthead.engine.cpu import use_threads

    threads = use_threads(args.threads)
    artifacts = fitted_heads(case, args.data, args.heads, threads)
    test = rows_of(args.data / case.folder / "test.csv", args.rows or case.rows, sample=False)
    ways = ways_of(artifacts, [row[case.text] for row in test])
    answers = {way: apply() for way, apply in ways.items()}
    same = {
        way: sum(
            a == b
            for ours, theirs in zip(found, answers[ONE_BY_ONE], strict=False)
            for a, b in zip(ours, theirs, strict=True)
        )
        / sum(map(len, found))
        for way, found in answers.items()
    }
    lines = []
    for number in range(args.rounds):
        for way, apply in ways.items():
            start = time.perf_counter()
            apply()
            seconds = time.perf_counter() - start
            line = {"case": name, "way": way, "heads": args.heads, "round": number, "threads": threads}
            lines.append(line | {"rows": len(test), "seconds": seconds, "same": same[way]})
            keep(lines[-1], args.out)
    return lines


def print_table(lines: list[dict[str, Any]]) -> None:
    """One row a case and way: medians over the rounds."""
    print("| case | heads | applied | rounds | rows/s | times one head | same answers |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, heads in dict.fromkeys((line["case"], line["heads"]) for line in lines):
        speeds: dict[str, float] = {}
        for way in (ONE, JOINED, ONE_BY_ONE):
            some = [line for line in lines if (line["case"], line["heads"], line["way"]) == (name, heads, way)]
            if not some:
                continue
            speeds[way] = statistics.median(line["rows"] / line["seconds"] for line in some)
            ratio = f"{speeds[way] / speeds[ONE]:.2f}" if ONE in speeds else ""
            same = min(line["same"] for line in some)
            applied = 1 if way == ONE else heads
            print(f"| {name} | {applied} | {way} | {len(some)} | {speeds[way]:,.0f} | {ratio} | {same:.2%} |")


def main() -> None:
    parser, run = verbs(__doc__, "joined_speed.jsonl")
    run.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    run.add_argument("--heads", type=int, default=8)
    run.add_argument("--rows", type=int, help="Rows to answer [default: the case's own].")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--threads", type=int, default=2)
    args = parsed(parser, print_table)
    print_table([line for name in args.case for line in measure(name, CASES[name], args)])


if __name__ == "__main__":
    main()

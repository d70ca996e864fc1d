"""What few rows are fitted best with: whether some are held out, and how many steps are taken.

    python benchmarks/small_data.py run --data DATA [--case NAME ...] [--adapt NAME ...] [--per-label 8 16 ...]
                                        [--way held:0 all:0 all:100 ...] [--draws 0 1 2] [--out FILE]
    python benchmarks/small_data.py table FILE...

`run` appends one JSON line per fit to FILE; `table` prints the Markdown tables of docs/fitting.md. DATA holds
one folder per public data set. A draw takes so many training rows of each label; the fit's seed is the draw's number.
Each function is scored on 500 rows of the test file, the same for all, or on all there are with these labels.

A way is `held` (a tenth of the rows is held out, and chooses the epoch, the temperature and the thresholds) or `all`
(every row is fitted), and the least number of steps: the epochs are the usual ones, or as many as it takes. Everything
else is the command line's default, but for the length: of a text at most 32 tokens are read, the rest is cut.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from lines import keep, parsed, verbs

EPOCHS = {"full": 3, "frozen": 40, "top:2": 6, "lora:8": 6, "bitfit": 6}
PER_LABEL = (8, 16, 32, 64, 128)
WAYS = ("held:0", "all:0", "held:100", "all:100")
BATCH, MAX_TOKENS, THREADS, TEST_ROWS = 32, 32, 1, 500


@dataclass(frozen=True)
class Case:
    folder: str
    text: str
    label: str
    labels: int | None = None
    task: str = "classify"


CASES = {
    "banking": Case("banking77", "text", "category", 8),
    "polarity": Case("sentence-polarity", "text", "label"),
    "abstracts": Case("medical-abstracts", "abstract", "condition"),
    "snips": Case("snips", "text", "intent"),
    "emotions": Case("goemotions", "text", "emotions", 8, "multilabel"),
}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a csv file, or of a jsonl file with tokens."""
    with open(path, newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [row | {"text": " ".join(row["tokens"])} for row in map(json.loads, file)]


def rows_of(case: Case, folder: Path, part: str) -> list[dict[str, Any]]:
    """The rows with one of the case's labels: the first ones by name, of many labels the most common."""
    path = next(
        path for path in (folder / case.folder / f"{part}{kind}" for kind in (".csv", ".jsonl")) if path.exists()
    )
    rows = read(path)
    if case.task == "multilabel":  # one row has one label here or several; those with rare ones are left out
        counts = {}
        for row in rows if part == "train" else read(path.with_name(path.name.replace(part, "train"))):
            for name in row[case.label].split("|"):
                counts[name] = counts.get(name, 0) + 1
        names = set(sorted(counts, key=lambda name: -counts[name])[: case.labels])
        return [row for row in rows if set(row[case.label].split("|")) <= names]
    names = set(sorted({row[case.label] for row in rows})[: case.labels])
    return [row for row in rows if row[case.label] in names]


def drawn(case: Case, rows: list[dict[str, Any]], per_label: int, draw: int) -> list[dict[str, Any]]:
    """So many rows of each label, in random order; of a row with several labels the first counts."""
    order = np.random.default_rng(draw).permutation(len(rows))
    taken: dict[str, int] = {}
    chosen = []
    for number in order:
        label = rows[number][case.label].split("|")[0]
        if taken.get(label, 0) < per_label:
            taken[label] = taken.get(label, 0) + 1
            chosen.append(rows[number])
    return chosen


def fit_once(case: Case, adapt: str, rows: list[dict[str, Any]], way: str, seed: int, cache: str | None) -> Any:
    import berthead

    kind, steps = way.split(":")
    fitted = len(rows) * (0.9 if kind == "held" else 1)
    epochs = max(EPOCHS[adapt], math.ceil(int(steps) / math.ceil(fitted / BATCH)))
    return berthead.fit(
        rows, task=case.task, text=case.text, label=case.label, adapt=adapt, epochs=epochs, batch=BATCH, seed=seed,
        valid=0.1 if kind == "held" else 0, max_tokens=MAX_TOKENS, on_long="truncate", threads=THREADS, quiet=True,
        cache=cache if adapt == "frozen" else None,
    )  # fmt: skip


def scores(case: Case, fits: Sequence[Any], test: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics of functions on one encoder, in points of 100; the loss in nats, of the probabilities given."""
    import berthead

    together = berthead.join({f"fit{number}": one for number, one in enumerate(fits)})
    answers = together.predict([row[case.text] for row in test])
    return [
        score(case, [str(label) for label in one.labels], [answer[f"fit{number}"] for answer in answers], test)
        for number, one in enumerate(fits)
    ]


def score(case: Case, names: list[str], answers: Sequence[Any], test: list[dict[str, Any]]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    shares = np.array([list(one.probabilities.values()) for one in answers])
    gold = np.array([[name in row[case.label].split("|") for name in names] for row in test])
    if case.task == "multilabel":
        said = np.array([[name in one.answer for name in names] for one in answers])
        ranked = average_precision_score(gold.ravel(), shares.ravel())
        clipped = np.clip(shares, 1e-7, 1 - 1e-7)
        loss = -np.where(gold, np.log(clipped), np.log(1 - clipped)).mean()
        micro = f1_score(gold, said, average="micro", zero_division=0)
        return {"micro_f1": 100 * float(micro), "average_precision": 100 * float(ranked), "loss": float(loss)}
    right = accuracy_score([row[case.label] for row in test], [one.answer for one in answers])
    loss = -np.log(np.clip((shares * gold).sum(1), 1e-7, 1)).mean()
    return {"accuracy": 100 * float(right), "loss": float(loss)}


def print_table(lines: list[dict[str, Any]]) -> None:
    """A table for each way to adapt: rows by case and size, a column a way; the mean, the worst draw, and the loss."""
    for adapt in dict.fromkeys(line["adapt"] for line in lines):
        some = [line for line in lines if line["adapt"] == adapt]
        ways = list(dict.fromkeys(line["way"] for line in some))
        print(f"\n| {adapt} | rows | {' | '.join(ways)} |\n| {' | '.join(['---'] * (len(ways) + 2))} |")
        for case, rows in dict.fromkeys((line["case"], line["rows"]) for line in some):
            cells = []
            for way in ways:
                found = [
                    line["score"] for line in some if (line["case"], line["rows"], line["way"]) == (case, rows, way)
                ]
                points = [next(iter(score.values())) for score in found]
                loss = statistics.mean(score["loss"] for score in found) if found else 0
                cells.append(f"{statistics.mean(points):.1f} ({min(points):.1f}) {loss:.2f}" if found else "")
            print(f"| {case} | {rows} | {' | '.join(cells)} |")
    draws = len({line["draw"] for line in lines})
    print(f"\n{draws} draws; {sum(line['cpu_seconds'] for line in lines) / 60:.1f} CPU minutes of fits")


def main() -> None:
    parser, run = verbs(__doc__, "small_data.jsonl")
    run.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    run.add_argument("--adapt", nargs="+", default=["full", "frozen"], choices=list(EPOCHS))
    run.add_argument("--per-label", nargs="+", type=int, default=list(PER_LABEL))
    run.add_argument("--way", nargs="+", default=list(WAYS))
    run.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    args = parsed(parser, print_table)
    with tempfile.TemporaryDirectory() as cache:
        for name in args.case:
            case = CASES[name]
            train, test = rows_of(case, args.data, "train"), rows_of(case, args.data, "test")
            test = [test[number] for number in np.random.default_rng(0).permutation(len(test))[:TEST_ROWS]]
            for adapt, per_label in itertools.product(args.adapt, args.per_label):
                fits, lines = [], []
                for draw, way in itertools.product(args.draws, args.way):
                    rows = drawn(case, train, per_label, draw)
                    start, cpu = time.perf_counter(), time.process_time()
                    fits.append(fit_once(case, adapt, rows, way, draw, cache))
                    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
                    line = {"case": name, "adapt": adapt, "per_label": per_label, "rows": len(rows), "draw": draw}
                    epochs = fits[-1].info()["run"]["settings"]["epochs"]
                    lines.append(line | {"way": way, "epochs": epochs, "test_rows": len(test)} | took)
                    if adapt != "frozen":  # each has an encoder of its own
                        keep(lines.pop() | {"score": scores(case, [fits.pop()], test)[0]}, args.out)
                for line, score in zip(lines, scores(case, fits, test) if fits else [], strict=True):
                    keep(line | {"score": score}, args.out)


if __name__ == "__main__":
    main()

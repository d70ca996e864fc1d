"""What lower precisions answer, task by task: fitted on a slice, scored on the whole test file in each precision.

    python benchmarks/precision_tasks.py run --data DATA [--case NAME ...] [--out FILE]
    python benchmarks/precision_tasks.py table FILE...

`run` appends one JSON line per task to FILE; `table` prints the Markdown table that stands in docs/benchmarks.md. DATA
holds one folder per public data set, as published. A tenth of the training rows is held out; the gate's report is what
the fit measured on those, and `auto` takes the fastest precision that passes it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from fit_quality import THREADS
from fit_tasks import WNUT, read_rows, sample
from lines import Lines, keep, parsed, verbs

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Case:
    task: str
    train: str
    test: str
    metric: str
    rows: int
    flags: dict[str, Any] = field(default_factory=dict)


TAGS = {"text": "tokens", "label": "tags"}
CASES = {
    "sentence-polarity": Case(
        "classify", "sentence-polarity/train.csv", "sentence-polarity/test.csv", "accuracy", 6000,
        {"text": "text", "label": "label"},
    ),
    "medical-abstracts, frozen": Case(
        "classify", "medical-abstracts/train.csv", "medical-abstracts/test.csv", "accuracy", 2000,
        {"text": "abstract", "label": "condition", "adapt": "frozen", "on_long": "truncate", "max_tokens": 256},
    ),
    "goemotions": Case(
        "multilabel", "goemotions/train.csv", "goemotions/test.csv", "micro_f1", 8000,
        {"text": "text", "label": "emotions"},
    ),
    "sick": Case(
        "regress", "sick/train.csv", "sick/test.csv", "pearson", 4500,
        {"text": "sentence_A", "pair": "sentence_B", "label": "relatedness"},
    ),
    "wnut17": Case(
        "tag", f"{WNUT}/train/wnut17train.conll", f"{WNUT}/test/emerging.test.annotated", "f1", 3400,
        TAGS | {"epochs": 4, "lr": 3e-4},
    ),
    "snips": Case(
        "joint", "snips/train.jsonl", "snips/test.jsonl", "f1", 4000, TAGS | {"intent": "intent", "lr": 3e-4}
    ),
    "policyqa": Case(
        "span", "policyqa/dev.json", "policyqa/test.json", "f1", 1500, {"lr": 3e-4, "max_tokens": 256}
    ),
    "arc": Case("choose", "arc/train.jsonl", "arc/test.jsonl", "accuracy", 1150, {"lr": 1e-4, "batch": 8}),
}  # fmt: skip


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".csv":
        return read_rows(path)
    import csv

    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measure(case: Case, data: Path) -> dict[str, Any]:
    import berthead

    test = rows_of(data / case.test)
    fitted = berthead.fit(
        sample(rows_of(data / case.train), case.rows), task=case.task, valid="0.1", threads=THREADS, quiet=True,
        **case.flags,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(Path(folder, "model"))
        loaded = {name: berthead.load(Path(folder, "model"), precision=name) for name in PRECISIONS}
        scores = {name: 100 * one.evaluate(test)[case.metric] for name, one in loaded.items()}
    gate = fitted.info()["run"]["gate"]
    return {"task": case.task, "metric": case.metric, "test_rows": len(test), "scores": scores, "gate": gate}


def verdict(line: dict[str, Any], name: str) -> str:
    told = line["gate"]["precisions"][name]
    answer = "passes" if told["passed"] else "is refused"
    return f"{answer}: {100 * told['agreement']:.2f} %, {told['points']:+.2f}"


def print_table(lines: Lines) -> None:
    """One row a task."""
    print("| data | task | test rows | metric | fp32 | bf16 | int8 | held-out rows | bf16 | int8 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for line in lines:
        scores = " | ".join(f"{line['scores'][name]:.2f}" for name in PRECISIONS)
        report = f"{line['gate']['rows']} | {verdict(line, 'bf16')} | {verdict(line, 'int8')}"
        cells = f"{line['case']} | {line['task']} | {line['test_rows']:,} | {line['metric']}"
        print(f"| {cells} | {scores} | {report} |")


def main() -> None:
    parser, run = verbs(__doc__, "precision_tasks.jsonl")
    run.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    args = parsed(parser, print_table)
    lines = []
    for name in args.case:
        lines.append({"case": name} | measure(CASES[name], args.data))
        keep(lines[-1], args.out)
    print_table(lines)


if __name__ == "__main__":
    main()

"""What each way to fit gives and costs: the same rows with full, frozen, top:2, lora:8 and bitfit.

    python benchmarks/fit_adapt.py run --data DATA [--case NAME ...] [--adapt NAME ...] [--seeds 0 1 2] [--out FILE]
    python benchmarks/fit_adapt.py table FILE...

`run` appends one JSON line per fit to FILE; `table` prints the Markdown table that stands in docs/benchmarks.md.
DATA holds one folder per public data set, as CSV files. The ways take turns on each seed, on one sample of the training
rows that does not change with the seed, and are scored by scikit-learn on the whole test file.

Everything is the command line's default: each way its own epochs and rate (they stand in the JSON lines), 10 % of the
rows held out to choose the epoch, bf16 where the processor has it; but for the length: of a text at most 128 tokens
are read, the rest is cut. The seconds are those of `fit`, from rows in memory to the fitted function, with reading the
encoder and scoring the held-out rows beside two baselines; a small fit goes before, untimed. Fitted parameters are
those that learn: the head's, and what the way leaves open of the encoder or puts beside it. Folder MB (10^6 bytes) are
those of the saved model, of lora:8 an adapter folder without the encoder.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from fit_quality import MAX_TOKENS, THREADS, rows_of, score
from lines import keep, parsed, verbs

ADAPTS = ("full", "frozen", "top:2", "lora:8", "bitfit")
WARM_UP_ROWS = 64


@dataclass(frozen=True)
class Case:
    text: str
    label: str
    rows: int


# So many rows that the longest fit takes about two minutes on two cores.
CASES = {
    "medical-abstracts": Case("abstract", "condition", 1000),
    "banking77": Case("text", "category", 6000),
}


def learning_parameters(adapt: str, head: Any) -> int:
    """How many numbers learn: those that the fit's own marking leaves open, on a fresh encoder with this head."""
    from berthead.model.adapt import Adapt
    from berthead.model.adapt import adapt as mark
    from berthead.model.checkpoint import read_checkpoint
    from berthead.model.model import Model

    model = Model(read_checkpoint("minilm").encoder(), head)
    mark(model, Adapt.parse(adapt))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    head.requires_grad_(False)
    return count


def fit_once(case: Case, adapt: str, rows: list[dict[str, str]], seed: int, epochs: int | None = None) -> Any:
    import berthead

    return berthead.fit(
        rows, task="classify", text=case.text, label=case.label, encoder="minilm", adapt=adapt, epochs=epochs,
        max_tokens=MAX_TOKENS, on_long="truncate", seed=seed, threads=THREADS, quiet=True,
    )  # fmt: skip


def run_fit(
    case: Case, adapt: str, train: list[dict[str, str]], test: list[dict[str, str]], seed: int
) -> dict[str, Any]:
    from berthead.records import Example

    start = time.perf_counter()
    fitted = fit_once(case, adapt, train, seed)
    seconds = time.perf_counter() - start
    logits = fitted.predictor.logits([Example(row[case.text]) for row in test])
    predicted = np.array([str(name) for name in fitted.labels])[logits.argmax(1)]
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(Path(folder) / "model")
        size = sum(file.stat().st_size for file in (Path(folder) / "model").rglob("*") if file.is_file())
    run = fitted.info()["run"]
    return {
        "epochs": run["settings"]["epochs"],
        "lr": run["settings"]["lr"],
        "precision": run["settings"]["precision"],
        "best_epoch": run["best_epoch"],
        "score": score("classify", [row[case.label] for row in test], predicted),
        "parameters": learning_parameters(adapt, fitted.artifact.model.head),
        "seconds": seconds,
        "bytes": size,
    }


def spread(values: list[float], form: str) -> str:
    """The mean, with ± the standard deviation where there are several."""
    mean = format(statistics.mean(values), form)
    return f"{mean} ± {format(statistics.pstdev(values), form)}" if len(values) > 1 else mean


def print_table(lines: list[dict[str, Any]]) -> None:
    """One row a case and way; mean ± sd over the seeds."""
    print("| case | adapt | accuracy | macro F1 | fitted parameters | seconds | folder MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, adapt in dict.fromkeys((line["case"], line["adapt"]) for line in lines):
        some = [line for line in lines if (line["case"], line["adapt"]) == (name, adapt)]
        cells = [spread([line["score"][metric] for line in some], ".1f") for metric in ("accuracy", "macro_f1")]
        cells.append("/".join(f"{count:,}" for count in sorted({line["parameters"] for line in some})))
        cells.append(spread([line["seconds"] for line in some], ".0f"))
        cells.append(f"{statistics.mean(line['bytes'] for line in some) / 1e6:.1f}")
        print(f"| {name} | {adapt} | {' | '.join(cells)} |")
    for name in dict.fromkeys(line["case"] for line in lines):
        some = [line for line in lines if line["case"] == name]
        sizes = {(line["rows"], line["test_rows"], len({one["seed"] for one in some})) for line in some}
        for rows, test_rows, seeds in sorted(sizes):
            print(f"\n{name}: {rows:,} training rows, {test_rows:,} test rows; {seeds} seed(s)")


def main() -> None:
    parser, run = verbs(__doc__, "fit_adapt.jsonl")
    run.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    run.add_argument("--adapt", nargs="+", default=list(ADAPTS), metavar="NAME")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--rows", type=int, help="Training rows of each case [default: the case's own].")
    args = parsed(parser, print_table)
    for name in args.case:
        case = CASES[name]
        train = rows_of(args.data / name / "train.csv", args.rows or case.rows, sample=True)
        test = rows_of(args.data / name / "test.csv", 10**9, sample=False)
        fit_once(case, "top:1", train[:WARM_UP_ROWS], seed=0, epochs=1)
        for seed in args.seeds:
            for adapt in args.adapt:
                line = {"case": name, "adapt": adapt, "seed": seed, "rows": len(train), "test_rows": len(test)}
                line |= run_fit(case, adapt, train, test, seed)
                keep(line, args.out)


if __name__ == "__main__":
    main()

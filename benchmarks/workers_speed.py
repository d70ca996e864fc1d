"""One process beside several that fit together, on the same threads: losses, quality and seconds.

    python benchmarks/workers_speed.py run --data DATA [--case NAME ...] [--workers 1 2] [--seeds 0 1 2] [--rows N]
    python benchmarks/workers_speed.py table FILE...

`run` appends one JSON line per fit to FILE (--out) and prints the table; `table` prints it again, from files. DATA
holds one folder per public data set, as CSV files.

Each fit runs in a process of its own; of several workers that one is the first. Seconds go from rows in memory to the
fitted function, without the import in that process, but with the start of the others; seconds a step are the median of
the steps. Quality is the accuracy on rows of the test file, mean and standard deviation over the seeds. One more fit a
case and number of workers, with the first seed, drops nothing and computes in fp32: the losses of its first 50 steps
are compared, and the largest difference to one process stands in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from fit_quality import BATCH, MAX_TOKENS, encoder_folder, rows_of
from lines import keep, parsed, verbs

STEPS = 50


@dataclass(frozen=True)
class Case:
    folder: str
    text: str
    label: str
    adapt: str = "full"
    rows: int = 2000
    epochs: int = 2
    test_rows: int = 1500


CASES = {
    "polarity full": Case("sentence-polarity", "text", "label"),
    "abstracts full": Case("medical-abstracts", "abstract", "condition", rows=800, test_rows=888),
    "abstracts top:2": Case("medical-abstracts", "abstract", "condition", "top:2", rows=800, test_rows=888),
    "abstracts frozen": Case("medical-abstracts", "abstract", "condition", "frozen", 800, epochs=40, test_rows=888),
}


def learn_calmly(*arguments: Any) -> Any:
    """What every process calls, with a head that drops nothing."""
    from berthead.train import settings
    from berthead.train.learn import learn

    settings.HEAD_DROPOUT = dict.fromkeys(settings.HEAD_DROPOUT, 0.0)
    return learn(*arguments)


def calm_encoder(folder: Path) -> str:
    """The packaged encoder, without dropout."""
    for path in Path(encoder_folder()).iterdir():
        if path.is_file() and path.name != "config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((Path(encoder_folder()) / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def measure(case: Case, args: argparse.Namespace, workers: int, seed: int, calm: bool) -> dict[str, Any]:
    """One fit, in this process and its workers."""
    import numpy as np

    import berthead
    from berthead.records import Example
    from berthead.train import fit
    from berthead.train.team import Team

    train = rows_of(args.data / case.folder / "train.csv", args.rows or case.rows, sample=True)
    test = rows_of(args.data / case.folder / "test.csv", case.test_rows, sample=False)
    losses, moments, real = list[float](), list[float](), Team.sum

    def watched(self: Team, *arguments: Any) -> float:
        losses.append(real(self, *arguments))
        moments.append(time.perf_counter())
        return losses[-1]

    Team.sum = watched  # type: ignore[method-assign]
    if calm:
        fit.learn = learn_calmly
    with tempfile.TemporaryDirectory() as folder:
        encoder = calm_encoder(Path(folder)) if calm else "minilm"
        start = time.perf_counter()
        fitted = berthead.fit(
            train, text=case.text, label=case.label, encoder=encoder, adapt=case.adapt, epochs=case.epochs, batch=BATCH,
            max_tokens=MAX_TOKENS, on_long="truncate", seed=seed, threads=args.threads, workers=workers, valid="0",
            precision="fp32" if calm else "auto", quiet=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
    answers = np.array(fitted.labels)[fitted.predictor.logits([Example(row[case.text]) for row in test]).argmax(1)]
    right = [str(answer) == row[case.label] for answer, row in zip(answers, test, strict=True)]
    sizes = [min(BATCH, len(train) - first) for first in range(0, len(train), BATCH)] * case.epochs
    return {
        "rows": len(train), "seconds": seconds, "accuracy": 100 * statistics.mean(right),
        "step_seconds": float(np.median(np.diff(moments))),
        "losses": [loss / size for loss, size in zip(losses[:STEPS], sizes, strict=False)],
    }  # fmt: skip


def print_table(lines: list[dict[str, Any]]) -> None:
    """One row a case and number of workers."""
    print("| case | workers | threads | seconds | seconds a step | accuracy | largest difference of 50 losses |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(line["case"] for line in lines):
        calm = {line["workers"]: line["losses"] for line in lines if line["case"] == name and line["calm"]}
        for workers in sorted({line["workers"] for line in lines if line["case"] == name}):
            some = [line for line in lines if (line["case"], line["workers"], line["calm"]) == (name, workers, False)]
            pairs = zip(calm.get(1, []), calm.get(workers, []), strict=False)
            apart = max((abs(one - other) for one, other in pairs), default=float("nan"))
            scores = [line["accuracy"] for line in some]
            quality = f"{statistics.mean(scores):.1f} ± {statistics.pstdev(scores):.1f}"
            seconds, step = (statistics.median(line[key] for line in some) for key in ("seconds", "step_seconds"))
            cells = [name, workers, some[0]["threads"], f"{seconds:.1f}", f"{step:.3f}", quality, f"{apart:.1e}"]
            print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser, run = verbs(__doc__, "workers_speed.jsonl")
    run.add_argument("--case", nargs="+", default=["polarity full", "abstracts full"], choices=list(CASES))
    run.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--rows", type=int, help="Training rows of each case [default: the case's own].")
    run.add_argument("--threads", type=int, default=2, help="Of all workers together.")
    run.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--calm", action="store_true", help=argparse.SUPPRESS)
    args = parsed(parser, print_table)
    if args.one:
        print(json.dumps(measure(CASES[args.case[0]], args, args.workers[0], args.seeds[0], args.calm)))
        return
    # As a module, whose functions its workers find.
    program = "import workers_speed; workers_speed.main()"
    paths = os.pathsep.join([str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    lines = []
    for name in args.case:
        for seed, calm in [(args.seeds[0], True), *((seed, False) for seed in args.seeds)]:
            for workers in args.workers:
                command = [sys.executable, "-c", program, "run", "--data", args.data, "--case", name, "--one"]
                command += ["--seeds", seed, "--workers", workers, "--threads", args.threads]
                command += [*(["--rows", args.rows] if args.rows else []), *(["--calm"] if calm else [])]
                words, own = [str(word) for word in command], os.environ | {"PYTHONPATH": paths}
                done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=own)
                line = {"case": name, "workers": workers, "seed": seed, "calm": calm, "threads": args.threads}
                lines.append(line | json.loads(done.stdout.splitlines()[-1]))
                keep(lines[-1], args.out)
    print_table(lines)


if __name__ == "__main__":
    main()

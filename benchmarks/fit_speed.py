"""Rows a second of a fit, full or with frozen layers: ours beside transformers' Trainer with the same ones, in turn.

    python benchmarks/fit_speed.py run --data DATA [--case NAME ...] [--rounds 3] [--threads 2] [--out FILE]
    python benchmarks/fit_speed.py table FILE...

`run` appends one JSON line per fit to FILE and prints the table; `table` prints it again, from files. DATA holds one
folder per public data set, as CSV files.

Rows a second are training rows x epochs / seconds, and the seconds go from rows in memory to the fitted function:
reading the encoder, tokenising, computing what is frozen and keeping it are in them, on both sides; importing is not.
Each fit runs in a process of its own, after a small fit as warm-up; a round is one fit of each engine, and the table
gives the medians of the rounds. Both sides fit the same function, batch 32, 3 epochs, at most 128 tokens, no held-out
rows: `frozen` learns BERT's pooler and a linear layer, `top:2` the last two blocks too, `full` everything, and the
counts of what learns are compared. Trainer has the other layers' requires_grad off, computes in fp32, and pads each
batch to its longest row. Ours computes in bf16 where the processor has it (its default), frozen layers and what learns,
or in fp32.
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from fit_adapt import learning_parameters
from fit_quality import BATCH, MAX_TOKENS, encoder_folder, rows_of
from lines import keep, parsed, verbs

TRAINER, OURS, OURS_FP32 = "trainer", "berthead", "berthead fp32"
EPOCHS, SEED, WARM_UP_ROWS = 3, 0, 64
LEARNING_RATES = {"full": 5e-5, "frozen": 1e-3, "top:2": 2e-4}

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Case:
    folder: str
    text: str
    label: str
    adapt: str
    rows: int

    @property
    def engines(self) -> list[str]:
        """Who takes turns: of a frozen encoder nothing is computed in bf16."""
        return [TRAINER, OURS] if self.adapt == "frozen" else [TRAINER, OURS, OURS_FP32]


LONG, SHORT = ("medical-abstracts", "abstract", "condition"), ("sentence-polarity", "text", "label")
CASES = {
    "abstracts full": Case(*LONG, "full", 240),
    "polarity full": Case(*SHORT, "full", 720),
    "abstracts frozen": Case(*LONG, "frozen", 240),
    "abstracts top:2": Case(*LONG, "top:2", 240),
    "polarity frozen": Case(*SHORT, "frozen", 720),
    "polarity top:2": Case(*SHORT, "top:2", 720),
}


def fit_trainer(case: Case, rows: Rows, epochs: int) -> Callable[[], int]:
    """Fit, and hand back how to count what learnt."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        logging,
        set_seed,
    )

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    names = sorted({row[case.label] for row in rows})
    model = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=len(names))
    layers = model.bert.encoder.layer
    if case.adapt != "full":
        open_layers = int(case.adapt.partition(":")[2] or 0)
        for part in (model.bert.embeddings, *layers[: len(layers) - open_layers]):
            part.requires_grad_(False)
    encoded = tokenizer([row[case.text] for row in rows], truncation=True, max_length=MAX_TOKENS)
    items = [
        {key: value[i] for key, value in encoded.items()} | {"labels": names.index(row[case.label])}
        for i, row in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATES[case.adapt], weight_decay=0.01, warmup_steps=0.1, lr_scheduler_type="linear",
            max_grad_norm=1.0, seed=SEED, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        collator = DataCollatorWithPadding(tokenizer)
        Trainer(model=model, args=args, train_dataset=items, data_collator=collator).train()
    return lambda: sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def fit_berthead(case: Case, rows: Rows, epochs: int, threads: int, precision: str) -> Callable[[], int]:
    """Fit, and hand back how to count what learnt."""
    import berthead

    fitted = berthead.fit(
        rows, task="classify", text=case.text, label=case.label, encoder="minilm", pooling="pooler",
        adapt=case.adapt, epochs=epochs, lr=LEARNING_RATES[case.adapt], batch=BATCH, max_tokens=MAX_TOKENS,
        on_long="truncate", precision=precision, seed=SEED, threads=threads, valid="0", quiet=True,
    )  # fmt: skip
    return lambda: learning_parameters(case.adapt, fitted.artifact.model.head)


def measure(case: Case, engine: str, rows: Rows, threads: int) -> dict[str, Any]:
    """One fit, in this process."""
    import torch

    torch.set_num_threads(threads)

    def fit(some: Rows, epochs: int) -> Callable[[], int]:
        if engine == TRAINER:
            return fit_trainer(case, some, epochs)
        return fit_berthead(case, some, epochs, threads, "fp32" if engine == OURS_FP32 else "auto")

    fit(rows[:WARM_UP_ROWS], 1)
    start = time.perf_counter()
    count = fit(rows, EPOCHS)
    seconds = time.perf_counter() - start
    return {"rows": len(rows), "epochs": EPOCHS, "seconds": seconds, "parameters": count()}


def rows_a_second(line: dict[str, Any]) -> float:
    return line["rows"] * line["epochs"] / line["seconds"]


def print_table(lines: list[dict[str, Any]]) -> None:
    """One row a case and engine: medians over the rounds."""
    print("| case | engine | rounds | seconds | rows/s | times Trainer | fitted parameters |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(line["case"] for line in lines):
        speeds: dict[str, float] = {}
        for engine in dict.fromkeys(line["engine"] for line in lines if line["case"] == name):
            some = [line for line in lines if (line["case"], line["engine"]) == (name, engine)]
            speeds[engine] = statistics.median(rows_a_second(line) for line in some)
            seconds = statistics.median(line["seconds"] for line in some)
            ratio = f"{speeds[engine] / speeds[TRAINER]:.2f}" if TRAINER in speeds else ""
            counts = "/".join(f"{count:,}" for count in sorted({line["parameters"] for line in some}))
            cells = [name, engine, len(some), f"{seconds:.1f}", f"{speeds[engine]:,.0f}", ratio, counts]
            print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser, run = verbs(__doc__, "fit_speed.jsonl")
    run.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    run.add_argument("--rows", type=int, help="Training rows of each case [default: the case's own].")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--threads", type=int, default=2)
    run.add_argument("--one", help=argparse.SUPPRESS)
    args = parsed(parser, print_table)
    if args.one:
        case = CASES[args.case[0]]
        rows = rows_of(args.data / case.folder / "train.csv", args.rows or case.rows, sample=True)
        print(json.dumps(measure(case, args.one, rows, args.threads)))
        return
    lines = []
    for name in args.case:
        for number in range(args.rounds):
            for engine in CASES[name].engines:
                command = [sys.executable, __file__, "run", "--data", str(args.data), "--case", name, "--one", engine]
                command += ["--threads", str(args.threads), *(["--rows", str(args.rows)] if args.rows else [])]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                line = {"case": name, "engine": engine, "round": number, "threads": args.threads}
                lines.append(line | json.loads(done.stdout.splitlines()[-1]))
                keep(lines[-1], args.out)
    print_table(lines)


if __name__ == "__main__":
    main()

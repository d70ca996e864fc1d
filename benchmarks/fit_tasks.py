"""Quality of a fit for tags, slots with intents, spans and choices: ours beside transformers' Trainer.

    python benchmarks/fit_tasks.py run trainer|berthead --data DATA --out FILE.jsonl [--only CASE ...] [--seeds 0 1 2]
    python benchmarks/fit_tasks.py table TRAINER.jsonl BERTHEAD.jsonl

`run` appends one JSON line per fit to FILE; `table` prints the Markdown table that stands in docs/benchmarks.md.
DATA holds one folder per public data set, as published. Both sides see the same seeded sample of rows, the same
encoder, epochs, batch, learning rate and length limit; warm-up 10 %, linear decay, weight decay 0.01, clipping at 1.

Trainer's side follows transformers' own example scripts, in float32 with dynamic padding: a word's tag is learned and
read at its first sub-word; a question's context is cut into overlapping windows, and the answer is the best of the 20
best starts and ends; each choice is encoded with its question. Slots with intents follow JointBERT: two linear layers,
on the token vectors and on the pooled [CLS], and the sum of their cross-entropies. Its scores come from seqeval and
from SQuAD's definition, in points; a word cut off at the length limit counts as O.
"""

from __future__ import annotations

import json
import re
import statistics
import string
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fit_quality import THREADS, encoder_folder
from lines import keep, parsed, verbs

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One comparison; `test_rows` rows of the test file are drawn like the training rows, all of them if fewer.

    Contexts of more than `longest_context` characters are left out, of both. With `folds`, the rows of both files are
    cut into so many parts: each is scored by a fit on the others, and the score is over all of them.
    """

    task: str
    train: str
    test: str
    lr: float
    rows: int
    epochs: int
    batch: int = 32
    max_tokens: int = 128
    test_rows: int = 2000
    longest_context: int = 10**9
    folds: int = 1


WNUT = "wnut17/CONLL-format/data"
CASES = {
    "wnut17": Case(
        "tag", f"{WNUT}/train/wnut17train.conll", f"{WNUT}/test/emerging.test.annotated", 2e-4, rows=1200, epochs=3,
        batch=16,
    ),
    "snips-slots": Case("tag", "snips/train.jsonl", "snips/test.jsonl", 5e-4, rows=1500, epochs=3),
    "snips-joint": Case("joint", "snips/train.jsonl", "snips/test.jsonl", 5e-4, rows=1500, epochs=3),
    "policyqa": Case(
        "span", "policyqa/dev.json", "policyqa/test.json", 5e-4, rows=1000, epochs=3, batch=16, max_tokens=160,
        longest_context=500,
    ),
    "arc": Case("choose", "arc/train.jsonl", "arc/test.jsonl", 1e-4, rows=2000, epochs=2, batch=8, folds=2),
    "balanced-copa": Case(
        "choose", "balanced-copa/train.jsonl", "balanced-copa/test.jsonl", 1e-4, rows=2000, epochs=3, batch=16, folds=5
    ),
}  # fmt: skip
METRICS = {
    "tag": ["f1", "strict_f1"],
    "joint": ["f1", "strict_f1", "intent_accuracy"],
    "span": ["exact", "f1"],
    "choose": ["accuracy"],
}
SAMPLE_SEED = 0
STRIDE, N_BEST, MAX_ANSWER_TOKENS = 64, 20, 64
CUT = -100


def read_rows(path: Path) -> Rows:
    """Rows of a CoNLL, JSON Lines or SQuAD file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    if path.suffix == ".json":
        return [
            {"question": item["question"], "context": paragraph["context"], "answers": item["answers"]}
            for article in json.loads(text)["data"]
            for paragraph in article["paragraphs"]
            for item in paragraph["qas"]
        ]
    sentences = [[line.split("\t") for line in block.split("\n")] for block in text.strip("\n").split("\n\n")]
    return [{"tokens": [w for w, _ in words], "tags": [t for _, t in words]} for words in sentences]


def sample(rows: Rows, limit: int) -> Rows:
    return [rows[i] for i in np.random.default_rng(SAMPLE_SEED).permutation(len(rows))[:limit]]


def splits(case: Case, data: Path) -> list[tuple[Rows, Rows]]:
    """The rows both sides are fitted on and scored on, once a fold."""
    train, test = read_rows(data / case.train), read_rows(data / case.test)
    if case.task == "choose":
        # BertForMultipleChoice takes equally many choices a row: the few rows with another number are left out.
        usual = Counter(len(row["choices"]) for row in train).most_common(1)[0][0]
        train, test = ([row for row in rows if len(row["choices"]) == usual] for rows in (train, test))
    if case.task == "span":
        train, test = ([row for row in rows if len(row["context"]) <= case.longest_context] for rows in (train, test))
        # The example script learns the first answer of a question, and is scored against all of them.
        train = [row | {"answers": row["answers"][:1]} for row in train]
    if case.folds == 1:
        return [(sample(train, case.rows), sample(test, case.test_rows))]
    # Whole groups of rows with the same choices: balanced-copa's items come in twos, the same choices with the answer
    # turned round, and a test row's twin in the training rows teaches the wrong answer by heart.
    groups: dict[frozenset[str], Rows] = {}
    for row in train + test:
        groups.setdefault(frozenset(row["choices"]), []).append(row)
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(groups))
    fold_of = {choices: int(place) % case.folds for choices, place in zip(groups, order, strict=True)}
    parts = [[row for row in train + test if fold_of[frozenset(row["choices"])] == fold] for fold in range(case.folds)]
    return [
        (sample([row for part in parts if part is not tested for row in part], case.rows), tested) for tested in parts
    ]


def score_tags(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    return {
        "f1": float(f1_score(gold, predicted)),
        "strict_f1": float(f1_score(gold, predicted, mode="strict", scheme=IOB2)),
    }


def normal_words(text: str) -> list[str]:
    """The words SQuAD compares: lower case, without punctuation and articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(gold: str, predicted: str) -> float:
    wanted, given = normal_words(gold), normal_words(predicted)
    common = sum((Counter(wanted) & Counter(given)).values())
    return 2 * common / (len(wanted) + len(given)) if common else 0.0


def score_spans(rows: Rows, predicted: list[str]) -> dict[str, float]:
    exact, f1 = [], []
    for row, answer in zip(rows, predicted, strict=True):
        golds = [gold["text"] for gold in row["answers"]]
        exact.append(max(normal_words(gold) == normal_words(answer) for gold in golds))
        f1.append(max(word_f1(gold, answer) for gold in golds))
    return {"exact": float(np.mean(exact)), "f1": float(np.mean(f1))}


def joint_model(encoder: str, n_tags: int, n_intents: int) -> Any:
    """JointBERT without its CRF: one encoder, one linear layer for the slots, one for the intent."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import BertModel

    class JointBert(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = BertModel.from_pretrained(encoder)
            self.dropout = torch.nn.Dropout(0.1)
            self.tag_head = torch.nn.Linear(self.bert.config.hidden_size, n_tags)
            self.intent_head = torch.nn.Linear(self.bert.config.hidden_size, n_intents)
            for head in (self.tag_head, self.intent_head):
                torch.nn.init.normal_(head.weight, std=self.bert.config.initializer_range)
                torch.nn.init.zeros_(head.bias)

        def forward(
            self, input_ids: Any, attention_mask: Any, token_type_ids: Any, labels: Any = None, intent: Any = None
        ) -> dict[str, Any]:
            hidden = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            tags = self.tag_head(self.dropout(hidden.last_hidden_state))
            intents = self.intent_head(self.dropout(hidden.pooler_output))
            out = {"tags": tags, "intents": intents}
            if labels is None:
                return out
            return {"loss": cross_entropy(tags.transpose(1, 2), labels) + cross_entropy(intents, intent)} | out

    return JointBert()


class Tags:
    """Trainer's side of tag and joint."""

    def __init__(self, case: Case, tokenizer: Any, encoder: str, train: Rows) -> None:
        from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

        self.case, self.tokenizer = case, tokenizer
        self.joint = case.task == "joint"
        self.names = sorted({tag for row in train for tag in row["tags"]})
        self.intents = sorted({row["intent"] for row in train}) if self.joint else []
        self.collator = DataCollatorForTokenClassification(tokenizer)
        if self.joint:
            self.model = joint_model(encoder, len(self.names), len(self.intents))
        else:
            self.model = AutoModelForTokenClassification.from_pretrained(encoder, num_labels=len(self.names))

    def encode(self, rows: Rows) -> tuple[Rows, list[list[int]]]:
        """Inputs, and the place of each word's first sub-word (-1 where it has none)."""
        encoded = self.tokenizer(
            [row["tokens"] for row in rows], is_split_into_words=True, truncation=True, max_length=self.case.max_tokens
        )
        items, places = [], []
        for i, row in enumerate(rows):
            words = encoded.word_ids(i)
            places.append([words.index(word) if word in words else -1 for word in range(len(row["tokens"]))])
            items.append({key: value[i] for key, value in encoded.items()})
        return items, places

    def train_items(self, rows: Rows) -> Rows:
        items, places = self.encode(rows)
        for item, row, firsts in zip(items, rows, places, strict=True):
            item["labels"] = [CUT] * len(item["input_ids"])
            for place, tag in zip(firsts, row["tags"], strict=True):
                if place >= 0:
                    item["labels"][place] = self.names.index(tag)
            if self.joint:
                item["intent"] = self.intents.index(row["intent"])
        return items

    def score(self, rows: Rows, predict: Callable[[Rows], Any]) -> dict[str, float]:
        items, places = self.encode(rows)
        logits = predict(items)
        tags = (logits[0] if self.joint else logits).argmax(-1)
        predicted = [
            [self.names[tags[i, place]] if place >= 0 else "O" for place in firsts] for i, firsts in enumerate(places)
        ]
        scores = score_tags([row["tags"] for row in rows], predicted)
        if self.joint:
            right = [self.intents[j] == row["intent"] for j, row in zip(logits[1].argmax(-1), rows, strict=True)]
            scores["intent_accuracy"] = float(np.mean(right))
        return scores


class Spans:
    """Trainer's side of span."""

    def __init__(self, case: Case, tokenizer: Any, encoder: str, train: Rows) -> None:
        from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

        self.case, self.tokenizer = case, tokenizer
        self.collator = DataCollatorWithPadding(tokenizer)
        self.model = AutoModelForQuestionAnswering.from_pretrained(encoder)

    def encode(self, rows: Rows) -> tuple[Rows, list[int], list[list[tuple[int, int] | None]]]:
        """Windows, the row of each, and the characters of each token (None outside the context)."""
        encoded = self.tokenizer(
            [row["question"].lstrip() for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=self.case.max_tokens,
            stride=STRIDE,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owners, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        items = [{key: value[i] for key, value in encoded.items()} for i in range(len(owners))]
        characters = [
            [pair if part == 1 else None for pair, part in zip(pairs, encoded.sequence_ids(i), strict=True)]
            for i, pairs in enumerate(offsets)
        ]
        return items, owners, characters

    def train_items(self, rows: Rows) -> Rows:
        items, owners, characters = self.encode(rows)
        for item, owner, pairs in zip(items, owners, characters, strict=True):
            answer = rows[owner]["answers"][0]
            start, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            inside = [i for i, pair in enumerate(pairs) if pair and pair[0] < end and pair[1] > start]
            context = [pair for pair in pairs if pair]
            # A window that does not hold the whole answer learns to point at [CLS].
            whole = inside and context[0][0] <= start and context[-1][1] >= end
            item["start_positions"], item["end_positions"] = (inside[0], inside[-1]) if whole else (0, 0)
        return items

    def score(self, rows: Rows, predict: Callable[[Rows], Any]) -> dict[str, float]:
        items, owners, characters = self.encode(rows)
        starts, ends = predict(items)
        best = [(-np.inf, "")] * len(rows)
        for i, (owner, pairs) in enumerate(zip(owners, characters, strict=True)):
            first, last = starts[i, : len(pairs)], ends[i, : len(pairs)]
            for start in np.argsort(-first)[:N_BEST]:
                for end in np.argsort(-last)[:N_BEST]:
                    if pairs[start] is None or pairs[end] is None or not 0 <= end - start < MAX_ANSWER_TOKENS:
                        continue
                    answer = rows[owner]["context"][pairs[start][0] : pairs[end][1]]
                    best[owner] = max(best[owner], (float(first[start] + last[end]), answer))
        return score_spans(rows, [answer for _, answer in best])


class Choices:
    """Trainer's side of choose."""

    def __init__(self, case: Case, tokenizer: Any, encoder: str, train: Rows) -> None:
        from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice

        self.case, self.tokenizer = case, tokenizer
        self.collator = DataCollatorForMultipleChoice(tokenizer)
        self.model = AutoModelForMultipleChoice.from_pretrained(encoder)

    def train_items(self, rows: Rows) -> Rows:
        items = []
        for row in rows:
            questions = [row["question"]] * len(row["choices"])
            encoded = self.tokenizer(questions, row["choices"], truncation=True, max_length=self.case.max_tokens)
            items.append(dict(encoded) | {"labels": row["label"]})
        return items

    def score(self, rows: Rows, predict: Callable[[Rows], Any]) -> dict[str, float]:
        chosen = predict(self.train_items(rows)).argmax(-1)
        return {"accuracy": float(np.mean(chosen == [row["label"] for row in rows]))}


SIDES = {"tag": Tags, "joint": Tags, "span": Spans, "choose": Choices}


def fit_trainer(case: Case, train: Rows, test: Rows, seed: int) -> tuple[float, dict[str, float]]:
    import torch
    from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

    torch.set_num_threads(THREADS)
    encoder = encoder_folder()
    set_seed(seed)
    side = SIDES[case.task](case, AutoTokenizer.from_pretrained(encoder), encoder, train)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, num_train_epochs=case.epochs, per_device_train_batch_size=case.batch,
            per_device_eval_batch_size=case.batch, learning_rate=case.lr, weight_decay=0.01, warmup_steps=0.1,
            lr_scheduler_type="linear", max_grad_norm=1.0, seed=seed, use_cpu=True, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        start = time.perf_counter()
        trainer = Trainer(
            model=side.model, args=args, train_dataset=side.train_items(train), data_collator=side.collator
        )
        trainer.train()
        seconds = time.perf_counter() - start
        return seconds, side.score(test, lambda items: trainer.predict(items).predictions)


def fit_berthead(case: Case, train: Rows, test: Rows, seed: int) -> tuple[float, dict[str, float]]:
    import berthead

    own: dict[str, Any] = {"text": "tokens", "label": "tags"} if case.task in ("tag", "joint") else {}
    if case.task == "joint":
        own["intent"] = "intent"
    if case.task == "span":
        own["stride"] = STRIDE
    # valid="0": every row is fitted and the last epoch is kept, as Trainer does here.
    start = time.perf_counter()
    fitted = berthead.fit(
        train, task=case.task, **own, encoder="minilm", epochs=case.epochs, lr=case.lr, batch=case.batch,
        max_tokens=case.max_tokens, seed=seed, threads=THREADS, valid="0", quiet=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    scores = fitted.evaluate(test)
    return seconds, {metric: float(scores[metric]) for metric in METRICS[case.task]}


def print_table(lines: list[dict[str, Any]]) -> None:
    """One row a case and metric: mean ± sd over the seeds of each side, and the difference."""
    print("| case | metric | seeds | Trainer | berthead | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        sides = {
            engine: [line for line in lines if (line["case"], line["engine"]) == (name, engine)]
            for engine in ("trainer", "berthead")
        }
        if not all(sides.values()):
            continue
        counts = "/".join(str(len(side)) for side in sides.values())
        for metric in METRICS[case.task]:
            ours, theirs = ([line["score"][metric] for line in sides[engine]] for engine in ("berthead", "trainer"))
            cells = [f"{statistics.mean(v):.1f} ± {statistics.pstdev(v):.1f}" for v in (theirs, ours)]
            apart = statistics.mean(ours) - statistics.mean(theirs)
            print(f"| {name} | {metric} | {counts} | {cells[0]} | {cells[1]} | {apart:+.1f} |")


def main() -> None:
    parser, run = verbs(__doc__, "fit_tasks.jsonl")
    run.add_argument("engine", choices=["trainer", "berthead"])
    run.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parsed(parser, print_table)
    fit = fit_trainer if args.engine == "trainer" else fit_berthead
    for name in args.only:
        folds = splits(CASES[name], args.data)
        tested = [len(test) for _, test in folds]
        for seed in args.seeds:
            fits = [fit(CASES[name], train, test, seed) for train, test in folds]
            seconds = sum(seconds for seconds, _ in fits)
            scores = {
                metric: float(np.average([scored[metric] for _, scored in fits], weights=tested))
                for metric in METRICS[CASES[name].task]
            }
            line = {
                "case": name,
                "engine": args.engine,
                "seed": seed,
                "rows": len(folds[0][0]),
                "test_rows": sum(tested),
            }
            line |= {"seconds": seconds, "score": {metric: 100 * value for metric, value in scores.items()}}
            keep(line, args.out)


if __name__ == "__main__":
    main()

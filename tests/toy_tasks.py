"""Rows of the token and choice tasks that a tiny random encoder can learn, and functions fitted on them once."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import berthead
from berthead.tasks import Task

FILLERS = ["the", "cat", "dog", "sat", "on", "mat", "ran", "a", "b", "c", "d", "e", "f"]
MARKS = (["good"], ["good", "great"], ["bad"])
TAGS = {"good": "B-POS", "great": "I-POS", "bad": "B-NEG"}

_FITTED: dict[str, Any] = {}


def tag_rows(count: int, seed: int = 0) -> list[dict]:
    """Words whose tag is written on them, and an intent that says whether "good" is there."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.choices(FILLERS, k=draw.randint(2, 7))
        if number % 4:
            at = draw.randint(0, len(words))
            words[at:at] = MARKS[number % 3]
        intent = "yes" if "good" in words else "no"
        rows.append({"tokens": words, "tags": [TAGS.get(word, "O") for word in words], "intent": intent})
    return rows


def span_rows(count: int, seed: int = 0, unanswerable: bool = False) -> list[dict]:
    """The answer is the word "red"; where it is missing there is none."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words = draw.choices(FILLERS, k=draw.randint(3, 8))
        if not unanswerable or number % 3:
            words.insert(draw.randint(0, len(words)), "red")
        context = " ".join([*words, "."])
        answers = [{"text": "red", "answer_start": context.index("red")}] if "red" in words else []
        rows.append({"question": draw.choice(["the dog ?", "a b"]), "context": context, "answers": answers})
    return rows


def choose_rows(count: int, seed: int = 0) -> list[dict]:
    """The right one of two to four choices says "good", the others "bad"."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = [" ".join([*draw.choices(FILLERS, k=2), "bad"]) for _ in range(draw.randint(2, 4))]
        right = draw.randrange(len(choices))
        choices[right] = choices[right].replace("bad", "good")
        rows.append({"question": f"the {draw.choice(FILLERS)} ?", "choices": choices, "label": right})
    return rows


ROWS = {"tag": tag_rows, "joint": tag_rows, "span": span_rows, "choose": choose_rows}
QUICK = {"epochs": 8, "batch": 8, "lr": 3e-3, "valid": 0, "threads": 1, "precision": "fp32", "seed": 1}


def without_head_dropout(monkeypatch: Any) -> None:
    """New heads drop nothing, of any task: what is computed in two ways is then the same."""
    monkeypatch.setattr(Task, "head_dropout", 0.0)
    monkeypatch.setattr("berthead.train.settings.FROZEN_DROPOUT", 0.0)


def fit_task(bert: Path, task: str, rows: list[dict] | None = None, **options) -> Any:
    """A function fitted on 80 toy rows of the task, or on other rows; the same arguments give the same function."""
    key = json.dumps([str(bert), task, rows, options], sort_keys=True)
    if key not in _FITTED:
        data = ROWS[task](80) if rows is None else rows
        _FITTED[key] = berthead.fit(data, task=task, encoder=str(bert), quiet=True, **(QUICK | options))
    return _FITTED[key]

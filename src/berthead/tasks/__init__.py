"""LOGITS -> MEANING: one file a task."""

from __future__ import annotations

from berthead.tasks.base import Answer, Batch, Task, stateless
from berthead.tasks.choose import Choose
from berthead.tasks.classify import Classify
from berthead.tasks.joint import Joint
from berthead.tasks.multilabel import Multilabel
from berthead.tasks.registry import OPTIONAL, REQUIRED, TASKS, choose_metric, find_task, wrong_with
from berthead.tasks.regress import Regress
from berthead.tasks.span import Extract
from berthead.tasks.tag import Tag

__all__ = [
    "OPTIONAL", "REQUIRED", "TASKS", "Answer", "Batch", "Choose", "Classify", "Extract", "Joint", "Multilabel",
    "Regress", "Tag", "Task", "choose_metric", "find_task", "stateless", "wrong_with",
]  # fmt: skip

"""LOGITS -> MEANING: one file a task."""

from __future__ import annotations

from berthead.tasks.base import Answer, Task, choose_metric
from berthead.tasks.classify import Classify
from berthead.tasks.multilabel import Multilabel
from berthead.tasks.regress import Regress

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classify, Multilabel, Regress)}

__all__ = ["TASKS", "Answer", "Classify", "Multilabel", "Regress", "Task", "choose_metric"]

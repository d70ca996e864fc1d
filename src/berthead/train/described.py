"""Labels by their descriptions: a function without labelled rows, in which nothing is learnt.

A text's logits are its vector's cosines with a vector for each label, times `SCALE`. A label's vector is the mean of
those of its texts. (Templates around them, as in Yin et al. 2019, "Benchmarking Zero-shot Text Classification", were no
better: docs/fitting.md.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from berthead.data.examples import Columns
from berthead.engine.cpu import engine_for, use_threads
from berthead.errors import UsageError
from berthead.function.artifact import Artifact, with_golden
from berthead.model.checkpoint import choose_pooling, read_checkpoint
from berthead.model.heads import POOLINGS, RowHead
from berthead.model.model import Model
from berthead.model.units import by_row
from berthead.options import FitOptions
from berthead.predict.predictor import TOKEN_BUDGET
from berthead.records import Example
from berthead.tasks import find_task
from berthead.train.convex import OF_STEPS
from berthead.train.fit import golden_inputs
from berthead.train.identity import data_sha256
from berthead.train.learn import reader_of, versions

# Encoders of sentences are trained with cosines times 20 (Reimers and Gurevych 2019, sentence-transformers' default).
SCALE = 20.0
# What is learnt in a fit, and how.
OF_A_FIT = (
    "valid",
    "head",
    "windows",
    "class_weight",
    "metric",
    "layer_decay",
    "unfreeze",
    "cache",
    "workers",
    *OF_STEPS,
)


def describe(rows: Sequence[Example], options: FitOptions, where: str) -> Artifact:
    """The function whose labels are known by texts about them.

    Args:
        rows: a description of each label at least, with the label as the target.
        options: the encoder, and how it is read.
        where: the descriptions' name, for errors.

    Returns:
        The function.

    Raises:
        DataError: fewer than two labels.
        UsageError: another task, or options of a fit.
        ModelError: the encoder cannot be used.
    """
    kind = find_task(options.task)
    if not kind.can_be_described:
        raise UsageError("--labels", f"is given without rows, and --task {kind.name} needs rows", "DATA")
    usual = FitOptions()
    for name in OF_A_FIT:
        if getattr(options, name) != getattr(usual, name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(flag, "has no effect without rows: nothing is learnt", "DATA", f"Or leave {flag} out.")
    threads = use_threads(options.threads)
    task = kind.from_targets([row.target for row in rows], where)
    encoder = read_checkpoint(options.encoder)
    tokenizer, policy = reader_of(encoder, options, pairs=False)
    pooling = _normalised(choose_pooling(options.pooling, encoder), options.pooling)
    model = Model(encoder.encoder(), RowHead(encoder.config.width, task.outputs, pooling)).eval()
    model.requires_grad_(False)
    inputs = task.encode(tokenizer, rows, policy)
    engine = engine_for(model, torch.device("cpu"))
    vectors = torch.from_numpy(
        by_row([one.rows[0] for one in inputs], engine.pooled, 1, TOKEN_BUDGET, lambda done: None)
    )
    label_of = torch.from_numpy(task.targets([row.target for row in rows]))
    sums = torch.zeros(task.outputs, vectors.shape[1]).index_add(0, label_of, vectors)
    model.head.load_state_dict(
        {"out.weight": SCALE * functional.normalize(sums), "out.bias": torch.zeros(task.outputs)}
    )
    run: dict[str, Any] = {
        "rows": 0, "held_out_rows": 0, "data_sha256": data_sha256(rows), "seed": options.seed, "threads": threads,
        "settings": {"metric": next(iter(kind.metrics))}, "class_weight": "none",
        "described": {"labels": task.outputs, "texts": len(rows), "scale": SCALE},
        "epochs": [], "best_epoch": 0, "versions": versions(options), "interrupted": False,
    }  # fmt: skip
    columns = Columns(options.text or "text", None, options.label or "label").to_dict()
    pretrained = {"name": encoder.label, "theta_sha256": encoder.theta_sha256}
    artifact = Artifact(model, tokenizer, task, columns, policy, encoder.raw_config, pretrained, "frozen", run=run)
    return with_golden(artifact, golden_inputs(rows))


def _normalised(pooling: str, wanted: str) -> str:
    """The pooling with vectors of length 1, because labels are compared by cosines."""
    one = POOLINGS[pooling]
    if one.dense and wanted != "auto":
        raise UsageError(f"--pooling {wanted}", "does not compare texts", "mean or cls")
    return "mean_normalised" if one.dense else one.normalised or pooling

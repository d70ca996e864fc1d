"""Examples to a fitted function: trains, then tunes thresholds, measures precisions and adds golden examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from berthead.engine.cpu import use_threads
from berthead.function.adapter import taken_out
from berthead.function.artifact import Artifact, with_golden
from berthead.function.precision_report import PrecisionReport
from berthead.model.adapt import Adapt
from berthead.options import HEADS, FitOptions
from berthead.predict import precision as gate
from berthead.predict.predictor import Predictor
from berthead.records import Example
from berthead.tasks import Batch, Task, find_task
from berthead.text.layout import Layout
from berthead.train.baselines import baselines, can_be_based
from berthead.train.cached_features import check_folder
from berthead.train.checkpoints import Checkpoints
from berthead.train.learn import learn, versions
from berthead.train.modes import Fold
from berthead.train.settings import USUAL_WIDTH, Settings, head_dropout, settings_for
from berthead.train.steps import History
from berthead.train.workers import is_writer, team_of

GOLDEN_EXAMPLES = 8


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted function and how the fit went.

    Args:
        artifact: the function.
        history: the epochs.
        warnings: notes for the user.
    """

    artifact: Artifact
    history: History
    warnings: list[str]


def fit_examples(
    examples: Sequence[Example],
    held_out: Sequence[Example] | float | None,
    options: FitOptions,
    columns: dict[str, Any],
    where: str,
    *,
    with_baselines: bool = True,
    quiet: bool = False,
    checkpoints: Checkpoints | None = None,
) -> FitResult:
    """Fit Predict_omega, and BERT_theta unless it is frozen.

    Args:
        examples: rows with targets.
        held_out: rows that choose the best epoch, or the share of `examples` to hold out (0: none); None: a tenth, or
            none if there are few rows.
        options: what to fit and how.
        columns: the columns the rows came from.
        where: the data's name, for errors.
        with_baselines: score a majority and a TF-IDF baseline on the held-out rows.
        quiet: show no progress.
        checkpoints: where checkpoints are written, or None.

    Returns:
        The fitted function.

    Raises:
        DataError: the rows cannot be used for a fit.
        UsageError: conflicting options, or a checkpoint of another fit.
        ModelError: the encoder cannot be used.
        MachineError: too little memory, or a worker died.
    """
    settings_for(options, find_task(options.task), USUAL_WIDTH)  # refuses conflicting options first
    check_folder(options.cache)
    others = checkpoints.for_reading() if checkpoints else None
    given = examples, held_out, options, columns, where
    with team_of(options.workers, options.device, learn, *given, True, others) as team:
        learnt = learn(*given, quiet or not is_writer(), checkpoints, team)
    if team.size > 1:
        use_threads(options.threads)  # the rest runs in one process
    model, task, settings, history = learnt.model, learnt.task, learnt.settings, learnt.history
    encoder, train, valid = learnt.encoder, learnt.folds[0], learnt.folds[1]
    notes = learnt.notes + history.notes
    lora = Adapt.parse(options.adapt).kind == "lora"
    adapter = taken_out(model, options.encoder, encoder.folder) if lora else None
    model.requires_grad_(False)
    data_hash, theta_hash = learnt.hashes
    pretrained = {"name": encoder.label, "theta_sha256": theta_hash}
    artifact = Artifact(
        model, learnt.tokenizer, task, columns, learnt.policy, encoder.raw_config, pretrained, options.adapt,
        own_head=options.head if options.head not in HEADS else None, dropout=head_dropout(options), adapter=adapter,
    )  # fmt: skip
    run: dict[str, Any] = {
        "rows": len(train.examples),
        "held_out_rows": len(valid.examples),
        "data_sha256": data_hash,
        "seed": options.seed,
        "threads": learnt.threads,
        **({"workers": team.size} if team.size > 1 else {}),
        "settings": {name: getattr(settings, name) for name in Settings.__slots__},
        "class_weight": options.class_weight,
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        **({"kept": history.kept} if history.kept else {}),
        "versions": versions(options),
    }
    if valid.examples:
        logits = Predictor(artifact).compute(valid.inputs).values
        task = task.tuned(logits, valid.targets, valid.batch)
        run["metrics"] = task.evaluate(logits, valid.targets, valid.batch)
        notes += run["metrics"].pop("warnings")
        if with_baselines and not history.interrupted and can_be_based(task):
            try:
                rows = train.examples, train.targets, valid.examples, valid.targets
                run["baselines"] = baselines(task, *rows, settings.metric)
                notes += _no_better(task, settings.metric, run["metrics"], run["baselines"], options, settings)
            except KeyboardInterrupt:
                history.interrupted = True  # the fitted parameters are complete, and are kept
        if not history.interrupted:
            try:
                run["gate"] = _gate(replace(artifact, task=task), valid, logits).to_json()
            except KeyboardInterrupt:
                history.interrupted = True
    artifact = replace(artifact, task=task, run=run | {"interrupted": history.interrupted})
    return FitResult(with_golden(artifact, golden_inputs(valid.examples or train.examples)), history, notes)


def _no_better(
    task: Task, metric: str, scores: dict[str, Any], based: dict[str, float], options: FitOptions, settings: Settings
) -> list[str]:
    """A note on a function that is no better than the answer of most rows, with the flags that may help."""
    if task.metrics[metric] * (float(scores[metric]) - based["majority"]) > 0:
        return []
    flags = [f"--epochs {3 * settings.epochs}"]
    flags += ["--adapt full"] if options.adapt != "full" else []
    flags += [f"--lr {settings.lr / 3:.1g} or {settings.lr * 3:.1g}"]
    has_classes = bool(task.answer_labels) and not settings.balanced
    flags += ["--class-weight balanced"] if has_classes else []
    got = f"{metric} {scores[metric]:.4f}, {based['majority']:.4f} without reading the text"
    return [f"the fit is no better than the answer of most rows ({got}); try {', '.join(flags)}, or more rows"]


def _gate(artifact: Artifact, fold: Fold, logits: np.ndarray) -> PrecisionReport:
    """How well lower precisions agree with fp32 on some of the held-out rows."""
    rows = np.unique(np.linspace(0, len(fold.inputs) - 1, min(gate.MOST_ROWS, len(fold.inputs))).astype(int))
    some = Batch([fold.examples[row] for row in rows], [fold.inputs[row] for row in rows])
    units = Layout(fold.inputs).units_of(rows)
    return gate.measure(artifact, some, fold.targets[rows], "held-out", logits[units])


def golden_inputs(examples: Sequence[Example]) -> list[Example]:
    """A few inputs from the shortest to the longest."""
    by_length = sorted(examples, key=lambda example: (_characters(example), example.text))
    places = np.linspace(0, len(by_length) - 1, min(GOLDEN_EXAMPLES, len(by_length)))
    return [by_length[int(place)] for place in places]


def _characters(example: Example) -> int:
    return len(example.text) + len(example.pair or "") + sum(map(len, example.choices or ()))

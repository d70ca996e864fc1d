"""Examples to a fitted function: trains, then tunes thresholds, measures precisions and adds golden examples."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from berthead.engine.cpu import use_threads
from berthead.function.adapter import taken_out
from berthead.function.artifact import Artifact, with_golden
from berthead.function.precision_report import PrecisionReport
from berthead.model.adapt import Adapt
from berthead.model.model import Model
from berthead.options import HEADS, FitOptions
from berthead.predict import precision as gate
from berthead.predict.answers import Computed
from berthead.predict.predictor import Predictor
from berthead.records import Example, IntArray
from berthead.tasks import Task, find_task
from berthead.text.layout import Layout
from berthead.text.windows import EncodedExample
from berthead.train.baselines import baseline_logits, can_be_based
from berthead.train.cached_features import check_folder
from berthead.train.checkpoints import Checkpoints
from berthead.train.fold import Fold
from berthead.train.learn import learn, versions
from berthead.train.settings import READ_BY_ALL, USUAL_WIDTH, Settings, head_dropout, settings_for
from berthead.train.steps import History
from berthead.train.workers import is_writer, team_of

GOLDEN_EXAMPLES = 8
# Of more rows baselines answer one fold only: they take longer to fit than a head does.
MOST_ROWS_IN_FOLDS = 300


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
    solved = history.out_of_fold
    run: dict[str, Any] = {
        "rows": len(train.examples),
        "held_out_rows": len(valid.examples),
        "data_sha256": data_hash,
        "seed": options.seed,
        "threads": learnt.threads,
        **({"workers": team.size} if team.size > 1 else {}),
        "settings": {name: getattr(settings, name) for name in (READ_BY_ALL if solved else Settings.__slots__)},
        "class_weight": options.class_weight,
        **({"solved": solved.solution} if solved else {}),
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        **({"kept": history.kept} if history.kept else {}),
        "versions": versions(options),
    }
    judged = _judged(replace(artifact, task=task), learnt.folds, history)
    if judged is not None:
        logits, task = judged.logits, task.tuned(judged.logits, judged.rows.targets, judged.rows.batch)
        run["metrics"] = task.evaluate(logits, judged.rows.targets, judged.rows.batch)
        notes += run["metrics"].pop("warnings")
        if with_baselines and not history.interrupted and can_be_based(task):
            try:
                run |= _compared(task, judged, settings.metric)
                notes += _no_better(task, settings.metric, run, options, settings)
            except KeyboardInterrupt:
                history.interrupted = True  # the fitted parameters are complete, and are kept
        if not history.interrupted:
            try:
                run["gate"] = _gate(replace(artifact, task=task), judged).to_json()
            except KeyboardInterrupt:
                history.interrupted = True
    artifact = replace(artifact, task=task, run=run | {"interrupted": history.interrupted})
    return FitResult(with_golden(artifact, golden_inputs(valid.examples or train.examples)), history, notes)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Rows that show how good a function is, because no parameter was fitted on them.

    Args:
        rows: held-out rows, or the fitted ones, each answered by a function that was fitted without it.
        logits: of their units, float32 [units, outputs].
        splits: what baselines are fitted on, and the numbers of the rows that they answer then.
        functions: what answers the rows of each fold.
        fold_of: the function of each row, int64 [rows].
    """

    rows: Fold
    logits: np.ndarray
    splits: list[tuple[Fold, IntArray]]
    functions: list[Artifact]
    fold_of: IntArray

    def logits_of(self, rows: IntArray) -> np.ndarray:
        """The logits of the units of some of the rows, [units, outputs]."""
        values: np.ndarray = self.logits[Layout(self.rows.inputs).units_of(rows)]
        return values


def _judged(artifact: Artifact, folds: Sequence[Fold], history: History) -> _Judged | None:
    """The held-out rows; of a head that was solved the fitted rows, out of fold; None: neither."""
    train, valid = folds
    solved = history.out_of_fold
    if valid.examples:
        logits = Predictor(artifact).compute(valid.inputs).values
        return _Judged(
            valid, logits, [(train, np.arange(len(valid.examples)))], [artifact], np.zeros(len(valid.examples), int)
        )
    if solved is None:
        return None
    fold_of = solved.fold_of[solved.rows]
    splits = [
        (train.of(np.flatnonzero(solved.fold_of != fold)), np.flatnonzero(fold_of == fold))
        for fold in (np.unique(fold_of) if len(fold_of) <= MOST_ROWS_IN_FOLDS else (0,))
    ]
    functions = [_with_head(artifact, one) for one in solved.heads]
    return _Judged(train.of(solved.rows), solved.logits, splits, functions, fold_of)


def _with_head(artifact: Artifact, parameters: dict[str, Tensor]) -> Artifact:
    """The function with other parameters of its head."""
    head = deepcopy(artifact.model.head)
    head.load_state_dict(parameters)
    return replace(artifact, model=Model(artifact.model.encoder, head))


def _compared(task: Task, judged: _Judged, metric: str) -> dict[str, Any]:
    """The baselines' scores, and the function's on the same rows if these are not all."""
    answers = [baseline_logits(task, others, judged.rows.of(rows)) for others, rows in judged.splits]
    rows = np.concatenate([rows for _, rows in judged.splits])
    some = judged.rows.of(rows)
    found: dict[str, Any] = {
        "baselines": {
            # Each baseline gets its own thresholds and temperature, like the fitted function.
            name: _score(task, np.concatenate([one[name] for one in answers]), some, metric, tuned=True)
            for name in answers[0]
            if all(name in one for one in answers)
        }
    }
    if len(rows) < len(judged.rows.examples):
        score = _score(task, judged.logits_of(rows), some, metric, tuned=False)
        found["compared"] = {"rows": len(rows), metric: score}
    return found


def _score(task: Task, logits: np.ndarray, rows: Fold, metric: str, *, tuned: bool) -> float:
    task = task.tuned(logits, rows.targets, rows.batch) if tuned else task
    return float(task.evaluate(logits, rows.targets, rows.batch)[metric])


def _no_better(task: Task, metric: str, run: dict[str, Any], options: FitOptions, settings: Settings) -> list[str]:
    """A note on a function that is no better than the answer of most rows, with the flags that may help."""
    score, majority = float(run.get("compared", run["metrics"])[metric]), run["baselines"]["majority"]
    if task.metrics[metric] * (score - majority) > 0:
        return []
    flags = [] if "solved" in run else [f"--epochs {3 * settings.epochs}"]
    flags += ["--adapt full"] if options.adapt != "full" else []
    flags += [] if "solved" in run else [f"--lr {settings.lr / 3:.1g} or {settings.lr * 3:.1g}"]
    has_classes = bool(task.answer_labels) and not settings.balanced
    flags += ["--class-weight balanced"] if has_classes else []
    got = f"{metric} {score:.4f}, {majority:.4f} without reading the text"
    return [f"the fit is no better than the answer of most rows ({got}); try {', '.join(flags)}, or more rows"]


class _ByFold:
    """Computes each row in a precision by the function that was fitted without it."""

    def __init__(self, functions: Sequence[Artifact], fold_of: IntArray, precision: str) -> None:
        self.functions, self.fold_of, self.precision = functions, fold_of, precision

    def compute(self, inputs: Sequence[EncodedExample]) -> Computed:
        """Logits of the units of the rows, [units, outputs]."""
        layout = Layout(inputs)
        values = np.empty((layout.n_units, self.functions[0].task.outputs), dtype=np.float32)
        for fold in np.unique(self.fold_of):
            rows = np.flatnonzero(self.fold_of == fold)
            some = Predictor(self.functions[fold], self.precision).compute([inputs[int(row)] for row in rows])
            values[layout.units_of(rows)] = some.values
        return Computed(values, None, layout)


def _gate(artifact: Artifact, judged: _Judged) -> PrecisionReport:
    """How well lower precisions agree with fp32 on some of the rows."""
    count = len(judged.rows.inputs)
    rows = np.unique(np.linspace(0, count - 1, min(gate.MOST_ROWS, count)).astype(int))
    some, exact = judged.rows.of(rows), judged.logits_of(rows)
    by_fold = {
        precision: _ByFold(judged.functions, judged.fold_of[rows], precision)
        for precision in gate.candidates(artifact.model)
    }
    return gate.measure(artifact, some.batch, some.targets, "held-out", exact, by_fold)


def golden_inputs(examples: Sequence[Example]) -> list[Example]:
    """A few inputs from the shortest to the longest."""
    by_length = sorted(examples, key=lambda example: (_characters(example), example.text))
    places = np.linspace(0, len(by_length) - 1, min(GOLDEN_EXAMPLES, len(by_length)))
    return [by_length[int(place)] for place in places]


def _characters(example: Example) -> int:
    return len(example.text) + len(example.pair or "") + sum(map(len, example.choices or ()))

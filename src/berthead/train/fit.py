"""Examples to a fitted function: task, encoder, head, epochs, decision, golden examples."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from berthead.artifact import Artifact, with_golden
from berthead.data.examples import hold_out
from berthead.errors import DataError, ModelError, UsageError, listed
from berthead.infer.engine import has_fast_bf16, use_threads
from berthead.infer.predict import Predictor, encode, truncation_note
from berthead.model import families
from berthead.model.adapt import adapt
from berthead.model.checkpoint import Checkpoint, choose_pooling, read_checkpoint
from berthead.model.heads import RowHead
from berthead.model.model import Model, sha256_of
from berthead.options import FitOptions
from berthead.records import Example
from berthead.tasks import TASKS, Multilabel, Task, choose_metric
from berthead.text.tokenizer import Tokenizer
from berthead.train.baselines import baselines
from berthead.train.loop import Fold, History, Settings, fit_model

DEFAULTS = {"full": {"epochs": 3, "lr": 5e-5}, "frozen": {"epochs": 40, "lr": 1e-3}}
# A head on fixed vectors overfits soon: half of them dropped was best on three tasks of the sample and on abstracts.
HEAD_DROPOUT = {"full": 0.1, "frozen": 0.5}
GOLDEN_EXAMPLES = 8
FEW_ROWS = 5


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fitted function and how the fit went.

    Args:
        artifact: the function.
        history: the epochs.
        warnings: what the user should know.
    """

    artifact: Artifact
    history: History
    warnings: list[str]


def settings_for(options: FitOptions, task: type[Task]) -> Settings:
    """The options with their defaults filled in.

    Args:
        options: what the user wants.
        task: what is predicted.

    Returns:
        The settings of the loop.

    Raises:
        UsageError: options that do not go together.
    """
    if options.class_weight == "balanced" and task.name == "regress":
        raise UsageError("--class-weight balanced", "a regression has no classes", "none")
    default = DEFAULTS[options.adapt]
    fast = has_fast_bf16()
    return Settings(
        epochs=int(options.epochs or default["epochs"]),
        batch=options.batch,
        lr=float(options.lr or default["lr"]),
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip=options.clip,
        metric=choose_metric(task, options.metric),
        precision=("bf16" if fast else "fp32") if options.precision == "auto" else options.precision,
        seed=options.seed,
        balanced=options.class_weight == "balanced",
    )


def fit_examples(
    examples: Sequence[Example],
    held_out: Sequence[Example] | float,
    options: FitOptions,
    columns: dict[str, str | None],
    where: str,
    *,
    with_baselines: bool = True,
    quiet: bool = False,
) -> FitResult:
    """Fit Predict_omega, and BERT_theta unless it is frozen.

    Args:
        examples: rows with targets.
        held_out: rows that choose the best epoch, or the share of `examples` to hold out (0: none).
        options: what to fit and how.
        columns: the columns the rows came from.
        where: the data's name, for errors.
        with_baselines: score a majority and a TF-IDF baseline on the held-out rows.
        quiet: show no progress.

    Returns:
        The fitted function.

    Raises:
        DataError: nothing can be learnt from the rows.
        UsageError: options that do not go together.
        ModelError: the encoder cannot be used.
    """
    kind = TASKS[options.task]
    settings = settings_for(options, kind)
    task, train, valid = _folds(kind, examples, held_out, options.seed, where)
    threads = use_threads(options.threads)
    checkpoint = read_checkpoint(options.encoder)
    tokenizer, max_tokens = _reader(checkpoint, options, bool(columns["pair"]))
    folds = [_fold(rows, task, tokenizer, bool(columns["pair"]), max_tokens) for rows in (train, valid)]
    scored = folds[1] if valid else None
    notes = _notes(task, folds, max_tokens, checkpoint)
    if not valid and held_out != 0:
        notes.append("too few rows to hold any out: the last epoch is kept, unscored")
    # The caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = _new_model(checkpoint, choose_pooling(options.pooling, checkpoint), task, HEAD_DROPOUT[options.adapt])
        if not settings.balanced:
            _start_at_prior(model.head, task, folds[0].targets)
        adapt(model, options.adapt)
        history = fit_model(model, task, folds[0], scored, settings, quiet)
    model.requires_grad_(False)
    theta_hat = families.to_checkpoint(checkpoint.weights, checkpoint.config.layers)
    pretrained = {"name": checkpoint.label, "theta_sha256": sha256_of(theta_hat)}
    artifact = Artifact(
        model, tokenizer, task, columns, max_tokens, checkpoint.raw_config, pretrained, options.adapt
    )  # fmt: skip
    run: dict[str, Any] = {
        "rows": len(train),
        "held_out_rows": len(valid),
        "data_sha256": data_sha256(examples),
        "seed": options.seed,
        "threads": threads,
        "settings": {name: getattr(settings, name) for name in Settings.__slots__},
        "class_weight": options.class_weight,
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "versions": _versions(),
    }
    if scored:
        logits = Predictor(artifact).compute(scored.encoded)
        task = task.tuned(logits, scored.targets)
        run["metrics"] = task.evaluate(logits, scored.targets)
        notes += run["metrics"].pop("warnings")
        if with_baselines and not history.interrupted:
            try:
                run["baselines"] = baselines(task, train, folds[0].targets, valid, scored.targets, settings.metric)
            except KeyboardInterrupt:
                history.interrupted = True  # what was fitted is whole, and is kept
    artifact = replace(artifact, task=task, run=run | {"interrupted": history.interrupted})
    return FitResult(with_golden(artifact, golden_inputs(valid or train)), history, notes)


def golden_inputs(examples: Sequence[Example]) -> list[Example]:
    """A few inputs from the shortest to the longest."""
    by_length = sorted(examples, key=lambda example: (len(example.text) + len(example.pair or ""), example.text))
    places = np.linspace(0, len(by_length) - 1, min(GOLDEN_EXAMPLES, len(by_length)))
    return [by_length[int(place)] for place in places]


def data_sha256(examples: Sequence[Example]) -> str:
    """The hash of texts and targets, whatever file they came from."""
    digest = hashlib.sha256()
    for example in examples:
        row = [example.text, example.pair, repr(example.target)]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _folds(
    kind: type[Task], examples: Sequence[Example], held_out: Sequence[Example] | float, seed: int, where: str
) -> tuple[Task, list[Example], list[Example]]:
    """The task that the targets call for, fitted rows and held-out rows."""
    task = kind.from_targets([example.target for example in examples], where)
    if not isinstance(held_out, int | float):
        _refuse_unknown(task, held_out)
        return task, list(examples), list(held_out)
    if held_out == 0:
        return task, list(examples), []
    in_proportion = task.name == "classify"
    train, valid = hold_out(examples, held_out, seed, lambda example: example.target if in_proportion else None)
    if task.name == "regress":
        # Its mean and range are fitted too, so held-out rows have no part in them.
        task = kind.from_targets([example.target for example in train], where)
    return task, train, valid


def _refuse_unknown(task: Task, held_out: Sequence[Example]) -> None:
    for example in held_out:
        try:
            task.check(example.target)
        except ValueError as error:
            fix = "Correct the row, or add rows with that label to the fitted data."
            raise DataError(example.where, f"the target {error}", fix=fix) from None


def _fold(rows: Sequence[Example], task: Task, tokenizer: Tokenizer, pairs: bool, max_tokens: int) -> Fold:
    targets = task.targets([example.target for example in rows]) if rows else np.empty(0)
    return Fold(encode(tokenizer, rows, pairs, max_tokens), targets)


def _notes(task: Task, folds: Sequence[Fold], max_tokens: int, checkpoint: Checkpoint) -> list[str]:
    """What the user should know before the fit: rare labels, cut texts, weights that are not used."""
    encoded = [one for fold in folds for one in fold.encoded]
    notes = truncation_note(sum(one.truncated for one in encoded), len(encoded), max_tokens)
    targets = folds[0].targets
    if task.name != "regress":
        counts = targets.sum(0) if isinstance(task, Multilabel) else np.bincount(targets, minlength=task.outputs)
        few = [f"{text} ({int(n)})" for text, n in zip(task.label_texts, counts, strict=True) if n < FEW_ROWS]
        notes += [f"labels with fewer than {FEW_ROWS} fitted rows: {listed(few)}"] if few else []
    other = [name for name in checkpoint.left_out if not name.endswith("position_ids")]
    if other:
        notes.append(
            f"{checkpoint.name}: {len(other)} weights belong to another head and are not used: {listed(other, 3)}"
        )
    return notes


def _reader(checkpoint: Checkpoint, options: FitOptions, pairs: bool) -> tuple[Tokenizer, int]:
    """The checkpoint's tokenizer and the longest input, in tokens."""
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    if tokenizer.vocabulary > checkpoint.config.vocabulary:
        saw = f"its tokenizer knows {tokenizer.vocabulary} tokens, its embeddings {checkpoint.config.vocabulary}"
        raise ModelError(f"--encoder {options.encoder}", saw, "a tokenizer of this encoder")
    (probe,) = tokenizer.encode(["a"], ["a"] if pairs else None, 8)
    if probe.segments.max() >= checkpoint.config.segments:
        saw = f"{options.encoder} does not tell the second text from the first (type_vocab_size is 1)"
        raise UsageError("--pair", saw, "an encoder with two token types")
    return tokenizer, _max_tokens(options, checkpoint)


def _max_tokens(options: FitOptions, checkpoint: Checkpoint) -> int:
    most = checkpoint.config.positions
    if options.max_tokens is not None and options.max_tokens > most:
        raise UsageError("--max-tokens", f"is {options.max_tokens}", f"{options.encoder} reads at most {most} tokens")
    return options.max_tokens or most


def _new_model(checkpoint: Checkpoint, pooling: str, task: Task, dropout: float) -> Model:
    head = RowHead(checkpoint.config.width, task.outputs, pooling, dropout)
    if head.dense is not None:
        assert checkpoint.pooler is not None
        head.dense.load_state_dict({name.removeprefix("dense."): t for name, t in checkpoint.pooler.items()})
    return Model(checkpoint.encoder(), head)


def _start_at_prior(head: RowHead, task: Task, targets: np.ndarray) -> None:
    """Let the head begin with the targets' shares, so that rare labels need not be unlearnt first."""
    scale, shift = task.affine()
    with torch.no_grad():
        head.out.bias.copy_(torch.from_numpy((task.prior(targets) - shift) / scale))


def _versions() -> dict[str, Any]:
    packages = ("berthead", "torch", "tokenizers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}

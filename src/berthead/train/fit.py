"""Examples to a fitted function: task, encoder, head, epochs, decision, golden examples."""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from berthead.artifact import Artifact, with_golden
from berthead.data.examples import hold_out
from berthead.errors import DataError, UsageError, listed
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
    task = kind.from_targets([example.target for example in examples], where)
    train, valid = _folds(examples, held_out, options.seed, task)
    notes = _few_rows(task, train) + ([] if valid else ["no held-out rows: the last epoch is kept, unscored"])
    threads = use_threads(options.threads)
    checkpoint = read_checkpoint(options.encoder)
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    if tokenizer.vocabulary > checkpoint.config.vocabulary:
        saw = f"its tokenizer knows {tokenizer.vocabulary} tokens, its embeddings {checkpoint.config.vocabulary}"
        raise DataError(f"--encoder {options.encoder}", saw, "a tokenizer of this encoder")
    (probe,) = tokenizer.encode(["a"], ["a"] if columns["pair"] is not None else None, 8)
    if probe.segments.max() >= checkpoint.config.segments:
        saw = f"{options.encoder} knows {checkpoint.config.segments} token types (type_vocab_size)"
        raise UsageError("--pair", saw, "an encoder with a token type for the second text")
    max_tokens = _max_tokens(options, checkpoint)
    targets = task.targets([example.target for example in train])
    folds = [
        Fold(encode(tokenizer, rows, columns["pair"] is not None, max_tokens), task.targets([e.target for e in rows]))
        for rows in (train, valid)
        if rows
    ]
    notes += truncation_note(sum(one.truncated for fold in folds for one in fold.encoded), len(examples), max_tokens)
    # The caller's random state is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = _new_model(checkpoint, choose_pooling(options.pooling, checkpoint), task, HEAD_DROPOUT[options.adapt])
        if not settings.balanced:
            _start_at_prior(model.head, task, targets)
        adapt(model, options.adapt)
        history = fit_model(model, task, folds[0], folds[1] if valid else None, settings, quiet)
    model.requires_grad_(False)
    theta_hat = families.to_checkpoint(checkpoint.weights, checkpoint.config.layers)
    artifact = Artifact(
        model, tokenizer, task, columns, max_tokens, checkpoint.raw_config,
        {"name": checkpoint.label, "theta_sha256": sha256_of(theta_hat)}, options.adapt,
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
        "interrupted": history.interrupted,
        "versions": _versions(),
    }
    if valid:
        logits = Predictor(artifact).compute(folds[1].encoded)
        task = task.tuned(logits, folds[1].targets)
        run["metrics"] = task.evaluate(logits, folds[1].targets)
        notes += run["metrics"].pop("warnings")
        if with_baselines and not history.interrupted:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a baseline that has not converged is still a baseline
                    run["baselines"] = baselines(task, train, targets, valid, folds[1].targets, settings.metric)
            except KeyboardInterrupt:
                history.interrupted = run["interrupted"] = True  # what was fitted is whole, and is kept
    artifact = Artifact(
        model, tokenizer, task, columns, max_tokens, checkpoint.raw_config, artifact.pretrained, options.adapt, run
    )
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
    examples: Sequence[Example], held_out: Sequence[Example] | float, seed: int, task: Task
) -> tuple[list[Example], list[Example]]:
    if isinstance(held_out, int | float):
        if held_out == 0:
            return list(examples), []
        in_proportion = task.name == "classify"
        return hold_out(examples, held_out, seed, lambda example: example.target if in_proportion else None)
    for example in held_out:
        try:
            task.check(example.target)
        except ValueError as error:
            fix = "Correct the row, or add rows with that label to the fitted data."
            raise DataError(example.where, f"the target {error}", fix=fix) from None
    return list(examples), list(held_out)


def _few_rows(task: Task, train: Sequence[Example]) -> list[str]:
    if task.name == "regress":
        return []
    targets = task.targets([example.target for example in train])
    counts = targets.sum(0) if isinstance(task, Multilabel) else np.bincount(targets, minlength=task.outputs)
    few = [f"{text} ({int(n)})" for text, n in zip(task.label_texts, counts, strict=True) if n < FEW_ROWS]
    return [f"labels with fewer than {FEW_ROWS} fitted rows: {listed(few)}"] if few else []


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

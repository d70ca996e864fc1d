"""The work of each process of a fit: examples to packs, building encoder and head, and the training loop."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from berthead import plugins
from berthead.data.forms import FORMS
from berthead.data.label_notes import overlap_note, repetition_notes
from berthead.data.split import hold_out
from berthead.engine.cpu import find_device, has_fast_bf16, use_threads
from berthead.errors import DataError, ModelError, UsageError, counted, listed
from berthead.function.head_record import make_head, row_part
from berthead.model import families
from berthead.model.adapt import Adapt, adapt
from berthead.model.checkpoint import Checkpoint, choose_pooling, read_checkpoint
from berthead.model.heads import JointHead, RowHead, TokenHead
from berthead.model.model import Model
from berthead.options import HEADS, FitOptions
from berthead.predict.reading import length_notes, readable, split_readable
from berthead.records import Example
from berthead.tasks import Task, find_task
from berthead.tasks.arrays import ragged
from berthead.text.bounds import check_tokenizer
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy, windows_in_parts
from berthead.train.cached_features import check_folder
from berthead.train.checkpoints import Checkpoints
from berthead.train.convex import Solving
from berthead.train.fold import Fold
from berthead.train.identity import data_sha256, identity_of
from berthead.train.loop import fit_model
from berthead.train.modes import MOST_WINDOWS, fits_in_memory
from berthead.train.settings import FEW_ROWS, HELD_OUT, Settings, head_dropout, held_out_by_default, settings_for
from berthead.train.steps import History
from berthead.train.team import Team

RARE = 5
# The options that each kind of head reads.
READ = {"row": ("pooling", "windows"), "token": (), "joint": ("pooling",)}


@dataclass(frozen=True, slots=True)
class Learnt:
    """The trained model, and what it was trained from.

    Args:
        model: fitted.
        task: bound to its head.
        encoder: the pre-trained checkpoint.
        tokenizer: the encoder's.
        policy: how long inputs are handled.
        settings: the settings of the fit.
        threads: of this process.
        folds: training rows and held-out rows.
        hashes: the sha256 of the data and of theta-hat.
        history: the epochs.
        notes: notes for the user about the rows.
    """

    model: Model
    task: Task
    encoder: Checkpoint
    tokenizer: Tokenizer
    policy: LengthPolicy
    settings: Settings
    threads: int
    folds: list[Fold]
    hashes: tuple[str, str]
    history: History
    notes: list[str]


def learn(
    examples: Sequence[Example], held_out: Sequence[Example] | float | None, options: FitOptions,
    columns: dict[str, Any], where: str, quiet: bool, checkpoints: Checkpoints | None, team: Team,
) -> Learnt:  # fmt: skip
    """Train: from rows to fitted parameters, in each process of a team."""
    kind = find_task(options.task)
    task = _task_of(kind, examples, where)
    by_default = held_out is None
    threads = use_threads(team.threads(options.threads))
    encoder = read_checkpoint(options.encoder)
    solving = Solving.of(options, task, _pooling(options, task, encoder))
    if held_out is None:
        held_out = held_out_by_default(len(examples), task, solved=solving is not None)
    pairs = any(example.pair is not None or example.choices for example in examples)
    tokenizer, policy = reader_of(encoder, options, pairs)
    sides = _Sides.of(task, examples, held_out, options, tokenizer, policy, where)
    if solving and not fits_in_memory(encoder.config.width, sides.folds):  # then it is fitted in steps
        solving = None
        if by_default:
            held_out = held_out_by_default(len(examples), task)
            sides = _Sides.of(task, examples, held_out, options, tokenizer, policy, where)
    task, folds, valid = sides.task, sides.folds, sides.folds[1].examples
    few = len(folds[0].examples) if len(examples) < FEW_ROWS else None
    settings = settings_for(options, kind, encoder.config.width, few)
    data_hash, theta_hash = data_sha256(examples), encoder.theta_sha256
    notes = sides.notes + _row_notes(kind, examples, held_out) + _notes(task, folds, policy, encoder)
    if by_default and held_out == 0 and not solving:
        notes.append(_none_held_out(len(examples)))
    elif not valid and held_out != 0:
        notes.append("too few rows for a held-out set: the last epoch is kept, without scores")
    if settings.precision == "bf16" and not has_fast_bf16(find_device(settings.device)):
        notes.append("--precision bf16: this processor has no bfloat16 arithmetic; fp32 is several times faster here")
    saved = None
    if checkpoints or team.size > 1:
        others = f"{held_out:g} of it" if isinstance(held_out, int | float) else data_sha256(held_out)
        known = {"the data": data_hash, "the held-out data": others}
        known |= {"the encoder": encoder.label, "the encoder's sha256": theta_hash}
        how = {"columns": columns, "threads": threads, "workers": team.size, "versions": versions(options)}
        identity = identity_of(options, settings, [one for fold in folds for one in fold.inputs], known, how)
        saved = checkpoints.read(identity) if checkpoints else None
        team.agree(f"{identity} {saved.state if saved else None}")
    # The caller's random state is left as it was.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if options.device == "cuda" else []):
        torch.manual_seed(options.seed)
        model = Model(encoder.encoder(), _new_head(encoder, options, task, head_dropout(options)))
        task = task.bound(model.head)
        if settings.balanced and task.weights(folds[0].targets) is None:
            saw = "--head crf weighs whole sequences" if options.head == "crf" else f"--task {task.name} has no classes"
            raise UsageError("--class-weight balanced", saw, "--class-weight none")
        if not settings.balanced:
            _start_at_prior(model.head, task, folds[0].targets)
        adapt(model, Adapt.parse(options.adapt))
        rows = folds[0] if solving else _in_parts(task, folds[0])
        scored, cache = folds[1] if valid else None, check_folder(options.cache)
        more = checkpoints, saved, team
        history = fit_model(model, task, rows, scored, settings, quiet, cache, *more, solving)
    hashes = data_hash, theta_hash
    return Learnt(model, task, encoder, tokenizer, policy, settings, threads, folds, hashes, history, notes)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Training rows and held-out rows, and the task made from the training rows.

    Args:
        task: with the unit that gets a tag.
        folds: training rows and held-out rows.
        notes: on rows that were left out, and on the unit.
    """

    task: Task
    folds: list[Fold]
    notes: list[str]

    @classmethod
    def of(
        cls, task: Task, examples: Sequence[Example], held_out: Sequence[Example] | float, options: FitOptions,
        tokenizer: Tokenizer, policy: LengthPolicy, where: str,
    ) -> Self:  # fmt: skip
        """Split and encode rows."""
        left_out: list[str] = []
        if options.skip_bad_rows and not isinstance(held_out, int | float):
            held_out, left_out = _known(task, held_out)
        task, train, valid = _split(task, examples, held_out, options.seed, where)
        task, unit_notes = task.with_unit(options.tag_unit, tokenizer, train)
        if options.skip_bad_rows:
            train, long = split_readable(task, tokenizer, train, policy)
            valid, more = split_readable(task, tokenizer, valid, policy)
            left_out += long + more
        folds = [_fold(rows, task, tokenizer, policy) for rows in (train, valid)]
        return cls(task, folds, [f"left out: {line}" for line in left_out] + unit_notes)


def _split(
    task: Task, examples: Sequence[Example], held_out: Sequence[Example] | float, seed: int, where: str
) -> tuple[Task, list[Example], list[Example]]:
    """The task made from the training rows, training rows and held-out rows."""
    if not isinstance(held_out, int | float):
        _refuse_unknown(task, held_out)
        return task, list(examples), list(held_out)
    if held_out == 0:
        return task, list(examples), []

    def group(example: Example) -> Any:
        return task.group(example.target)

    train, valid = hold_out(examples, held_out, seed, group, by_pair=FORMS[task.form].needs_pair)
    if task.measures_targets:
        task = _task_of(type(task), train, where)
    return task, train, valid


def _none_held_out(rows: int) -> str:
    return (
        f"{rows} rows are too few for a held-out set (fewer than {FEW_ROWS}): the last epoch is kept, without scores; "
        f"--valid {HELD_OUT} holds out a tenth"
    )


def _task_of(kind: type[Task], examples: Sequence[Example], where: str) -> Task:
    try:
        return kind.from_targets([example.target for example in examples], where)
    except DataError as error:
        if error.row is None:
            raise
        raise DataError(examples[error.row].where, error.saw, error.expected, error.fix) from None


def _refuse_unknown(task: Task, held_out: Sequence[Example]) -> None:
    for example in held_out:
        try:
            task.check(example.target)
        except ValueError as error:
            fix = "Correct the row, add rows with that label to the fitted data, or leave it out with --skip-bad-rows."
            raise DataError(example.where, f"the target {error}", fix=fix) from None


def _known(task: Task, held_out: Sequence[Example]) -> tuple[list[Example], list[str]]:
    """Held-out rows whose targets the task knows, and a line for each of the others."""
    known, others = list[Example](), list[str]()
    for example in held_out:
        try:
            task.check(example.target)
        except ValueError as error:
            others.append(f"{example.where}: the target {error}")
        else:
            known.append(example)
    return known, others


def _fold(rows: Sequence[Example], task: Task, tokenizer: Tokenizer, policy: LengthPolicy) -> Fold:
    inputs = readable(rows, task.encode(tokenizer, rows, policy))
    return Fold(rows, inputs, task.targets([example.target for example in rows], inputs) if rows else np.empty(0))


def _in_parts(task: Task, fold: Fold) -> Fold:
    """The training rows; a row with very many windows is split, so that a step fits into memory."""
    if task.level != "token":
        return fold
    examples, inputs, targets = [], [], []
    for example, one, target in zip(*(fold.examples, fold.inputs), fold.targets, strict=True):
        for part, wanted in windows_in_parts(one, target, MOST_WINDOWS):
            examples.append(example)
            inputs.append(part)
            targets.append(wanted)
    return Fold(examples, inputs, ragged(targets))


def _row_notes(kind: type[Task], examples: Sequence[Example], held_out: Sequence[Example] | float) -> list[str]:
    """What was probably not meant in the rows: labels, repetitions, held-out rows that are fitted too."""
    notes = kind.target_notes([example.target for example in examples])
    notes += repetition_notes(examples, contradict=not kind.measures_targets)
    return notes if isinstance(held_out, int | float) else notes + overlap_note(examples, held_out)


def _notes(task: Task, folds: Sequence[Fold], policy: LengthPolicy, checkpoint: Checkpoint) -> list[str]:
    """What the user should know before the fit: rare labels, long texts, misplaced targets, unused weights."""
    notes = length_notes([one for fold in folds for one in fold.inputs], policy)
    counts = task.support(folds[0].targets)
    if counts is not None:
        few = [f"{text} ({int(n)})" for text, n in zip(task.label_texts, counts, strict=True) if n < RARE]
        notes += [f"labels with fewer than {RARE} fitted rows: {listed(few)}"] if few else []
    notes += [line for fold in folds for line in task.misfits(fold.examples, fold.inputs)]
    other = [name for name in checkpoint.left_out if not name.endswith("position_ids")]
    if other:
        notes.append(f"{checkpoint.name}: unused weights of another head: {len(other)} ({listed(other, 3)})")
    return notes


def reader_of(checkpoint: Checkpoint, options: FitOptions, pairs: bool) -> tuple[Tokenizer, LengthPolicy]:
    """The checkpoint's tokenizer, and how long inputs are handled."""
    tokenizer = Tokenizer.from_checkpoint(checkpoint.folder)
    check_tokenizer(tokenizer, checkpoint.config, f"--encoder {options.encoder}", pairs=False)
    if pairs and checkpoint.config.segments == 1 and tokenizer.token_types(pair=True) == {0, 1}:
        saw = f"{options.encoder} does not tell the second text from the first (type_vocab_size is 1)"
        raise UsageError("--pair", saw, "an encoder with two token types")
    check_tokenizer(tokenizer, checkpoint.config, f"--encoder {options.encoder}", pairs=pairs)
    most = checkpoint.config.positions
    if options.max_tokens is not None and options.max_tokens > most:
        raise UsageError(
            "--max-tokens", f"is {options.max_tokens}", f"at most {most}, the tokens that {options.encoder} reads"
        )
    room = tokenizer.room(options.max_tokens or most, pair=pairs)
    if options.stride is not None and options.stride >= room:
        saw = f"is {options.stride}, but a window holds {counted(room, 'token')} of the text"
        raise UsageError("--stride", saw, f"0 to {room - 1}", "Lower --stride, or raise --max-tokens.")
    return tokenizer, LengthPolicy(options.max_tokens or most, options.on_long, options.stride)  # type: ignore[arg-type]


def _new_head(checkpoint: Checkpoint, options: FitOptions, task: Task, dropout: float) -> nn.Module:
    """The head that the task needs, its pooler from the checkpoint."""
    needs = task.needed_head()
    read = READ.get(needs["kind"])
    if read is None:
        raise ModelError(f"task {task.name!r}", f"needs a head of kind {needs['kind']!r}", f"one of {listed(READ)}")
    for name, usual in (("pooling", "auto"), ("windows", "mean")):
        if not (options.head in HEADS and name in read) and getattr(options, name) != usual:
            by = f"--task {task.name}" if options.head in HEADS else f"--head {options.head}"
            raise UsageError(f"--{name} {getattr(options, name)}", f"has no effect with {by}", f"--{name} {usual}")
    record: dict[str, Any] = {"outputs": task.outputs, "dropout": dropout, "crf": options.head == "crf"}
    if options.head not in HEADS:
        head = make_head(record | {"kind": "own", "name": options.head}, checkpoint.config.width)
        level = getattr(head, "level", None)
        if level != task.level:
            saw = f"answers each {level}, and --task {task.name} needs an answer for each {task.level}"
            raise UsageError(f"--head {options.head}", saw, f'a head with level = "{task.level}"')
        return head
    if options.head == "crf" and not task.is_sequence:
        raise UsageError("--head crf", f"--task {task.name} has no sequence of tags", "auto or linear")
    if "pooling" in read:
        record |= {"pooling": choose_pooling(options.pooling, checkpoint), "windows": options.windows}
    record["pooled"] = families.FAMILIES[checkpoint.config.family].pooled
    head = make_head(record | needs, checkpoint.config.width)
    part = row_part(head)
    if part is not None and part.dense is not None:
        if checkpoint.pooler is None:  # a layer of the head, initialised as in transformers
            nn.init.normal_(part.dense.weight, std=0.02)
            nn.init.zeros_(part.dense.bias)
        else:
            part.dense.load_state_dict({name.removeprefix("dense."): t for name, t in checkpoint.pooler.items()})
    return head


def _pooling(options: FitOptions, task: Task, checkpoint: Checkpoint) -> str | None:
    """The pooling of a head of ours; None: it has none."""
    if options.head not in HEADS or "pooling" not in READ.get(task.needed_head()["kind"], ()):
        return None
    return choose_pooling(options.pooling, checkpoint)


def _start_at_prior(head: Any, task: Task, targets: np.ndarray) -> None:
    """Initialise the head's bias with the shares of the targets, so that rare labels start with low scores."""
    scale, shift = task.affine()
    prior = torch.from_numpy((task.prior(targets) - shift) / scale)
    parts = (head.tokens, head.row) if isinstance(head, JointHead) else (head,)
    # A head of another package initialises itself.
    layers = [part.out for part in parts if isinstance(part, RowHead | TokenHead)]
    with torch.no_grad():
        for layer, share in zip(
            layers, prior.split_with_sizes([len(layer.bias) for layer in layers] or [len(prior)]), strict=False
        ):
            layer.bias.copy_(share)


_version = cache(version)  # each look-up reads the package's metadata anew


def versions(options: FitOptions) -> dict[str, Any]:
    """Versions of Python, the packages, and the packages of heads and tasks."""
    packages = ("berthead", "torch", "tokenizers", "numpy")
    asked = (plugins.TASKS, options.task, plugins.BUILT_IN_TASKS), (plugins.HEADS, options.head, HEADS)
    own = [plugins.package(group, name) for group, name, built_in in asked if name not in built_in]
    named = dict(one.rsplit(" ", 1) for one in own if one)
    return {"python": platform.python_version()} | {name: _version(name) for name in packages} | named

"""The settings of a fit: the options with their defaults filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from berthead.engine.cpu import find_device, has_fast_bf16
from berthead.errors import UsageError
from berthead.model.adapt import Adapt
from berthead.options import FitOptions
from berthead.tasks import Task, choose_metric, find_task

# The fewer parameters are trained, the larger the learning rate, and the more epochs.
DEFAULTS = {
    "full": {"epochs": 3, "lr": 5e-5},
    "frozen": {"epochs": 40, "lr": 1e-3},
    "top": {"epochs": 6, "lr": 2e-4},
    "lora": {"epochs": 6, "lr": 1e-3},
    "bitfit": {"epochs": 6, "lr": 2e-3},
}
# Of fewer rows none are held out by default: so few choose an epoch no better than chance. They also give too few
# steps in the usual epochs, so there are more epochs. Measured: docs/fitting.md.
FEW_ROWS, LEAST_STEPS = 256, 100
HELD_OUT = 0.1
# More leaves almost nothing to fit.
MOST_HELD_OUT = 0.9
# Full fits: the rate above is for encoders of this width; narrower ones have a larger rate, omega a still larger one.
USUAL_WIDTH = 768
HEAD_RATE = 10
# Dropout of a new head on fixed vectors, where it overfits soon: 0.5 was best on three tasks of the
# sample and on abstracts.
FROZEN_DROPOUT = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a fit: the fields of FitOptions, with their defaults filled in."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float
    clip: float
    metric: str
    precision: str
    seed: int
    balanced: bool
    device: str = "cpu"
    head_lr: float | None = None
    layer_decay: float = 1.0
    unfreeze: bool = False


# What a fit without steps reads too.
READ_BY_ALL = ("metric", "precision", "seed", "balanced", "device")


def held_out_by_default(rows: int, task: Task, *, solved: bool = False) -> float:
    """The default share of held-out rows.

    Args:
        rows: the number of rows.
        task: what is predicted.
        solved: whether folds choose what held-out rows would choose.

    Returns:
        `HELD_OUT`, or 0.

    Example:
        >>> from berthead.tasks import Classify
        >>> labels = Classify.from_targets(["yes", "no"], "rows")
        >>> held_out_by_default(32, labels), held_out_by_default(10_000, labels)
        (0.0, 0.1)
    """
    if solved:
        return 0.0
    return HELD_OUT if rows >= FEW_ROWS or task.needs_held_out else 0.0


def check_share(share: float, where: str, what: str) -> None:
    """Check a share of rows to hold out.

    Args:
        share: of the rows.
        where: the flag or the parameter, for errors.
        what: what it may be, up to its range.

    Raises:
        UsageError: it is no share, or leaves almost nothing to fit.
    """
    if not 0 <= share < 1:
        raise UsageError(where, f"is {share!r}", f"{what} from 0 to {MOST_HELD_OUT:g}")
    if share > MOST_HELD_OUT:
        raise UsageError(
            where, f"is {share!r}, which leaves almost nothing to fit", f"{what} from 0 to {MOST_HELD_OUT:g}"
        )


def settings_for(options: FitOptions, task: type[Task], width: int, few: int | None = None) -> Settings:
    """The options with their defaults filled in.

    Args:
        options: what the user wants.
        task: what is predicted.
        width: the encoder's width.
        few: the number of training rows if it is below `FEW_ROWS`, else None.

    Returns:
        The settings.

    Raises:
        UsageError: conflicting options.
    """
    kind = Adapt.parse(options.adapt).kind
    default = DEFAULTS[kind]
    least = math.ceil(LEAST_STEPS / math.ceil(few / options.batch)) if few else 1
    epochs = int(options.epochs or max(default["epochs"], least))
    if kind == "frozen" and (options.unfreeze or options.layer_decay != 1):
        given = "--unfreeze" if options.unfreeze else f"--layer-decay {options.layer_decay:g}"
        raise UsageError(given, "--adapt frozen fits the head only", "an --adapt that fits blocks", "Or leave it out.")
    if options.unfreeze and epochs < 2:
        raise UsageError("--unfreeze", "there is 1 epoch", "--epochs 2 or more: the first one fits only the head")
    lr, head_lr = options.lr, options.head_lr
    if lr is None and kind == "full":
        lr = default["lr"] * USUAL_WIDTH / width
        head_lr = head_lr or HEAD_RATE * lr
    fast = has_fast_bf16(find_device(options.device))
    return Settings(
        epochs=epochs,
        batch=options.batch,
        lr=float(lr or default["lr"]),
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        clip=options.clip,
        metric=choose_metric(task, options.metric),
        precision=("bf16" if fast else "fp32") if options.precision == "auto" else options.precision,
        seed=options.seed,
        balanced=options.class_weight == "balanced",
        device=options.device,
        head_lr=head_lr,
        layer_decay=options.layer_decay,
        unfreeze=options.unfreeze,
    )


def head_dropout(options: FitOptions) -> float:
    """The dropout of a new head's input."""
    if Adapt.parse(options.adapt).kind == "frozen":
        return FROZEN_DROPOUT
    return find_task(options.task).head_dropout

"""The options of each command: one dataclass a command; a field's help is also its flag's help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from berthead import plugins
from berthead.errors import UsageError, listed
from berthead.options.base import Options, option

HEADS = ("auto", "linear", "crf")
POOLINGS = ("auto", "cls", "mean", "pooler", "cls_normalised", "mean_normalised")
LORA_TARGETS = ("query", "key", "value", "attention-out", "up", "down")
_TARGET = "|".join(LORA_TARGETS)
# Values of `adapt`; numbers are whole and above 0, except alpha, which may have decimals.
ADAPT = (
    r"full|frozen|bitfit|top:[1-9]\d{0,3}|lora:[1-9]\d{0,4}"
    rf"(,alpha=(?=[^,]*[1-9])\d{{1,6}}(\.\d{{1,6}})?)?(,targets=({_TARGET})(\+({_TARGET}))*)?"
)
ADAPT_ALLOWED = (
    "full, frozen, top:K, lora:R[,alpha=A][,targets=a+b] or bitfit, with K and R from 1, A above 0 "
    f"and targets of {', '.join(LORA_TARGETS)}"
)


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """Options of `berthead fit`."""

    places: ClassVar[tuple[str, ...]] = ("data", "out")

    task: str = option("classify", "What is predicted.", choices=tuple(plugins.BUILT_IN_TASKS), more=plugins.TASKS)
    text: str | None = option(
        None, "Column of the text, the tokens or the question [default: text, or a usual synonym]."
    )
    pair: str | None = option(None, "Column of the second text of a pair, or of the context of a question.")
    label: str | None = option(
        None,
        "Column of the target, the tags or the answers; multilabel, regress: also a 0/1 column for each label, a "
        "column for each number: a,b,c [default: a usual name].",
        several=True,
    )
    choices: str | None = option(
        None, "choose: column of the choices, or one column for each: a,b,c [default: a usual name].", several=True
    )
    intent: str | None = option(None, "joint: column of the label beside the tags [default: intent, or label].")
    separator: str | None = option(None, "multilabel: what separates the labels in a cell [default: |].")
    labels: str | None = option(
        None,
        "classify: a YAML file of labels and their descriptions, which are rows too; without DATA the labels are known "
        "by them alone, and nothing is learnt [default: none].",
    )
    valid: str | None = option(
        None, "Held-out data: a file, or a share of the rows such as 0.1 [default: 0.1; below 256 rows: 0]; 0: none."
    )
    encoder: str = option("minilm", "Pre-trained encoder: minilm, a local folder, or a name that was pulled.")
    adapt: str = option(
        "full",
        "What is trained besides the head: full (the encoder), frozen (nothing), top:K (its last K blocks), "
        "lora:R[,alpha=A][,targets=a+b] (low-rank updates of rank R), bitfit (its biases).",
        form=(ADAPT, ADAPT_ALLOWED),
    )
    tag_unit: str = option(
        "auto",
        "What gets a tag in a text [auto: word; piece if many spans cut words]; piece: each token of the tokenizer.",
        choices=("auto", "word", "piece"),
    )
    tag_names: str | None = option(
        None, "Names of tags that are numbers, in their order: a,b,c, or a file with one a line [default: none are]."
    )
    head: str = option(
        "auto",
        "Prediction head [auto: linear]; crf: a conditional random field over tags.",
        choices=HEADS,
        more=plugins.HEADS,
    )
    pooling: str = option(
        "auto", "How token vectors become one vector a row [auto: as the checkpoint was trained].", choices=POOLINGS
    )
    epochs: int | None = option(
        None,
        "Passes over the data [default: 3; frozen: 40; top: 6; lora: 6; bitfit: 6]; below 256 rows at least 100 steps. "
        "The linear head of a frozen encoder is solved instead, unless options of steps are given.",
        low=1,
    )
    batch: int = option(32, "Rows in one training step.", low=1)
    lr: float | None = option(
        None,
        "Peak learning rate [default: 5e-5 x 768 / the encoder's width, minilm: 1e-4; frozen: 1e-3; top: 2e-4; "
        "lora: 1e-3; bitfit: 2e-3].",
        above=0,
    )
    head_lr: float | None = option(
        None, "Peak learning rate of the head [default: as --lr; full without --lr: 10 times that].", above=0
    )
    layer_decay: float = option(
        1.0, "Learning rate of a block as a multiple of that of the block above; embeddings come last.", above=0, high=1
    )
    unfreeze: bool = option(False, "Gradual unfreezing: train the head first, then more blocks in each epoch.")
    weight_decay: float = option(0.01, "Decoupled weight decay of the weight matrices.", low=0)
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises.", low=0, high=1)
    clip: float = option(1.0, "Norm to which gradients are clipped.", above=0)
    class_weight: str = option(
        "none", "balanced: a rare class counts as much as a common one.", choices=("none", "balanced")
    )
    metric: str | None = option(
        None,
        "Metric that chooses the best epoch [default: the task's own], or a frozen head's penalty [default: loss].",
    )
    max_tokens: int | None = option(None, "Longest row or window in tokens [default: the encoder's].", low=4)
    on_long: str = option(
        "window", "What happens to longer inputs, in fit and in predict.", choices=("window", "truncate", "error")
    )
    stride: int | None = option(
        None, "Tokens shared by two windows [default: a quarter of a window for tag, span and joint, else 0].", low=0
    )
    windows: str = option(
        "mean", "How the windows of a long text become one answer.", choices=("mean", "max", "attention")
    )
    precision: str = option(
        "auto", "Arithmetic of training [auto: bf16 where the processor supports it].", choices=("auto", "fp32", "bf16")
    )
    device: str = option("cpu", "Where the model is fitted; cuda: the first NVIDIA GPU.", choices=("cpu", "cuda"))
    cache: str | None = option(
        None, "Folder that keeps the activations of the frozen layers for later fits [default: for this fit only]."
    )
    seed: int = option(0, "Seed of the split, the order, the head and dropout.", low=0, high=2**32 - 1)
    threads: int | None = option(None, "Processor threads [default: what this process may use].", low=1, high=1024)
    workers: int = option(1, "Processes that fit together on this machine, and share its threads.", low=1, high=256)
    skip_bad_rows: bool = option(False, "Leave out rows that cannot be used, and report them.")
    overwrite: bool = option(False, "Replace a model folder that exists.")
    resume: bool = option(False, "Continue an interrupted fit from its last checkpoint in <out>.fit.")
    checkpoint_minutes: float = option(
        10.0, "Minutes between two checkpoints within an epoch; 0: one after every step.", low=0
    )


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Options):
    """Options of `berthead predict` and `berthead eval`."""

    text: str | None = option(None, "Column of the text [default: as fitted].")
    pair: str | None = option(None, "Column of the second text of a pair [default: as fitted].")
    label: str | None = option(None, "Column or columns of the target, for eval [default: as fitted].", several=True)
    choices: str | None = option(
        None, "choose: column of the choices, or a column for each [default: as fitted].", several=True
    )
    intent: str | None = option(None, "joint: column of the label, for eval [default: as fitted].")
    separator: str | None = option(
        None, "multilabel: what separates the labels in a cell, for eval [default: as fitted]."
    )
    base: str | None = option(
        None, "The encoder that an adapter folder was fitted on [default: as fitted, or beside the folder]."
    )
    precision: str = option(
        "fp32",
        "Arithmetic: fp32 is exact; auto: the fastest whose answers were measured to agree with fp32.",
        choices=("auto", "fp32", "bf16", "int8"),
    )
    engine: str = option(
        "auto",
        "What computes the model; auto: as the folder says; onnx: only exported functions.",
        choices=("auto", "onnx"),
    )
    device: str = option(
        "cpu", "Where the model is computed; cuda: all NVIDIA GPUs of this machine.", choices=("cpu", "cuda")
    )
    token_budget: int | None = option(None, "Tokens computed at once [default: 2048; cuda: 16384].", low=1)
    threads: int | None = option(None, "Processor threads [default: what this process may use].", low=1, high=1024)
    probabilities: bool = option(False, "Add a column with the probability of each label.")
    resume: bool = option(False, "Continue an interrupted job from the parts in OUT.parts.")
    shard: str | None = option(
        None, "K/N: every N-th part, from the K-th on; berthead gather joins the shards [default: all parts].",
        form=(r"[1-9]\d{0,5}/[1-9]\d{0,5}", "K/N, such as 1/4"),
    )  # fmt: skip
    ray: str | None = option(
        None,
        "Compute on a Ray cluster: auto, its HOST:PORT, or local (started on this machine) [default: no cluster].",
    )
    part_rows: int = option(
        16384, "Rows in a part: the most that is lost when a job is killed.", low=1, high=10_000_000
    )
    skip_bad_rows: bool = option(False, "eval: leave out rows that cannot be used, and report them.")

    def for_job(self, given: Mapping[str, Any]) -> PredictOptions:
        """The options of a job, for a function loaded with these options.

        Args:
            given: some of `JOB_OPTIONS`; None means not given.

        Returns:
            The checked options.

        Raises:
            UsageError: an option that jobs do not have, or a value that is not allowed.
        """
        for name in LOAD_OPTIONS:
            if name in given:
                fix = f"Give it there: load(folder, {name}=...)."
                raise UsageError(name, "is decided when the model is loaded", f"one of {listed(JOB_OPTIONS)}", fix)
        loaded, chosen = self.to_dict(), self.from_sources(given, only=JOB_OPTIONS)
        return replace(chosen, **{name: loaded[name] for name in LOAD_OPTIONS})


# Options by their user, in the order of the records.
LOAD_OPTIONS = ("base", "precision", "engine", "device", "token_budget", "threads")
ROW_OPTIONS = ("text", "pair", "label", "choices", "intent", "separator", "skip_bad_rows")
JOB_OPTIONS = ("text", "pair", "choices", "probabilities", "resume", "shard", "ray", "part_rows")
# The options of an estimator. It gets rows instead of columns, `random_state` instead of `seed`, and is
# fitted in one process without a folder.
_NOT_OF_ESTIMATORS = (
    "task", "text", "pair", "label", "choices", "intent", "separator", "tag_names", "valid", "class_weight", "device",
    "seed", "workers", "skip_bad_rows", "overwrite", "resume", "checkpoint_minutes",
)  # fmt: skip
ESTIMATOR_OPTIONS = tuple(spec.name for spec in fields(FitOptions) if spec.name not in _NOT_OF_ESTIMATORS)

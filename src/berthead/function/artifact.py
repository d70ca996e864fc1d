"""A fitted function as one value: parameters, tokenizer, task, golden examples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from berthead import plugins
from berthead.errors import UsageError
from berthead.function.adapter import Adapter
from berthead.function.checks import golden_input
from berthead.function.golden import GOLDEN_UNITS, by_example, has_units, written_answer
from berthead.function.head_record import (
    StoredHead,
    head_record,
    omega_names,
    row_part,
    state_named,
    transformers_class,
)
from berthead.function.parameters import Parameters, find_pretrained
from berthead.function.protocol import identity_of
from berthead.model import families
from berthead.model.checkpoint import build_encoder, our_weights
from berthead.model.heads import over_arrays
from berthead.model.model import Model, sha256_of
from berthead.model.tensors import TensorPack
from berthead.model.units import unit_logits
from berthead.records import Example, FloatArray, Pack
from berthead.tasks import TASKS, Task
from berthead.text.bounds import check_pack
from berthead.text.layout import Layout
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy

# 1: one answer a row, long texts cut. 2: every task, and windows. 3: a change of theta-hat in place of theta-tilde.
# 4: a head that no class of transformers gives, in a file that its classes with a head refuse (`StoredHead`); a part of
# a joined folder, in a file that transformers does not look for. 5: tags of pieces. 6: vectors of length 1, and several
# numbers.
FORMAT_VERSION = 6
# What needs no newer berthead is written so that an older one reads it.
PLAIN_VERSION, ADAPTER_VERSION, BLOCKED_VERSION = 2, 3, 4
# Tokens that the plain model computes at once.
PLAIN_TOKENS = 2048
# What a run says of the parameters that it fitted, and of no others.
OF_THE_PARAMETERS = (
    "metrics",
    "baselines",
    "epochs",
    "best_epoch",
    "held_out_rows",
    "soup",
    "gate",
    "solved",
    "compared",
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A fitted function and everything needed to apply it.

    Args:
        model: theta-tilde and omega-tilde.
        tokenizer: text to token numbers.
        task: the meaning of the logits.
        columns: the columns it was fitted on: `text`, `pair` (or None), `label`, and what else the task reads.
        policy: how long inputs are handled.
        raw_config: the encoder's config.json.
        pretrained: `name` of the encoder and `theta_sha256` of theta-hat.
        adapt: what was trained, in the form of `Adapt.parse`.
        run: options, data, seed, versions and metrics of the fit.
        golden: inputs with their logits, which `verify` replays.
        own_head: the name of a head of another package, or None.
        dropout: the head's dropout in training.
        adapter: the update of theta-hat to save instead of theta-tilde; None: theta-tilde is saved.
    """

    model: Model
    tokenizer: Tokenizer
    task: Task
    columns: dict[str, Any]
    policy: LengthPolicy
    raw_config: dict[str, Any]
    pretrained: dict[str, str]
    adapt: str
    run: dict[str, Any] = field(default_factory=dict)
    golden: tuple[dict[str, Any], ...] = ()
    own_head: str | None = None
    dropout: float = 0.0
    adapter: Adapter | None = None

    @property
    def kind(self) -> str:
        """The kind of its folder: `adapter` or `model`."""
        return "adapter" if self.adapter else "model"

    @property
    def max_tokens(self) -> int:
        """The longest row in tokens."""
        return self.policy.max_tokens

    def merged(self) -> Artifact:
        """The same function without an adapter: the LoRA update is merged into the encoder.

        Raises:
            UsageError: it has no adapter.
        """
        if self.adapter is None:
            raise UsageError("merge", "not an adapter folder", "one made by --adapt lora")
        return replace(self, adapter=None)

    def theta(self) -> dict[str, Tensor]:
        """The encoder's parameters under their checkpoint names."""
        return families.to_checkpoint(self.model.encoder.state_dict(), self.model.encoder.config)

    def omega(self) -> dict[str, Tensor]:
        """The head's parameters under their checkpoint names."""
        head = self.model.head
        return state_named(head.state_dict(), omega_names(head, self.task.problem_type, self.family))

    @property
    def family(self) -> str:
        """The encoder's family."""
        return self.model.encoder.config.family

    def parameters(self) -> dict[str, Any]:
        """Hashes and sizes of theta and omega, and whether theta is still the pre-trained one."""
        theta, omega = self.theta(), self.omega()
        theta_sha256 = sha256_of(theta)
        return {
            "theta_sha256": theta_sha256,
            "omega_sha256": sha256_of(omega),
            "theta_parameters": sum(tensor.numel() for tensor in theta.values()),
            "omega_parameters": sum(tensor.numel() for tensor in omega.values()),
            "pretrained": self.pretrained,
            "adapt": self.adapt,
            "theta_is_pretrained": theta_sha256 == self.pretrained["theta_sha256"],
        }

    def identity(self) -> dict[str, Any]:
        """Everything that decides its answers, as JSON."""
        head = head_record(self.model.head, self.own_head, self.task.outputs, self.dropout)
        return identity_of(self, self.parameters(), head)

    @property
    def stored_head(self) -> StoredHead:
        """How its weights file stores its head."""
        return StoredHead.of(self.model.head, self.task.problem_type, self.family)

    @property
    def format_version(self) -> int:
        """The lowest `format_version` that can store it."""
        named = BLOCKED_VERSION if self.stored_head.blocked else ADAPTER_VERSION if self.adapter else PLAIN_VERSION
        return max(named, self.task.format_version, row.format_version if (row := row_part(self.model.head)) else 1)

    def describe(self) -> dict[str, Any]:
        """The content of berthead.json, without golden examples."""
        head = self.model.head
        its_class = transformers_class(head, self.task.problem_type, self.family)
        if words := self.task.logits_in_words:
            its_class["note"] += f" {words}"
        if self.adapter:
            note = _RENAMED_NOTE if families.FAMILIES[self.family].renamed else _PEFT_NOTE
            its_class["note"] = f"{note} {its_class['note']}"
        return {
            "format_version": self.format_version,
            "kind": self.kind,
            "task": {"name": self.task.name, **_package(self.task.name), **self.task.to_json()},
            "head": head_record(head, self.own_head, self.task.outputs, self.dropout),
            "columns": self.columns,
            "max_tokens": self.policy.max_tokens,
            "on_long": self.policy.on_long,
            "stride": self.policy.stride,
            "parameters": self.parameters(),
            **({"adapter": self.adapter.record()} if self.adapter else {}),
            "transformers": its_class,
            "run": self.run,
        }


_PEFT_NOTE = (
    "The folder is an adapter of PEFT: load the encoder with config=AutoConfig.from_pretrained(FOLDER), and then "
    "PeftModel.from_pretrained(model, FOLDER)."
)
# transformers loads such a checkpoint into layers of other names.
_RENAMED_NOTE = "PEFT does not know the names of this family's layers: make a plain folder first, with berthead merge."


def _package(task: str) -> dict[str, str]:
    """The package of a task that is not berthead's own."""
    return {} if task in TASKS else {"package": plugins.package(plugins.TASKS, task)}


def plain_logits(artifact: Artifact, examples: Sequence[Example]) -> FloatArray:
    """Logits by the plain torch model: the reference for every faster path.

    Args:
        artifact: the fitted function.
        examples: the examples.

    Returns:
        float32 [units, outputs].
    """
    model = artifact.model.eval()
    layout = Layout(artifact.task.encode(artifact.tokenizer, examples, artifact.policy))

    def compute(one: Pack) -> FloatArray:
        check_pack(one, model.encoder.config)
        logits: FloatArray = model(TensorPack.from_pack(one)).numpy()
        return logits

    with torch.inference_mode():
        return unit_logits(layout, compute, over_arrays(model.head), artifact.task.outputs, token_budget=PLAIN_TOKENS)[
            0
        ]


def with_golden(artifact: Artifact, examples: Sequence[Example]) -> Artifact:
    """The artifact with these inputs, their logits and their answers as its golden examples."""
    golden = []
    for example, rows in zip(examples, by_example(artifact, examples, plain_logits(artifact, examples)), strict=True):
        kept = rows[:GOLDEN_UNITS].tolist()
        one = {"text": example.text, "pair": example.pair, "logits": kept if has_units(artifact.task) else kept[0]}
        one |= {"words": list(example.words)} if example.words is not None else {}
        one |= {"choices": list(example.choices)} if example.choices is not None else {}
        if len(rows) <= GOLDEN_UNITS and np.isfinite(rows).all():  # of fewer units no answer can be made again
            one["answer"] = written_answer(artifact, example, rows)
        golden.append(one)
    return replace(artifact, golden=tuple(golden))


def with_parameters(artifact: Artifact, theta: Parameters | None = None, omega: Parameters | None = None) -> Artifact:
    """A new function: the same architecture with other parameters.

    Temperature, thresholds and the range of numbers stay. Golden examples are computed
    again. Scores and epochs in `run` belong to the old parameters, so they are removed, and `run` records those as
    `replaced`.

    Args:
        artifact: the fitted function.
        theta: the encoder's; None: unchanged.
        omega: the head's; None: unchanged.

    Returns:
        The function; the same one if nothing differs.

    Raises:
        ModelError: a tensor is missing, left over or misshapen.
    """
    own = Parameters(artifact.theta()), Parameters(artifact.omega())
    theta, omega = own[0] if theta is None else theta, own[1] if omega is None else omega
    theta.check_like(own[0], "theta")
    omega.check_like(own[1], "omega")
    if (theta, omega) == own:
        return artifact
    config = artifact.model.encoder.config
    encoder = build_encoder(config, our_weights(theta, config))
    head = copy.deepcopy(artifact.model.head)
    names = omega_names(head, artifact.task.problem_type, artifact.family)
    head.load_state_dict({ours: omega[theirs] for ours, theirs in names.items()})
    kept = {name: value for name, value in artifact.run.items() if name not in OF_THE_PARAMETERS}
    replaced = artifact.run.get("replaced", {"theta_sha256": own[0].sha256, "omega_sha256": own[1].sha256})
    changed = replace(
        artifact, model=Model(encoder, head).eval().requires_grad_(False), task=artifact.task.bound(head),
        run=kept | {"replaced": replaced}, adapter=artifact.adapter if theta == own[0] else None,
    )  # fmt: skip
    return with_golden(changed, [golden_input(one) for one in artifact.golden])


def moved(artifact: Artifact) -> dict[str, float] | None:
    """How far theta-tilde is from theta-hat.

    Args:
        artifact: the fitted function.

    Returns:
        The relative norm of the difference by layer, as `Parameters.difference`; None: theta-hat is not here.
    """
    theta = Parameters(artifact.theta())
    sha256 = artifact.pretrained["theta_sha256"]
    pretrained = theta if theta.sha256 == sha256 else find_pretrained(artifact.pretrained["name"], sha256)
    return None if pretrained is None else theta.difference(pretrained)

"""Which parameters are trained: theta and omega, a part of theta and omega, or omega alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from berthead.errors import UsageError
from berthead.model import lora
from berthead.model.encoder import Encoder
from berthead.model.model import Model
from berthead.options import ADAPT, ADAPT_ALLOWED, LORA_TARGETS


@dataclass(frozen=True, slots=True)
class Adapt:
    """Which parameters of a model are trained.

    Args:
        kind: `full`, `frozen`, `top`, `lora` or `bitfit`.
        blocks: top: how many of the last blocks are trained.
        rank: lora: rows of A and columns of B.
        alpha: lora: the update of a weight is (alpha / rank) B A.
        targets: lora: the linear layers of each block that get an update.
    """

    kind: str
    blocks: int = 0
    rank: int = 0
    alpha: float = 0.0
    targets: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the option `adapt`.

        Args:
            text: `full`, `frozen`, `top:K`, `lora:R[,alpha=A][,targets=a+b]` or `bitfit`.

        Returns:
            The record.

        Raises:
            UsageError: an invalid value.

        Example:
            >>> Adapt.parse("lora:8,targets=value+query")
            Adapt(kind='lora', blocks=0, rank=8, alpha=16.0, targets=('query', 'value'))
        """
        if not re.fullmatch(ADAPT, text):
            raise UsageError("--adapt", f'is "{text}"', ADAPT_ALLOWED)
        first, *more = text.split(",")
        kind, _, number = first.partition(":")
        if kind == "top":
            return cls(kind, blocks=int(number))
        if kind != "lora":
            return cls(kind)
        given = dict(one.split("=") for one in more)
        named = given["targets"].split("+") if "targets" in given else LORA_TARGETS
        return cls(
            kind, rank=int(number), alpha=float(given.get("alpha", 2 * int(number))),
            targets=tuple(name for name in LORA_TARGETS if name in named),
        )  # fmt: skip

    def check(self, encoder: Encoder) -> None:
        """Check that an encoder supports this.

        Args:
            encoder: BERT_theta.

        Raises:
            UsageError: it has fewer blocks, is narrower, or has none of the parameters to train.
        """
        blocks, width = len(encoder.blocks), encoder.config.width
        if self.kind == "top" and self.blocks > blocks:
            raise UsageError(f"--adapt top:{self.blocks}", f"the encoder has {blocks} blocks", f"top:1 to top:{blocks}")
        if self.kind == "lora" and self.rank > width:
            saw = f"the rank is above the encoder's width, {width}"
            raise UsageError(f"--adapt lora:{self.rank}", saw, f"lora:1 to lora:{width}")
        if self.kind == "bitfit" and not any(is_bias(name) for name, _ in encoder.named_parameters()):
            raise UsageError("--adapt bitfit", "the encoder has no biases", "full, frozen, top:K or lora:R")


def adapt(model: Model, what: Adapt) -> None:
    """Mark the parameters to train.

    Args:
        model: the model to fit.
        what: the head is always trained; of the encoder `full`: all, `frozen`: none, `top`: the last blocks, `bitfit`:
            the biases (Ben Zaken et al. 2022, "BitFit"), `lora`: low-rank updates of its linear layers.

    Raises:
        UsageError: the encoder does not support this.
    """
    what.check(model.encoder)
    model.requires_grad_(True)
    encoder = model.encoder
    if what.kind != "full":
        encoder.requires_grad_(False)
    if what.kind == "top":
        for part in (*encoder.blocks[len(encoder.blocks) - what.blocks :], encoder.final_norm):
            part.requires_grad_(True)
    if what.kind == "lora":
        lora.insert(model, what.rank, what.alpha, what.targets)
    if what.kind == "bitfit":
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(is_bias(name))


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, by its name."""
    return name.rpartition(".")[2] == "bias"


def frozen_parts(encoder: Any) -> list[nn.Module]:
    """The embeddings, the positions and the layers below everything that is trained, from the bottom up."""
    parts: list[nn.Module] = []
    layers = [encoder.blocks[number] for number in encoder.order]
    for part in (encoder.embeddings, encoder.positions, *layers):
        if any(parameter.requires_grad for parameter in part.parameters()):
            break
        parts.append(part)
    # Every layer reads positions: if those are trained, no layer's output is fixed.
    return parts if len(parts) > 1 else []


def stages(model: Model) -> list[list[nn.Parameter]]:
    """The trained parts of the encoder in the order of unfreezing: the top block first, the embeddings last.

    Args:
        model: with the trained parameters marked.

    Returns:
        The trained parameters of each part that has any.

    Source: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.3.
    """
    encoder = model.encoder
    parts = [[encoder.final_norm, encoder.blocks[-1]], *([block] for block in reversed(list(encoder.blocks)[:-1]))]
    parts.append([encoder.positions, encoder.embeddings])
    learning = [[one for part in some for one in part.parameters() if one.requires_grad] for some in parts]
    return [group for group in learning if group]

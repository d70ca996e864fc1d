"""AdamW with groups of decay and learning rate, warm-up and linear decay, and gradual unfreezing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from berthead.train.embedding_table import EmbeddingTable

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


class Optimiser:
    """AdamW with clipped gradients over the trained parameters; a large embedding table is updated row by row.

    Args:
        module: the trained module.
        lr: peak learning rate.
        weight_decay: decoupled decay of the matrices.
        clip: the maximum norm of all gradients.
        peak: the peak learning rate of a parameter by its name; None: `lr` for all.
        table: the embedding that is updated row by row, or None.
    """

    def __init__(
        self, module: nn.Module, lr: float, weight_decay: float, clip: float,
        peak: Callable[[str], float] | None = None, table: nn.Embedding | None = None,
    ) -> None:  # fmt: skip
        self.clip, self.table = clip, None
        self.adamw = adamw(module, lr, weight_decay, peak, table.weight if table else None)
        names = {parameter: name for name, parameter in module.named_parameters()}
        self.named = {names[one]: one for group in self.adamw.param_groups for one in group["params"]}
        if table:
            (name,) = (name for name, parameter in module.named_parameters() if parameter is table.weight)
            self.table, self.peak = EmbeddingTable(table, weight_decay), peak(name) if peak else lr

    def zero_grad(self) -> None:
        """Clear the gradients of the last step."""
        self.adamw.zero_grad(set_to_none=True)
        if self.table:
            self.table.embedding.weight.grad = None

    def step(self, share: float) -> None:
        """One update at a share of the peak rates."""
        grads = [one.grad for group in self.adamw.param_groups for one in group["params"] if one.grad is not None]
        if self.table and self.table.grad is not None:
            grads.append(self.table.grad)
        scale = float(self.clip / (torch.nn.utils.get_total_norm(grads) + 1e-6))
        if scale < 1:
            torch._foreach_mul_(grads, scale)
        for group in self.adamw.param_groups:
            group["lr"] = share * group["peak"]
        self.adamw.step()
        if self.table:
            self.table.step(share * self.peak)

    def settle(self) -> None:
        """Bring every parameter up to the last step."""
        if self.table:
            self.table.settle()

    def close(self) -> None:
        """Settle for the last time."""
        if self.table:
            self.table.close()

    def tensors(self) -> dict[str, Tensor]:
        """The state between steps, by name."""
        found = {
            f"adamw.{kind}.{name}": tensor
            for name, parameter in self.named.items()
            for kind, tensor in self.adamw.state[parameter].items()
        }
        return found | ({f"table.{name}": one for name, one in self.table.tensors().items()} if self.table else {})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state that `tensors` returned."""
        for name, parameter in self.named.items():
            kinds = {kind: tensors.get(f"adamw.{kind}.{name}") for kind in ("step", "exp_avg", "exp_avg_sq")}
            # Parameters that are not unfrozen yet have no state.
            self.adamw.state[parameter] = {
                kind: tensor.to(parameter.device, copy=True) for kind, tensor in kinds.items() if tensor is not None
            }
        if self.table:
            own = {name.removeprefix("table."): one for name, one in tensors.items() if name.startswith("table.")}
            self.table.load(own)


def adamw(
    module: nn.Module, lr: float, weight_decay: float, peak: Callable[[str], float] | None = None,
    apart: Tensor | None = None,
) -> torch.optim.AdamW:  # fmt: skip
    """AdamW over the trained parameters; matrices decay, biases and layer norms do not.

    Args:
        module: the trained module.
        lr: peak learning rate.
        weight_decay: decoupled decay of the matrices.
        peak: the peak learning rate of a parameter by its name; None: `lr` for all.
        apart: a parameter that is updated elsewhere.

    Returns:
        The optimiser, with bias correction. Each group holds its own `peak`, which the schedule scales.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    learning = [(name, one) for name, one in module.named_parameters() if one.requires_grad and one is not apart]
    rates = {name: peak(name) if peak else lr for name, _ in learning}
    groups = []
    for own in dict.fromkeys(rates.values()):
        for decay, decays in ((weight_decay, True), (0.0, False)):
            chosen = [p for name, p in learning if rates[name] == own and (p.ndim >= 2) == decays]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr": own, "peak": own})
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def peak_rate(name: str, blocks: int, lr: float, head_lr: float, layer_decay: float) -> float:
    """The peak learning rate of a model's parameter: discriminative fine-tuning.

    Args:
        name: of the parameter in the model.
        blocks: number of the encoder's blocks.
        lr: the rate of the top block.
        head_lr: the rate of the head.
        layer_decay: the rate of a block as a multiple of that of the block above; the embeddings have the lowest.

    Returns:
        The rate.

    Example:
        >>> [peak_rate(f"encoder.blocks.{block}.mlp.up.bias", 3, 8.0, 9.0, 0.5) for block in range(3)]
        [2.0, 4.0, 8.0]

    Source: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.2.
    """
    if not name.startswith("encoder."):
        return head_lr
    block = _BLOCK.match(name)
    if block:
        return lr * layer_decay ** (blocks - 1 - int(block[1]))
    return lr * layer_decay**blocks if name.startswith(("encoder.embeddings.", "encoder.positions.")) else lr


def unfrozen(epoch: int, epochs: int, stages: int) -> int:
    """How many stages of the encoder are trained in an epoch of gradual unfreezing.

    The first epoch trains only the head, the last one everything. With as many epochs as there are stages, one
    more is unfrozen in each; with fewer epochs several at once; with more, the remaining epochs train everything.

    Args:
        epoch: from 0.
        epochs: epochs of the fit, at least 2.
        stages: trained blocks, plus one if the embeddings are trained.

    Returns:
        From 0 to `stages`.

    Example:
        >>> [unfrozen(epoch, 3, 7) for epoch in range(3)], [unfrozen(epoch, 5, 2) for epoch in range(5)]
        ([0, 4, 7], [0, 1, 2, 2, 2])

    Source: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.3.
    """
    return min(stages, max(epoch, -(-stages * epoch // (epochs - 1))))


def rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step.

    Args:
        step: from 0.
        steps: all steps of the fit.
        warmup: share of the steps in which the rate rises from 0.

    Returns:
        From 0 to 1.

    Example:
        >>> [rate(step, 4, 0.5) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = int(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)

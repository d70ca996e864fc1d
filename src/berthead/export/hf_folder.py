"""A plain transformers folder: the function's weights, config and tokenizer, without berthead.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from berthead.errors import GateError
from berthead.function.artifact import Artifact
from berthead.function.folder import transformers_config, write_tensors
from berthead.function.head_record import omega_names, transformers_class
from berthead.model import families
from berthead.model.stored_tensors import file_tensors
from berthead.storage.files import write_json
from berthead.storage.folders import PAGE, PAGE_LINE, made_whole
from berthead.storage.model_files import WEIGHTS
from berthead.tasks.cells import number_text

# Our layers and tensors that its classes have none for.
_OWN = re.compile(r"(attend|row)\.|(tokens\.)?(first|last|step)$")


def write_hf(artifact: Artifact, folder: Path, overwrite: bool = False) -> list[str]:
    """Write a plain transformers folder under another name, read it back, and rename it into place.

    Args:
        artifact: the fitted function; an adapter is merged into the weights.
        folder: the target folder.
        overwrite: replace a folder that berthead wrote.

    Returns:
        Notes, as lines, which are also in its README.md: the class that loads it, and what berthead does
        beyond that class.

    Raises:
        OutputError: the place cannot be written; nothing is left there.
        GateError: the written folder differs from the function.
    """
    said = transformers_class(artifact.model.head, artifact.task.problem_type, artifact.family)
    tensors, left_out = _tensors(artifact, headless=said["class"].endswith("Model"))
    lines = [f"{said['class']}. {said['note']}", *_beyond(artifact, left_out)]
    with made_whole(folder, overwrite) as aside:
        write_tensors(tensors, aside / WEIGHTS)
        write_json(aside / "config.json", transformers_config(artifact))
        artifact.tokenizer.save(aside, artifact.max_tokens)
        (aside / PAGE).write_text(_page(artifact, lines), encoding="utf-8")
        written = {name: one.read() for name, one in file_tensors(aside / WEIGHTS).items()}
        if written.keys() != tensors.keys() or not all(
            torch.equal(written[name], one) for name, one in tensors.items()
        ):
            raise GateError(str(folder), "does not hold the weights that were written", "", "Try another disk.")
    return lines


def _tensors(artifact: Artifact, *, headless: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that the transformers class reads, by its names; and the names of those that it does not have.

    A head that no class has is kept complete, under our own names.
    """
    head, names = artifact.stored_head, omega_names(artifact.model.head, artifact.task.problem_type, artifact.family)
    left_out = [] if headless else [theirs for ours, theirs in names.items() if _OWN.match(ours)]
    prefix = "" if headless else f"{families.FAMILIES[artifact.family].prefix}."
    theta = {f"{prefix}{name}": tensor for name, tensor in artifact.theta().items()}
    omega = {head.names[name]: tensor for name, tensor in artifact.omega().items() if name not in left_out}
    return theta | omega | {name: torch.empty(0) for name in head.empty}, left_out


def _beyond(artifact: Artifact, left_out: list[str]) -> list[str]:
    """What berthead adds to the logits of the transformers class, as lines."""
    state: dict[str, Any] = artifact.task.to_json()
    lines = [f"Left out, as the class has no place for it: {', '.join(left_out)}."] if left_out else []
    lines += [artifact.task.logits_in_words] if artifact.task.logits_in_words else []
    if state.get("temperature", 1.0) != 1.0:
        lines.append(f"berthead divides the logits by the temperature {state['temperature']} before the softmax.")
    if "thresholds" in state:
        lines.append(f"berthead gives the labels from these probabilities on, in their order: {state['thresholds']}.")
    for one in state.get("targets", [state] if "low" in state else []):
        low, high = number_text(one["low"]), number_text(one["high"])
        of = f" for {one['name']}" if "targets" in state else ""
        lines.append(f"berthead keeps its answers{of} between {low} and {high}.")
    if state.get("threshold"):
        lines.append(f"berthead answers where a span's score is above that of no answer by {state['threshold']}.")
    if artifact.policy.on_long == "window":
        lines.append(f"Of over {artifact.max_tokens} tokens berthead reads all, in windows.")
    return lines


def _page(artifact: Artifact, lines: list[str]) -> str:
    facts = "".join(f"- {line}\n" for line in lines)
    return f"# A fitted function of the task {artifact.task.name}\n\n{PAGE_LINE}\n\n{facts}"

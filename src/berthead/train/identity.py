"""What a fit depends on, by names that the user knows: --resume refuses a different fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from berthead.kernels import library
from berthead.options import FitOptions
from berthead.options.base import flag
from berthead.records import Example
from berthead.text.windows import EncodedExample
from berthead.train.settings import Settings

# Options that change no parameter, or that are compared below in another form.
_NOT_COMPARED = frozenset({
    "resume", "overwrite", "checkpoint_minutes", "cache", "encoder", "threads", "workers", "skip_bad_rows",
    "valid", "text", "pair", "label", "choices", "intent",
})  # fmt: skip


def identity_of(
    options: FitOptions, settings: Settings, inputs: Sequence[EncodedExample], hashes: Mapping[str, str],
    how: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What a fit depends on.

    Args:
        options: what the user wants.
        settings: the same with the defaults filled in.
        inputs: the encoded rows, training and held-out.
        hashes: of rows and encoder, by name.
        how: what else changes the last bits and is recorded in the folder: columns, threads, workers, versions.

    Returns:
        JSON values by name.
    """
    filled_in = {name: getattr(settings, name) for name in Settings.__slots__ if name != "balanced"}
    given = {name: value for name, value in options.to_dict().items() if name not in _NOT_COMPARED}
    by_flag = {flag(name): value for name, value in (given | filled_in).items()}
    return {
        **hashes,
        "what is read of it": _tokens_sha256(inputs),
        **by_flag,
        "--cache": "given" if options.cache else "not given",
        "kernels": f"{library.chosen()}, torch's {torch.backends.cpu.get_cpu_capability()}",
        **how,
    }


def data_sha256(examples: Sequence[Example]) -> str:
    """The hash of texts and targets, whatever file they came from."""
    digest = hashlib.sha256()
    for example in examples:
        row: list[Any] = [example.text, example.pair, repr(example.target)]
        row += [list(more) for more in (example.words, example.choices) if more is not None]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _tokens_sha256(inputs: Sequence[EncodedExample]) -> str:
    digest = hashlib.sha256()
    for one in inputs:
        for row in one.rows:
            digest.update(f"{len(row.ids)} ".encode() + row.ids.tobytes() + row.segments.tobytes())
    return digest.hexdigest()

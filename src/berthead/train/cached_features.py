"""Activations of the frozen layers for each token or row: computed once, kept in a file, then looked up."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from berthead.engine.cpu import engine_for
from berthead.errors import OutputError, UsageError
from berthead.kernels import library
from berthead.model.adapt import frozen_parts
from berthead.model.model import Model, sha256_of
from berthead.model.tensors import TensorPack
from berthead.model.units import Compute, packs
from berthead.predict.predictor import TOKEN_BUDGET
from berthead.progress import Progress
from berthead.records import FloatArray, Pack
from berthead.storage.files import Aside
from berthead.text.layout import ranges
from berthead.text.tokenizer import Encoded
from berthead.text.windows import EncodedExample
from berthead.train.team import ALONE, Team

# Vectors are kept exactly up to this size of the file, beyond it in bfloat16.
MOST_CACHED_BYTES = 4 * 2**30
_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of rows, or of their tokens, in a file.

    Args:
        values: [rows or tokens, width], mapped from the file.
        first: the index of each row's first vector, by the row's content.
        by_token: whether a row has a vector for each token.
    """

    values: Tensor
    first: dict[bytes, int]
    by_token: bool

    def of(self, rows: Iterable[Encoded]) -> FloatArray:
        """The vectors of these rows one after another, float32 [rows or tokens, width]."""
        chosen = list(rows)
        firsts = np.array([self.first[_content(row)] for row in chosen], dtype=np.int64)
        sizes = np.array([len(row.ids) if self.by_token else 1 for row in chosen], dtype=np.int64)
        found: FloatArray = self.values[torch.from_numpy(ranges(firsts, firsts + sizes))].float().numpy()
        return found

    def compute(self, rows: Sequence[Encoded]) -> Compute:
        """A function that maps packs of these rows to their vectors."""

        def vectors_of(one: Pack) -> FloatArray:
            return self.of(rows[number] for number in one.row)

        return vectors_of

    def numbered(self, one: EncodedExample) -> EncodedExample:
        """The same input with the indices of its tokens' vectors instead of its tokens."""
        rows = (replace(row, ids=self.first[_content(row)] + np.arange(len(row.ids))) for row in one.rows)
        return replace(one, rows=tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """How much is cached, and in which precision."""
        return {"vectors": len(self.values), "dtype": str(self.values.dtype).removeprefix("torch.")}


class Lookup(nn.Module):
    """Replaces the embeddings: cached vectors, looked up by the indices of `Vectors.numbered`."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, pack: TensorPack) -> Tensor:
        """The vectors of the pack's tokens, float32 [tokens, width]."""
        return self.values[pack.ids.cpu()].float().to(pack.ids.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Lookup:
        return self  # its content never changes, and is large


class _Tokens(nn.Module):
    """A head whose pooling keeps every token's vector."""

    def pool(self, hidden: Tensor, pack: TensorPack) -> Tensor:
        """[tokens, width] as it is."""
        return hidden


def below(
    model: Model, rows: Sequence[Encoded], device: torch.device, precision: str, folder: Path | None, quiet: bool,
    team: Team = ALONE,
) -> Vectors | None:  # fmt: skip
    """The activations of the frozen bottom layers, for each token.

    Args:
        model: with the trained parameters marked.
        rows: all rows that will be looked up.
        device: where it is computed.
        precision: `fp32` or `bf16`.
        folder: where the file is kept for later fits; None: a temporary file.
        quiet: show no progress.
        team: the processes that compute it together.

    Returns:
        The vectors; None if there is no room for them.

    Raises:
        OutputError: they cannot be written.
    """
    part = Model(model.encoder.part(0, frozen_layers(model)), _Tokens())
    compute = engine_for(part, device, precision).pooled
    return keep(rows, compute, part, f"tokens {precision}", by_token=True, folder=folder, quiet=quiet, team=team)


def above(model: Model, vectors: Vectors) -> Model:
    """The layers above the cached ones, reading the cached vectors; they share the model's weights."""
    encoder = model.encoder.part(frozen_layers(model), len(model.encoder.order))
    encoder.embeddings = Lookup(vectors.values)  # type: ignore[assignment]
    # Its packs index the vectors.
    encoder.config = replace(encoder.config, vocabulary=len(vectors.values), segments=0)
    return Model(encoder, model.head)


def frozen_layers(model: Model) -> int:
    """The number of layers below everything that is trained."""
    return max(0, len(frozen_parts(model.encoder)) - 2)


def keep(
    rows: Sequence[Encoded], compute: Compute, part: Model, pooling: str, *, by_token: bool, folder: Path | None,
    quiet: bool, team: Team = ALONE,
) -> Vectors | None:  # fmt: skip
    """The vectors of rows: from the file of an earlier fit, or computed and written.

    Args:
        rows: the rows; equal rows are computed once.
        compute: a pack to its vectors, [rows or tokens, ...].
        part: the model that computes; part of the file's name.
        pooling: how `compute` gets and pools the last vectors, in words; part of the file's name.
        by_token: whether there is a vector a token, else one a row.
        folder: where the file is kept; None: it is removed with this process.
        quiet: show no progress.
        team: the processes that compute them together; they share one file a machine.

    Returns:
        The vectors; None if there is no room for them.

    Raises:
        OutputError: the file cannot be written.
    """
    # In a fixed order, so that another split of the same rows finds the same file.
    contents = sorted({_content(row): row for row in rows}.items(), key=lambda item: (-len(item[1].ids), item[0]))
    sizes = np.array([len(row.ids) if by_token else 1 for _, row in contents], dtype=np.int64)
    first = dict(zip((content for content, _ in contents), (np.cumsum(sizes) - sizes).tolist(), strict=True))
    sound = [row for _, row in contents]
    width = compute(next(packs(sound[-1:], 1))).shape[1]
    shape = int(sizes.sum()), width
    dtype = torch.float32 if shape[0] * width * 4 <= MOST_CACHED_BYTES else torch.bfloat16
    place = Path(tempfile.gettempdir()) if folder is None else folder
    name = f"{_key(part, pooling, first, dtype)}.{_SUFFIXES[dtype]}"
    count = shape[0] * width * dtype.itemsize
    path = place / name
    known = folder is not None and path.is_file()
    if not team.every(known and (team.local_rank > 0 or _is_whole(path, count))):
        if not team.every(shutil.disk_usage(place).free >= count):
            return None
        with Progress("encode", len(sound), "rows", quiet) as progress:
            parts = _parts(sound, team.spread(compute, packs(sound, TOKEN_BUDGET)), dtype, progress.advance)
            if team.local_rank == 0:
                path = _written(place, name, parts, stays=folder is not None)
            else:
                deque(parts, maxlen=0)
        path = Path(team.gather(str(path))[team.rank - team.local_rank])
    values = torch.from_file(str(path), shared=False, size=shape[0] * width, dtype=dtype).view(shape)
    if folder is None and team.every(True) and team.local_rank == 0:  # all have mapped it
        path.unlink()  # the mapping stays valid, and is freed however the process ends
    return Vectors(values, first, by_token)


def check_folder(name: str | None) -> Path | None:
    """The cache folder, made if it is missing.

    Args:
        name: as the user gave it, or None.

    Returns:
        The folder.

    Raises:
        UsageError: it cannot be used.
    """
    if name is None:
        return None
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib raises where there is no such user
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        saw = f"cannot be created ({getattr(error, 'strerror', None) or error})"
        raise UsageError(f"--cache {name}", saw, "a folder that can be written") from error
    return folder


def _content(row: Encoded) -> bytes:
    return row.ids.astype(np.int64).tobytes() + row.segments.astype(np.int64).tobytes()


def _key(part: Model, pooling: str, contents: Iterable[bytes], dtype: torch.dtype) -> str:
    """The sha256 of everything that the vectors depend on: weights, sizes, arithmetic, and the rows."""
    threads = torch.get_num_threads()  # sums are split among threads, and round differently
    device = next(part.encoder.parameters()).device
    kernels = library.chosen() if device.type == "cpu" else torch.cuda.get_device_name(device)
    by = kernels, torch.__version__, threads
    about = [pooling, part.encoder.config, part.encoder.order, part.encoder.blocks, dtype, *by]
    digest = hashlib.sha256(f"{about} {sha256_of(part.encoder.state_dict())}".encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _parts(
    rows: Sequence[Encoded], compute: Compute, dtype: torch.dtype, done: Callable[[int], None]
) -> Iterable[bytes]:
    """The vectors of rows, longest first, in the order of the file."""
    for one in packs(rows, TOKEN_BUDGET):
        values = torch.from_numpy(compute(one)).to(dtype).contiguous()
        yield values.view(torch.uint8).numpy().tobytes()
        done(len(one.row))


def _written(place: Path, name: str, parts: Iterable[bytes], *, stays: bool) -> Path:
    """A file with these bytes: if it is kept, with their sha256 behind, and renamed; else readable by its user only."""
    # Written, not mapped: on a full disk a mapped write would end the process.
    try:
        if not stays:
            return _temporary(place, parts)
        aside, digest = Aside(place / name), hashlib.sha256()
        try:
            for part in parts:
                aside.stream.write(part)
                digest.update(part)
            aside.stream.write(digest.digest())
            return aside.publish()
        except BaseException:
            aside.discard()
            raise
    except OSError as error:
        raise _not_kept(place, error) from error


def _is_whole(path: Path, count: int) -> bool:
    """Whether a file that an earlier fit kept holds as many bytes of vectors, and the sha256 of them behind."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != count + digest.digest_size:
                return False
            left = count
            while left and (part := file.read(min(left, 2**20))):
                digest.update(part)
                left -= len(part)
            return file.read() == digest.digest()
    except OSError:
        return False


def _temporary(place: Path, parts: Iterable[bytes]) -> Path:
    number, name = tempfile.mkstemp(prefix=".berthead-", suffix=".part", dir=place)
    try:
        with os.fdopen(number, "wb") as file:
            for part in parts:
                file.write(part)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _not_kept(place: Path, error: OSError) -> OutputError:
    saw = f"the activations of the frozen layers cannot be written ({error.strerror})"
    return OutputError(str(place), saw, "", "Give a folder with room as --cache.")

"""The folder of joined functions: their pre-trained encoder, a folder for each, and a record that names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from berthead.errors import BertheadError, ModelError, OutputError
from berthead.function import folder as folders
from berthead.function.adapter import THETA
from berthead.function.artifact import BLOCKED_VERSION, FORMAT_VERSION, Artifact
from berthead.function.joined import JoinedFunctions, is_name
from berthead.function.record import check_seal, read_record, sealed
from berthead.model import families
from berthead.model.checkpoint import Checkpoint, read_checkpoint
from berthead.model.heads import POOLINGS
from berthead.model.model import sha256_of
from berthead.storage.files import clear_leftovers, write_json
from berthead.storage.folders import locked, made_whole
from berthead.storage.model_files import RECORD, WEIGHTS

# What a function's own labels are, and no part of the encoder.
_OF_A_TASK = ("id2label", "label2id", "problem_type", "classifier_dropout", "num_labels")


def read(folder: Path, record: Mapping[str, Any]) -> JoinedFunctions:
    """Read a joined folder after its berthead.json.

    Args:
        folder: the joined folder.
        record: as `read_record` gives it.

    Returns:
        The functions.

    Raises:
        ModelError: the folder, or that of a function, is broken or not to be trusted.
    """
    joined = JoinedFunctions({name: folders.load(folder / name) for name in names_in(folder, record)})
    check_seal(record, str(folder / RECORD))
    return joined


def names_in(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """The names of the functions in a joined folder.

    Args:
        folder: the folder.
        record: as `read_record` gives it.

    Returns:
        Their names, in order.

    Raises:
        ModelError: not a joined folder, or a broken one.
    """
    path = folder / RECORD
    if record["kind"] != "joined":
        raise ModelError(str(folder), "is not a joined folder", "one that berthead join made")
    version = record.get("format_version")
    if type(version) is not int or not 3 <= version <= FORMAT_VERSION:
        raise ModelError(
            str(path), f"has format_version {version!r}", f"3 to {FORMAT_VERSION}, which this berthead reads"
        )
    names, pretrained = record["functions"], record.get("pretrained")
    if not isinstance(names, list) or not names or not isinstance(pretrained, dict):
        raise ModelError(str(path), "does not say which functions it holds", "a list of their names")
    for name in names:
        if not isinstance(name, str) or not is_name(name) or not (folder / name).is_dir():
            raise ModelError(str(path), f"names the function {name!r}", "a folder in it")
    return names


def save(joined: JoinedFunctions, folder: Path, overwrite: bool = False) -> None:
    """Write a joined folder: the encoder once, and for each function what differs from it.

    Args:
        joined: the functions.
        folder: the target folder; each function has its own folder in it, which can be loaded by itself.
        overwrite: replace a folder that exists.

    Raises:
        OutputError: it cannot be written.
        ModelError: the pre-trained encoder is missing.
    """
    theta_hat = find_theta_hat(list(joined.functions.values()))
    with made_whole(folder, overwrite) as aside:
        theta_hat.write(aside / THETA)
        for name, one in joined.functions.items():
            (aside / name).mkdir()
            write_function(one, aside / name, theta_hat.tensors)
        write_record(aside, list(joined.functions), joined.reader.pretrained)


def add(folder: Path, name: str, artifact: Artifact) -> None:
    """Add a function to a joined folder; the files of the others are not touched.

    Args:
        folder: the joined folder.
        name: the function's name, checked by `berthead.verbs.join.check_name`.
        artifact: the function, fitted on the folder's own encoder.

    Raises:
        ModelError: the folder holds no joined functions, or they cannot be joined.
        OutputError: it cannot be written.
    """
    with locked(folder):
        record = read_record(folder)
        functions = read(folder, record).functions
        if name in functions:
            raise OutputError(str(folder), f"already has a function called {name}", "another name")
        JoinedFunctions({**functions, name: artifact})
        theta_hat = families.to_checkpoint((base := read_checkpoint(str(folder / THETA))).weights, base.config)
        with made_whole(folder / name) as aside:
            write_function(artifact, aside, theta_hat)
        write_record(folder, [*functions, name], record["pretrained"])


def write_record(folder: Path, names: list[str], pretrained: Mapping[str, str]) -> None:
    """Write the record, by renaming: it names only complete folders."""
    record = {"format_version": BLOCKED_VERSION, "kind": "joined", "functions": names, "pretrained": dict(pretrained)}
    write_json(folder / RECORD, sealed(record))
    clear_leftovers(folder / RECORD)


def write_function(artifact: Artifact, folder: Path, theta_hat: Mapping[str, Tensor]) -> None:
    """Write what differs from the encoder beside it into an empty folder, which can be loaded by itself."""
    folders.write(artifact, folder, THETA, theta_hat)
    folders.check_written(folder)


@dataclass(frozen=True, slots=True)
class ThetaHat:
    """The encoder that all functions were fitted on, as a checkpoint to write.

    Args:
        tensors: by plain name.
        artifact: a function that was fitted on it.
        checkpoint: its checkpoint; None: it comes from a function with a frozen encoder.
    """

    tensors: dict[str, Tensor]
    artifact: Artifact
    checkpoint: Checkpoint | None

    def write(self, folder: Path) -> None:
        """Write a checkpoint that berthead and transformers read."""
        folder.mkdir()
        family = families.FAMILIES[self.artifact.family]
        tensors = dict(self.tensors)
        if self.checkpoint and self.checkpoint.pooler and family.pooler:
            tensors |= {family.pooler[name]: tensor for name, tensor in self.checkpoint.pooler.items()}
        folders.write_tensors({f"{family.prefix}.{name}": one for name, one in tensors.items()}, folder / WEIGHTS)
        raw = self.checkpoint.raw_config if self.checkpoint else self.artifact.raw_config
        config = {key: value for key, value in folders.public_config(raw).items() if key not in _OF_A_TASK}
        own = {"architectures": [f"{family.stem}Model"], "dtype": "float32"}
        write_json(folder / "config.json", config | own)
        self.artifact.tokenizer.save(folder, self.artifact.model.encoder.config.positions)
        if self.checkpoint and self.checkpoint.trained_pooling != "pooler":
            # As sentence-transformers writes it down: later heads are pooled as the encoder was trained.
            keys = {name: one.sentence_transformers for name, one in reversed(POOLINGS.items())}
            modes = {
                f"pooling_mode_{key}": self.checkpoint.trained_pooling == name for name, key in keys.items() if key
            }
            if self.checkpoint.trained_pooling not in POOLINGS:
                modes |= {f"pooling_mode_{key}": True for key in self.checkpoint.trained_pooling.split(" and ")}
            (folder / "1_Pooling").mkdir()
            write_json(folder / "1_Pooling" / "config.json", modes)


def find_theta_hat(artifacts: Sequence[Artifact]) -> ThetaHat:
    """Find the encoder that all were fitted on: under its recorded name, or in a function with a frozen encoder."""
    sha256 = artifacts[0].pretrained["theta_sha256"]
    names = [artifacts[0].pretrained["name"], *(str(one.adapter.place) for one in artifacts if one.adapter)]
    for name in names:
        try:
            checkpoint = read_checkpoint(name)
        except BertheadError:
            continue
        tensors = families.to_checkpoint(checkpoint.weights, checkpoint.config)
        if sha256_of(tensors) == sha256:
            return ThetaHat(tensors, artifacts[0], checkpoint)
    for one in artifacts:
        tensors = one.theta()
        if sha256_of(tensors) == sha256:
            return ThetaHat(tensors, one, None)
    saw = f'their encoder "{names[0]}" was not found, and each of them has changed it'
    raise ModelError("join", saw, f"the encoder of sha256 {sha256}", "Join them where they were fitted.")

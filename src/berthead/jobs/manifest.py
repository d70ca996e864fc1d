"""The manifest: what decides the bytes of a job's parts, and whether a folder's parts belong to this job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from berthead.errors import UsageError, counted
from berthead.formats.output import Output
from berthead.jobs.inputs import Fingerprint
from berthead.jobs.parts import PartsFolder
from berthead.jobs.shard import Shard

FORMAT_VERSION = 1


def manifest_of(
    inputs: Sequence[Fingerprint], functions: Mapping[str, Any], options: Mapping[str, Any], by: Mapping[str, Any],
    output: Output,
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides the bytes of the parts, as JSON.

    Args:
        inputs: the files, in their order.
        functions: the functions, by name; `reading` says how many tokens one reads at once.
        options: by name.
        by: versions and kernels.
        output: the output's format and columns.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "inputs": [one.to_json() for one in inputs],
        "functions": functions,
        "options": options,
        "computed_by": by,
        "output": output.to_json(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def output_in(manifest: Mapping[str, Any], where: str) -> Output:
    """The output's format and columns.

    Raises:
        UsageError: the manifest does not have it.
    """
    try:
        return Output.from_json(manifest["output"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(where, f"has a damaged manifest ({error!r})", fix="Compute the parts again.") from error


def window_in(manifest: Mapping[str, Any]) -> int:
    """The number of tokens that a job's functions read at once."""
    return max(int(one["reading"]["max_tokens"]) for one in manifest["functions"].values())


def open_parts(
    path: Path, manifest: dict[str, Any], part_format: str, shard: Shard, *, resume: bool = False, name: str = ""
) -> PartsFolder:
    """The parts folder of a job, new or existing.

    Args:
        path: the folder.
        manifest: the job's manifest.
        part_format: the extension of the parts' files.
        shard: which parts this process computes.
        resume: continue with existing parts; a shard always accepts the parts of other shards.
        name: the folder's name for messages.

    Returns:
        The folder, locked by this process.

    Raises:
        UsageError: there are parts and they are not to be taken, or they are those of another job.
        OSError: it cannot be written.
    """
    folder: PartsFolder | None = None
    try:
        folder = PartsFolder(path, part_format, shard)
        _settle(folder, manifest, resume, name or str(path))
    except BaseException:
        if folder is not None:
            folder.release()
        with suppress(OSError):
            path.rmdir()  # as it is where it could be made and nothing written into it
        raise
    return folder


def _settle(folder: PartsFolder, manifest: dict[str, Any], resume: bool, name: str) -> None:
    """Refuse a folder in which this job cannot continue; start over if there is nothing to continue."""
    left, alone = folder.manifest, folder.shard.alone
    anew = f"start over{'' if alone else ' with all shards'}: rm -r {name}"
    if left is not None and "finished" in left:
        # Killed while the parts were removed: the job is done, and nothing else has to be kept.
        if not alone:
            raise UsageError(name, "holds the remains of a finished job", fix=f"To {anew}")
        if not resume or differences(left, manifest):
            folder.clear()
    elif folder.empty and alone:
        folder.clear()
    elif left is None and not folder.empty:
        raise UsageError(name, "holds parts but no manifest", fix=f"To {anew}")
    folder.begin(manifest)
    if changed := differences(folder.manifest or {}, manifest):
        fix = f"Use the same data and options as before, or {anew}"
        raise UsageError(name, f"holds parts of another job: {'; '.join(changed)}", fix=fix)
    if folder.whole and not resume:
        saw = f"holds {counted(len(folder.whole), 'finished part')} of an interrupted job"
        raise UsageError(name, saw, fix=f"Go on with --resume, or {anew}")


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences of two manifests, in words; empty if they are equal.

    Example:
        >>> differences({"options": {"precision": "fp32"}}, {"options": {"precision": "int8"}})
        ['--precision was fp32, is int8']
    """
    try:
        before, after = dict(_flat({**was, "finished": None})), dict(_flat({**now, "finished": None}))
    except (KeyError, TypeError):
        return ["its manifest is damaged"]
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    # Of other files, or another function, the first thing says it all.
    firsts = {key[:2]: key for key in reversed(keys)}
    return [f"{_said(key)} was {_shown(before.get(key))}, is {_shown(after.get(key))}" for key in firsts.values()][::-1]


def _flat(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if key == ("inputs",):
        yield ("inputs", ""), [one["name"] for one in value]
        value = {one["name"]: {"size": one["size"], "sha256": one["sha256"]} for one in value}
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from _flat(one, (*key, name))
    else:
        yield key, value


def _said(key: tuple[str, ...]) -> str:
    """A key of the manifest in the user's terms."""
    match key:
        case ("inputs", ""):
            return "the input"
        case ("inputs", name, what):
            return f"{name}: its {what}"
        case ("functions", name, *what):
            return f"the function{f' {name}' if name else ''}: its {'.'.join(what)}"
        case ("options", name):
            return f"--{name.replace('_', '-')}"
        case ("computed_by", name):
            return name
        case _:
            return ".".join(key)


def _shown(value: Any) -> str:
    """A value in short form; only the beginning of a sha256."""
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{text[:12]}..." if len(text) > 60 else text

"""Gathering: the parts of all shards, or of one process, become the output."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from berthead.errors import UsageError, counted, listed
from berthead.formats.registry import format_of
from berthead.formats.writers import check_writable, left_out_notes
from berthead.jobs.assembly import errors_file_of, put_together
from berthead.jobs.counts import Summary
from berthead.jobs.manifest import differences, output_in, window_in
from berthead.jobs.parts import MANIFEST, PARTS, Part, PartsFolder
from berthead.jobs.shard import Shard
from berthead.storage.files import output_error, target_of


def gather_parts(
    target: str,
    manifest: Mapping[str, Any],
    parts: Mapping[int, Part],
    end: Mapping[str, Any],
    folder: PartsFolder | None,
) -> Summary:
    """Join all parts into the output, and remove their folder.

    Args:
        target: the output.
        manifest: of the job.
        parts: by number.
        end: of the input: the number of `parts`, and `notes`.
        folder: the folder to remove; None: keep the parts.

    Returns:
        A summary.

    Raises:
        OSError: the output cannot be written; the parts stay.
        OutputError: as OSError, or a value that does not fit.
    """
    ordered = [parts[number] for number in range(end["parts"])]
    summary = Summary(notes=list(end["notes"]), max_tokens=window_in(manifest))
    for part in ordered:
        summary.add(part.counts)
    summary.errors_file = put_together(output_in(manifest, target), ordered, target)
    summary.notes += left_out_notes(target, summary.left_out)
    if folder is not None:
        folder.finish({"size": target_of(target).stat().st_size, "summary": asdict(summary)})
        folder.remove()
    return summary


def already_gathered(folder: PartsFolder, target: str) -> Summary | None:
    """The summary of a process that was killed after the output was in place; None: no output yet."""
    finished = (folder.manifest or {}).get("finished")
    place = target_of(target)
    if finished is None or not place.is_file() or place.stat().st_size != finished["size"]:
        return None
    folder.remove()
    return Summary(**finished["summary"])


def gather(target: str, names: Sequence[str] = ()) -> Summary:
    """Join the parts of all shards into the output.

    Args:
        target: the output; its extension says whether it is compressed.
        names: the folders of parts; empty: `<target>.parts`, which is removed at the end. Other folders stay.

    Returns:
        A summary of all shards.

    Raises:
        UsageError: parts are missing, or the folders belong to different jobs.
        OutputError: the output cannot be written.
    """
    check_writable(target)
    errors_file_of(target)
    own = f"{target}{PARTS}"
    try:
        with ExitStack() as stack:
            folders = {name: stack.enter_context(closing(_held(name))) for name in names or [own]}
            return _gathered(target, folders, folders.get(own))
    except OSError as error:
        raise output_error(target, error) from error


def _held(name: str) -> PartsFolder:
    path = Path(os.path.realpath(name.removesuffix(PARTS)) + PARTS) if name.endswith(PARTS) else Path(name)
    if not (path / MANIFEST).is_file():
        saw = "holds no manifest" if path.is_dir() else "does not exist"
        raise UsageError(name, saw, f"a folder that berthead predict --shard left: OUT{PARTS}")
    return PartsFolder(path, "", Shard())


def _gathered(target: str, folders: Mapping[str, PartsFolder], own: PartsFolder | None) -> Summary:
    if own is not None and (summary := already_gathered(own, target)) is not None:
        return summary
    first, *others = folders.items()
    manifest = first[1].manifest or {}
    for name, folder in others:
        if changed := differences(manifest, folder.manifest or {}):
            saw = f"is of another job than {first[0]}: {'; '.join(changed)}"
            raise UsageError(name, saw, fix="Gather the parts of one job.")
    output = output_in(manifest, first[0])
    if format_of(target)[0] != output.format:
        raise UsageError(target, f"is {format_of(target)[0]}", f"{output.format}, as the parts are")
    parts = _all_parts(folders)
    end = _end(folders)
    if missing := [number for number in range(end["parts"]) if number not in parts]:
        raise UsageError(
            target,
            _said_missing(missing, parts),
            fix="Let these shards finish, again with --resume if they were stopped.",
        )
    return gather_parts(target, manifest, parts, end, own)


def _all_parts(folders: Mapping[str, PartsFolder]) -> dict[int, Part]:
    parts: dict[int, tuple[str, Part]] = {}
    for name, folder in folders.items():
        for number, part in folder.whole.items():
            other, same = parts.setdefault(number, (name, part))
            if same.sha256 != part.sha256:
                saw = f"its part {number} differs from the one in {other}"
                raise UsageError(name, saw, fix="Remove the folder that was computed in another way.")
    return {number: part for number, (_, part) in parts.items()}


def _end(folders: Mapping[str, PartsFolder]) -> dict[str, Any]:
    ends = [folder.end for folder in folders.values() if folder.end is not None]
    if not ends:
        name = next(iter(folders))
        raise UsageError(
            name,
            "no shard has read all of the input",
            fix="Let the shards finish, again with --resume if they were stopped.",
        )
    return ends[0]


def _said_missing(missing: Sequence[int], parts: Mapping[int, Part]) -> str:
    """Which parts are missing, and of which shards, as far as known."""
    of = max((int(part.shard.partition("/")[2]) for part in parts.values()), default=1)
    shards = sorted({number % of + 1 for number in missing})
    whose = f" of shard{'s' * (len(shards) > 1)} {listed(f'{one}/{of}' for one in shards)}" if of > 1 else ""
    are = "is" if len(missing) == 1 else "are"
    return f"{counted(len(missing), 'part')}{whose} {are} missing: {listed(missing)}"

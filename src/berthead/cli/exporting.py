"""berthead export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from berthead.cli.flags import AsJson, ModelFolder, with_options
from berthead.cli.loading import load_one
from berthead.cli.printing import print_json, print_text
from berthead.errors import UsageError, counted
from berthead.options import PredictOptions


@with_options(PredictOptions, only=("base",))
def export(
    model: ModelFolder,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="DIR", help="Write an ONNX graph, which predicts without torch.")
    ] = None,
    hf: Annotated[Path | None, typer.Option("--hf", metavar="DIR", help="Write a plain transformers folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that berthead wrote.")] = False,
    as_json: AsJson = False,
    *,
    given: dict[str, Any],
) -> None:
    """Write a fitted model for other runtimes, and check that it gives the same answers there."""
    if onnx is None and hf is None:
        raise UsageError("export", "got no output folder", "--onnx DIR, --hf DIR, or both")
    for flag, place in (("--onnx", onnx), ("--hf", hf)):
        if place is not None and place.resolve() == Path(model).resolve():
            saw, fix = "is the folder of the model", "The export would replace it."
            raise UsageError(f"{flag} {place}", saw, "another folder", fix)
    fitted = load_one(model, given)
    record: dict[str, Any] = {}
    if onnx is not None:
        record["onnx"] = {"out": str(onnx), "largest_difference": fitted.export_onnx(onnx, overwrite)}
    if hf is not None:
        record["hf"] = {"out": str(hf), "notes": fitted.export_hf(hf, overwrite)}
    if as_json:
        print_json(record)
        return
    if onnx is not None:
        apart, count = record["onnx"]["largest_difference"], len(fitted.reader.golden)
        print_text(f"onnx folder: {onnx}")
        print_text(f"  {counted(count, 'golden example')}: the same answers; largest relative difference {apart:.1e}")
    if hf is not None:
        print_text("\n  ".join([f"transformers folder: {hf}", *record["hf"]["notes"]]))

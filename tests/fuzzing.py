"""What tests/test_fuzz.py and tools/fuzz.py share: folders and files that are broken at random, by their structure.

A case is drawn by hypothesis, so that a failure is shrunk to a small one. Whatever is broken, the outcome is an error
of berthead's, or the same answers as before, or a row's own error: no other exception, no signal, no hang, and no
other answer without a word.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from conftest import make_bert, toy_rows, unsealed, write_csv, write_jsonl
from hypothesis import strategies as st

import berthead
from berthead.cli.reports import info_text, joined_text
from berthead.errors import BertheadError
from berthead.formats.readers import open_rows
from berthead.storage.hashes import file_sha256

TEXTS = ["good cat", "the awful dog sat, red.", "b a d " * 40, "\U0001f600", "Zo\u00eb ran!", " "]
KINDS = ("model", "adapter", "onnx", "joined")
NAMES = [
    "text", "label", "name", "", "\ud800", "\x1b[2J", "a" * 300, "../../x", "/etc/passwd", "classify", "\x00", "nan",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0,
    1e-300, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(NAMES), st.text(max_size=5))
VALUES = st.recursive(
    SCALARS, lambda of: st.one_of(st.lists(of, max_size=3), st.dictionaries(st.sampled_from(NAMES), of, max_size=3)),
    max_leaves=6,
)  # fmt: skip


def base_folders(home: Path) -> dict[str, Path]:
    """A small folder of each kind."""
    options = {"encoder": str(make_bert(home / "bert")), "epochs": 2, "lr": 3e-3, "threads": 1, "quiet": True}
    rows = toy_rows(2)
    whole = berthead.fit(rows, out=home / "model", valid=0.25, **options)
    lora = berthead.fit(rows, out=home / "adapter", valid=0.25, adapt="lora:2", seed=1, **options)
    whole.export_onnx(home / "onnx")
    berthead.join({"one": whole, "two": lora}, home / "joined")
    return {kind: home / kind for kind in KINDS}


def answered(folder: Path) -> list[str]:
    """What a user sees of a folder: its description and its answers, one text a row."""
    model = berthead.load(folder)
    json.dumps(model.info(), default=str)
    (joined_text if model.kind == "joined" else info_text)(model.info(), "model")
    return [repr(one) for one in model.predict(TEXTS)]


def outcome(folder: Path, before: list[str], *, may_differ: bool) -> str:
    """How it ended: `refused` or `same`; AssertionError for another answer without a word."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            found = answered(folder)
    except BertheadError as error:
        return _refused(error)
    if not may_differ:
        for one, other in zip(found, before, strict=True):
            assert one == other or "not finite" in one, (one, other)
    return "same"


def _refused(error: BertheadError) -> str:
    assert len(str(error)) < 3000, "a message that nobody reads"
    return "refused"


# Bytes


@st.composite
def broken_bytes(draw: Any, content: bytes) -> bytes:
    """Bytes with something wrong in them."""
    size, found = len(content), bytearray(content)
    at = draw(st.integers(0, max(size - 1, 0)))
    length = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
    how = draw(st.sampled_from(["flip", "set", "cut", "drop", "insert", "repeat", "zero", "number", "empty", "swap"]))
    if how == "flip" and size:
        found[at] ^= 1 << draw(st.integers(0, 7))
    elif how == "set" and size:
        found[at] = draw(st.integers(0, 255))
    elif how == "cut":
        del found[at:]
    elif how == "drop":
        del found[at : at + length]
    elif how == "insert":
        found[at:at] = draw(st.binary(min_size=1, max_size=16))
    elif how == "repeat":
        found[at:at] = found[at : at + length] * draw(st.sampled_from([1, 3, 100]))
    elif how == "zero":
        found[at : at + length] = bytes(len(found[at : at + length]))
    elif how == "number":
        number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
        found[at : at + 8] = struct.pack("<Q", number)
    elif how == "empty":
        found = bytearray()
    elif how == "swap":
        found[at : at + length], found[:length] = found[:length], found[at : at + length]
    return bytes(found)


# JSON


def places(value: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """Every place in a JSON value: its container and its key there; of long lists a few."""
    found = [] if found is None else found
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
        inner = inner[:4] + inner[-2:] if len(inner) > 6 else inner
    else:
        return found
    for key, one in inner[:60]:
        found.append((value, key))
        places(one, found)
    return found


@st.composite
def broken_json(draw: Any, document: Any) -> Any:
    """A JSON value with one to three places changed; the value itself is."""
    for _ in range(draw(st.integers(1, 3))):
        there = places(document)
        if not there:
            return draw(VALUES)
        container, key = there[draw(st.integers(0, len(there) - 1))]
        if key not in container if isinstance(container, dict) else key >= len(container):
            continue
        how = draw(st.sampled_from(["value", "value", "near", "delete", "rename", "wrap", "other", "double"]))
        one = container[key]
        if how == "delete":
            del container[key]
        elif how == "rename" and isinstance(container, dict):
            container[draw(st.sampled_from(NAMES))] = container.pop(key)
        elif how == "wrap":
            container[key] = draw(st.sampled_from([[one], {"a": one}, [one, one], str(one)[:200]]))
        elif how == "near" and isinstance(one, int | float) and not isinstance(one, bool):
            container[key] = draw(st.sampled_from([one + 1, one - 1, -one, one * 2, one / 3]))
        elif how == "other":
            source, name = there[draw(st.integers(0, len(there) - 1))]
            with contextlib.suppress(KeyError, IndexError):
                container[key] = json.loads(json.dumps(source[name]))
        elif how == "double" and isinstance(container, list):
            container.insert(key, one)
        else:
            container[key] = draw(VALUES)
    return document


def write_json(path: Path, value: Any) -> None:
    path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))


# Folders


@st.composite
def broken_folder(draw: Any, folder: Path) -> bool:
    """Break a folder in place; returns whether its hashes were made to agree, so that it is another function."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[draw(st.integers(0, len(files) - 1))]
    how = draw(st.sampled_from(["bytes", "json", "json", "json", "header", "file"]))
    forged = draw(st.booleans())
    if how == "json" and path.suffix == ".json":
        write_json(path, draw(broken_json(json.loads(path.read_text(encoding="utf-8")))))
    elif how == "header" and path.suffix == ".safetensors":
        content = path.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = json.dumps(draw(broken_json(json.loads(content[8 : 8 + size])))).encode("utf-8", "surrogatepass")
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    elif how == "file":
        _other_file(draw, folder, path, files)
    else:
        path.write_bytes(draw(broken_bytes(path.read_bytes())))
    return _forged(folder) if forged else False


def _other_file(draw: Any, folder: Path, path: Path, files: list[Path]) -> None:
    what = draw(st.sampled_from(["gone", "folder", "pipe", "link", "copy", "more"]))
    if what == "more":
        name = draw(
            st.sampled_from(["x.bin", "code.py", "vocab.txt", "model.safetensors.index.json", "part.safetensors"])
        )
        (folder / name).write_bytes(draw(st.binary(max_size=20)))
        return
    if what == "copy":
        path.write_bytes(files[draw(st.integers(0, len(files) - 1))].read_bytes())
        return
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to(draw(st.sampled_from(["/dev/zero", "nothing", path.name, str(files[0]), "/etc/hostname"])))


def _forged(folder: Path) -> bool:
    """Take the hashes out of the records, as somebody does who changes them on purpose; whether any was there."""
    found = False
    for path in folder.rglob("berthead.json"):
        if not path.is_file():
            continue
        with contextlib.suppress(OSError, ValueError, RecursionError):
            record = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(record, dict):
                continue
            export = record.get("export")
            # The graph itself stays as it was: what ONNX Runtime does with a forged one is not ours to say.
            if isinstance(export, dict) and isinstance(export.get("sha256"), dict):
                export["sha256"]["tokenizer.json"] = file_sha256(path.parent / "tokenizer.json")
            write_json(path, unsealed(record))
            found = True
    return found


# Files of rows


def base_files(home: Path) -> list[Path]:
    """A small file of each format."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from openpyxl import Workbook

    rows = [{"text": row["text"], "label": row["label"], "n": str(number)} for number, row in enumerate(toy_rows(1))]
    made = [write_csv(home / "a.csv", rows), write_jsonl(home / "a.jsonl", rows)]
    (home / "a.tsv").write_text("text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    (home / "a.json").write_text(json.dumps(rows))
    (home / "a.conll").write_text("# text = x\ngood\tB-X\ncat\tO\n\nbad\tO\ndog\tB-Y\n")
    squad = {"question": "who?", "id": "1", "answers": [{"text": "cat", "answer_start": 4}], "is_impossible": False}
    document = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "the cat sat", "qas": [squad]}]}]}
    (home / "squad.json").write_text(json.dumps(document))
    result = {"value": {"start": 0, "end": 4, "text": "good", "labels": ["X"]}, "from_name": "a", "to_name": "b", "type": "labels"}  # fmt: skip # noqa: E501
    studio = [{"id": 1, "data": {"text": "good cat"}, "annotations": [{"result": [result], "was_cancelled": False}]}]
    (home / "studio.json").write_text(json.dumps(studio))
    (home / "doccano.jsonl").write_text('{"id": 1, "text": "good cat", "label": [[0, 4, "X"]]}\n' * 3)
    table = {name: pa.array([row[name] for row in rows]) for name in rows[0]} | {
        "tags": pa.array([["a", "b"]] * len(rows))
    }
    pq.write_table(pa.table(table), home / "a.parquet", row_group_size=5)
    book = Workbook()
    for row in ([*rows[0]], *([*row.values()] for row in rows)):
        book.active.append(row)
    book.save(home / "a.xlsx")
    (home / "a.csv.gz").write_bytes(gzip.compress((home / "a.csv").read_bytes()))
    (home / "a.jsonl.zst").write_bytes(zstandard.compress((home / "a.jsonl").read_bytes()))
    names = ("a.tsv", "a.json", "a.conll", "squad.json", "studio.json", "doccano.jsonl", "a.parquet", "a.xlsx",
             "a.csv.gz", "a.jsonl.zst")  # fmt: skip
    return made + [home / name for name in names]


@st.composite
def broken_file(draw: Any, path: Path) -> bytes:
    """The content of a file of rows with something wrong in it."""
    content = path.read_bytes()
    if draw(st.booleans()):
        if path.suffix == ".json":
            return json.dumps(draw(broken_json(json.loads(content)))).encode("utf-8", "surrogatepass")
        if path.suffix == ".jsonl":
            rows = [draw(broken_json(json.loads(line))) for line in content.splitlines()]
            return "\n".join(map(json.dumps, rows)).encode("utf-8", "surrogatepass")
        if path.suffix in (".csv", ".tsv", ".conll"):
            cells = ['"', '""', "\n", "\r", "\t", ",", ";", "\0", "\ufeff", "\x1b[2J", "\xa0", "a" * 9, "=1+1"]
            text = content.decode()
            for _ in range(draw(st.integers(1, 5))):
                at = draw(st.integers(0, len(text)))
                text = text[:at] + draw(st.sampled_from(cells)) + text[at:]
            encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
            return text.encode(encoding, "replace")
        if path.suffixes == [".csv", ".gz"]:
            return gzip.compress(draw(broken_bytes(gzip.decompress(content))))
        if path.suffix == ".xlsx":
            return _broken_zip(draw, content)
    return draw(broken_bytes(content))


def _broken_zip(draw: Any, content: bytes) -> bytes:
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(made, "w") as target:
        names = source.namelist()
        chosen = names[draw(st.integers(0, len(names) - 1))]
        for name in names:
            one = source.read(name)
            target.writestr(name, draw(broken_bytes(one)) if name == chosen else one)
    return made.getvalue()


def read_rows(path: Path, model: Any, out: Path) -> str:
    """Read a file of rows, and predict it: `refused`, or how many rows there were."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            with open_rows(path) as reader:
                rows = list(reader)
            assert all(isinstance(row.values, dict) for row in rows)
            columns = [name for name in reader.columns if name]
            column = "text" if "text" in columns else next(iter(columns), "text")
            summary = model.predict_file(path, out, text=column, quiet=True, part_rows=7)
    except BertheadError as error:
        return _refused(error)
    finally:
        for left in (out, Path(f"{out}.errors.jsonl")):
            left.unlink(missing_ok=True)
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
    assert summary.rows == len(rows), (summary.rows, len(rows))
    return f"{len(rows)} rows"


# Targets of tools/fuzz.py


def folder_case(kind: str, home: Path) -> Callable[[Any], str]:
    """A function that tries one broken folder of a kind, drawn from hypothesis' data."""
    base = home / kind
    before = answered(base)

    def tried(data: Any) -> str:
        folder = home / f"broken-{kind}-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        return outcome(folder, before, may_differ=data.draw(broken_folder(folder)))

    return tried


def rows_case(home: Path) -> Callable[[Any], str]:
    """A function that tries one broken file of rows."""
    files, model = base_files(home), berthead.load(home / "model")

    def tried(data: Any) -> str:
        path = files[data.draw(st.integers(0, len(files) - 1))]
        broken = path.with_name(f"broken-{os.getpid()}{''.join(path.suffixes)}")
        broken.write_bytes(data.draw(broken_file(path)))
        out = home / f"out-{os.getpid()}{data.draw(st.sampled_from(['.csv', '.jsonl', '.parquet', '.xlsx']))}"
        return read_rows(broken, model, out)

    return tried


def case(target: str, home: Path) -> Callable[[Any], str]:
    """The function of a target: a kind of folder, or `rows`."""
    random.seed(0)
    return rows_case(home) if target == "rows" else folder_case(target, home)

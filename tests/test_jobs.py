"""Jobs in parts: the same bytes however they came about, and refusals that say what has changed."""

from __future__ import annotations

import csv
import errno
import fcntl
import gzip
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import ROOT, WORDS, tries, write_csv, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import berthead
from berthead.errors import DataError, OutputError, UsageError
from berthead.formats.output import Output
from berthead.formats.table import Table
from berthead.formats.writers import open_writer
from berthead.jobs import job as jobs
from berthead.jobs.files import predict_file
from berthead.jobs.gather import gather
from berthead.jobs.shard import Shard
from berthead.jobs.work import Work, compute_part
from berthead.options import PredictOptions
from berthead.predict import reading
from berthead.progress import Progress

QUICK = settings(deadline=None, max_examples=tries(25))
PLAIN = [word for word in WORDS if word.isalpha()]


@pytest.fixture(scope="module")
def model(fit_toy):
    return berthead.load(fit_toy(epochs=6))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Rows are computed seven at a time: several chunks make a part, and no part is a whole number of them."""
    monkeypatch.setattr(reading, "CHUNK_ROWS", 7)


def some_rows(count: int, bad: int = 0) -> list[dict[str, str]]:
    """Rows of different lengths, every `bad`-th without a text."""
    texts = [" ".join(PLAIN[(n * 7 + k) % len(PLAIN)] for k in range(1 + n % 9)) for n in range(count)]
    return [{"id": str(n), "text": "" if bad and n % bad == 0 else text} for n, text in enumerate(texts)]


def predicted(model, source, target, **options):
    options = {"part_rows": 10} | options
    sources = [str(one) for one in source] if isinstance(source, list) else str(source)
    return predict_file(model.predictor, sources, str(target), PredictOptions(**options), quiet=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files_of(target: Path) -> list[bytes]:
    """What a job leaves: the answers, and the bad rows where there are some."""
    errors = Path(f"{target}.errors.jsonl")
    return [target.read_bytes(), *([errors.read_bytes()] if errors.exists() else [])]


class Stopped(Exception):
    """Stands in for a power cut: nobody expects it."""


def stop_after(parts: int, monkeypatch, model, source, target, **options):
    """A job of which the process ends, untidily, when it begins to compute one part more."""
    left = iter(range(parts))
    compute = jobs.compute_part

    def computed(*args):
        if next(left, None) is None:
            raise Stopped
        return compute(*args)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "compute_part", computed)
        with pytest.raises(Stopped):
            predicted(model, source, target, **options)


KINDS = {
    "out.csv": "in.csv",
    "out.tsv.gz": "in.jsonl",
    "out.jsonl.zst": "in.parquet",
    "out.parquet": "in.parquet",
    "spooled.parquet": "in.jsonl",
    "typed.parquet": "in.csv",
    "out.jsonl": "in.csv",
    "out.xlsx": "in.jsonl",
    "sheet.xlsx": "in.xlsx",
}


def write_source(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".xlsx":
        pd.DataFrame(rows, columns=["id", "text"]).to_excel(path, index=False)
        return path
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path, row_group_size=8, index=False)
        return path
    return write_csv(path, rows) if path.suffix == ".csv" else write_jsonl(path, rows)


# The same bytes


@pytest.mark.parametrize("name", KINDS)
def test_a_job_that_was_stopped_goes_on_to_the_same_bytes(name, model, tmp_path, monkeypatch):
    source = write_source(tmp_path / KINDS[name], some_rows(64, bad=9))
    (tmp_path / "whole").mkdir()
    summary = predicted(model, source, tmp_path / "whole" / name)
    wanted = files_of(tmp_path / "whole" / name)
    assert names(tmp_path / "whole") == [name, f"{name}.errors.jsonl"]
    stop_after(3, monkeypatch, model, source, tmp_path / name)
    stop_after(2, monkeypatch, model, source, tmp_path / name, resume=True)
    assert names(tmp_path) == sorted([source.name, f"{name}.parts", "whole"])
    assert sorted(int(path.stem) for path in (tmp_path / f"{name}.parts").glob("0*[0-9].json")) == [0, 1, 2, 3, 4]
    again = predicted(model, source, tmp_path / name, resume=True)
    assert files_of(tmp_path / name) == wanted
    assert names(tmp_path) == sorted([source.name, name, f"{name}.errors.jsonl", "whole"])
    assert (
        (again.rows, again.failed, again.errors)
        == (summary.rows, summary.failed, summary.errors)
        == (64, 8, again.errors)
    )
    assert again.errors[0].startswith(str(source))


@QUICK
@given(
    rows=st.integers(0, 40), part_rows=st.integers(1, 15), shards=st.integers(1, 4), data=st.data(),
    name=st.sampled_from(list(KINDS)),
)  # fmt: skip
def test_shards_and_lost_parts_give_the_bytes_of_one_process(
    rows, part_rows, shards, data, name, model, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("job")
    if rows == 0 and "jsonl" in KINDS[name]:
        return  # a JSON Lines file without a line has no columns
    source = folder / KINDS[name]
    if rows or source.suffix == ".xlsx":
        write_source(source, some_rows(rows, bad=5))
    elif source.suffix == ".parquet":
        pd.DataFrame({"id": ["x"], "text": ["y"]})[:0].to_parquet(source, index=False)
    else:
        source.write_text("id,text\n")
    whole = folder / f"whole-{name}"
    predicted(model, source, whole, part_rows=part_rows)
    target, parts = folder / name, folder / f"{name}.parts"
    for number in data.draw(st.permutations(range(1, shards + 1))):
        summary = predicted(model, source, target, part_rows=part_rows, shard=f"{number}/{shards}")
        assert summary.parts == str(parts)
        assert summary.rows == Shard(number, shards).share(rows, part_rows)
    records = sorted(parts.glob("0*[0-9].json"))
    assert len(records) == -(-rows // part_rows)
    for record in data.draw(st.lists(st.sampled_from(records), max_size=3)) if records else ():
        record.unlink(missing_ok=True)  # as if the process had been killed before
    if data.draw(st.booleans()) and all(record.exists() for record in records):
        done = gather(str(target))
    else:
        done = predicted(model, source, target, part_rows=part_rows, resume=True)
    assert done.rows == rows
    assert [file.replace(str(target).encode(), b"") for file in files_of(target)] == files_of(whole)
    assert not parts.exists()


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_part_can_be_computed_by_whoever_has_its_rows(name, model, tmp_path):
    source = write_csv(tmp_path / "in.csv", some_rows(47, bad=10))
    predicted(model, source, tmp_path / name)
    with Table([str(source)]) as table:
        rows = list(table)
        work = Work.plan(model.predictor, PredictOptions(), table.columns, table.name)
        output = Output.of(Path(name).suffix[1:], table.format, table.columns, table.schema, work.added)
    head = io.BytesIO()
    output.part_rows(head, header=True).finish()
    answers, errors, counted = [head.getvalue()], [], 0
    for first in range(0, 47, 10):  # in any order, anywhere
        streams = io.BytesIO(), io.BytesIO()
        counts = compute_part(work, output, work.read(rows[first : first + 10]), *streams)
        answers.append(streams[0].getvalue())
        errors.append(streams[1].getvalue())
        counted += counts.rows
    assert counted == 47
    assert [b"".join(answers), b"".join(errors)] == files_of(tmp_path / name)


def test_the_code_in_the_manual_computes_the_bytes_of_the_file(model, fit_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_csv(Path("rows.csv"), some_rows(47, bad=10))
    Path("model").symlink_to(fit_toy(epochs=6))
    page = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    gathered = [code.replace("16384", "10"), "    parts.append((answers.getvalue(), errors.getvalue()))\n"]
    found = {"parts": []}
    exec("".join(gathered), found)
    predicted(model, "rows.csv", "out.csv")
    head = io.BytesIO()
    found["output"].part_rows(head, header=True).finish()
    answers, errors = zip(*found["parts"], strict=True)
    assert [b"".join([head.getvalue(), *answers]), b"".join(errors)] == files_of(Path("out.csv"))


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_stream_has_the_bytes_of_a_job(name, model, tmp_path, monkeypatch, capsysbinary):
    rows = some_rows(50)
    source = write_csv(tmp_path / "in.csv", rows) if "csv" in name else write_jsonl(tmp_path / "in.jsonl", rows)
    predicted(model, source, tmp_path / name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(source.open("rb")))
    capsysbinary.readouterr()
    predicted(model, "-", "-")
    assert capsysbinary.readouterr().out == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("kernels", ["ours", "torch"])
def test_every_engine_gives_the_same_bytes_again(precision, kernels, fit_toy, tmp_path, monkeypatch):
    if kernels == "torch":
        monkeypatch.setenv("BERTHEAD_KERNELS", "torch")
    try:
        model = berthead.load(fit_toy(epochs=6), precision=precision, threads=1)
        computed_by = jobs.computed_by(Work.plan(model.predictor, PredictOptions(), ["text"], "in.csv"))
    except UsageError as error:
        pytest.skip(str(error))
    assert ("threads" in computed_by) == (computed_by["kernels"] in ("torch", "oneDNN"))
    source = write_csv(tmp_path / "in.csv", some_rows(60))
    predicted(model, source, tmp_path / "whole.csv", probabilities=True)
    for parts in (1, 4):
        stop_after(parts, monkeypatch, model, source, tmp_path / "out.csv", probabilities=True)
        model = berthead.load(fit_toy(epochs=6), precision=precision, threads=1)  # prepared anew
        predicted(model, source, tmp_path / "out.csv", probabilities=True, resume=True)
        assert files_of(tmp_path / "out.csv") == files_of(tmp_path / "whole.csv")


def test_joined_functions_are_resumed_too(fit_toy, tmp_path, monkeypatch):
    functions = {name: berthead.load(fit_toy(adapt="frozen", label=label, task=task))
                 for name, label, task in (("mood", "label", "classify"), ("stars", "stars", "regress"))}  # fmt: skip
    both = berthead.join(functions)
    source = write_csv(tmp_path / "in.csv", some_rows(45, bad=8))
    predicted(both, source, tmp_path / "whole.csv")
    stop_after(2, monkeypatch, both, source, tmp_path / "out.csv")
    predicted(both, source, tmp_path / "out.csv", resume=True)
    assert files_of(tmp_path / "out.csv") == files_of(tmp_path / "whole.csv")
    manifests = []
    stop_after(1, monkeypatch, both, source, tmp_path / "out.csv")
    manifests.append(json.loads((tmp_path / "out.csv.parts" / "manifest.json").read_text()))
    assert list(manifests[0]["functions"]) == ["mood", "stars"]


def test_several_files_are_one_table(model, tmp_path, monkeypatch):
    rows = some_rows(50, bad=11)
    predicted(model, write_csv(tmp_path / "all.csv", rows), tmp_path / "whole.csv")
    (tmp_path / "texts").mkdir()
    for number, first in enumerate((0, 3, 24)):
        write_csv(tmp_path / "texts" / f"{number}.csv", rows[first : (3, 24, 50)[number]])
    stop_after(2, monkeypatch, model, tmp_path / "texts" / "*.csv", tmp_path / "out.csv")
    predicted(model, tmp_path / "texts" / "*.csv", tmp_path / "out.csv", resume=True)
    answers, errors = files_of(tmp_path / "out.csv")
    assert answers == files_of(tmp_path / "whole.csv")[0]
    places = [json.loads(line)["where"].removeprefix(f"{tmp_path}/texts/") for line in errors.splitlines()]
    assert places == ["0.csv:2", "1.csv:10", "1.csv:21", "2.csv:11", "2.csv:22"]


def test_parquet_of_parts_keeps_schema_index_and_values(model, tmp_path, monkeypatch):
    frame = pd.DataFrame(
        {
            "text": [f"good cat {n}" for n in range(30)],
            "kind": pd.Categorical(["x", "y", None] * 10),
            "when": pd.to_datetime(["2020-01-02 03:04:05.123456789", None] * 15).astype("datetime64[ns]"),
            "tags": [["p"], []] * 15,
            "deep": [{"k": 1}, {"k": None}] * 15,
        },
        index=[f"r{n}" for n in range(30)],
    )
    frame.to_parquet(tmp_path / "in.parquet", row_group_size=7)
    stop_after(1, monkeypatch, model, tmp_path / "in.parquet", tmp_path / "out.parquet")
    predicted(model, tmp_path / "in.parquet", tmp_path / "out.parquet", resume=True)
    before, after = (pq.read_table(tmp_path / name) for name in ("in.parquet", "out.parquet"))
    assert after.drop_columns(["prediction", "score"]).schema.equals(before.schema, check_metadata=True)
    assert after.drop_columns(["prediction", "score"]).to_pylist() == before.to_pylist()
    read = pd.read_parquet(tmp_path / "out.parquet").drop(columns=["prediction", "score"])
    pd.testing.assert_frame_equal(read, frame)


def test_a_json_column_takes_the_type_that_holds_the_rows_of_all_parts(model, tmp_path):
    rows = [{"text": "good cat", "v": 1}] * 15 + [{"text": "bad cat", "v": 0.5, "more": "x"}]
    predicted(model, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["v"].to_pylist() == [1.0] * 15 + [0.5]
    assert table.schema.field("v").type == pa.float64()
    assert table["more"].to_pylist() == [None] * 15 + ["x"]


def test_columns_left_out_are_told_once_for_all_parts(model, tmp_path):
    rows = [{"text": "good cat", "id": n} for n in range(1001)] + [{"text": "bad", "id": 1, "late": 2}] * 25
    summary = predicted(model, write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.csv", part_rows=400)
    (note,) = summary.notes
    assert note.endswith('left out what only later rows have: "late"')


@pytest.mark.parametrize("name", ["out.csv.gz", "out.jsonl.zst"])
def test_the_output_is_packed_as_one(name, model, tmp_path):
    source = write_csv(tmp_path / "in.csv", some_rows(45))
    predicted(model, source, tmp_path / name)
    predicted(model, source, tmp_path / Path(name).stem)
    packed, plain = (tmp_path / name).read_bytes(), (tmp_path / Path(name).stem).read_bytes()
    if name.endswith("gz"):
        assert gzip.decompress(packed) == plain
    else:
        one = zstandard.ZstdDecompressor().decompressobj()
        assert (one.decompress(packed), one.unused_data) == (plain, b"")


# What may be gone on with, and what may not


@pytest.fixture
def stopped(model, tmp_path, monkeypatch):
    """A job with two whole parts: in.csv to out.csv."""
    source = write_csv(tmp_path / "in.csv", [row | {"other": row["text"]} for row in some_rows(45)])
    stop_after(2, monkeypatch, model, source, tmp_path / "out.csv")
    return source


def refused(model, source, target, match, **options):
    before = names(Path(f"{target}.parts"))
    with pytest.raises(UsageError, match=match) as caught:
        predicted(model, source, target, **options)
    assert caught.value.exit_code == 2
    assert names(Path(f"{target}.parts")) == before
    assert not Path(target).exists()
    return str(caught.value)


def test_a_folder_with_parts_is_an_error_that_says_both_ways_out(model, stopped, tmp_path):
    said = refused(model, stopped, tmp_path / "out.csv", "holds 2 finished parts of an interrupted job")
    assert said.endswith(f"Go on with --resume, or start over: rm -r {tmp_path}/out.csv.parts")


def test_another_input_is_refused_by_its_hash(model, stopped, tmp_path):
    data = stopped.read_bytes()
    stopped.write_bytes(data.replace(b"44,", b"45,"))
    match = r"holds parts of another job: .*in\.csv: its sha256 was [0-9a-f]{12}\.\.\., is [0-9a-f]{12}\.\.\."
    refused(model, stopped, tmp_path / "out.csv", match, resume=True)
    stopped.write_bytes(data + b"x")
    refused(model, stopped, tmp_path / "out.csv", r"in\.csv: its size was \d+, is \d+", resume=True)
    stopped.write_bytes(data)
    os.utime(stopped, ns=(1, 1))  # the same bytes at another time are the same input
    predicted(model, stopped, tmp_path / "out.csv", resume=True)


def test_an_input_of_another_name_is_refused(model, stopped, tmp_path):
    other = shutil.copy(stopped, tmp_path / "copy.csv")
    match = r"the input was .*in\.csv.*, is .*copy\.csv"
    refused(model, other, tmp_path / "out.csv", match, resume=True)
    refused(model, [stopped, other], tmp_path / "out.csv", r"the input was .*, is .*copy\.csv", resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"part_rows": 11}, "--part-rows was 10, is 11"),
        ({"probabilities": True}, "--probabilities was false, is true"),
        ({"text": "other"}, "--text was text, is other"),
    ],
)
def test_other_options_are_refused_by_name(options, said, model, stopped, tmp_path):
    refused(model, stopped, tmp_path / "out.csv", said, resume=True, **options)


def test_other_precisions_budgets_and_functions_are_refused(fit_toy, stopped, tmp_path):
    folder = fit_toy(epochs=6)
    for options, said in ({"precision": "bf16"}, "--precision was fp32, is bf16"), (
        {"token_budget": 99}, "--token-budget was 2048, is 99"
    ):  # fmt: skip
        refused(berthead.load(folder, **options), stopped, tmp_path / "out.csv", said, resume=True)
    other = berthead.load(fit_toy(epochs=2))
    said = refused(other, stopped, tmp_path / "out.csv", "the function: its theta_sha256 was ", resume=True)
    assert "omega_sha256" not in said  # one reason is enough
    head = berthead.load(folder).with_parameters(omega=other.omega)
    refused(head, stopped, tmp_path / "out.csv", "the function: its omega_sha256 was ", resume=True)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (("computed_by", "torch"), "torch was 1.0, is"),
        (("computed_by", "kernels"), "kernels was 1.0, is"),
        (("functions", "", "task", "temperature"), r"the function: its task\.temperature was 1\.0, is"),
        (("format_version",), r"format_version was 1\.0, is 1"),
    ],
)
def test_what_else_decides_the_bytes_is_refused(key, said, model, stopped, tmp_path):
    path = tmp_path / "out.csv.parts" / "manifest.json"
    manifest = at = json.loads(path.read_text())
    for name in key[:-1]:
        at = at[name]
    at[key[-1]] = "1.0"
    path.write_text(json.dumps(manifest))
    refused(model, stopped, tmp_path / "out.csv", said, resume=True)


@pytest.mark.parametrize("written", ["", "[]", '{"format_version": 1, "inputs": 3}'])
def test_a_damaged_manifest_is_refused(written, model, stopped, tmp_path):
    (tmp_path / "out.csv.parts" / "manifest.json").write_text(written)
    refused(model, stopped, tmp_path / "out.csv", "holds parts (but no manifest|of another job)", resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_where_nothing_was_done_a_job_begins(resume, model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(25))
    folder = tmp_path / "out.csv.parts"
    predicted(model, source, tmp_path / "out.csv", resume=resume)  # nothing to go on with at all
    stop_after(0, monkeypatch, model, source, tmp_path / "out.csv")
    assert not folder.exists()
    folder.mkdir()
    for name in (".000000.csv.part-77", "000000.csv", "manifest.json"):  # left by a process that was killed
        (folder / name).write_text("{}")
    predicted(model, source, tmp_path / "out.csv", resume=resume, probabilities=True)
    assert names(tmp_path) == ["in.csv", "out.csv"]


def test_the_old_output_stands_until_the_new_one_is_whole(model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(25))
    (tmp_path / "out.csv").write_text("old")
    old_errors = '{"where": "in.csv:2", "error": "old", "row": {}}\n'
    (tmp_path / "out.csv.errors.jsonl").write_text(old_errors)
    stop_after(2, monkeypatch, model, source, tmp_path / "out.csv")
    assert [path.read_text() for path in (tmp_path / "out.csv", tmp_path / "out.csv.errors.jsonl")] == [
        "old",
        old_errors,
    ]
    predicted(model, source, tmp_path / "out.csv", resume=True)
    assert names(tmp_path) == ["in.csv", "out.csv"]


@pytest.mark.parametrize("change", ["flipped", "short", "gone", "errors gone"])
def test_a_damaged_part_is_computed_again(change, model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(45, bad=7))
    predicted(model, source, tmp_path / "whole.csv")
    stop_after(3, monkeypatch, model, source, tmp_path / "out.csv")
    path = tmp_path / "out.csv.parts" / ("000001.errors.jsonl" if "errors" in change else "000001.csv")
    if "gone" in change:
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if change == "short" else bytes([data[0] ^ 1]) + data[1:])
    computed = []
    compute = jobs.compute_part
    monkeypatch.setattr(jobs, "compute_part", lambda *args: computed.append(1) or compute(*args))
    predicted(model, source, tmp_path / "out.csv", resume=True)
    assert len(computed) == 3  # this one, and the two that were missing
    assert files_of(tmp_path / "out.csv") == files_of(tmp_path / "whole.csv")


def test_an_input_that_changes_meanwhile_makes_no_part(model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(45))
    compute = jobs.compute_part

    def changing(*args):
        with source.open("a") as file:
            file.write("99,late cat\n")
        return compute(*args)

    monkeypatch.setattr(jobs, "compute_part", changing)
    with pytest.raises(DataError, match=r"in\.csv: was changed while it was read"):
        predicted(model, source, tmp_path / "out.csv")
    assert names(tmp_path) == ["in.csv"]


def test_two_processes_do_not_work_on_one_job(model, stopped, tmp_path):
    with open(tmp_path / "out.csv.parts" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the other process holds it
        for options in ({"resume": True}, {"shard": "1/2"}):
            refused(model, stopped, tmp_path / "out.csv", "another process is using it", **options)
        with pytest.raises(UsageError, match="another process is using it"):
            gather(str(tmp_path / "out.csv"))
    predicted(model, stopped, tmp_path / "out.csv", resume=True)


def test_a_disk_without_locks_is_no_obstacle(model, tmp_path, monkeypatch):
    def locked(*args):
        raise OSError(errno.ENOLCK, "no locks")

    def linked(*args):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(fcntl, "flock", locked)
    monkeypatch.setattr(os, "link", linked)
    predicted(model, write_csv(tmp_path / "in.csv", some_rows(25)), tmp_path / "out.csv")
    assert names(tmp_path) == ["in.csv", "out.csv"]


def test_files_of_others_in_the_folder_stay(model, stopped, tmp_path):
    (tmp_path / "out.csv.parts" / "mine.txt").write_text("mine")
    predicted(model, stopped, tmp_path / "out.csv", resume=True)
    assert names(tmp_path / "out.csv.parts") == ["mine.txt"]


THEIRS = [
    "000000.notes.txt", "000001.csv.bak", "lockfile", "lock.txt", "manifest.json.old", "end.jsonl", ".lockers",
    "20240101.csv", "999999.json.txt", ".000001.csv.part-7.swp", "000001", "lock-1-of-2-mine",
]  # fmt: skip


@pytest.mark.parametrize("finished", [0, 2])
def test_files_of_others_stay_whose_names_begin_like_those_of_the_job(finished, model, tmp_path, monkeypatch):
    source, folder = write_csv(tmp_path / "in.csv", some_rows(25)), tmp_path / "out.csv.parts"
    stop_after(finished, monkeypatch, model, source, tmp_path / "out.csv")
    folder.mkdir(exist_ok=True)
    for name in THEIRS:
        (folder / name).write_text("mine")
    (folder / ".000003.csv.part-77").write_text("of a process that was killed")
    (folder / "000002.csv").write_text("of a process that was killed")
    predicted(model, source, tmp_path / "out.csv", resume=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(THEIRS, "mine")


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("way", ["job", "stream", "shard"])
def test_a_file_of_others_is_not_taken_for_bad_rows(way, bad, fit_toy, tmp_path, cli):
    source = write_csv(tmp_path / "in.csv", some_rows(5, bad=5 if bad else 0))
    theirs = tmp_path / "out.csv.errors.jsonl"
    words = ("predict", fit_toy(epochs=6), "-" if way == "stream" else source, "--out", tmp_path / "out.csv", "--quiet")
    more = ("--shard", "1/1") if way == "shard" else ()
    for text in ("mine", '{"error": 1}\n', " "):
        theirs.write_text(text)
        ran = cli(*words, *more, stdin=source.read_bytes())
        assert (ran.code, ran.out) == (6, "")
        assert "out.csv.errors.jsonl: is there already, and no file of bad rows that berthead wrote" in ran.err
        assert theirs.read_text() == text
        assert names(tmp_path) == ["in.csv", theirs.name]
    theirs.write_text('{"where": "in.csv:9", "error": "old", "row": {}}\n')
    assert cli(*words, *more, stdin=source.read_bytes()).code == (4 if bad else 0)
    if way != "shard":
        assert theirs.exists() is bad
        assert "old" not in (theirs.read_text() if bad else "")


def test_rows_that_an_earlier_interruption_left_are_kept(tmp_path):
    for number in range(3):
        writer = open_writer(tmp_path / "out.csv", "csv", ["text"], None, {})
        writer.write({"text": str(number)})
        writer.keep()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {
        "out.csv.partial": "text\n0\n", "out.csv.partial-2": "text\n1\n", "out.csv.partial-3": "text\n2\n"
    }  # fmt: skip


@pytest.mark.parametrize(("flag", "options"), [("--resume", {"resume": True}), ("--shard", {"shard": "1/2"})])
def test_streams_can_be_neither_resumed_nor_shared(flag, options, model, tmp_path):
    write_csv(tmp_path / "in.csv", some_rows(5))
    os.mkfifo(tmp_path / "pipe.csv")
    for source, target, said in [
        ("-", tmp_path / "out.csv", "stdin cannot be read twice; expected a file as IN"),
        (tmp_path / "pipe.csv", tmp_path / "out.csv", r".*pipe\.csv, a pipe, cannot be read twice"),
        (tmp_path / "in.csv", "-", "stdout keeps no parts; expected a file: --out FILE"),
    ]:
        with pytest.raises(UsageError, match=f"{flag}: {said}"):
            predicted(model, source, target, **options)


# Shards


def test_what_shards_are_missing_is_said(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", some_rows(75))
    target = str(tmp_path / "out.csv")
    with pytest.raises(
        UsageError, match=r"out\.csv\.parts: does not exist; expected a folder that berthead predict --shard left"
    ):
        gather(target)
    predicted(model, source, target, shard="2/4")
    with pytest.raises(UsageError, match=r"6 parts of shards 1/4, 3/4, 4/4 are missing: 0, 2, 3, 4, 6, 7"):
        gather(target)
    for shard in ("1/4", "4/4"):
        predicted(model, source, target, shard=shard)
    with pytest.raises(UsageError, match=r"2 parts of shard 3/4 are missing: 2, 6\. Let these shards finish"):
        gather(target)
    (tmp_path / "out.csv.parts" / "end.json").rename(tmp_path / "end.json")
    with pytest.raises(UsageError, match="no shard has read all of the input"):
        gather(target)
    (tmp_path / "end.json").rename(tmp_path / "out.csv.parts" / "end.json")
    predicted(model, source, target, shard="3/4")
    assert gather(target).rows == 75
    predicted(model, source, tmp_path / "whole.csv")
    assert files_of(tmp_path / "out.csv") == files_of(tmp_path / "whole.csv")
    assert names(tmp_path) == ["in.csv", "out.csv", "whole.csv"]


def test_shards_of_several_machines_are_gathered_from_their_folders(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", some_rows(55, bad=6))
    places = []
    for number in (1, 2, 3):
        (tmp_path / f"machine{number}").mkdir()
        predicted(model, source, tmp_path / f"machine{number}" / "out.csv", shard=f"{number}/3")
        places.append(str(tmp_path / f"machine{number}" / "out.csv.parts"))
    predicted(model, source, tmp_path / "whole.csv.gz")
    with pytest.raises(UsageError, match="2 parts of shard 3/3 are missing"):
        gather(str(tmp_path / "out.csv.gz"), places[:2])
    with pytest.raises(UsageError, match=r"out\.parquet: is parquet; expected csv, as the parts are"):
        gather(str(tmp_path / "out.parquet"), places)
    summary = gather(str(tmp_path / "out.csv.gz"), places)
    assert (summary.rows, summary.failed) == (55, 10)
    assert files_of(tmp_path / "out.csv.gz") == files_of(tmp_path / "whole.csv.gz")
    assert all(Path(place).is_dir() for place in places)  # they are the user's to remove


def test_shards_of_other_jobs_are_not_mixed(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", some_rows(45))
    for number, probabilities in ((1, False), (2, True)):
        target = tmp_path / f"{number}.csv"
        predicted(model, source, target, shard=f"{number}/2", probabilities=probabilities)
    folders = [str(tmp_path / f"{number}.csv.parts") for number in (1, 2)]
    with pytest.raises(
        UsageError, match=r"2\.csv\.parts: is of another job than .*1\.csv\.parts: --probabilities was false"
    ):
        gather(str(tmp_path / "out.csv"), folders)
    with pytest.raises(UsageError, match=r"holds parts of another job: --probabilities was false, is true"):
        predicted(model, source, tmp_path / "1.csv", shard="2/2", probabilities=True)


def test_a_part_that_two_shards_computed_otherwise_is_refused(model, tmp_path):
    source = write_csv(tmp_path / "in.csv", some_rows(25))
    for name in ("a.csv", "b.csv"):
        predicted(model, source, tmp_path / name, shard="1/1")
    part = tmp_path / "b.csv.parts" / "000001"
    record = json.loads(part.with_suffix(".json").read_text())
    part.with_suffix(".csv").write_bytes(b"other\n")
    import hashlib

    record["sha256"] = [hashlib.sha256(b"other\n").hexdigest()]
    part.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"b\.csv\.parts: its part 1 differs from the one in .*a\.csv\.parts"):
        gather(str(tmp_path / "out.csv"), [str(tmp_path / f"{name}.csv.parts") for name in "ab"])


def test_a_shard_goes_on_like_a_job(model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(95))
    target = tmp_path / "out.csv"
    stop_after(2, monkeypatch, model, source, target, shard="1/2")
    predicted(model, source, target, shard="2/2")  # the other's parts are no obstacle
    refused(model, source, target, "holds 2 finished parts of an interrupted job. Go on with --resume", shard="1/2")
    assert predicted(model, source, target, shard="1/2", resume=True).rows == 50
    assert predicted(model, source, target, shard="1/2", resume=True).rows == 50  # done is done
    with pytest.raises(UsageError, match=r"--shard: is 3/2; expected 1/2 to 2/2"):
        predicted(model, source, target, shard="3/2", resume=True)
    assert gather(str(target)).rows == 95


def test_the_verbs_work_together(cli, fit_toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fit_toy(epochs=6)
    rows = some_rows(30, bad=9)
    write_csv(Path("a.csv"), rows[:11])
    write_csv(Path("b.csv"), rows[11:])
    flags = ["--part-rows", 8, "--quiet"]
    ran = cli("predict", folder, "a.csv", "b.csv", "--out", "whole.csv", *flags)
    assert ran.code == 4, ran.err
    for number in (1, 2):
        ran = cli("predict", folder, "[ab].csv", "--out", "out.csv", "--shard", f"{number}/2", *flags[:2])
        assert ran.code == 4, ran.err
        assert f"{14 if number == 1 else 12} rows written to out.csv.parts\n" in ran.err
        assert ran.err.endswith("when all shards are done: berthead gather out.csv\n")
    ran = cli("gather", "out.csv", "--json")
    assert ran.code == 4, ran.err
    assert json.loads(ran.out) == {
        "out": "out.csv", "rows": 30, "failed": 4, "truncated": 0, "windowed": 0, "errors": "out.csv.errors.jsonl"
    }  # fmt: skip
    assert "4 of 30 rows have no answer; see out.csv.errors.jsonl" in ran.err
    assert files_of(Path("out.csv")) == files_of(Path("whole.csv"))
    with open("out.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [row["id"] for row in rows if row["text"]]
    ran = cli("gather", "out.csv")
    assert (ran.code, ran.out) == (2, "")
    ran = cli("predict", folder, "a.csv", "answers.csv")
    assert ran.code == 2
    assert "--out answers.csv" in ran.err


# Progress


def test_progress_after_a_resume_counts_what_was_done_and_not_its_speed(monkeypatch, capsys):
    now = 0
    monkeypatch.setattr("berthead.progress.time.monotonic", lambda: now)
    with Progress("predict", 1000, "rows", done=600, log_s=15) as progress:
        for now in (10, 20, 30, 40):  # noqa: B007 - the clock reads it
            progress.advance(50)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "predict: 700 of 1,000 rows, 5/s, 0:01:00 left",
        "predict: 800 of 1,000 rows, 5/s, 0:00:40 left",
    ]
    quiet = Progress("predict", None, "rows", quiet=True, log_s=0)
    quiet.advance(3)
    assert quiet.line.startswith("predict: 3 rows, ")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shard", [None, "2/2"])
def test_a_resumed_job_shows_what_is_left(shard, model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(95))
    made = []
    monkeypatch.setattr(jobs, "Progress", lambda *args, **more: made.append(Progress(*args, **more)) or made[-1])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stop_after(3, monkeypatch, model, source, tmp_path / "out.csv", shard=shard)
    options = PredictOptions(part_rows=10, resume=True, shard=shard)
    predict_file(model.predictor, str(source), str(tmp_path / "out.csv"), options)
    bar = made[-1]._bar.tasks[0]
    total = 95 if shard is None else 45
    assert (made[-1].total, made[-1].done, bar.total, bar.completed) == (total, total, total, total)
    assert made[-1]._before == 30


# Disks


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_full_disk_keeps_whole_parts_and_the_job_goes_on(name, model, tmp_path, small_disk):
    rows = [row | {"noise": os.urandom(1000).hex()} for row in some_rows(45)]
    source = write_csv(tmp_path / "in.csv", rows)
    predicted(model, source, tmp_path / name)
    (small_disk / "ballast").write_bytes(bytes(110_000))
    with pytest.raises(OutputError, match=rf"{name}: the disk is full\. Free some space.* Then go on: the same call"):
        predicted(model, source, small_disk / name)
    assert names(small_disk) == ["ballast", f"{name}.parts"]
    kept = [path for path in (small_disk / f"{name}.parts").iterdir() if path.name.startswith(".")]
    assert kept == []  # nothing half-written
    (small_disk / "ballast").unlink()
    with pytest.raises(
        OutputError, match="the disk is full"
    ) as caught:  # the parts fit, and not the output beside them
        predicted(model, source, small_disk / name, resume=True)
    assert caught.value.exit_code == 6
    assert names(small_disk) == [f"{name}.parts"]
    subprocess.run(["mount", "-o", "remount,size=400k", small_disk], check=True)
    predicted(model, source, small_disk / name, resume=True)
    assert files_of(small_disk / name) == files_of(tmp_path / name)
    assert names(small_disk) == [name]


def test_a_disk_that_is_full_from_the_start_leaves_nothing(model, tmp_path, small_disk):
    source = write_csv(tmp_path / "in.csv", some_rows(45))
    with open(small_disk / "ballast", "wb") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(4096))
    with pytest.raises(OutputError, match="the disk is full"):
        predicted(model, source, small_disk / "out.csv")
    assert names(small_disk) == ["ballast"]


def test_a_limit_on_file_sizes_is_told_and_the_job_goes_on(model, tmp_path):
    rows = [row | {"noise": os.urandom(500).hex()} for row in some_rows(45)]
    source = write_csv(tmp_path / "in.csv", rows)
    predicted(model, source, tmp_path / "whole.csv")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # the parts fit, and not the output
    try:
        with pytest.raises(OutputError, match=r"out\.csv: the file exceeds the allowed size.* Then go on"):
            predicted(model, source, tmp_path / "out.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["in.csv", "out.csv.parts", "whole.csv"]
    predicted(model, source, tmp_path / "out.csv", resume=True)
    assert files_of(tmp_path / "out.csv") == files_of(tmp_path / "whole.csv")


@pytest.mark.parametrize("gone", ["out.csv.parts", "."])
def test_a_folder_that_vanishes_is_an_output_error(gone, model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(45))
    (tmp_path / "there").mkdir()
    compute, left = jobs.compute_part, iter(range(2))

    def vanishing(*args):
        if next(left, None) is None:
            shutil.rmtree(tmp_path / "there" / gone)
        return compute(*args)

    monkeypatch.setattr(jobs, "compute_part", vanishing)
    with pytest.raises(OutputError, match=r"out\.csv: cannot be written \(No such file or directory\)"):
        predicted(model, source, tmp_path / "there" / "out.csv")
    assert not (tmp_path / "there" / "out.csv").exists()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_mount_that_vanishes_writes_nothing_under_it_and_the_job_goes_on(
    name, model, tmp_path, monkeypatch, small_disk
):
    source = write_csv(tmp_path / "in.csv", some_rows(45))
    predicted(model, source, tmp_path / name)
    share = tmp_path / "share"
    share.mkdir()
    subprocess.run(["mount", "--bind", small_disk, share], check=True)
    compute, left = jobs.compute_part, iter(range(2))

    def vanishing(*args):
        if next(left, None) is None and share.is_mount():
            subprocess.run(["umount", "--lazy", share], check=True)
        return compute(*args)

    monkeypatch.setattr(jobs, "compute_part", vanishing)
    with pytest.raises(OutputError, match=rf"{name}: cannot be written"):
        predicted(model, source, share / name)
    assert not share.is_mount()
    assert names(share) == []  # the folder beneath the mount
    assert names(small_disk) == [f"{name}.parts"]
    monkeypatch.undo()
    subprocess.run(["mount", "--bind", small_disk, share], check=True)
    try:
        predicted(model, source, share / name, resume=True)
        assert files_of(share / name) == files_of(tmp_path / name)
        assert names(share) == [name]
    finally:
        subprocess.run(["umount", share], check=True)


def test_a_link_is_followed_and_the_parts_lie_beside_the_file(model, tmp_path, monkeypatch):
    source = write_csv(tmp_path / "in.csv", some_rows(25))
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "disk" / "real.csv")
    stop_after(1, monkeypatch, model, source, tmp_path / "out.csv")
    assert names(tmp_path / "disk") == ["real.csv.parts"]
    predicted(model, source, tmp_path / "out.csv", resume=True)
    assert names(tmp_path / "disk") == ["real.csv"]
    assert (tmp_path / "out.csv").is_symlink()

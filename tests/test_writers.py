"""Writing rows: every format, all or nothing, full disks and broken pipes."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berthead.errors import OutputError, UsageError
from berthead.formats.readers import open_rows
from berthead.formats.writers import check_writable, open_writer

QUICK = settings(max_examples=tries(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.text(
    st.sampled_from(list("\",;\t|\r\n\0 '\\é😀\u2028")), max_size=8
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["out.csv", "out.tsv", "out.jsonl", "out.csv.gz", "out.jsonl.gz", "out.parquet"]


def write(path, rows, source="csv", columns=("text",), schema=None, added=None):
    with open_writer(path, source, list(columns), schema, added or {}) as writer:
        for row in rows:
            writer.write(row)
    return writer


def read(path):
    with open_rows(path) as rows:
        return [row.values for row in rows]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def copy(source, target, added=None, extra=None):
    with open_rows(source) as rows, open_writer(target, rows.format, rows.columns, rows.schema, added or {}) as writer:
        for row in rows:
            writer.write(row.values | (extra or {}))


# Every format


@QUICK
@given(
    columns=st.lists(TEXT.filter(str.strip), min_size=1, max_size=3, unique=True),
    data=st.data(),
    name=st.sampled_from(NAMES),
)
def test_cells_of_text_come_back_exactly_in_every_format(tmp_path, columns, data, name):
    # A mark that is the very first character of a file is taken for its byte order mark.
    columns = [f"c{column}" for column in columns]
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, TEXT)), min_size=1, max_size=4))
    write(tmp_path / name, rows, columns=columns)
    assert read(tmp_path / name) == rows


@QUICK
@given(rows=st.lists(st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=3), min_size=1, max_size=4))
def test_json_lines_keep_values_types_and_order(tmp_path, rows):
    write(tmp_path / "a.jsonl", rows, "jsonl", rows[0])
    assert repr(read(tmp_path / "a.jsonl")) == repr(rows)


@QUICK
@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), JSON, min_size=1), min_size=1, max_size=6))
def test_any_json_lines_become_parquet_without_loss(tmp_path, rows):
    write(tmp_path / "a.parquet", rows, "jsonl", rows[0])
    table = pq.read_table(tmp_path / "a.parquet")
    for name in table.column_names:
        wanted, got = [row.get(name) for row in rows], table[name].to_pylist()
        if pa.types.is_string(table.schema.field(name).type) and not all(isinstance(v, str | None) for v in wanted):
            got = [v if v is None or isinstance(w, str) else json.loads(v) for v, w in zip(got, wanted, strict=True)]
        assert str(got) == str(wanted) or got == wanted


def test_csv_is_minimal_with_lf_and_empty_for_none(tmp_path):
    rows = [{"text": 'a "b", c', "n": None}, {"text": "plain text", "n": 0.1}, {"text": "", "n": 1e22}]
    write(tmp_path / "a.csv", rows, columns=["text", "n"])
    assert (tmp_path / "a.csv").read_bytes() == b'text,n\n"a ""b"", c",\nplain text,0.1\n,1e+22\n'


def test_csv_cells_that_are_not_text_are_json(tmp_path):
    row = {"a": [1, "é"], "b": {"k": None}, "c": True, "d": 3, "e": datetime(2020, 1, 2, 3), "f": np.float64(0.1)}
    write(tmp_path / "a.csv", [row | {"g": Decimal("1.50"), "h": np.array([1, 2]), "i": b"x"}], columns=[*row, *"ghi"])
    assert list(read(tmp_path / "a.csv")[0].values()) == [
        *['[1, "é"]', '{"k": null}', "true", "3", "2020-01-02T03:00:00", "0.1", "1.50", "[1, 2]", "x"]
    ]


def test_json_lines_write_numpy_dates_decimals_and_bytes(tmp_path):
    row = {
        "a": np.int64(3),
        "b": np.float32(0.5),
        "c": datetime(2020, 1, 2),
        "d": Decimal("1.50"),
        "e": b"\xff",
        "f": {1},
    }
    write(tmp_path / "a.jsonl", [row], "parquet")
    assert read(tmp_path / "a.jsonl")[0] == {
        "a": 3,
        "b": 0.5,
        "c": "2020-01-02T00:00:00",
        "d": "1.50",
        "e": "\\xff",
        "f": [1],
    }


def test_json_lines_are_not_escaped_to_ascii(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "é😀"}], "jsonl")
    assert (tmp_path / "a.jsonl").read_text("utf-8") == '{"text": "é😀"}\n'


@pytest.mark.parametrize("name", NAMES)
def test_half_a_surrogate_pair_never_stops_the_writing(tmp_path, name):
    write(tmp_path / name, [{"text": "a\ud800b", "p": "\udc00"}], "jsonl", added={"p": str})
    kept = "a\ud800b" if "jsonl" in name else "a\\ud800b"
    assert read(tmp_path / name)[0]["text"] == kept


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_make_a_readable_file(tmp_path, name):
    write(tmp_path / name, [], columns=["text"], added={"prediction": str})
    if "jsonl" in name:
        assert gzip.compress(b"") if name.endswith("gz") else (tmp_path / name).read_bytes() == b""
    else:
        with open_rows(tmp_path / name) as rows:
            assert (rows.columns, list(rows)) == (["text", "prediction"], [])


def test_input_columns_come_first_and_an_added_one_may_replace_one(tmp_path):
    write(tmp_path / "a.csv", [{"prediction": "x", "text": "a", "score": 1.0}], columns=["prediction", "text"],
          added={"prediction": str, "score": float})  # fmt: skip
    assert (tmp_path / "a.csv").read_text() == "prediction,text,score\nx,a,1.0\n"


def test_a_name_with_another_delimiter_does_not_mislead_readers(tmp_path):
    write(tmp_path / "a.csv", [{"a;b;c": "x", "p|q": "y"}], columns=["a;b;c", "p|q"])
    assert read(tmp_path / "a.csv") == [{"a;b;c": "x", "p|q": "y"}]


def test_csv_notes_the_columns_that_only_later_rows_have(tmp_path):
    writer = write(tmp_path / "a.csv", [{"text": "a"}, {"text": "b", "more": 1, "yet": 2}], "jsonl")
    assert writer.notes == [
        f'{tmp_path}/a.csv: the header comes from the first row; left out what only later rows have: "more", "yet"'
    ]
    assert write(tmp_path / "b.csv", [{"text": "a"}]).notes == []


def test_gzip_bytes_depend_on_the_rows_alone(tmp_path):
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "a.csv.gz", tmp_path / "other" / "b.csv.gz"):
        write(path, [{"text": "x"}] * 1000)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "other" / "b.csv.gz").read_bytes()


# Parquet


def test_parquet_to_parquet_keeps_schema_index_and_values(tmp_path):
    frame = pd.DataFrame(
        {
            "text": ["a", None],
            "small": np.array([1, 2], dtype=np.int8),
            "when": pd.to_datetime(["2020-01-02 03:04:05.123456789", None]).astype("datetime64[ns]"),
            "kind": pd.Categorical(["x", "y"]),
            "tags": [["p"], []],
            "price": [Decimal("1.50"), None],
            "raw": [b"\xff", None],
            "deep": [{"k": 1}, {"k": None}],
        },
        index=["r1", "r2"],
    )
    frame.to_parquet(tmp_path / "in.parquet")
    copy(tmp_path / "in.parquet", tmp_path / "out.parquet", {"p": str, "s": float}, {"p": "yes", "s": np.float32(0.5)})
    before, after = (pq.read_table(tmp_path / name) for name in ("in.parquet", "out.parquet"))
    assert after.schema.remove(len(after.schema) - 1).remove(len(after.schema) - 2).equals(before.schema)
    assert after.drop_columns(["p", "s"]).equals(before)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet").drop(columns=["p", "s"]), frame)
    assert after["s"].to_pylist() == [0.5, 0.5]


def test_parquet_dates_beyond_python_survive_the_copy(tmp_path):
    column = pa.array([1, 400_000 * 365 * 86_400, None]).cast(pa.timestamp("s"))
    pq.write_table(pa.table({"when": column}), tmp_path / "in.parquet")
    copy(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(tmp_path / "in.parquet"))


def test_csv_to_parquet_gives_text_and_typed_additions(tmp_path):
    added = {"p": str, "s": float, "n": int, "many": list, "flag": bool}
    rows = [{"text": "007", "p": 1, "s": 0.5, "n": 3, "many": ["a", 1], "flag": True}, {"text": None}]
    write(tmp_path / "a.parquet", rows, added=added)
    table = pq.read_table(tmp_path / "a.parquet")
    kinds = [pa.string(), pa.string(), pa.float64(), pa.int64(), pa.list_(pa.string()), pa.bool_()]
    assert table.schema.types == kinds
    assert table.to_pylist()[0] == {"text": "007", "p": "1", "s": 0.5, "n": 3, "many": ["a", "1"], "flag": True}


@pytest.mark.parametrize(
    ("first", "later", "kind", "written"),
    [
        (1, 0.5, pa.float64(), [1.0, 0.5]),
        (1, "x", pa.string(), ["1", "x"]),
        (None, 7, pa.int64(), [None, 7]),
        (None, None, pa.string(), [None, None]),
        ([], ["a"], pa.list_(pa.string()), [[], ["a"]]),
        ({"a": 1}, {"b": 2}, pa.string(), ['{"a": 1}', '{"b": 2}']),
        (0.5, True, pa.string(), ["0.5", "true"]),
        (2**60 + 1, 0.5, pa.string(), [str(2**60 + 1), "0.5"]),
    ],
)
@pytest.mark.parametrize("rows", [1, 5000])
def test_a_json_column_takes_the_type_that_holds_all_rows(tmp_path, first, later, kind, written, rows):
    write(tmp_path / "a.parquet", [{"v": first}] * rows + [{"v": later}], "jsonl", ["v"])
    column = pq.read_table(tmp_path / "a.parquet")["v"]
    assert (column.type, column.to_pylist()) == (kind, [written[0]] * rows + [written[1]])


def test_columns_of_later_json_rows_are_columns_of_the_parquet_file(tmp_path):
    write(tmp_path / "a.parquet", [{"a": "x"}, {"b": 1}], "jsonl", ["a"], added={"p": str})
    assert read(tmp_path / "a.parquet") == [{"a": "x", "p": None, "b": None}, {"a": None, "p": None, "b": 1}]


def test_a_value_that_fits_no_type_is_an_output_error(tmp_path):
    writer = open_writer(tmp_path / "a.parquet", "parquet", ["n"], pa.schema([("n", pa.int64())]), {})
    writer.write({"n": "many"})
    with pytest.raises(OutputError, match=r'column "n": a value does not fit the Parquet type int64\. Write a \.jsonl'):
        writer.commit()
    assert names(tmp_path) == []


# All or nothing


def broken_off(rows, kind):
    yield from rows
    raise kind


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stands_at_the_target_before_the_commit(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    with open_writer(path, "jsonl", ["text"], None, {}) as writer:
        writer.write({"text": "new"})
        assert path.read_text() == "old"
        assert names(tmp_path) == sorted([f".{name}.part-{os.getpid()}", name])
    assert names(tmp_path) == [name]
    assert read(path) == [{"text": "new"}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, name, kind):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(kind):
        write(path, broken_off([{"text": "new"}], kind), "jsonl")
    assert (path.read_text(), names(tmp_path)) == ("old", [name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["jsonl", "csv"])
def test_an_interrupted_job_can_keep_its_rows(tmp_path, name, source):
    path = tmp_path / name
    with suppress(KeyboardInterrupt), open_writer(path, source, ["text"], None, {}) as writer:
        writer.write({"text": "a"})
        kept = writer.keep()
        raise KeyboardInterrupt
    assert kept == tmp_path / f"{name}.partial"
    assert names(tmp_path) == [kept.name]
    assert read(kept.rename(path)) == [{"text": "a"}]


def test_a_link_is_followed_and_a_stale_part_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "real" / "out.csv")
    (tmp_path / "real" / f".out.csv.part-{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "out.csv", [{"text": "a"}])
    assert (tmp_path / "out.csv").is_symlink()
    assert names(tmp_path / "real") == ["out.csv"]
    assert not (tmp_path / "elsewhere").exists()


def test_the_input_may_be_replaced_by_the_output(tmp_path):
    write(tmp_path / "a.csv", [{"text": str(i)} for i in range(20_000)])
    copy(tmp_path / "a.csv", tmp_path / "a.csv", {"p": str}, {"p": "x"})
    assert read(tmp_path / "a.csv")[-1] == {"text": "19999", "p": "x"}


# Places that cannot be written


def refused(path):
    with pytest.raises(OutputError) as early:
        check_writable(path)
    with pytest.raises(OutputError) as late:
        open_writer(path, "csv", ["text"], None, {})
    assert str(early.value) == str(late.value)
    return str(early.value)


def test_folders_devices_and_missing_folders_are_refused_early(tmp_path):
    folder = tmp_path / "d.csv"
    folder.mkdir()
    assert (
        refused(folder) == f"{folder}: is a folder; expected a file name. Name a file in it: {folder}/predictions.csv"
    )
    assert f"Create it: mkdir -p {tmp_path}/none" in refused(tmp_path / "none" / "a.csv")
    (tmp_path / "file").write_text("x")
    assert "cannot be written (Not a directory)" in refused(tmp_path / "file" / "a.csv")
    (tmp_path / "null.csv").symlink_to("/dev/null")
    assert "is a device or a pipe" in refused(tmp_path / "null.csv")
    assert "cannot be written (File name too long)" in refused(tmp_path / ("a" * 252 + ".csv"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert "cannot be written (Permission denied)" in refused(tmp_path / "a.csv")
    tmp_path.chmod(0o700)


def test_an_unknown_extension_is_refused_early(tmp_path):
    with pytest.raises(UsageError, match=r'has the extension "\.xls"'):
        check_writable(tmp_path / "a.xls")


def test_the_early_check_leaves_no_trace(tmp_path):
    (tmp_path / "a.csv").write_text("old")
    check_writable(tmp_path / "a.csv")
    check_writable(tmp_path / "b.parquet")
    check_writable("-")
    assert names(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


@pytest.fixture
def small_files():
    """Files of at most 50,000 bytes in this process; the error is EFBIG where a full disk gives ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["jsonl", "csv"])
@pytest.mark.parametrize("rows", [600, 20_000])
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, small_files, capsys, name, source, rows):
    noise = np.random.default_rng(0)
    with pytest.raises(OutputError, match=r"out\..*: the file exceeds the allowed size\. Raise"):
        write(tmp_path / name, ({"text": noise.bytes(150).hex()} for _ in range(rows)), source)
    assert names(tmp_path) == []
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_says_so(tmp_path):
    with open("/dev/full", "wb") as full:  # gives ENOSPC at the flush
        writer = open_writer(tmp_path / "a.csv", "csv", ["text"], None, {})
        os.dup2(full.fileno(), writer._sink.file.fileno())
        writer.write({"text": "a"})
        with pytest.raises(OutputError, match=r"a\.csv: the disk is full\. Free some space"):
            writer.commit()
    assert names(tmp_path) == []


# Standard output


@pytest.mark.parametrize(
    ("source", "wanted"),
    [("csv", "text\né\n"), ("tsv", "text\né\n"), ("jsonl", '{"text": "é"}\n'), ("parquet", '{"text": "é"}\n')],
)
def test_standard_output_has_the_format_of_the_source(monkeypatch, source, wanted):
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", out)
    writer = write("-", [{"text": "é"}], source)
    assert out.buffer.getvalue().decode() == wanted
    assert (writer.format, writer.keep()) == ("jsonl" if source == "parquet" else source, None)


SCRIPT = """
import sys
from berthead.formats.writers import open_writer
from berthead.errors import OutputError
try:
    with open_writer("-", "csv", ["text"], None, {}) as writer:
        for i in range(100_000):
            writer.write({"text": str(i)})
except (BrokenPipeError, OutputError) as error:
    print(type(error).__name__, error, file=sys.stderr)
import os; os._exit(0)
"""


def test_a_broken_pipe_stays_a_broken_pipe_and_a_full_stdout_is_an_output_error():
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read().startswith(b"BrokenPipeError")
    process.wait()
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=full, stderr=subprocess.PIPE, check=True)
    assert done.stderr.startswith(b"OutputError stdout: the disk is full")


# Memory


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("a.csv.gz", "csv", marks=pytest.mark.exhaustive),
        pytest.param("a.jsonl", "jsonl", marks=pytest.mark.exhaustive),
        pytest.param("a.parquet", "csv", marks=pytest.mark.exhaustive),
        ("a.parquet", "jsonl"),
    ],
)
def test_memory_stays_flat_over_30000_rows(tmp_path, name, source):
    write(tmp_path / "warm.parquet", [{"text": "a"}])
    tracemalloc.start()
    write(tmp_path / name, ({"text": f"row {i}", "score": 0.5} for i in range(30_000)), source, added={"score": float})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000
    assert Path(tmp_path / name).stat().st_size > 50_000


def test_a_name_that_no_parquet_file_can_hold_is_refused_before_any_work(toy_model, tmp_path, cli):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "good cat", "\\ud800": 1}\n')
    ran = cli("predict", toy_model, source, "--out", tmp_path / "out.parquet")
    assert (ran.code, ran.out) == (6, "")
    assert "has a name that is no text (half a surrogate pair at position 0). Rename it, or write a .jsonl" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    for name in ("out.jsonl", "out.csv", "out.xlsx"):
        assert cli("predict", toy_model, source, "--out", tmp_path / name).code == 0

"""Reading rows: CSV, TSV, JSON Lines, Parquet, gzip and standard input."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berthead.errors import DataError, UsageError
from berthead.formats.readers import open_rows

QUICK = settings(max_examples=tries(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
AWKWARD = st.text(st.sampled_from(list('ab",;\t|\r\n\0 é漢😀\u2028\x85\x1c')), max_size=8)


def put(folder: Path, name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def read(path):
    with open_rows(path) as reader:
        return reader, list(reader)


def values(path):
    return [row.values for row in read(path)[1]]


def lines(rows):
    return [int(row.where.rsplit(":", 1)[1]) for row in rows]


# CSV as it stands


def test_csv_cells_stay_text(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\nNone,NA\nnull,\n1.50,007\nTRUE,2020-01-01\n")
    reader, rows = read(path)
    assert (reader.columns, reader.format, reader.notes) == (["text", "label"], "csv", [])
    assert [list(row.values.values()) for row in rows] == [
        ["None", "NA"],
        ["null", ""],
        ["1.50", "007"],
        ["TRUE", "2020-01-01"],
    ]
    assert rows[0].where == f"{path}:2"
    assert all(row.error is None for row in rows)


@QUICK
@given(table=st.lists(st.tuples(CELLS | AWKWARD, CELLS | AWKWARD), max_size=6), crlf=st.booleans(), quote=st.booleans())
def test_csv_of_the_csv_module_comes_back_exactly(tmp_path, table, crlf, quote):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        # QUOTE_ALL with LF: the minimal quoting of Python 3.11 leaves a bare CR unquoted then.
        quoting = csv.QUOTE_ALL if quote or not crlf else csv.QUOTE_MINIMAL
        writer = csv.writer(file, lineterminator="\r\n" if crlf else "\n", quoting=quoting)
        writer.writerows([("text", "label"), *table])
    rows = read(path)[1]
    assert [tuple(row.values.values()) for row in rows] == table
    assert all(row.error is None for row in rows)


@QUICK
@given(table=st.lists(st.tuples(AWKWARD, AWKWARD), min_size=1, max_size=6))
def test_line_numbers_are_where_rows_start_in_the_file(tmp_path, table):
    body = ['"' + a.replace('"', '""') + '","' + b.replace('"', '""') + '"\n' for a, b in table]
    path = put(tmp_path, "a.csv", "text,label\n" + "".join(body))
    starts = [2 + len("".join(body[:i]).encode().splitlines()) for i in range(len(body))]
    assert lines(read(path)[1]) == starts


def test_csv_of_pandas_comes_back_exactly(tmp_path):
    frame = pd.DataFrame({"text": ['say "hi"', "two\nlines", "a;b|c\td", "NA"], "label": ["x", "y", "", "z"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert values(tmp_path / "a.csv") == frame.to_dict("records")


def test_quoted_newlines_count_as_lines_and_stay_as_they_are(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\n"one\r\ntwo\rthree\nfour",x\n\nfive,y\n')
    rows = read(path)[1]
    assert rows[0].values["text"] == "one\r\ntwo\rthree\nfour"
    assert lines(rows) == [2, 7]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_line_end_is_known(tmp_path, end, last):
    path = put(tmp_path, "a.csv", end.join(["text,label", "a,x", "b,y"]) + end * last)
    rows = read(path)[1]
    assert [row.values["label"] for row in rows] == ["x", "y"]
    assert lines(rows) == [2, 3]


def test_a_line_end_across_two_reads_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr("berthead.formats.lines.CHUNK", 3)
    path = put(tmp_path, "a.csv", 'text,label\r\nab,x\r\n"c\r\nd",y\r\nlong without an end,z')
    rows = read(path)[1]
    assert [row.values["text"] for row in rows] == ["ab", "c\r\nd", "long without an end"]
    assert lines(rows) == [2, 3, 5]


def test_blank_lines_are_skipped_and_counted(tmp_path):
    rows = read(put(tmp_path, "a.csv", "\n  \ntext,label\n\na,x\n   \n\r\nb,y\n\n"))[1]
    assert lines(rows) == [5, 8]


def test_a_single_column_keeps_cells_of_spaces_and_quoted_empty_cells(tmp_path):
    assert values(put(tmp_path, "a.csv", 'text\n  \n""\n\nb\n')) == [{"text": "  "}, {"text": ""}, {"text": "b"}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_seen_in_the_header(tmp_path, delimiter):
    content = f'id{delimiter}"a,b;c|d\te,,;;||"{delimiter}label\n1{delimiter}x{delimiter}y\n'
    assert values(put(tmp_path, "a.csv", content)) == [{"id": "1", "a,b;c|d\te,,;;||": "x", "label": "y"}]


def test_tsv_prefers_the_tab_and_takes_what_is_there(tmp_path):
    assert read(put(tmp_path, "a.tsv", "a, b, c\tlabel\n"))[0].columns == ["a, b, c", "label"]
    assert read(put(tmp_path, "b.tsv", "text,label\n"))[0].columns == ["text", "label"]
    assert values(put(tmp_path, "c.tsv", "text\none, two\n")) == [{"text": "one, two"}]


def test_nul_bytes_and_huge_fields_survive(tmp_path):
    huge = "é" * 1_000_000
    path = put(tmp_path, "a.csv", f"text,label\na\0b,\0\n{huge},x\n")
    assert values(path) == [{"text": "a\0b", "label": "\0"}, {"text": huge, "label": "x"}]


@pytest.mark.parametrize(
    ("line", "error", "kept"),
    [
        ("a", "has 1 field; expected 2, as in the header", {"text": "a"}),
        ("a,b,c", "has 3 fields; expected 2, as in the header", {"text": "a", "label": "b", "": ["c"]}),
    ],
)
def test_a_ragged_row_is_an_error_with_what_could_be_read(tmp_path, line, error, kept):
    rows = read(put(tmp_path, "a.csv", f"text,label\n{line}\nok,fine\n"))[1]
    assert (rows[0].error, rows[0].values) == (error, kept)
    assert (rows[1].error, lines(rows)) == (None, [2, 3])


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_an_unclosed_quote_names_the_line_where_it_opens(tmp_path, end):
    rows = read(put(tmp_path, "a.csv", f'text,label\na,x\n"b\nc","d\ne\nf{end}'))[1]
    assert [row.error for row in rows] == [None, "the quote opened at line 4 is never closed"]
    assert rows[1].values == {"text": "b\nc", "label": f"d\ne\nf{end}"}


def test_a_quote_alone_at_the_end_is_an_error(tmp_path):
    assert read(put(tmp_path, "a.csv", 'text\na\n"'))[1][-1].error == "the quote opened at line 3 is never closed"


def test_a_header_with_an_unclosed_quote_is_refused(tmp_path):
    path = put(tmp_path, "a.csv", 'text,"label\na,x\n')
    with pytest.raises(DataError, match=rf"^{path}:1: the header opens a quote that is never closed\. Close"):
        open_rows(path)


def test_a_column_that_stands_twice_is_refused_by_name(tmp_path):
    path = put(tmp_path, "a.csv", "text,label,text\n")
    with pytest.raises(
        DataError, match=rf'^{path}:1: has the column "text" twice; expected each name once\. Rename one'
    ):
        open_rows(path)


def test_empty_header_names_get_their_number(tmp_path):
    assert read(put(tmp_path, "a.csv", ",text, \n"))[0].columns == ["column_1", "text", "column_3"]


def test_a_header_without_rows_gives_none(tmp_path):
    reader, rows = read(put(tmp_path, "a.csv", "text,label"))
    assert (reader.columns, rows) == (["text", "label"], [])


# Encodings


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_utf8_mark_is_dropped(tmp_path, name):
    assert values(put(tmp_path, name, codecs.BOM_UTF8 + b"text,label\nx,y\n")) == [{"text": "x", "label": "y"}]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_with_a_mark_is_read(tmp_path, codec):
    path = put(tmp_path, "a.csv", ('\ufefftext,label\r\n"é\n漢😀",y\r\nz,w').encode(codec))
    reader, rows = read(path)
    assert [row.values["text"] for row in rows] == ["é\n漢😀", "z"]
    assert (lines(rows), reader.notes) == ([2, 4], [])


def test_broken_utf16_is_refused(tmp_path):
    path = put(tmp_path, "a.csv", "text\nabc\n".encode("utf-16") + b"x")
    with pytest.raises(DataError, match=r"is not valid UTF-16 \(truncated data\)\. Save the file as UTF-8"):
        list(open_rows(path))


def test_lines_that_are_not_utf8_are_read_as_latin1_and_counted(tmp_path):
    content = b"text,label\n" + "café,naïve 漢\n".encode() + b"caf\xe9,\x93q\x94\n" + b"\x81\xff,x\n"
    reader, rows = read(put(tmp_path, "a.csv", content))
    assert [tuple(row.values.values()) for row in rows] == [("café", "naïve 漢"), ("café", "“q”"), ("\x81ÿ", "x")]
    assert reader.notes == [f"{reader.name}: 2 lines are not UTF-8; they were read as Latin-1 (Windows-1252)"]


def test_one_such_line_is_said_in_the_singular(tmp_path):
    path = put(tmp_path, "a.jsonl", b'{"text": "\xe9"}\n')
    assert read(path)[0].notes == [f"{path}: 1 line is not UTF-8; it was read as Latin-1 (Windows-1252)"]
    assert values(path) == [{"text": "é"}]


@QUICK
@given(data=st.binary(max_size=200), name=st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz"]))
def test_no_bytes_make_the_reader_fail_otherwise_than_with_a_data_error(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    places = []
    try:
        places += [row.where for row in read(tmp_path / name)[1]]
    except DataError as error:
        places.append(error.where)
    assert all(place.startswith(str(tmp_path / name)) for place in places)


# JSON Lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@QUICK
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), JSON, min_size=1, max_size=4), min_size=1, max_size=5))
def test_json_lines_keep_values_and_types(tmp_path, rows):
    path = put(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert repr(values(path)) == repr(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.NDJSON.gz"])
def test_json_lines_go_by_their_extensions(tmp_path, name):
    reader, rows = read(put(tmp_path, name, '\ufeff\n{"text": "a", "n": 1}\n\n{"text": "b", "more": []}\n'))
    assert (reader.format, reader.columns, lines(rows)) == ("jsonl", ["text", "n", "more"], [2, 4])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ', "Expecting value at column 10"),
        ("[1]", "it is a list"),
        ('"a"', "it is a text"),
        ("null", "it is null"),
        ("12", "it is a number"),
        ("true", "it is true or false"),
        ("[" * 100_000, "nested too deeply"),
        (
            '{"n": ' + "9" * 5000 + "}",
            "Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits",
        ),
    ],
)
def test_a_line_that_is_no_object_is_an_error_row(tmp_path, line, reason):
    reader, rows = read(put(tmp_path, "a.jsonl", f'{line}\n{{"text": "ok"}}\n'))
    assert (rows[0].values, rows[0].error) == ({}, f"is not a JSON object ({reason})")
    assert (reader.columns, lines(rows), rows[1].error) == (["text"], [1, 2], None)


def test_a_file_without_any_object_is_refused_with_its_first_line(tmp_path):
    path = put(tmp_path, "a.jsonl", "text,label\na,b\n")
    with pytest.raises(
        DataError, match=rf"^{path}:1: is not a JSON object \(Expecting value at column 1\); expected one object"
    ):
        open_rows(path)


def test_json_lines_bear_nan_and_half_surrogates(tmp_path):
    row = values(put(tmp_path, "a.jsonl", '{"a": NaN, "b": -Infinity, "c": "\\ud800", "a": Infinity}\n'))[0]
    assert row == {"a": float("inf"), "b": float("-inf"), "c": "\ud800"}


# Parquet


def test_parquet_keeps_types_and_none(tmp_path):
    frame = pd.DataFrame(
        {"text": ["a", None], "n": [1, 2], "x": [0.5, None], "when": [datetime(2020, 1, 2), None], "tags": [["p"], []]}
    )
    frame.to_parquet(tmp_path / "a.parquet")
    reader, rows = read(tmp_path / "a.parquet")
    assert (reader.format, reader.columns) == ("parquet", ["text", "n", "x", "when", "tags"])
    assert reader.schema.names == reader.columns
    assert rows[0].values == {"text": "a", "n": 1, "x": 0.5, "when": datetime(2020, 1, 2), "tags": ["p"]}
    assert rows[1].values == {"text": None, "n": 2, "x": None, "when": None, "tags": []}
    assert [row.where for row in rows] == [f"{tmp_path}/a.parquet:row 1", f"{tmp_path}/a.parquet:row 2"]


def test_parquet_dates_beyond_python_come_as_numbers_of_their_unit(tmp_path):
    column = pa.array([1, 400_000 * 365 * 86_400, None]).cast(pa.timestamp("s")).cast(pa.timestamp("ms"))
    pq.write_table(pa.table({"when": column}), tmp_path / "a.parquet")
    wanted = [datetime(1970, 1, 1, 0, 0, 1), 400_000 * 365 * 86_400_000, None]
    assert [row["when"] for row in values(tmp_path / "a.parquet")] == wanted


def test_nanoseconds_come_as_text_where_pandas_is_missing(tmp_path):
    column = pa.array([1000, 1_577_934_245_123_456_789]).cast(pa.timestamp("ns"))
    pq.write_table(pa.table({"when": column}), tmp_path / "a.parquet")
    (tmp_path / "pandas.py").write_text("raise ImportError('blocked')")
    code = f"""import sys; sys.path.insert(0, "{tmp_path}")
from berthead.formats.readers import open_rows
from berthead.formats.writers import open_writer
with open_rows("{tmp_path}/a.parquet") as rows:
    with open_writer("{tmp_path}/b.parquet", "parquet", rows.columns, rows.schema, {{}}) as writer:
        for row in rows:
            print(row.values["when"])
            writer.write(row.values)"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "1970-01-01 00:00:00.000001\n2020-01-02 03:04:05.123456789\n"
    assert pq.read_table(tmp_path / "b.parquet").equals(pq.read_table(tmp_path / "a.parquet"))


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path):
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match='has the column "a" twice'):
        open_rows(tmp_path / "a.parquet")


def test_parquet_damaged_inside_is_a_data_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(i) * 50 for i in range(5000)]}), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}:row 1: cannot be read"):
        list(open_rows(path))


# Files that cannot be read


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz"])
@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8, b"\n\r\n \n"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    with pytest.raises(DataError, match=r"is empty; expected a header or a first row\. Check"):
        open_rows(put(tmp_path, name, content))


@pytest.mark.parametrize("name", ["a.csv.gz", "a.parquet"])
def test_a_file_of_zero_bytes_is_empty_rather_than_damaged(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        open_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "saw"),
    [("a.xls", 'has the extension ".xls"'), ("a", "has no extension"), ("a.parquet.gz", '".parquet.gz"')],
)
def test_an_unknown_extension_names_the_known_ones(tmp_path, name, saw):
    with pytest.raises(
        UsageError, match=r"expected one of \.csv, \.tsv, .*\.conll, .* and \.parquet, \.xlsx\."
    ) as caught:
        open_rows(put(tmp_path, name, b"x"))
    assert saw in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    put(tmp_path, "reviews.csv", "text\n")
    with pytest.raises(DataError, match=r'does not exist\. Did you mean "reviews\.csv"\?'):
        open_rows(tmp_path / "review.csv")
    with pytest.raises(DataError, match=rf'does not exist\. The folder "{tmp_path}/none" does not exist either'):
        open_rows(tmp_path / "none" / "review.csv")


def test_folders_and_paths_under_files_are_refused(tmp_path):
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(DataError, match=r"is a folder; expected one file of rows. Name a file in it"):
        open_rows(tmp_path / "b.csv")
    put(tmp_path, "a.csv", "text\n")
    with pytest.raises(DataError, match=r"cannot be read \(Not a directory\)"):
        open_rows(tmp_path / "a.csv" / "b.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = Path(put(tmp_path, "a.csv", "text\n"))
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        open_rows(path)


def test_damaged_gzip_is_a_data_error(tmp_path):
    whole = gzip.compress(("text,label\n" + "".join(f"row {i * i},x\n" for i in range(50_000))).encode())
    for data, message in [
        (whole[:-20_000], "is a gzip file that ends too early"),
        (whole[:5000] + b"\0" * 5000 + whole[10_000:], r"is not a sound gzip file"),
        (b"text,label\n", r"is not a sound gzip file \(Not a gzipped file"),
    ]:
        (tmp_path / "a.csv.gz").write_bytes(data)
        with pytest.raises(DataError, match=message):
            list(open_rows(tmp_path / "a.csv.gz"))


def test_gzip_under_another_name_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(gzip.compress(b"text\nx\n"))
    assert values(tmp_path / "a.csv") == [{"text": "x"}]


def test_what_is_no_parquet_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is not a sound Parquet file \(.*\)\. Write the file again, or name"):
        open_rows(put(tmp_path, "a.parquet", b"text,label\n"))


def test_the_file_is_closed_at_the_end_and_after_a_failed_opening(tmp_path):
    def held():
        return [p for p in Path("/proc/self/fd").iterdir() if p.exists() and str(tmp_path) in str(p.readlink())]

    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    for path in [put(tmp_path, "a.csv", "text\nx\n"), put(tmp_path, "a.csv.gz", "text\nx\n"), tmp_path / "a.parquet"]:
        reader = open_rows(path)
        assert held()
        list(reader)
        assert not held()
    with pytest.raises(DataError):
        open_rows(put(tmp_path, "b.csv", "a,a\n"))
    assert not held()


# Standard input


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("content", "format"),
    [
        ("text,label\na,b\n", "csv"),
        ("text;label\na;b\n", "csv"),
        ("text\tlabel\na\tb\n", "tsv"),
        ('\n {"text": "a", "label": "b"}\n', "jsonl"),
    ],
)
def test_standard_input_is_sniffed_and_left_open(monkeypatch, content, format, zipped):
    data = content.encode()
    stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(data) if zipped else data))
    monkeypatch.setattr("sys.stdin", stdin)
    reader, rows = read("-")
    assert (reader.format, reader.columns, rows[0].where) == (format, ["text", "label"], "stdin:2")
    assert rows[0].values == {"text": "a", "label": "b"}
    assert not stdin.buffer.closed


def test_empty_or_parquet_standard_input_is_refused(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match=r"^stdin: is empty"):
        open_rows("-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"PAR1\x15\x04\n")))
    with pytest.raises(DataError, match=r"^stdin: is a Parquet file"):
        open_rows("-")


def test_a_pipe_that_gives_one_byte_at_a_time_is_read_whole(tmp_path):
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    data = codecs.BOM_UTF8 + 'text,label\n"é\n",x\n'.encode()

    def drip():
        with path.open("wb", buffering=0) as file:
            for byte in data:
                file.write(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert values(path) == [{"text": "é\n", "label": "x"}]
    thread.join()


# Memory and start


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_memory_stays_flat_over_40000_rows(tmp_path, name):
    count, path = 40_000, tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": [f"row {i}" * 5 for i in range(count)]}), path)
    else:
        line = '{{"text": "row {0}"}}\n' if "json" in name else "row {0}\n"
        put(tmp_path, name, "text\n" * ("csv" in name) + "".join(line.format(i) for i in range(count)))
    reader = open_rows(path)
    rows = iter(reader)
    next(rows)
    tracemalloc.start()
    assert sum(1 for _ in rows) == count - 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_importing_the_formats_loads_neither_pyarrow_nor_torch():
    code = "import sys, berthead.formats.writers; print({'pyarrow', 'torch', 'pandas'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"

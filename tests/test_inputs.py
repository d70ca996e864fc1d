"""What a job reads: several files as one table, patterns, zstd, rows left out, and files known again."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import tries
from hypothesis import given, settings
from hypothesis import strategies as st

import berthead
from berthead.errors import DataError, UsageError
from berthead.formats.parquet import ParquetReader
from berthead.formats.readers import format_of, open_rows
from berthead.formats.table import Table
from berthead.formats.writers import open_writer
from berthead.jobs.inputs import Fingerprint, matching

QUICK = settings(deadline=None, max_examples=tries(60))
FORMATS = ["csv", "tsv", "jsonl", "parquet", "conll", "json", "csv.gz", "jsonl.zst", "conll.zst"]


def write_rows(path: Path, texts: list[str], group: int = 3) -> str:
    """A file of any format with these words as texts, made by others than us."""
    frame = pd.DataFrame({"text": texts, "n": [text + "!" for text in texts]})
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".conll"):
        data = "".join(f"{text}\tB-x\n\n" for text in texts).encode()
    elif name.endswith(".json"):
        data = frame.to_json(orient="records").encode()
    elif name.endswith(".jsonl"):
        data = frame.to_json(orient="records", lines=True).encode()
    elif name.endswith(".parquet"):
        frame.to_parquet(path, index=False, row_group_size=group)
        return str(path)
    else:
        data = frame.to_csv(index=False, sep="\t" if name.endswith(".tsv") else ",").encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(packed.get(path.suffix, bytes)(data))
    return str(path)


def text_of(row) -> str:
    return row.values["tokens"][0] if "tokens" in row.values else row.values["text"]


# Rows left out


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=8)


@QUICK
@given(format=st.sampled_from(FORMATS), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), steps=STEPS)
def test_rows_are_taken_and_skipped_in_any_order_over_files(format, sizes, steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    words = [f"w{number}" for number in range(sum(sizes))]
    edges = [0, *itertools.accumulate(sizes)]
    files = [words[first:last] for first, last in itertools.pairwise(edges)]
    paths = [write_rows(folder / f"{number}.{format}", some, group=2) for number, some in enumerate(files)]
    left = words
    with Table(paths) as table:
        for skips, count in [*steps, (False, 99)]:
            if skips:
                assert table.skip(count) == len(left[:count])
            else:
                rows = list(itertools.islice(table, count))
                assert [text_of(row) for row in rows] == left[:count]
                wanted = [path for path, some in zip(paths, files, strict=True) for _ in some]
                assert [row.where.rpartition(":")[0] for row in rows] == wanted[len(words) - len(left) :][: len(rows)]
            left = left[count:]
            assert table.rows == len(words) - len(left)


@QUICK
@given(
    format=st.sampled_from(FORMATS), rows=st.integers(1, 12), size=st.integers(1, 5), wanted=st.sets(st.integers(0, 12))
)
def test_parts_have_a_fixed_size_and_what_is_not_wanted_is_left_out(format, rows, size, wanted, tmp_path_factory):
    words = [f"w{number}" for number in range(rows)]
    path = write_rows(tmp_path_factory.mktemp("files") / f"a.{format}", words)
    with Table([path]) as table:
        found = {number: [text_of(row) for row in part] for number, part in table.parts(size, wanted.__contains__)}
        assert table.rows == rows
    parts = [words[first : first + size] for first in range(0, rows, size)]
    assert found == {number: part for number, part in enumerate(parts) if number in wanted}


def test_row_groups_that_are_skipped_are_not_read(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"text {number} {number * number}" for number in range(12_000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2000, compression="gzip")
    groups = [pq.ParquetFile(path).metadata.row_group(number).column(0) for number in range(6)]
    data = bytearray(path.read_bytes())
    for group in groups[1:4]:  # whoever reads them fails
        start = group.dictionary_page_offset or group.data_page_offset
        data[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(data)
    with Table([str(path)]) as table:
        assert next(table).values["text"] == texts[0]
        assert table.skip(8999) == 8999
        row = next(table)
        assert (row.values["text"], row.where) == (texts[9000], f"{path}:row 9001")
        assert table.skip(5000) == 2999
    with Table([str(path)]) as table, pytest.raises(DataError, match=r"row \d+: cannot be read"):
        list(table)


def test_one_large_row_group_is_decoded_once_for_all_that_is_taken_of_it(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": [str(number) for number in range(20_000)]}), tmp_path / "a.parquet")
    begun = []
    with Table([str(tmp_path / "a.parquet")]) as table:
        from_group = ParquetReader._from_group
        monkeypatch.setattr(ParquetReader, "_from_group", lambda *args: begun.append(1) or from_group(*args))
        found = [
            (number, next(rows).values["text"], sum(1 for _ in rows))
            for number, rows in table.parts(1000, (4, 9, 19).__contains__)
        ]
    assert found == [(4, "4000", 999), (9, "9000", 999), (19, "19000", 999)]
    assert len(begun) == 1


# Several files


def test_a_pattern_gives_its_files_in_the_order_of_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.csv", "a.csv", "deep/c.csv", "deep/er/d.csv", "x[1].csv"):
        write_rows(tmp_path / name, [name])
    (tmp_path / "e.csv").mkdir()
    assert matching("*.csv") == ["a.csv", "b.csv", "x[1].csv"]
    assert matching("**/*.csv") == ["a.csv", "b.csv", "deep/c.csv", "deep/er/d.csv", "x[1].csv"]
    assert matching("x[1].csv") == ["x[1].csv"]  # a file of this very name
    assert matching(["deep/*.csv", "b.csv"]) == ["deep/c.csv", "b.csv"]
    assert matching("-") == ["-"]
    with Table(matching("[ab].csv")) as table:
        assert [row.values["text"] for row in table] == ["a.csv", "b.csv"]


def test_a_pattern_without_a_file_and_stdin_among_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"texts/\*\.csv: matches no file \(looked from {tmp_path}\)"):
        matching("texts/*.csv")
    with pytest.raises(UsageError, match="-: is stdin, among other inputs"):
        matching(["a.csv", "-"])
    with pytest.raises(UsageError, match="got no input"):
        matching([])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UsageError, match=r"pipe\.csv: is a pipe, among other inputs"):
        matching(["a.csv", "pipe.csv"])


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        (
            "b.csv",
            {"text": ["x"]},
            r'b\.csv: has other columns than .*a\.csv: it lacks "n"; expected the columns "text", "n"',
        ),
        ("b.csv", {"text": ["x"], "n": [1], "m": [1]}, r'it has also "m"'),
        ("b.csv", {"texts": ["x"], "n": [1]}, r'it lacks "text" and has also "texts"'),
        ("b.jsonl", {"text": ["x"], "n": [1]}, r"b\.jsonl: is jsonl; expected csv, as .*a\.csv is"),
    ],
)
def test_files_that_differ_are_refused_by_name(name, columns, said, tmp_path):
    pd.DataFrame({"text": ["x"], "n": [1]}).to_csv(tmp_path / "a.csv", index=False)
    frame = pd.DataFrame(columns)
    if name.endswith("csv"):
        frame.to_csv(tmp_path / name, index=False)
    else:
        frame.to_json(tmp_path / name, orient="records", lines=True)
    with pytest.raises(DataError, match=said):
        Table([str(tmp_path / "a.csv"), str(tmp_path / name)])


def test_columns_in_another_order_are_the_same_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\nx,1\n")
    (tmp_path / "b.csv").write_text("n;text\n2;y\n")
    with Table([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) as table:
        assert table.columns == ["text", "n"]
        assert [row.values for row in table] == [{"text": "x", "n": "1"}, {"text": "y", "n": "2"}]


def test_parquet_files_of_other_types_are_refused(tmp_path):
    for name, kind in (("a.parquet", pa.int64()), ("b.parquet", pa.int32())):
        pq.write_table(pa.table({"text": ["x"], "n": pa.array([1], kind)}), tmp_path / name)
    with pytest.raises(DataError, match=r'b\.parquet: column "n" is int32; expected int64, as in .*a\.parquet'):
        Table([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])


def test_notes_of_all_files_are_kept_and_rows_are_counted(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(b"text\ncaf\xe9\nx\n")
    with Table([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) as table:
        assert table.count() == 4
        assert table.skip(1) == 1
        assert [row.values["text"] for row in table] == ["x", "café", "x"]
        assert [note.partition(":")[0] for note in table.notes] == [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    write_rows(tmp_path / "c.csv.zst", ["x"])
    with Table([str(tmp_path / "c.csv.zst")]) as table:
        assert table.count() is None


def test_no_file_stays_open(tmp_path):
    def held():
        return [p for p in Path("/proc/self/fd").iterdir() if p.exists() and str(tmp_path) in str(p.readlink())]

    paths = [write_rows(tmp_path / f"{number}.csv.zst", ["x", "y"]) for number in range(3)]
    with Table(paths) as table:
        assert len(held()) == 1
        assert len(list(table)) == 6
        assert not held()
    (tmp_path / "3.csv.zst").write_bytes(zstandard.compress(b"other\nx\n"))
    with pytest.raises(DataError, match="has other columns"):
        Table([*paths, str(tmp_path / "3.csv.zst")])
    assert not held()


# zstd


def test_the_extension_says_how_a_file_is_packed():
    assert [format_of(name) for name in ("a.csv", "a.tsv.gz", "A.JSONL.ZST")] == [
        ("csv", ""), ("tsv", "gzip"), ("jsonl", "zstd")
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r'has the extension "\.parquet\.zst"; .*each also with \.gz or \.zst'):
        format_of("a.parquet.zst")


def test_zstd_files_of_others_are_read(tmp_path):
    frame = pd.DataFrame({"text": [f"text {number}" for number in range(50_000)]})
    frame.to_csv(tmp_path / "a.csv.zst", index=False)
    whole = (tmp_path / "a.csv.zst").read_bytes()
    frames = [zstandard.compress(part) for part in (b"text\n", *(f"text {number}\n".encode() for number in range(100)))]
    (tmp_path / "many.csv.zst").write_bytes(b"".join(frames))  # as `cat a.zst b.zst` makes them
    (tmp_path / "other.csv").write_bytes(whole)  # under another name
    for name, rows in (("a.csv.zst", 50_000), ("many.csv.zst", 100), ("other.csv", 50_000)):
        assert [row.values["text"] for row in open_rows(tmp_path / name)] == frame["text"].tolist()[:rows]


def test_zstd_from_stdin_is_recognised_and_stdin_left_open(monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(zstandard.compress(b'{"text": "a"}\n')))
    monkeypatch.setattr("sys.stdin", stdin)
    assert [row.values for row in open_rows("-")] == [{"text": "a"}]
    assert not stdin.buffer.closed


def test_damaged_zstd_is_a_data_error(tmp_path):
    whole = zstandard.compress(("text\n" + "".join(f"row {i * i}\n" for i in range(50_000))).encode())
    for data, message in [
        (whole[:-2000], "is a zstd file that ends too early"),
        (whole[:5000] + b"\0" * 5000 + whole[10_000:], "is not a sound zstd file"),
        (whole + b"junk", "is not a sound zstd file"),
        (b"text\nx\n", "is not a sound zstd file"),
    ]:
        (tmp_path / "a.csv.zst").write_bytes(data)
        with pytest.raises(DataError, match=message):
            list(open_rows(tmp_path / "a.csv.zst"))
    (tmp_path / "a.csv.zst").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        open_rows(tmp_path / "a.csv.zst")


@pytest.mark.parametrize("rows", [0, 3, 100_000])
def test_zstd_that_we_write_is_one_frame_and_the_same_each_time(rows, tmp_path):
    for name in ("a.csv.zst", "b.csv.zst"):
        with open_writer(tmp_path / name, "csv", ["text"], None, {}) as writer:
            for number in range(rows):
                writer.write({"text": f"text {number}"})
    packed = (tmp_path / "a.csv.zst").read_bytes()
    assert packed == (tmp_path / "b.csv.zst").read_bytes()
    wanted = "text\n" + "".join(f"text {number}\n" for number in range(rows))
    unpacker = zstandard.ZstdDecompressor().decompressobj()  # ends with the first frame
    assert unpacker.decompress(packed).decode() == wanted
    assert unpacker.unused_data == b""


def test_reading_without_zstd_loads_no_pyarrow(tmp_path):
    write_rows(tmp_path / "a.csv.gz", ["x"])
    code = (
        "import sys; from berthead.formats.table import Table; list(Table(sys.argv[1:])); "
        "print('pyarrow' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.csv.gz"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"


# Fingerprints


def test_a_fingerprint_is_of_the_whole_content_and_not_of_the_time(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"x" * 5_000_000)
    first = Fingerprint.of(str(path))
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    assert first.sha256 == done.stdout.split()[0]
    os.utime(path, ns=(1, 1))
    assert Fingerprint.of(str(path)).to_json() == first.to_json()
    data = bytearray(path.read_bytes())
    data[2_500_000] ^= 1
    path.write_bytes(data)
    assert Fingerprint.of(str(path)).sha256 != first.sha256


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\nx\n")
    before = Fingerprint.of(str(path))
    before.check_unchanged()
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.csv: was changed while it was read"):
        before.check_unchanged()
    path.unlink()
    with pytest.raises(DataError, match=r"a\.csv: cannot be read"):
        before.check_unchanged()
    with pytest.raises(DataError, match=re.escape(str(path))):
        Fingerprint.of(str(path))


# A path in place of a text


NO_TEXTS = ["missing.csv", "a/missing.xlsx", "data.jsonl.gz", "there.parquet", "old.xls", "frame.feather", "rows.CSV"]


@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_name_of_a_file_of_rows_is_no_text(name, toy_model):
    model = berthead.load(toy_model)
    with pytest.raises(UsageError) as caught:
        model.predict(name)
    said = str(caught.value)
    assert f'"{name}" looks like a file name; expected a text' in said
    assert f'model.predict_file("{name}", "answers.csv")' in said
    # As one of many it is a text: the rows of a table may well hold names of files.
    assert model.predict([name])[0].error is None


def test_a_file_or_folder_that_is_there_is_no_text(toy_model, tmp_path, monkeypatch):
    model = berthead.load(toy_model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my notes.md").write_text("good cat")
    (tmp_path / "rows").mkdir()
    for name, kind in (("my notes.md", "file"), ("rows/", "folder"), (str(tmp_path), "folder")):
        with pytest.raises(UsageError, match=f"is a {kind}; expected a text, or many inputs"):
            model.predict(name)
    for path in (tmp_path / "rows", tmp_path / "nothing.csv"):
        with pytest.raises(UsageError, match=r"is a path; .*predict_file"):
            model.predict(path)
    # The rest are texts: a word that a folder is called by, an address, a sentence that ends in a full stop.
    for text in ("rows", "good/bad", "https://berthead.example/cats", "the cat sat.", "see a.csv", "x" * 5000 + "."):
        assert model.predict(text).answer in ("positive", "negative")


def test_the_command_line_refuses_a_folder_and_names_of_other_programs(toy_model, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    for name in ("rows", "rows/", str(tmp_path)):
        ran = cli("predict", toy_model, name)
        assert (ran.code, ran.out) == (2, "")
        assert f'"{name}" is a folder; expected a file of rows, a pattern in quotes, or a text' in ran.err
        assert "*.csv" in ran.err
    for name in ("missing.xls", "missing.xlsx"):
        ran = cli("predict", toy_model, name)
        assert (ran.code, ran.out) == (3, "")
        assert f"{name}: does not exist" in ran.err
    (tmp_path / "old.xls").touch()
    assert 'old.xls: has the extension ".xls"; expected one of' in cli("predict", toy_model, "old.xls").err

"""One bad row is that row's error, wherever rows are read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import toy_rows, write_csv

import berthead
from berthead.errors import DataError
from berthead.formats.readers import open_rows


def no_utf8(texts: list[bytes], kind=pa.string) -> pa.Array:
    """An Arrow column of texts, as a program writes it that does not look at its bytes."""
    return pa.array(texts, pa.binary()).view(kind())


def parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


BAD = [b"good cat", b"caf\xe9", b"bad dog"]


@pytest.mark.parametrize("read", ["text", "note"])
def test_bytes_that_are_no_text_are_the_error_of_their_row(read, toy_model, tmp_path, cli):
    columns = {"text": pa.array(["good cat", "cat", "bad dog"]), "note": pa.array(["a", "b", "c"])}
    source = parquet(tmp_path / "in.parquet", **(columns | {read: no_utf8(BAD)}))
    rows = list(open_rows(source))
    said = f'column "{read}" is not UTF-8 (byte 0xe9 at position 3); expected text'
    assert [row.error for row in rows] == [None, said, None]
    assert rows[1].values[read] == r"caf\xe9"
    for out in ("out.parquet", "out.csv"):
        ran = cli("predict", toy_model, source, "--out", tmp_path / out)
        assert ran.code == 4
        assert f"in.parquet:row 2: {said}" in ran.err
        (aside,) = (tmp_path / f"{out}.errors.jsonl").read_text().splitlines()
        assert json.loads(aside)["row"][read] == r"caf\xe9"
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist()[-1] == "bad dog"
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 2


@pytest.mark.parametrize("size", [1, 2, 1000, 3000])
def test_it_is_the_right_row_in_every_batch_and_after_skipping(size, tmp_path):
    texts = [b"x\xff" if number % 7 == 3 else b"%d" % number for number in range(5000)]
    pq.write_table(pa.table({"text": no_utf8(texts)}), tmp_path / "in.parquet", row_group_size=size)
    bad = {number for number in range(5000) if number % 7 == 3}
    for first in (0, 1, 2999, 4321):
        reader = open_rows(tmp_path / "in.parquet")
        assert reader.skip(first) == first
        found = [row.error is not None for row in reader]
        assert {first + number for number, error in enumerate(found) if error} == {one for one in bad if one >= first}


@pytest.mark.parametrize("kind", ["large", "list", "struct", "dictionary"])
def test_so_it_is_in_columns_of_other_types(kind, tmp_path):
    texts = no_utf8(BAD)
    column = {
        "large": lambda: no_utf8(BAD).cast(pa.large_binary()).view(pa.large_string()),
        "list": lambda: pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts),
        "struct": lambda: pa.StructArray.from_arrays([texts], ["a"]),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts),
    }[kind]()
    rows = list(open_rows(parquet(tmp_path / "in.parquet", text=pa.array(["a", "b", "c"]), more=column)))
    assert [row.error is None for row in rows] == [True, False, True]


VALID = {
    "blank": ({"text": " ", "label": "positive"}, 'column "text" is blank; expected a text'),
    "no label": ({"text": "cat", "label": ""}, 'column "label" is blank; expected a label'),
    "unknown label": ({"text": "cat", "label": "neutral"}, 'the target is "neutral"; expected one of 2 known labels'),
}


@pytest.mark.parametrize(("row", "said"), VALID.values(), ids=VALID)
def test_bad_rows_of_the_held_out_file_are_left_out_too(row, said, tiny_bert, tmp_path):
    rows = [{"text": one["text"], "label": one["label"]} for one in toy_rows(1)]
    data = write_csv(tmp_path / "data.csv", rows)
    valid = write_csv(tmp_path / "valid.csv", [*rows[:4], row])
    options = {"encoder": str(tiny_bert), "epochs": 1, "threads": 1, "quiet": True, "valid": str(valid)}
    with pytest.raises(DataError) as caught:
        berthead.fit(data, **options)
    assert f"{valid}:6: {said}" in str(caught.value)
    assert "skip_bad_rows=True" in str(caught.value)
    model = berthead.fit(data, skip_bad_rows=True, **options)
    (line,) = [line for line in model.warnings if line.startswith("left out: ")]
    assert line.startswith(f"left out: {valid}:6: {said}")
    assert model.info()["run"]["held_out_rows"] == 4

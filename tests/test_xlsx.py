"""Excel workbooks: read as pandas and openpyxl wrote them, written so that others read them, and jobs on sheets."""

from __future__ import annotations

import datetime
import io
import json
import sys
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from conftest import toy_rows, tries, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import berthead
from berthead.errors import DataError, OutputError, UsageError
from berthead.formats import xlsx
from berthead.formats.readers import count_rows, format_of, open_rows
from berthead.formats.registry import looks_like_a_file, split_sheet
from berthead.formats.writers import open_writer
from berthead.jobs.files import predict_file
from berthead.options import PredictOptions


def book(path: Path, *rows: list, **more: list[list]) -> Path:
    """A workbook of openpyxl's: the rows of its first sheet, and further sheets by name."""
    made = openpyxl.Workbook()
    for row in rows:
        made.active.append(row)
    for name, others in more.items():
        sheet = made.create_sheet(name)
        for row in others:
            sheet.append(row)
    made.save(path)
    return path


def read(path):
    with open_rows(path) as reader:
        return reader, list(reader)


def values(path):
    return [row.values for row in read(path)[1]]


def write(path, rows: list[dict], columns: list[str] | None = None) -> Path:
    with open_writer(path, "jsonl", columns or list(rows[0]), None, {}) as writer:
        for row in rows:
            writer.write(row)
    return path


def cells(path: Path, engine: str = "calamine") -> list[list]:
    """What pandas reads, which shares no code with our writer."""
    return pd.read_excel(path, header=None, dtype=object, keep_default_na=False, engine=engine).values.tolist()


# Read


def test_cells_keep_what_they_are(tmp_path):
    day, moment = datetime.date(2024, 5, 1), datetime.datetime(2024, 5, 1, 13, 30)
    path = book(
        tmp_path / "a.xlsx",
        ["text", "n", "x", "yes", "day", "moment", "clock", "took", "none"],
        ["007", 7, 2.5, True, day, moment, datetime.time(9, 5), datetime.timedelta(hours=26, minutes=3), None],
        ["NA", 7.0, -0.125, False, None, datetime.datetime(2024, 5, 1), None, None, None],
        ["None", 2**40, 1e300, None, None, None, None, None, None],
    )
    first, second, third = values(path)
    assert first == {
        "text": "007", "n": 7, "x": 2.5, "yes": True, "day": "2024-05-01", "moment": "2024-05-01T13:30:00",
        "clock": "09:05:00", "took": "26:03:00", "none": None,
    }  # fmt: skip
    assert (second["text"], second["n"], type(second["n"]), second["yes"]) == ("NA", 7, int, False)
    assert second["moment"] == "2024-05-01T00:00:00"  # its format shows the time
    assert (third["text"], third["n"], third["x"]) == ("None", 2**40, 1e300)


def test_a_table_of_pandas_is_read_as_it_is(tmp_path):
    frame = pd.DataFrame({"text": ["fine", "poor", " ünï\n "], "label": ["a", "b", "a"], "n": [1, 2, 3]})
    frame.to_excel(tmp_path / "a.xlsx", index=False)
    assert values(tmp_path / "a.xlsx") == frame.to_dict("records")


def test_places_are_the_rows_that_excel_shows(tmp_path):
    path = book(tmp_path / "a.xlsx", [], ["text", None, "label"], [], ["a", None, "x"], [None, "", None], ["b"], [])
    reader, rows = read(path)
    assert (reader.format, reader.columns, reader.name) == ("xlsx", ["text", "column_2", "label"], str(path))
    assert [(row.where.removeprefix(str(path)), row.values["text"], row.error) for row in rows] == [
        ("#Sheet:row 4", "a", None), ("#Sheet:row 6", "b", None)
    ]  # fmt: skip
    assert rows[1].values == {"text": "b", "column_2": None, "label": None}


def test_a_row_that_is_too_long_is_a_bad_row(tmp_path):
    rows = read(book(tmp_path / "a.xlsx", ["text"], ["a", None, 3], ["b"]))[1]
    assert [(row.error, row.values) for row in rows] == [
        ("has 3 cells; expected at most 1, as in the header", {"text": "a", "": [None, 3]}), (None, {"text": "b"})
    ]  # fmt: skip


def test_a_column_that_stands_there_twice_is_an_error(tmp_path):
    path = book(tmp_path / "a.xlsx", ["text", "label", "text"], ["a", "b", "c"])
    with pytest.raises(DataError, match=r'a\.xlsx#Sheet:row 1: has the column "text" twice'):
        open_rows(path)


def test_errors_count_as_empty_and_are_told(tmp_path):
    path = book(tmp_path / "a.xlsx", ["text", "n"], ["a", "#N/A"], ["#DIV/0!", 2], ["n/a", 3])
    made = openpyxl.load_workbook(path)
    made.active["A4"].data_type = "s"
    made.active["A5"] = "#N/A"
    made.active["A5"].data_type = "s"  # a text that looks like one
    made.save(path)
    reader, rows = read(path)
    assert [(row.values, row.error) for row in rows] == [
        ({"text": "a", "n": None}, None), ({"text": None, "n": 2}, None), ({"text": "n/a", "n": 3}, None),
        ({"text": "#N/A", "n": None}, None),
    ]  # fmt: skip
    assert reader.notes == [f"{path}#Sheet: 2 cells hold errors (first #N/A in row 2), which counts as empty"]


def test_formulas_are_what_was_computed_last(tmp_path):
    path = book(tmp_path / "a.xlsx", ["text", "n"], ["a", 1])
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    files[sheet] = files[sheet].replace(b"<v>1</v>", b"<f>2+3</f><v>5</v>")
    with zipfile.ZipFile(path, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    assert values(path) == [{"text": "a", "n": 5}]


def test_merged_cells_have_their_value_in_the_first(tmp_path):
    made = openpyxl.Workbook()
    for row in (["text", "label"], ["a", "x"], ["b", None]):
        made.active.append(row)
    made.active.merge_cells("B2:B3")
    made.save(tmp_path / "a.xlsx")
    assert values(tmp_path / "a.xlsx") == [{"text": "a", "label": "x"}, {"text": "b", "label": None}]


def test_characters_that_xml_cannot_hold_are_read(tmp_path):
    path = book(tmp_path / "a.xlsx", ["text"], ["a_x000D_\nb"])  # as Excel writes a line end of Windows
    assert values(path) == [{"text": "a\r\nb"}]


# Sheets


def test_a_sheet_is_named_behind_the_file(tmp_path):
    more = {"Second one": [["text"], ["b"]], "a#1": [["text"], ["c"]]}
    path = book(tmp_path / "a.xlsx", ["text"], ["a"], **more)
    assert [values(f"{path}{sheet}") for sheet in ("", "#Sheet", "#Second one", "#a#1")] == [
        [{"text": one}] for one in "aabc"
    ]
    assert read(f"{path}#Second one")[1][0].where == f"{path}#Second one:row 2"
    match = r'a\.xlsx#second: has no sheet "second"; expected one of its sheets: "Sheet", "Second one", "a#1"\. Did'
    with pytest.raises(DataError, match=match):
        open_rows(f"{path}#second")
    with pytest.raises(DataError, match=r'has no sheet "zz"; .* Name one of them after the #\.$'):
        open_rows(f"{path}#zz")


def test_a_file_may_have_the_mark_in_its_name(tmp_path):
    assert split_sheet("a.XLSX#b#c") == ("a.XLSX", "#b#c")
    assert split_sheet("a#b.csv") == ("a#b.csv", "")
    path = tmp_path / "a.xlsx#b.csv"
    assert split_sheet(str(path)) == (str(tmp_path / "a.xlsx"), "#b.csv")
    path.write_text("text\nfine\n")
    assert values(path) == [{"text": "fine"}]
    assert looks_like_a_file("a.xlsx#My sheet")
    assert not looks_like_a_file("see a.xlsx#My sheet")
    assert (format_of("a.xlsx"), format_of("a.xlsx#b", reading=True), count_rows("a.xlsx")) == (
        ("xlsx", ""), ("xlsx", ""), None
    )  # fmt: skip
    for path in ("a.xlsx#b", "a.xlsx.gz"):
        with pytest.raises(
            UsageError, match=r"expected one of .*\.csv.*each also with \.gz or \.zst\) and \.parquet, \.xlsx\."
        ):
            format_of(path)


# What cannot be read


def test_what_is_no_workbook_is_an_error_that_says_so(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"")
    (tmp_path / "b.xlsx").write_text("text,label\n")
    whole = book(tmp_path / "c.xlsx", ["text"], *([f"row {n}"] for n in range(5000))).read_bytes()
    (tmp_path / "c.xlsx").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(tmp_path / "d.xlsx", "w") as other:
        other.writestr("word/document.xml", "<a/>")
    for name, match in {"a": "is empty", "b": "is not a sound Excel", "c": "is not a sound", "d": "is not a s"}.items():
        with pytest.raises(DataError, match=rf"{name}\.xlsx: {match}"):
            open_rows(tmp_path / f"{name}.xlsx")
    with pytest.raises(DataError, match=r"e\.xlsx#Sheet: is an empty sheet; expected a header and rows"):
        open_rows(book(tmp_path / "e.xlsx"))


def test_damage_further_down_names_the_row(tmp_path):
    path = write(tmp_path / "a.xlsx", [{"text": f"row {n}"} for n in range(5000)])
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    files["xl/worksheets/sheet1.xml"] = files["xl/worksheets/sheet1.xml"].replace(b'<row r="4900">', b'<row r="4900"')
    with zipfile.ZipFile(path, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    with pytest.raises(DataError, match=r"a\.xlsx#Sheet1:row 4\d\d\d: cannot be read \("):
        list(open_rows(path))


def test_a_workbook_from_stdin_is_refused(monkeypatch, tmp_path):
    data = book(tmp_path / "a.xlsx", ["text"], ["a"]).read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(
        DataError, match=r"^stdin: is an Excel workbook, .*; expected a text format from stdin\. Give the file's"
    ):
        open_rows("-")


def test_without_the_optional_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = book(tmp_path / "a.xlsx", ["text"], ["a"])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UsageError, match=r"a\.xlsx: openpyxl, .* is not installed\. .*pip install 'berthead\[excel\]'"):
        open_rows(path)
    write(tmp_path / "b.xlsx", [{"text": "a"}])  # nothing is needed for that
    assert cells(tmp_path / "b.xlsx") == [["text"], ["a"]]


# Written

MIXED = [
    {"text": "=1+2", "n": 1, "x": 0.1, "yes": True, "list": ["a", 1], "none": None},
    {"text": "@cmd", "n": -(2**53), "x": 1e-300, "yes": False, "list": {"a": "ü"}, "none": None},
    {"text": "007", "n": 2**53 + 1, "x": float("nan"), "yes": None, "list": [], "none": None},
]


@pytest.mark.parametrize("engine", ["openpyxl", "calamine"])
def test_others_read_what_is_written(tmp_path, engine):
    path = write(tmp_path / "a.xlsx", MIXED)
    header, *rows = cells(path, engine)
    assert header == ["text", "n", "x", "yes", "list", "none"][: len(header)]
    assert [row[:5] for row in rows] == [
        ["=1+2", 1, 0.1, True, '["a", 1]'],
        ["@cmd", -(2**53), 1e-300, False, '{"a": "ü"}'],
        ["007", str(2**53 + 1), "NaN", "", "[]"],  # a cell holds neither of these as a number
    ]
    sheet = openpyxl.load_workbook(path).active
    assert [cell.data_type for cell in sheet["A"]] == ["s"] * 4  # no formula among them


def test_what_is_written_is_read_again(tmp_path):
    rows = [
        {"text": text, "n": 1} for text in (" a\r\nb\t ", "_x000D_", "\x00\x0b\ufffe", "<&>\"'", "\ud83d\ude00"[:0])
    ]
    path = write(tmp_path / "a.xlsx", [*rows, {"text": "😀 ünï", "n": 2}])
    assert [one["text"] for one in values(path)] == [*(row["text"] or None for row in rows), "😀 ünï"]
    assert cells(path)[1][0].startswith(" a\r\nb\t ")


@settings(deadline=None, max_examples=tries(40))
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=5))
def test_any_text_comes_back(tmp_path_factory, texts):
    path = write(tmp_path_factory.mktemp("x") / "a.xlsx", [{"text": text, "n": 1} for text in texts])
    assert [row["text"] for row in values(path)] == texts


def test_half_a_surrogate_pair_is_written_as_elsewhere(tmp_path):
    assert values(write(tmp_path / "a.xlsx", [{"text": "a\ud800"}])) == [{"text": "a\\ud800"}]


def test_columns_of_later_rows_are_added(tmp_path):
    path = write(tmp_path / "a.xlsx", [{"text": "a"}, {"text": "b", "more": 1}])
    assert cells(path) == [["text", "more"], ["a", ""], ["b", 1]]


def test_the_same_rows_are_the_same_bytes(tmp_path, monkeypatch):
    first = write(tmp_path / "a.xlsx", MIXED).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert write(tmp_path / "b.xlsx", MIXED).read_bytes() == first
    with zipfile.ZipFile(io.BytesIO(first)) as made:
        assert {entry.date_time for entry in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_file_says_its_size(tmp_path):
    sheet = openpyxl.load_workbook(write(tmp_path / "a.xlsx", MIXED), read_only=True).active
    assert sheet.calculate_dimension() == "A1:F4"


def test_columns_are_called_as_in_excel():
    assert [xlsx._letters(n) for n in (0, 25, 26, 701, 702, 16_383)] == ["A", "Z", "AA", "ZZ", "AAA", "XFD"]


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    with pytest.raises(
        OutputError, match=r'column "text": holds 32,768 characters; expected at most 32,767.*Write a \.csv'
    ):
        write(tmp_path / "a.xlsx", [{"text": "a" * 32_768}])
    with pytest.raises(OutputError, match="holds 40,000 characters"):
        write(tmp_path / "a.xlsx", [{"text": "😀" * 20_000}])
    assert len(values(write(tmp_path / "ok.xlsx", [{"text": "a" * 32_767}]))[0]["text"]) == 32_767
    with pytest.raises(OutputError, match=r"has no room for 16,385 columns; expected at most 16,384"):
        write(tmp_path / "a.xlsx", [{f"c{n}": 1 for n in range(16_385)}])
    monkeypatch.setattr(xlsx, "MOST_ROWS", 3)
    write(tmp_path / "rows.xlsx", [{"text": "a"}] * 2)
    with pytest.raises(
        OutputError, match=r"has no room for more rows; expected at most 2 rows and a header\. Write a \.csv"
    ):
        write(tmp_path / "a.xlsx", [{"text": "a"}] * 3)
    monkeypatch.setattr(xlsx, "MOST_BYTES", 500)
    with pytest.raises(OutputError, match="has no room for so much text"):
        write(tmp_path / "a.xlsx", [{"text": "a" * 400}])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ok.xlsx", "rows.xlsx"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zipfile._ZipWriteFile.write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write(tmp_path / "a.xlsx", [{"text": "a"}])
    assert list(tmp_path.iterdir()) == []


# Jobs


@pytest.fixture(scope="module")
def model(fit_toy):
    return berthead.load(fit_toy(epochs=6))


def predicted(model, source, target, **options):
    return predict_file(model.predictor, str(source), str(target), PredictOptions(**options), quiet=True)


def test_a_sheet_is_predicted_into_a_workbook(model, tmp_path):
    path = book(
        tmp_path / "in.xlsx", ["nothing"], mine=[["id", "text"], ["007", "good cat"], [8, None], [9, "bad dog"]]
    )
    summary = predicted(model, f"{path}#mine", tmp_path / "out.xlsx", part_rows=2)
    assert (summary.rows, summary.failed) == (3, 1)
    assert summary.errors[0].startswith(f"{path}#mine:row 3: ")
    header, *rows = cells(tmp_path / "out.xlsx")
    assert header[:4] == ["id", "text", "prediction", "score"]
    assert [row[:2] for row in rows] == [["007", "good cat"], [9, "bad dog"]]
    found = model.predict(["good cat", "bad dog"])
    assert [row[2] for row in rows] == [one.answer for one in found]
    streamed = tmp_path / "streamed.csv"
    predicted(model, f"{path}#mine", streamed)
    assert pd.read_csv(streamed)["prediction"].tolist() == [one.answer for one in found]


def test_sheets_of_a_pattern_are_one_table(model, tmp_path):
    for name in "ab":
        book(tmp_path / f"{name}.xlsx", ["x"], ours=[["text"], [f"good {name}"]])
    summary = predicted(model, f"{tmp_path}/*.xlsx#ours", tmp_path / "out.jsonl")
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (summary.rows, texts) == (2, ["good a", "good b"])


def test_the_workbook_that_is_read_is_not_replaced(model, tmp_path):
    path = book(tmp_path / "in.xlsx", ["text"], ["good cat"])
    with pytest.raises(OutputError, match=r"in\.xlsx: is the input"):
        predicted(model, f"{path}#Sheet", path)


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_is_too_long_for_a_cell_is_a_bad_row(model, tmp_path, monkeypatch, stream):
    rows = [{"text": "good cat"}, {"text": "bad " * 10_000}, {"text": "bad dog"}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    if stream:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source.open("rb")))
        source = "-"
    summary = predicted(model, source, tmp_path / "out.xlsx")
    assert (summary.rows, summary.failed) == (3, 1)
    assert ':2: column "text": holds 40,000 characters; expected at most 32,767' in summary.errors[0]
    assert [row[0] for row in cells(tmp_path / "out.xlsx")] == ["text", "good cat", "bad dog"]
    bad = json.loads((tmp_path / "out.xlsx.errors.jsonl").read_text())
    assert bad["where"].endswith(":2")


def test_more_rows_than_a_sheet_has_are_refused_before_any_is_computed(model, tmp_path, monkeypatch):
    monkeypatch.setattr("berthead.formats.output.Output.most_rows", 3)
    (tmp_path / "in.csv").write_text('id,text\n1,"a\n\n\nb"\n2,c\n3,d\n')  # fewer rows than lines
    assert predicted(model, tmp_path / "in.csv", tmp_path / "out.xlsx").rows == 3
    (tmp_path / "in.csv").write_text("id,text\n" + "1,a\n" * 4)
    with pytest.raises(
        OutputError, match=r"more\.xlsx: has no room for all rows; expected at most 3 rows\. Write another"
    ):
        predicted(model, tmp_path / "in.csv", tmp_path / "more.xlsx")
    assert not (tmp_path / "more.xlsx.parts").exists()


def test_a_function_is_fitted_and_scored_on_sheets(cli, tiny_bert, tmp_path):
    pd.DataFrame(toy_rows()).to_excel(tmp_path / "toy.xlsx", index=False, sheet_name="rows")
    flags = ["--text", "text", "--label", "label", "--encoder", tiny_bert, "--epochs", 1, "--out", tmp_path / "m"]
    done = cli("fit", f"{tmp_path}/toy.xlsx#rows", *flags)
    assert done.code == 0, done.err
    assert cli("eval", tmp_path / "m", tmp_path / "toy.xlsx").code == 0
    done = cli("predict", tmp_path / "m", f"{tmp_path}/toy.xlsx#rows", "--out", tmp_path / "out.xlsx")
    assert done.code == 0, done.err
    assert len(cells(tmp_path / "out.xlsx")) == len(toy_rows()) + 1
    done = cli("predict", tmp_path / "m", f"{tmp_path}/toy.xlsx#row", "--out", tmp_path / "out.xlsx")
    assert (done.code, 'Did you mean "rows"?' in done.err) == (3, True)

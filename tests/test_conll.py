"""Sentences of CoNLL columns."""

from __future__ import annotations

import codecs
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
from conftest import tries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berthead.errors import DataError, UsageError
from berthead.formats.readers import count_rows, format_of, open_rows

QUICK = settings(max_examples=tries(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def put(folder: Path, name: str, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def read(path, format=None):
    with open_rows(path, format=format) as reader:
        return reader, list(reader)


def values(path):
    rows = read(path)[1]
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.values for row in rows]


def places(rows):
    return [int(row.where.rsplit(":", 1)[1]) for row in rows]


def test_a_sentence_is_a_row_and_the_last_column_its_tags(tmp_path):
    path = put(tmp_path, "a.conll", "Rome\tB-LOC\nfell\tO\n.\tO\n\nSo\tO\nwhat\tO\n")
    reader, rows = read(path)
    assert (reader.format, reader.columns, reader.name, reader.notes) == ("conll", ["tokens", "tags"], path, [])
    assert [row.values for row in rows] == [
        {"tokens": ["Rome", "fell", "."], "tags": ["B-LOC", "O", "O"]},
        {"tokens": ["So", "what"], "tags": ["O", "O"]},
    ]
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:5"]


def test_columns_between_get_their_number(tmp_path):
    # As CoNLL 2003 has them, with its document lines.
    document = "-DOCSTART- -X- -X- O\n\n"
    content = f"{document}EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n{document}German JJ B-NP B-MISC\n"
    reader, rows = read(put(tmp_path, "eng.train.txt", content))
    assert reader.columns == ["tokens", "tags", "column_2", "column_3"]
    assert rows[0].values == {
        "tokens": ["EU", "rejects"],
        "tags": ["B-ORG", "O"],
        "column_2": ["NNP", "VBZ"],
        "column_3": ["B-NP", "B-VP"],
    }
    assert (len(rows), places(rows)) == (2, [3, 8])


@pytest.mark.parametrize(
    "name", ["a.conll", "a.bio", "a.iob", "a.iob2", "a.bioes", "a.annotated", "a.txt", "A.CoNLL.gz"]
)
def test_columns_go_by_their_extensions(tmp_path, name):
    path = put(tmp_path, name, "Rome B-LOC\n\nfell O\n")
    assert values(path) == [{"tokens": ["Rome"], "tags": ["B-LOC"]}, {"tokens": ["fell"], "tags": ["O"]}]
    assert count_rows(path) is None
    with pytest.raises(UsageError):  # it is read, and never written
        format_of(path)


def test_any_file_is_read_as_columns_when_asked(tmp_path):
    path = put(tmp_path, "eng.testa", "Rome B-LOC\n")
    with pytest.raises(UsageError, match=r'extension "\.testa"; expected one of .*\.conll, \.conllu, \.bio'):
        open_rows(path)
    assert read(path, "conll")[1][0].values == {"tokens": ["Rome"], "tags": ["B-LOC"]}
    assert count_rows(path, "conll") is None
    assert read(put(tmp_path, "a.dat.gz", "Rome B-LOC\n"), "conll")[1][0].values["tokens"] == ["Rome"]
    with pytest.raises(UsageError, match=r'^format: is "conl"; expected one of csv, .*conll.* Did you mean "conll"\?$'):
        open_rows(path, format="conl")


def test_another_format_can_be_asked_as_well(tmp_path):
    path = put(tmp_path, "reviews.txt", "text,label\nfine,good\n")
    reader, rows = read(path, "csv")
    assert (reader.format, rows[0].values) == ("csv", {"text": "fine", "label": "good"})
    assert count_rows(path, "csv") == 1


def test_standard_input_is_read_as_columns_when_asked(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Rome\tB-LOC\nfell\tO\n")))
    reader, rows = read("-", "conll")
    assert (reader.format, rows[0].where, rows[0].values["tags"]) == ("conll", "stdin:1", ["B-LOC", "O"])


def test_a_file_of_tokens_alone_has_no_tags(tmp_path):
    reader, rows = read(put(tmp_path, "a.txt", "Rome\nfell\n\nSo\n"))
    assert reader.columns == ["tokens"]
    assert [row.values for row in rows] == [{"tokens": ["Rome", "fell"]}, {"tokens": ["So"]}]


def test_lines_of_white_space_end_a_sentence_like_blank_ones(tmp_path):
    rows = read(put(tmp_path, "a.conll", "\n \nRome\tO\n \t \nfell\tO\n\t\n\n\u3000\nso\tO\n"))[1]
    assert ([row.values["tokens"] for row in rows], places(rows)) == ([["Rome"], ["fell"], ["so"]], [3, 5, 9])


def test_a_document_line_ends_a_sentence_and_is_left_out(tmp_path):
    rows = read(put(tmp_path, "a.conll", "-DOCSTART-\nRome\tO\n-DOCSTART-\tO\nfell\tO\n-DOCSTART-ish\tO\n"))[1]
    assert [row.values["tokens"] for row in rows] == [["Rome"], ["fell", "-DOCSTART-ish"]]


def test_comments_are_known_by_their_number_of_columns(tmp_path):
    # In a file of tabs "# newdoc" is one column; "#" with a tag is a token, at the start of a file too.
    content = "# newdoc\n# text = Rome fell\nRome\tB-LOC\n# a note\nfell\tO\n\n# \tO\n#\tO\n#tag\tO\n"
    rows = read(put(tmp_path, "a.conll", content))[1]
    assert [row.values["tokens"] for row in rows] == [["Rome", "fell"], ["# ", "#", "#tag"]]
    assert places(rows) == [3, 7]
    assert values(put(tmp_path, "b.conll", "# O\none O\n"))[0] == {"tokens": ["#", "one"], "tags": ["O", "O"]}


def test_comments_with_tabs_and_counted_tokens_are_left_out(tmp_path):
    # As GermEval 2014 and MultiCoNER have them.
    germeval = "#\thttp://de.example.org/X [2009]\n1\tUN\tB-ORG\tB-LOC\n2\tdebates\tO\tO\n\n#\tn\n1\tSo\tO\tO\n"
    assert values(put(tmp_path, "a.conll", germeval)) == [
        {"tokens": ["UN", "debates"], "tags": ["B-ORG", "O"], "column_4": ["B-LOC", "O"]},
        {"tokens": ["So"], "tags": ["O"], "column_4": ["O"]},
    ]
    multiconer = "# id 2c8f5b49\tdomain=en\nUN _ _ B-ORG\n\n\n# id 77ab\tdomain=en\nvote _ _ O\n"
    rows = values(put(tmp_path, "b.conll", multiconer))
    assert [(row["tokens"], row["tags"]) for row in rows] == [(["UN"], ["B-ORG"]), (["vote"], ["O"])]


@pytest.mark.parametrize("name", ["a.conllu", "a.conll"])
def test_conllu_goes_by_the_names_of_its_columns(tmp_path, name):
    content = (
        "# sent_id = 1\n# text = Du lac\n1-2\tDu\t_\t_\t_\t_\t_\t_\t_\t_\n"
        "1\tDe\tde\tADP\tE\t_\t3\tcase\t_\t_\n2\tle\tle\tDET\tRD\t_\t3\tdet\t_\t_\n"
        "2.1\tx\tx\tX\tX\t_\t_\t_\t_\t_\n3\tlac\tlac\tNOUN\tS\t_\t0\troot\t_\t_\n"
    )
    reader, rows = read(put(tmp_path, name, content))
    assert reader.columns == ["tokens", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"]
    assert rows[0].values["tokens"] == ["De", "le", "lac"]
    assert rows[0].values["upos"] == ["ADP", "DET", "NOUN"]
    assert rows[0].values["head"] == ["3", "3", "0"]


@pytest.mark.parametrize(
    ("line", "last"),
    [
        ("{tag}\t{token}\n", ()),  # tags first
        ("{token} {tag} +\n", ("column_3",)),  # whether a space follows
        ("{number} {token} NN {tag}\n", ("column_3",)),  # tokens are counted
        ("{number}\t{token}\t{tag}\n", ()),
        ("{token}  {tag} \n", ()),
    ],
)
def test_tags_and_tokens_are_found_in_other_columns(tmp_path, line, last):
    words = [("UN", "B-ORG"), ("debates", "O"), ("Danish", "B-MISC")]
    content = "".join(line.format(token=one, tag=tag, number=n) for n, (one, tag) in enumerate(words, 1))
    reader, rows = read(put(tmp_path, "a.conll", content + "\n" + content))
    assert reader.columns == ["tokens", "tags", *last]
    for row in rows:
        assert row.values["tokens"] == ["UN", "debates", "Danish"]
        assert row.values["tags"] == ["B-ORG", "O", "B-MISC"]


def test_numbers_that_do_not_count_are_tokens(tmp_path):
    assert [row["tokens"] for row in values(put(tmp_path, "a.conll", "1\tCD\n3\tCD\n\n2\tCD\n"))] == [["1", "3"], ["2"]]


def test_spaces_in_runs_divide_and_other_spaces_do_not(tmp_path):
    content = "10\u00a0000   O \n\u2009x\u3000 \t B-X\n\x0b O\n\u200b O\n"
    assert values(put(tmp_path, "a.conll", content)) == [
        {"tokens": ["10\u00a0000", "\u2009x\u3000", "\x0b", "\u200b"], "tags": ["O", "B-X", "O", "O"]}
    ]


def test_only_tabs_divide_where_the_first_line_holds_one(tmp_path):
    # Data by characters has a space for a token; spaces behind a tag would make another tag.
    assert values(put(tmp_path, "a.conll", "New York\tB-LOC\n \tO \r\n\tO\n")) == [
        {"tokens": ["New York", " ", ""], "tags": ["B-LOC", "O", "O"]}
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_and_a_mark_are_known(tmp_path, end):
    content = codecs.BOM_UTF8 + end.join(["Rome\tB-LOC", "fell\tO", "", "so\tO"]).encode()
    rows = read(put(tmp_path, "a.conll", content))[1]
    assert [row.values["tags"] for row in rows] == [["B-LOC", "O"], ["O"]]
    assert (rows[0].values["tokens"], places(rows)) == (["Rome", "fell"], [1, 4])


def test_latin1_is_read_and_said(tmp_path):
    reader, rows = read(put(tmp_path, "a.conll", b"caf\xe9\tO\n"))
    assert rows[0].values["tokens"] == ["café"]
    assert reader.notes == [f"{reader.name}: 1 line is not UTF-8; it was read as Latin-1 (Windows-1252)"]


TOKENS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1, max_size=8)
TAGS = st.sampled_from(["O", "B-LOC", "I-LOC", "S-ÄÖ", "E-x\u00a0y"])
SENTENCES = st.lists(st.lists(st.tuples(TOKENS, TAGS), min_size=1, max_size=5), min_size=1, max_size=5)


@QUICK
@given(sentences=SENTENCES, tabs=st.booleans(), blank=st.sampled_from(["\n", "\n\n", " \n"]), crlf=st.booleans())
def test_tokens_of_any_characters_come_back(tmp_path, sentences, tabs, blank, crlf):
    def token(text):
        text = text if tabs else text.replace(" ", "") or "x"
        # A first line "-DOCSTART-" is a document's, and a mark of byte order belongs to the file.
        return text.lstrip("\ufeff") or "x"

    sentences = [[(token(text), tag) for text, tag in sentence] for sentence in sentences]
    between = "\t" if tabs else " "
    written = blank.join("".join(f"{a}{between}{b}\n" for a, b in one) for one in sentences)
    path = put(tmp_path, "a.conll", written.replace("\n", "\r\n") if crlf else written)
    assert values(path) == [{"tokens": [a for a, _ in one], "tags": [b for _, b in one]} for one in sentences]


@QUICK
@given(data=st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_otherwise_than_with_a_data_error(tmp_path, data):
    (tmp_path / "a.conll").write_bytes(data)
    try:
        reader, rows = read(tmp_path / "a.conll")
        places = [row.where for row in rows]
    except DataError as error:
        reader, rows, places = None, [], [error.where]
    assert all(place.startswith(str(tmp_path / "a.conll")) for place in places)
    assert all(list(row.values) == (["tokens"] if row.error else reader.columns) for row in rows)


# Broken files


def test_another_number_of_columns_spoils_its_sentence_only(tmp_path):
    content = "# a file\nRome\tB-LOC\n\nwe\tO\nfell\n.\tO\textra\n\nso\tO\n"
    path = put(tmp_path, "a.conll", content)
    sound, bad, last = read(path)[1]
    assert (sound.error, last.error, last.values["tokens"]) == (None, None, ["so"])
    assert bad.where == f"{path}:5"
    assert bad.values == {"tokens": ["we", "fell", "."]}
    assert bad.error == (
        'has 1 column ("fell"); expected 2 separated by tabs, as in line 2, and a blank line behind each sentence'
    )


def test_prose_is_told_from_columns(tmp_path):
    path = put(tmp_path, "a.txt", "Rome fell.\nNobody saw it coming at all.\n")
    (row,) = read(path)[1]
    assert row.where == f"{path}:2"
    assert row.error.startswith('has 6 columns ("Nobody", "saw", "it"')
    assert "; expected 2 separated by spaces, as in line 1" in row.error


def test_a_token_without_a_tag_in_a_file_of_tokens_is_one_column(tmp_path):
    path = put(tmp_path, "a.txt", "Rome\nfell\tO\n")
    assert read(path)[1][0].error == (
        'has 2 columns ("fell", "O"); expected 1, as in line 1, and a blank line behind each sentence'
    )


def test_an_empty_tag_is_an_error_where_it_stands(tmp_path):
    path = put(tmp_path, "a.conll", "Rome\tO\nfell\t \n\nso\tO\n")
    bad, sound = read(path)[1]
    assert (bad.where, sound.error) == (f"{path}:2", None)
    assert bad.error == 'its last column, the tag of "fell", is empty; expected a tag, or O for none'


@pytest.mark.parametrize(
    ("content", "saw"),
    [("", "is empty"), ("\n \n", "is empty"), ("-DOCSTART- O\n\n", "holds no token; expected one token on each line")],
)
def test_a_file_without_a_token_is_refused(tmp_path, content, saw):
    path = put(tmp_path, "a.conll", content)
    with pytest.raises(DataError, match=f"^{path}: {saw}"):
        open_rows(path)


def test_memory_stays_flat(tmp_path):
    path = put(tmp_path, "a.conll.gz", "Rome\tB-LOC\nfell\tO\n\n" * 15_000)
    rows = iter(open_rows(path))
    next(rows)
    tracemalloc.start()
    assert sum(len(row.values["tokens"]) for row in rows) == 2 * 14_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# Real data, counted by the data sets' own notes


@pytest.mark.parametrize(
    ("name", "sentences", "tokens", "kinds"),
    [
        ("wnut17/CONLL-format/data/train/wnut17train.conll", 3394, 62730, 13),
        ("wnut17/CONLL-format/data/dev/emerging.dev.conll", 1009, 15733, 13),
        ("wnut17/CONLL-format/data/test/emerging.test.annotated", 1287, 23394, 13),
        ("wikigold/CONLL-format/data/wikigold.conll.txt", None, 39007, 5),
    ],
)
def test_published_corpora_are_read_whole(shared_data, name, sentences, tokens, kinds):
    path = shared_data / name
    if not path.is_file():
        pytest.skip(f"no {name} in {shared_data}")
    reader, rows = read(path)
    assert reader.columns == ["tokens", "tags"]
    assert not [row for row in rows if row.error]
    assert sentences in (None, len(rows))
    assert sum(len(row.values["tokens"]) for row in rows) == tokens
    assert len({tag for row in rows for tag in row.values["tags"]}) == kinds
    # Every line of data is in some row, where the row says it is.
    text = path.read_text(encoding="utf-8").split("\n")
    for row in rows:
        start = int(row.where.rsplit(":", 1)[1]) - 1
        pairs = zip(row.values["tokens"], row.values["tags"], strict=True)
        between = "\t" if "wnut" in name else " "
        assert text[start : start + len(row.values["tokens"])] == [f"{a}{between}{b}" for a, b in pairs]

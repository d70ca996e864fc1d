"""Tables of a word a row, as pandas writes them: Kaggle's NER set, and those of simpletransformers."""

from __future__ import annotations

import json

import pandas
import pytest
from conftest import write_jsonl

import berthead
from berthead.data.words import WordTable
from berthead.errors import DataError
from berthead.formats.readers import open_rows
from berthead.predict.rows import in_sentences, read_rows

SENTENCES = [
    (["good", "cat", "café"], ["B-per", "I-per", "B-geo"]),
    (["the", "dog", "ran"], ["O", "B-per", "O"]),
    (["bad"], ["O"]),
    (["NA", "sat", "on", "NA"], ["O", "O", "O", "B-geo"]),
] * 2
USUAL = {"text": None, "label": None}


def words(sentence="Sentence #", word="Word", tag="Tag", name="Sentence: {}".format, once=True) -> pandas.DataFrame:
    """A row a word; `once`: the sentence's name is in its first row only."""
    rows = [
        (name(number) if place == 0 or not once else None, word, tag)
        for number, (tokens, tags) in enumerate(SENTENCES, 1)
        for place, (word, tag) in enumerate(zip(tokens, tags, strict=True))
    ]
    frame = pandas.DataFrame(rows, columns=[sentence, word, tag])
    frame.insert(2, "POS", "NN")
    return frame


def read(data, form="words", wanted=USUAL):
    names, rows, where = read_rows(str(data) if hasattr(data, "suffix") else data)
    rows, word = in_sentences(rows, names, form, wanted, where)
    return list(rows), word


def texts_and_tags(rows, word="Word", tag="Tag"):
    assert [row.error for row in rows] == [None] * len(rows)
    return [(row.values[word], row.values[tag]) for row in rows]


def test_kaggles_table_is_read_by_its_sentences(tmp_path):
    words().to_csv(tmp_path / "ner.csv", index=False, encoding="latin-1")
    with open_rows(tmp_path / "ner.csv") as reader:
        rows, word = in_sentences(reader, reader.columns, "words", USUAL, "ner.csv")
        rows = list(rows)
    assert (word, texts_and_tags(rows)) == ("Word", SENTENCES)
    assert rows[1].where == f"{tmp_path / 'ner.csv'}:5"
    assert rows[1].values == {"Sentence #": "Sentence: 2", "Word": ["the", "dog", "ran"], "POS": ["NN"] * 3,
                              "Tag": ["O", "B-per", "O"]}  # fmt: skip
    assert [note.split(": ", 1)[1] for note in reader.notes] == [
        "2 lines are not UTF-8; they were read as Latin-1 (Windows-1252)",
        'a word in each row of "Word": the rows of a sentence, by "Sentence #", are read as one',
    ]


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        (("sentence_id", "word", "tag"), int),
        (("sentence_id", "words", "labels"), int),  # of simpletransformers
        (("sentence_idx", "word", "tag"), float),  # Kaggle's other file
        (("SENTENCE", "TOKEN", "NER_TAG"), "s{}".format),
        (("sent-id", "Tokens", "ner_tags"), str),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "frame"])
def test_an_id_in_each_row_gives_the_same(tmp_path, columns, name, kind):
    frame = words(*columns, name, once=False)
    path = tmp_path / f"ner.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    rows, word = read(frame if kind == "frame" else path)
    assert word == columns[1]
    assert texts_and_tags(rows, *columns[1:]) == SENTENCES
    # pandas groups them likewise
    grouped = frame.groupby(columns[0], sort=False)[columns[1]].agg(list)
    assert [row.values[columns[1]] for row in rows] == grouped.tolist()


def test_an_id_once_is_filled_down_as_pandas_does(tmp_path):
    frame = words()
    frame.to_parquet(tmp_path / "ner.parquet")
    grouped = frame.groupby(frame["Sentence #"].ffill(), sort=False)["Word"].agg(list)
    for data in (frame, tmp_path / "ner.parquet"):
        rows, _ = read(data)
        assert [row.values["Word"] for row in rows] == grouped.tolist()


def faults(tmp_path, rows, columns=("sentence_id", "word", "tag")):
    pandas.DataFrame(rows, columns=columns).to_csv(tmp_path / "ner.csv", index=False)
    read_of = read(tmp_path / "ner.csv")[0]
    return [(row.where.rsplit(":", 1)[1], row.error) for row in read_of]


def test_what_is_wrong_is_told_where_it_is(tmp_path):
    good = [(1, "good", "O"), (1, "cat", "B-per")]
    assert faults(tmp_path, [*good, (2, None, "O"), (2, "sat", "O")]) == [
        ("2", None), ("4", 'column "word" is blank; expected a word'),
    ]  # fmt: skip
    assert faults(tmp_path, [*good, (2, "dog", "O"), (2, "sat", "  ")]) == [
        ("2", None), ("5", 'column "tag", the tag of "sat", is blank; expected a tag, or O for none'),
    ]  # fmt: skip
    again = 'column "sentence_id" is "1" again; expected the words of a sentence in successive rows'
    assert faults(tmp_path, [*good, (2, "dog", "O"), (1, "sat", "O")]) == [("2", None), ("4", None), ("5", again)]
    # Filled once in a sentence, the same name twice is two sentences.
    once = [("1", "good", "O"), (None, "cat", "B-per"), ("1", "sat", "O")]
    assert faults(tmp_path, once) == [("2", None), ("4", again)]
    blank = 'column "sentence_id" is blank before the first sentence; expected its name'
    assert faults(tmp_path, [(None, "good", "O"), (None, "cat", "O"), ("2", "sat", "O")]) == [("2", blank), ("4", None)]


def test_a_line_of_other_width_is_a_fault_of_its_sentence(tmp_path):
    (tmp_path / "ner.csv").write_text("sentence_id,word,tag\n1,good,O\n1,cat\n2,sat,O\n2,on,O\n")
    rows, _ = read(tmp_path / "ner.csv")
    assert [(row.where[-2:], row.error) for row in rows] == [
        (":3", "has 2 fields; expected 3, as in the header"), (":4", None),
    ]  # fmt: skip


def test_rows_of_lists_and_of_texts_stay_as_they_are(tmp_path):
    lists = [{"sentence_id": n, "word": tokens, "tag": tags} for n, (tokens, tags) in enumerate(SENTENCES)]
    texts = [{"sentence_id": 1, "words": "good cat", "spans": [[0, 4, "per"]]}] * 2
    pandas.DataFrame(lists).to_csv(tmp_path / "lists.csv", index=False)
    for data in (lists, texts, write_jsonl(tmp_path / "lists.jsonl", lists), tmp_path / "lists.csv"):
        rows, word = read(data)
        assert word is None
        assert len(rows) == len(texts if data is texts else lists)
    # Texts of one word are texts, and so are those of one sentence_id.
    short = [{"text": word} for word in ("good", "cat", "dog")]
    assert read(short, wanted={"text": "text"})[1] is None
    same = [{"sentence_id": 1, "text": "good cat"}] * 3
    assert read(same, wanted={"text": "text"})[1] is None
    assert read(words("sentence_id", "form", "tag"), wanted={"text": "form"})[1] == "form"
    # Another task reads its texts as ever, and a text beside words is what is read.
    assert read(words("sentence_id", "word", "label"), "text")[1] is None
    assert read(words().assign(text="good cat"))[1] is None


def test_words_without_sentences_are_refused(tmp_path):
    frame = words().drop(columns="Sentence #")
    for wanted in (USUAL, {"text": "Word", "label": "Tag"}):
        with pytest.raises(DataError) as refused:
            read(frame, wanted=wanted)
        assert str(refused.value) == (
            'data: holds a word in each row of "Word", and no column says where a sentence begins; expected a column '
            'such as "Sentence #" or "sentence_id", filled where a sentence begins or in each of its rows. Name it so, '
            "or write each sentence as a list of words."
        )
    with pytest.raises(DataError, match="a row for each sentence: lists of words and of tags, and a label"):
        read(words().assign(intent="move"), "words and label")


def test_a_sentence_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("berthead.data.words.MOST_WORDS", 3)
    table = WordTable("sentence_id", "word", "tag")
    (row,) = table.sentences(iter(read_rows([{"sentence_id": 1, "word": "a", "tag": "O"}] * 9)[1]))
    assert row.error == 'column "sentence_id" is 1 in over 3 rows; expected the words of one sentence'
    assert len(row.values["word"]) == 3


@pytest.fixture(scope="module")
def word_model(once, tiny_bert, tmp_path_factory):
    """Fitted on Kaggle's form of the sentences."""
    path = tmp_path_factory.mktemp("words") / "ner.csv"
    words().to_csv(path, index=False, encoding="latin-1")
    options = {"task": "tag", "epochs": 2, "batch": 8, "threads": 1, "quiet": True, "encoder": str(tiny_bert)}
    return path, once("words", None, lambda folder: berthead.fit(path, out=folder, valid=str(path), **options))


def test_fit_eval_and_predict_read_it(word_model, cli, tmp_path):
    path, folder = word_model
    # The same sentences as lists are the same rows.
    lists = [{"tokens": tokens, "tags": tags} for tokens, tags in SENTENCES]
    same = write_jsonl(tmp_path / "lists.jsonl", lists)
    model = berthead.load(folder)
    assert model.info()["columns"] == {"text": "Word", "pair": None, "label": "Tag"}
    scores = [model.evaluate(data) for data in (path, same, words())]
    assert [one.pop("warnings")[-1] for one in scores] == ['never found: "geo", "per"'] * 3
    assert scores[0] == scores[1] == scores[2]
    by_pos = cli("eval", folder, path, "--label", "POS")
    assert (by_pos.code, 'column "POS" holds "NN"; expected one of' in by_pos.err) == (3, True)

    answers = tmp_path / "answers.jsonl"
    assert cli("predict", folder, path, "--out", answers).code == 0
    assert cli("predict", folder, same, "--out", tmp_path / "same.jsonl").code == 0
    ours, theirs = ([json.loads(line) for line in one.open()] for one in (answers, tmp_path / "same.jsonl"))
    assert [row["Word"] for row in ours] == [row["tokens"] for row in theirs]
    assert [row["predicted_tags"] for row in ours] == [row["predicted_tags"] for row in theirs]
    assert [row["prediction"] for row in ours] == [row["prediction"] for row in theirs]
    assert list(ours[0]) == ["Sentence #", "Word", "POS", "Tag", "prediction", "predicted_tags"]


def test_jobs_of_parts_files_and_formats_are_by_sentence(word_model, cli, tmp_path):
    path, folder = word_model
    frame = words("sentence_id", "word", "tag", int, once=False)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=3)
    frame.to_parquet(tmp_path / "b.parquet")
    several, shards = tmp_path / "several.parquet", tmp_path / "shards.jsonl"
    done = cli("predict", folder, tmp_path / "a.parquet", tmp_path / "b.parquet", "--out", several)
    assert (done.code, "16 rows" in done.err) == (0, True)
    found = pandas.read_parquet(several)
    assert [json.loads(row) for row in found["word"]] == [tokens for tokens, _ in SENTENCES] * 2
    for shard in ("1/2", "2/2"):
        done = cli("predict", folder, tmp_path / "a.parquet", "--out", shards, "--part-rows", 3, "--shard", shard)
        assert done.code == 0, done.err
    assert cli("gather", shards).code == 0
    assert [json.loads(line)["word"] for line in shards.open()] == [tokens for tokens, _ in SENTENCES]
    # A stream has no second reading.
    done = cli("predict", folder, "-", stdin=path.read_bytes())
    assert (done.code, len(done.out.splitlines())) == (0, 9)


def test_numbers_of_tags_get_their_names(tmp_path, fit):
    frame = words("sentence_id", "word", "tag", int, once=False)
    names = ["O", "B-per", "I-per", "B-geo"]
    frame["tag"] = [names.index(tag) for tag in frame["tag"]]
    frame.to_csv(tmp_path / "ner.csv", index=False)
    (tmp_path / "ner.conll").write_text("\n".join(
        "".join(f"{word} {names.index(tag)}\n" for word, tag in zip(*sentence, strict=True)) for sentence in SENTENCES
    ))  # fmt: skip
    for data in (frame, tmp_path / "ner.csv", tmp_path / "ner.conll"):
        model = fit(data, task="tag", tag_names=",".join(names))
        assert model.artifact.task.tags == ("O", "B-geo", "I-geo", "B-per", "I-per")
    with pytest.raises(DataError, match="holds numbers, such as 1; expected tags"):
        fit(frame, task="tag")


def test_words_are_never_answered_as_texts(word_model, cli, tmp_path):
    folder = word_model[1]
    model = berthead.load(folder)
    frame = words("sentence_id", "word", "tag", int, once=False)
    for inputs in (frame, words(), frame.to_dict("records")):
        with pytest.raises(DataError, match="holds a word in each row"):
            model.predict(inputs)
    found = model.predict([{"tokens": row} for row in frame.groupby("sentence_id")["word"].agg(list)])
    assert [len(one.tags) for one in found] == [len(tokens) for tokens, _ in SENTENCES]
    for column in ("Word", "tokens", "words"):
        bare = words().rename(columns={"Word": column})[[column]]
        bare.to_csv(tmp_path / "bare.csv", index=False)
        refused = cli("predict", folder, tmp_path / "bare.csv", "--out", tmp_path / "out.csv")
        assert (refused.code, "no column says where a sentence begins" in refused.err) == (3, True)

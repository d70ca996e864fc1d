"""Files of the token and choice tasks, sound and broken, from the command line: fit, eval, predict."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import write_csv, write_jsonl
from toy_tasks import QUICK, choose_rows, fit_task, span_rows, tag_rows

import berthead

FAST = ["--epochs", 1, "--batch", 8, "--threads", 1, "--quiet"]
SOUND = {
    "tag": [{"text": "good cat", "spans": [{"start": 0, "end": 4, "label": "X"}]}, {"text": "dog", "spans": []}],
    "words": [{"tokens": ["good", "cat"], "tags": ["B-X", "O"]}, {"tokens": ["dog"], "tags": ["O"]}],
    "span": [{"question": "who ?", "context": "the cat sat", "answers": [{"text": "cat", "answer_start": 4}]}],
    "choose": [{"question": "who ?", "choices": ["cat", "dog"], "label": 0}],
    "joint": [{"tokens": ["good", "cat"], "tags": ["B-X", "O"], "intent": "a"},
              {"tokens": ["dog"], "tags": ["O"], "intent": "b"}],
}  # fmt: skip


def spans(*marks, text="good cat ran"):
    return {"text": text, "spans": [dict(zip(("start", "end", "label"), mark, strict=False)) for mark in marks]}


def asked(answers, context="the cat sat on the mat"):
    return {"question": "who ?", "context": context, "answers": answers}


def choice(choices, label):
    return {"question": "who ?", "choices": choices, "label": label}


# What stands in the third line, and what is said of it.
BROKEN = {
    "fewer tags than tokens": ("words", {"tokens": ["a", "b"], "tags": ["O"]},
        "1 tag for 2 tokens; expected one for each"),
    "more tags than tokens": ("words", {"tokens": ["a"], "tags": ["O", "O"]},
        "2 tags for 1 token; expected one for each"),
    "tags of a text": ("words", {"tokens": "a  b", "tags": ["O", "O"]},
        "expected spans, or a list of tokens as the text"),
    "no tags": ("words", {"tokens": ["a"]}, 'column "tags" is blank; expected a list of tags'),
    "tags in words": ("words", {"tokens": ["a"], "tags": "O"}, 'column "tags" is "O"; expected a list of tags'),
    "a number as tag": ("words", {"tokens": ["a"], "tags": [3]}, "holds numbers, such as 3; expected tags. Name"),
    "an empty token": ("words", {"tokens": ["a", ""], "tags": ["O", "O"]}, "as token 2; expected a text"),
    "a number as token": ("words", {"tokens": ["a", 5], "tags": ["O", "O"]}, "holds 5 as token 2; expected a text"),
    "no token": ("words", {"tokens": [], "tags": []}, "holds no token"),
    "spans and tokens": ("words", {"tokens": ["a"], "tags": [[0, 1, "X"]]}, "expected a tag for each token"),
    "a span without end": ("tag", spans((0,)), 'expected a span such as {"start": 0, "end": 5, "label": "PER"}'),
    "a span without label": ("tag", spans((0, 4)), 'expected a span such as {"start": 0, "end": 5, "label": "PER"}'),
    "a blank label": ("tag", spans((0, 4, "")), "expected whole numbers as start and end, a text as label"),
    "a backward span": ("tag", spans((4, 0, "X")), "span 4-0; expected a start of at least 0, and an end above it"),
    "an empty span": ("tag", spans((4, 4, "X")), "span 4-4; expected a start of at least 0, and an end above it"),
    "a negative start": ("tag", spans((-4, 4, "X")), "span -4-4; expected a start of at least 0"),
    "half a character": ("tag", spans((0.5, 4, "X")), "expected whole numbers as start and end"),
    "beyond the end": ("tag", spans((9, 13, "X")), "span 9-13 (X); expected an end of at most 12"),
    "of white space": ("tag", spans((4, 5, "X")), "span 4-5 (X) of white space; expected text in it"),
    "overlapping": ("tag", spans((0, 8, "X"), (5, 8, "X")),
        "0-8 (X) and 5-8 (X), which overlap; expected each character"),
    "the same twice": ("tag", spans((0, 4, "X"), (0, 4, "X")), "0-4 (X) and 0-4 (X), which overlap"),
    "no text": ("tag", {"text": " ", "spans": []}, 'column "text" is blank; expected a text'),
    "no answers": ("span", {"question": "q", "context": "c"}, "or [] for none"),
    "a blank answer": ("span", asked([{"text": " "}, {"text": "cat"}]), 'expected an answer such as {"text": "..."'),
    "an answer elsewhere": ("span", asked([{"text": "dog", "answer_start": 4}]),
                            'answer_start 4, and "dog" is not in the context; expected the place of its first'),
    "an answer twice": ("span", asked([{"text": "the", "answer_start": 4}]),
                        'answer_start 4, and "the" occurs 2 times in the context; expected the place of its first'),
    "an answer nowhere": ("span", asked("dog"), 'no answer_start, and "dog" is not in the context'),
    "a start in words": ("span", asked([{"text": "cat", "answer_start": "four"}]), "a whole number of characters"),
    "a negative answer": ("span", asked([{"text": "cat", "answer_start": -1}]), "a whole number of characters"),
    "starts that lack": ("span", asked({"text": ["cat", "mat"], "answer_start": [4]}),
        "2 texts and 1 value of answer_start; expected as many of both"),
    "no context": ("span", {"question": "q", "answers": []}, 'column "context" is missing; expected a text'),
    "no question": ("span", asked([]) | {"question": ""}, 'column "question" is blank; expected a text'),
    "a choice too far": ("choose", choice(["a", "b"], 2),
        "is 2, and there are 2 choices; expected a number from 0 to 1"),
    "a choice before all": ("choose", choice(["a", "b"], -1), "is -1, and there are 2 choices"),
    "a letter too far": ("choose", choice(["a", "b"], "C"),
        'is "C", and there are 2 choices; expected a number from 0 to 1'),
    "no choice's text": ("choose", choice(["a", "b"], "cat"), "a letter from A to B, or the text of a choice"),
    "two choices alike": ("choose", choice(["cat", "cat"], "cat"), "the text of 2 choices"),
    "an empty choice": ("choose", choice(["cat", " "], 0), "choice 2 of 2 is empty; expected a text"),
    "a list as choice": ("choose", choice(["cat", ["a"]], 0), "choice 2 of 2 is"),
    "one choice": ("choose", choice(["cat"], 0), "holds 1 choice; expected at least 2"),
    "a text as choices": ("choose", choice("cat, dog", 0), "expected a list of choices"),
    "no label": ("choose", choice(["a", "b"], None), 'column "label" is blank; expected a number from 0 to 1'),
    "no intent": ("joint", {"tokens": ["a"], "tags": ["O"]}, "is blank"),
    "joint tags that lack": ("joint", {"tokens": ["a", "b"], "tags": ["O"], "intent": "a"}, "1 tag for 2 tokens"),
}  # fmt: skip


def refused(ran, place: str, *words: str) -> None:
    """A data error for users: its place, what was seen, what is allowed, what to do; nothing was made."""
    assert ran.code == 3, ran
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert ran.err.startswith(f"berthead: {place}: "), ran.err
    for word in words:
        assert word in ran.err, ran.err
    assert len(ran.err) < 600


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_with_its_line(name, cli, tmp_path, tiny_bert):
    kind, row, words = BROKEN[name]
    task = {"words": "tag"}.get(kind, kind)
    sound = SOUND[kind]
    path = write_jsonl(tmp_path / "data.jsonl", [sound[0], sound[-1], row, sound[0]])
    arguments = [path, "--task", task, "--encoder", tiny_bert, "--out", tmp_path / "m", *FAST, "--valid", 0]
    refused(cli("fit", *arguments), f"{path}:3", words, "--skip-bad-rows")
    assert not (tmp_path / "m").exists()
    ran = cli("fit", *arguments, "--skip-bad-rows")
    assert ran.code == 0, ran
    assert f"note: left out: {path}:3: " in ran.err
    assert words in ran.err
    # Where it is applied, what is sound is answered; what the target says does not matter.
    ran = cli("eval", tmp_path / "m", path)
    refused(ran, f"{path}:3", words)
    ran = cli("eval", tmp_path / "m", path, "--skip-bad-rows", "--json")
    assert (ran.code, json.loads(ran.out)["skipped"], json.loads(ran.out)["rows"]) == (4, 1, 3)


BROKEN_FILES = {
    "mixed schemes": ("tag", "a.jsonl", [{"tokens": ["a", "b"], "tags": ["B-X", "O"]},
                                         {"tokens": ["c"], "tags": ["X"]}],
                      ":2", ["mixes tag schemes", '"B-X" and "X" are mixed; expected a prefix',
                          "Write all tags in one scheme."]),
    "IOB1 beside BIOES": ("tag", "a.conll", "Rome S-LOC\n\nAnn I-PER\nLee I-PER\nsat O\n", ":3",
                          ["mixes tag schemes", '"I-PER I-PER" is not a whole entity', '"S-LOC"', "in one scheme."]),
    "BIOES beside IOB2": ("tag", "a.conll", "Ann B-PER\nsat O\n\nRome S-LOC\n", ":4", ['"B-PER" is not a whole entity',
        '"S-LOC"']),
    "BILOU beside BIOES": ("tag", "a.jsonl", [{"tokens": ["a", "b"], "tags": ["B-X", "E-X"]},
                                              {"tokens": ["c"], "tags": ["U-X"]}, {"tokens": ["c"], "tags": ["S-X"]}],
                           ":3", ['"U-X" and "S-X" are mixed', "mean the same"]),
    "two separators": ("tag", "a.jsonl", [{"tokens": ["a"], "tags": ["B-X"]}, {"tokens": ["c"], "tags": ["B_X"]}],
                       ":2", ["mixes tag schemes", '"B-X" and "B_X"']),
    "tags and spans": ("tag", "a.jsonl", [{"text": ["a"], "tags": ["B-X"]}, {"text": "c", "tags": [[0, 1, "X"]]}],
                       ":2", ["holds spans, and rows before it tags",
                           "expected tags in all rows, or spans in all rows"]),
    "no entity": ("tag", "a.jsonl", [{"tokens": ["a"], "tags": ["O"]}] * 2, "", ["2 to 1,000 tags", "right column"]),
    "no tags column": ("tag", "a.jsonl", [{"tokens": ["a"], "text": "O"}], "", ["no column for the label", "--label"]),
    "no text column": ("tag", "a.csv", "a,tags\nx,O\n", "", ["no column for the text", "one of its columns: a, tags"]),
    "broken JSON in a cell": ("tag", "a.csv", 'tokens,tags\n"[""a""]","[""O"""\n', ":2",
                              ["""column "tags" is "[""", "a list of tags"]),
    "another width": ("tag", "a.conll", "good B-X\ncat O extra\n\ndog O\n", ":2", ["has 3 columns",
        "expected 2 separated by spaces, as in line 1"]),
    "an empty tag": ("tag", "a.conll", "good\tB-X\ncat\t\n\ndog\tO\n", ":2",
        ["is empty; expected a tag, or O for none"]),
    "one column": ("tag", "a.conll", "good\ncat\n", "", ["no column for the label"]),
    "nothing answered": ("span", "a.jsonl", [asked([])] * 2, "", ["holds no answer", "Add rows that have one"]),
    "no context column": ("span", "a.csv", "question,answers\nx,y\n", "", ["no column for the pair", "--pair COLUMN"]),
    "squad": ("span", "a.json", {"data": [{"paragraphs": [{"context": "a cat", "qas": [
        {"id": "1", "question": "who ?", "answers": [{"text": "cat", "answer_start": 2}]},
        {"id": "2", "question": "who ?", "answers": [{"text": "dog", "answer_start": 2}]}]}]}]},
              ":data[0].paragraphs[0].qas[1]", ["is not in the context"]),
    "impossible and answered": ("span", "a.json", {"data": [{"paragraphs": [{"context": "a cat", "qas": [
        {"question": "who ?", "answers": []},
        {"question": "who ?", "answers": [{"text": "cat", "answer_start": 2}], "is_impossible": True}]}]}]},
                                ":data[0].paragraphs[0].qas[1]", ["is_impossible", "expected [], or"]),
    "label studio": ("tag", "a.json", [{"data": {"text": "good cat"}, "annotations": [{"result": [
        {"type": "labels", "value": {"start": 0, "end": 40, "labels": ["X"]}}]}]}], ":[0]",
                     ["expected an end of at most 8"]),
    "label studio twice": ("tag", "a.json", [{"data": {"text": "good cat"}, "annotations": [{"result": [
        {"type": "labels", "value": {"start": 0, "end": 4, "labels": ["X", "Y"]}}]}]}], ":[0]", ["which overlap"]),
    "doccano": ("tag", "a.jsonl", [{"text": "good cat", "label": [[0, 4, "X"]]},
                                    {"text": "cat", "label": [[2, 9, "X"]]}], ":2", ["expected an end of at most 3"]),
    "doccano, unclosed": ("tag", "a.jsonl", [{"text": "good cat", "label": [[0, 4, "X"]]},
                                             {"text": "cat", "label": [[2, "X"]]}], ":2", ['holds [2, "X"]; ']),
    "doccano's objects, unclosed": (
        "tag", "a.jsonl",
        [{"text": "good cat", "entities": [{"start_offset": 0, "end_offset": 4, "label": "X"}]},
         {"text": "cat", "entities": [{"start_offset": 0, "label": "X"}]}],
        ":2", ['holds {"start_offset": 0, "label": "X"}; expected a span such as'],
    ),
    "a label studio file of bad rows": ("tag", "a.json", [{"data": {"text": "cat"}, "annotations": [{"result": [
        {"type": "labels", "value": {"start": 1, "labels": ["X"]}}]}]}], ":[0]", ['value has no "end"']),
    "squad without a place": ("span", "a.json", {"data": [{"paragraphs": [{"context": "a cat", "qas": [
        {"question": "who ?", "answers": [{"text": "cat"}]}]}]}]}, ":data[0].paragraphs[0].qas[0]",
                              ['answers[0] has no "answer_start"']),
    "no intent": ("joint", "a.jsonl", [{"tokens": ["a"], "tags": ["B-X"], "intent": "x"},
                                       {"tokens": ["a"], "tags": ["O"]}], ":2", ['column "intent" is blank']),
    "no choice columns": ("choose", "a.csv", "question,label\nx,0\n", "", ["nor two columns such as", "--choices"]),
    "a gap among choices": ("choose", "a.csv", "question,choice_a,choice_b,choice_c,label\nwho,cat,,dog,0\n", ":2",
                            ["choice 2 of 3 is empty"]),
    "one choice in columns": ("choose", "a.csv", "question,choice_a,choice_b,label\nwho,cat,,0\n", ":2",
                              ["holds 1 choice; expected at least 2"]),
    "a label of a choice that lacks": ("choose", "a.csv", "question,A,B,C,label\nwho,cat,dog,,C\n", ":2",
                                       ['is "C", and there are 2 choices', "a letter from A to B"]),
    "too many fields": ("choose", "a.csv", "question,A,B,label\nwho,cat,dog,0,1\n", ":2",
                        ["has 5 fields; expected 4, as in the header"]),
}  # fmt: skip


def written(path: Path, content) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, content)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_named_with_the_place(name, cli, tmp_path, tiny_bert):
    task, file, content, place, words = BROKEN_FILES[name]
    path = written(tmp_path / file, content)
    ran = cli("fit", path, "--task", task, "--encoder", tiny_bert, "--out", tmp_path / "m", *FAST, "--valid", 0)
    refused(ran, f"{path}{place}", *words)
    assert not (tmp_path / "m").exists()


def test_entities_that_begin_with_i_beside_those_that_begin_with_b_are_told(cli, tmp_path, tiny_bert):
    path = tmp_path / "data.conll"
    path.write_text("Ann B-PER\nLee I-PER\n\nin O\nRome I-LOC\n\nBo I-PER\nsat O\n\n")
    ran = cli("fit", path, "--task", "tag", "--encoder", tiny_bert, "--out", tmp_path / "m", *FAST, "--valid", 0)
    assert ran.code == 0, ran
    assert f'{path}:4: an entity is written "I-LOC", as 1 more are, and others begin with B; read as' in ran.err
    path.write_text("Ann I-PER\nLee I-PER\n\nin O\nRome I-LOC\n\n")
    ran = cli("eval", tmp_path / "m", path)
    assert ran.code == 0, ran
    assert "is written" not in ran.err


def test_an_answer_whose_place_is_wrong_is_mended_where_it_stands_once(cli, tmp_path, tiny_bert):
    rows = [asked([{"text": "cat", "answer_start": 5}]), asked([{"text": "mat", "answer_start": 19}]), asked("sat")]
    path = write_jsonl(tmp_path / "data.jsonl", rows * 4)
    ran = cli("fit", path, "--task", "span", "--encoder", tiny_bert, "--out", tmp_path / "m", *FAST, "--valid", 0)
    assert ran.code == 0, ran
    assert f'{path}:1: answer_start 5 is wrong; "cat" occurs at 4 only, which is used instead' in ran.err
    assert f"{path}:2:" not in ran.err
    assert f"{path}:3:" not in ran.err
    ran = cli("eval", tmp_path / "m", path, "--json")
    notes = json.loads(ran.out)["warnings"]
    assert sum("answer_start 5 is wrong" in note for note in notes) == 4


@pytest.mark.parametrize("answer", ["1999", "true", "3.5", "null", '"quoted"', "7e"])
def test_an_answer_in_a_cell_is_a_text_though_it_reads_like_json(answer, cli, tmp_path, tiny_bert):
    rows = [{"question": "when ?", "context": f"it ran in {answer} .", "answer": answer} for _ in range(3)]
    path = write_csv(tmp_path / "data.csv", rows)
    ran = cli("fit", path, "--task", "span", "--encoder", tiny_bert, "--out", tmp_path / "m", *FAST, "--valid", 0)
    assert ran.code == 0, ran
    ran = cli("eval", tmp_path / "m", path, "--json")
    assert ran.code == 0


def test_spans_that_cut_words_are_noted_with_their_row(cli, tmp_path, tiny_bert):
    rows = [spans((0, 4, "X")), spans((1, 4, "X")), spans((0, 8, "X"), (9, 12, "Y"))]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    words = ["--task", "tag", "--tag-unit", "word", "--encoder", tiny_bert, "--out", tmp_path / "m"]
    ran = cli("fit", path, *words, *FAST, "--valid", 0)
    assert ran.code == 0, ran
    assert f'{path}:2: span 1-4 "ood" (X) begins or ends inside a word; "good" is labelled, and counts' in ran.err
    assert ran.err.count("inside a word") == 1


@pytest.fixture(scope="module")
def models(tiny_bert, tmp_path_factory):
    """Folders of functions that have learnt the toy rules."""
    folder = tmp_path_factory.mktemp("models")
    for task in ("tag", "span", "choose", "joint"):
        fit_task(tiny_bert, task).save(folder / task)
    return folder


UNKNOWN = {
    "tag": (
        {"tokens": ["good", "cat"], "tags": ["B-POSS", "O"]},
        ['"POSS"', "expected one of 2 known labels", 'Did you mean "POS"?'],
    ),
    "spans": ({"text": "good cat", "spans": [{"start": 0, "end": 4, "label": "OTHER"}]}, ['"OTHER"', '"NEG", "POS"']),
    "joint": ({"tokens": ["a"], "tags": ["O"], "intent": "maybe"}, ['"maybe"', '"no", "yes"']),
    "joint tags": ({"tokens": ["a"], "tags": ["B-NEW"], "intent": "yes"}, ['"NEW"', '"NEG", "POS"']),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_label_that_was_not_there_at_fit_is_an_error_of_its_row(name, cli, tmp_path, models):
    row, words = UNKNOWN[name]
    task = "joint" if "joint" in name else "tag"
    sound = tag_rows(1)[0] if "text" not in row else {"text": "good", "spans": []}
    path = write_jsonl(tmp_path / "data.jsonl", [sound, row])
    refused(cli("eval", models / task, path), f"{path}:2", *words)


def test_spans_given_to_a_model_of_plain_tags_are_an_error_of_their_row(cli, tmp_path, tiny_bert):
    rows = [{"tokens": row["tokens"], "tags": [f"T{tag[:1]}" for tag in row["tags"]]} for row in tag_rows(8)]
    fit_task(tiny_bert, "tag", rows, epochs=1).save(tmp_path / "m")
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "good cat", "spans": [[0, 4, "TB"]]}])
    refused(cli("eval", tmp_path / "m", path), f"{path}:1", "span")
    path = write_jsonl(tmp_path / "data.jsonl", [{"text": "good cat", "spans": []}])
    refused(cli("eval", tmp_path / "m", path), f"{path}:1", "tag")
    rows.append({"tokens": "good cat", "tags": []})
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    ran = cli("fit", path, "--task", "tag", "--encoder", tiny_bert, "--out", tmp_path / "n", *FAST, "--valid", 0)
    refused(ran, f"{path}:9", "holds no tags")


# Every format, end to end


def conll(rows) -> str:
    return "\n".join(
        "".join(f"{word}\t{tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True)) for row in rows
    )


def marks(row) -> tuple[str, list]:
    """The text of a toy row, and its entities by characters."""
    text, found = "", []
    for word, tag in zip(row["tokens"], row["tags"], strict=True):
        text += " " * bool(text)
        if tag[0] == "B":
            found.append([len(text), len(text) + len(word), tag[2:]])
        elif tag[0] == "I":
            found[-1][1] = len(text) + len(word)
        text += word
    return text, found


def doccano(rows) -> list:
    return [dict(zip(("text", "label"), marks(row), strict=True)) for row in rows]


def label_studio(rows) -> list:
    tasks = []
    for number, (text, found) in enumerate(map(marks, rows)):
        regions = [{"type": "labels", "value": {"start": a, "end": b, "text": text[a:b], "labels": [label]}}
                   for a, b, label in found]  # fmt: skip
        tasks.append({"id": number, "data": {"text": text}, "annotations": [{"result": regions}]})
    return tasks


def squad(rows) -> dict:
    paragraphs = []
    for number, row in enumerate(rows):
        question = {"id": str(number), "question": row["question"], "answers": row["answers"]}
        paragraphs.append({"context": row["context"], "qas": [question | {"is_impossible": not row["answers"]}]})
    return {"version": "v2.0", "data": [{"title": "toy", "paragraphs": paragraphs}]}


def read_back(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def parsed(value):
    return json.loads(value) if isinstance(value, str) else value


FORMATS = {
    "conll": ("tag", "bio.conll", conll), "conll in txt": ("tag", "bio.txt", conll),
    "doccano": ("tag", "a.jsonl", doccano), "label studio": ("tag", "a.json", label_studio),
    "tokens": ("tag", "a.jsonl", list), "squad": ("span", "a.json", squad), "questions": ("span", "a.jsonl", list),
    "joint": ("joint", "a.jsonl", list), "choices": ("choose", "a.jsonl", list),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_fitted_scored_and_answered(name, cli, tmp_path, tiny_bert):
    task, file, make = FORMATS[name]
    source = {"tag": tag_rows, "joint": tag_rows, "choose": choose_rows,
              "span": lambda count, seed=0: span_rows(count, seed, unanswerable=True)}[task]  # fmt: skip
    train, test = tmp_path / f"train-{file}", tmp_path / f"test-{file}"
    written(train, make(source(90)))
    rows = source(20, seed=7)
    written(test, make(rows))
    flags = [word for key, value in (QUICK | {"valid": 0.2, "epochs": 12}).items() for word in (f"--{key}", value)]
    ran = cli("fit", train, "--task", task, "--encoder", tiny_bert, "--out", tmp_path / "m", *flags, "--quiet")
    assert ran.code == 0, ran
    ran = cli("eval", tmp_path / "m", test, "--json")
    assert ran.code == 0, ran
    scores = json.loads(ran.out)
    assert scores[{"tag": "f1", "joint": "exact_match", "span": "exact", "choose": "accuracy"}[task]] == 1.0
    assert scores["rows"] == len(rows)
    assert cli("eval", tmp_path / "m", test).code == 0
    assert cli("verify", tmp_path / "m").code == 0
    for suffix in ("jsonl", "csv", "parquet"):
        out = tmp_path / f"out.{suffix}"
        ran = cli("predict", tmp_path / "m", test, "--out", out, "--probabilities")
        assert ran.code == 0, ran
        assert f"{len(rows)} rows written" in ran.err
        answers = read_back(out)
        assert len(answers) == len(rows)
        for row, answer in zip(rows, answers, strict=True):
            compare(task, row, answer, suffix)
    assert cli("info", tmp_path / "m").code == 0


def compare(task: str, row: dict, answer: dict, suffix: str) -> None:
    """What was written beside a toy row, of which all rules were learnt."""
    if task == "choose":
        assert int(answer["prediction"]) == row["label"]
        assert 0.5 < float(answer["score"]) <= 1
    elif task == "span":
        gold = row["answers"][0] if row["answers"] else {"text": "", "answer_start": None}
        start = answer["start"] if answer["start"] != "" else None
        assert (answer["prediction"], start if start is None else int(start)) == (gold["text"], gold["answer_start"])
        if gold["text"]:
            assert answer["context"][int(answer["start"]) : int(answer["end"])] == gold["text"]
    else:
        text, found = marks(row)
        listed = parsed(answer["spans" if task == "joint" else "prediction"])
        assert [[one["start"], one["end"], one["label"]] for one in listed] == found
        assert all(one["text"] == text[one["start"] : one["end"]] for one in listed)
        if "tokens" in answer:
            assert parsed(answer["tags"]) == parsed(answer["predicted_tags"]) == row["tags"]
        if task == "joint":
            assert answer["prediction"] == row["intent"]
            assert float(answer["p(yes)"]) + float(answer["p(no)"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("style", ["number", "letter", "text"])
@pytest.mark.parametrize("names", ["choice_{}", "option {}", "ending{}", "mine_{}"])
def test_choices_may_stand_in_columns_of_their_own(style, names, cli, tmp_path, models, tiny_bert):
    columns = [names.format("abcd"[n] if names.startswith("choice") else n) for n in range(4)]
    rows = []
    for row in choose_rows(20, seed=2):
        cells = row["choices"] + [""] * (4 - len(row["choices"]))
        label = {"number": row["label"], "letter": "ABCD"[row["label"]], "text": row["choices"][row["label"]]}[style]
        rows.append({"question": row["question"], **dict(zip(columns, cells, strict=True)), "label": label})
    path = write_csv(tmp_path / "data.csv", rows)
    named = ["--choices", ",".join(columns)] if names.startswith("mine") else []
    ran = cli("eval", models / "choose", path, "--json", *named)
    assert (ran.code, json.loads(ran.out)["accuracy"]) == (0, 1.0), ran
    # Fitted on it, the model answers as the user writes.
    arguments = [path, "--task", "choose", "--encoder", tiny_bert, "--out", tmp_path / "m", *named]
    ran = cli("fit", *arguments, *FAST, "--valid", 0)
    assert ran.code == 0, ran
    model = berthead.load(tmp_path / "m")
    assert model.artifact.task.style == style
    assert model.info()["columns"]["choices"] == columns
    ran = cli("predict", tmp_path / "m", path, "--out", tmp_path / "out.csv")
    assert ran.code == 0, ran
    for row, answer in zip(rows, read_back(tmp_path / "out.csv"), strict=True):
        known = [row[name] for name in columns if row[name]]
        assert answer["prediction"] in {"number": "0123", "letter": "ABCD", "text": known}[style]
    one = model.predict({name: value for name, value in rows[0].items() if name != "label"})
    assert str(one.answer) == read_back(tmp_path / "out.csv")[0]["prediction"]


def test_a_dict_with_the_fitted_columns_is_an_input(tiny_bert):
    rows = [{"frage": row["question"], "absatz": row["context"], "antwort": row["answers"]} for row in span_rows(40)]
    model = fit_task(tiny_bert, "span", rows, text="frage", pair="absatz", label="antwort")
    row = {"frage": "the dog ?", "absatz": "a red cat"}
    assert model.predict(row).answer == model.predict(("the dog ?", "a red cat")).answer
    rows = [{"q": row["question"], "wahl": row["choices"], "richtig": row["label"]} for row in choose_rows(40)]
    model = fit_task(tiny_bert, "choose", rows, text="q", choices="wahl", label="richtig")
    row = {"q": "the cat ?", "wahl": ["bad", "good"]}
    assert model.predict(row) == model.predict(("the cat ?", ["bad", "good"]))


def test_one_question_is_answered_on_the_command_line(cli, models):
    ran = cli("predict", models / "span", "the dog ?", "a cat sat red mat")
    assert ran.code == 0, ran
    answer, score, place = ran.out.split()
    assert (answer, place) == ("red", "10-13")
    assert 0.5 < float(score) <= 1
    ran = cli("predict", models / "span", "the dog ?", "a cat sat red mat", "--json")
    found = json.loads(ran.out)
    assert (found["answer"], found["spans"][0]["start"], found["window"]) == ("red", 10, None)


def test_one_choice_is_made_on_the_command_line(cli, models):
    ran = cli("predict", models / "choose", "the cat ?", "a bad", "b good", "c bad", "--probabilities")
    assert ran.code == 0, ran
    first, *others = ran.out.splitlines()
    assert first.split()[0] == "1"
    assert [line.split()[0] for line in others] == ["p(0)", "p(1)", "p(2)"]
    assert sum(float(line.split()[1]) for line in others) == pytest.approx(1, abs=1e-3)


def test_one_text_is_tagged_on_the_command_line(cli, models):
    ran = cli("predict", models / "tag", "the good great cat, bad dog")
    assert ran.code == 0, ran
    lines = [line.split("  ") for line in ran.out.splitlines()]
    assert [line[:3] for line in lines] == [["4-14", "POS", "good great"], ["20-23", "NEG", "bad"]]
    assert cli("predict", models / "tag", "the cat").out == "(no span)\n"
    ran = cli("predict", models / "joint", "the good cat")
    assert [line.split("  ")[:1] for line in ran.out.splitlines()] == [["yes"], ["4-8"]]


@pytest.mark.parametrize(
    ("task", "texts", "words"),
    [
        ("span", ["the dog ?"], "a question and its context"),
        ("span", ["the dog ?", "a", "b"], "a question and its context"),
        ("choose", ["the cat ?"], "a question and two choices or more"),
        ("choose", ["the cat ?", "good"], "a question and two choices or more"),
        ("tag", ["a", "b"], "a single text"),
    ],
)
def test_another_number_of_texts_is_a_usage_error(task, texts, words, cli, models):
    ran = cli("predict", models / task, *texts)
    assert ran.code == 2
    assert words in ran.err
    assert "Traceback" not in ran.err


def test_rows_that_cannot_be_answered_are_put_aside(cli, tmp_path, models):
    rows = [{"question": "a b", "context": "red cat"}, {"question": "a b", "context": " "}, {"question": "a b"}]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    ran = cli("predict", models / "span", path, "--out", tmp_path / "out.jsonl")
    assert ran.code == 4
    assert [row["prediction"] for row in read_back(tmp_path / "out.jsonl")] == ["red"]
    errors = read_back(tmp_path / "out.jsonl.errors.jsonl")
    assert [row["where"] for row in errors] == [f"{path}:2", f"{path}:3"]
    rows = [choice(["good", "bad"], 0), choice(["good"], 0), {"question": "a"}]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    ran = cli("predict", models / "choose", path, "--out", tmp_path / "out.csv")
    assert ran.code == 4
    assert [row["prediction"] for row in read_back(tmp_path / "out.csv")] == ["0"]
    assert "expected at least 2" in ran.err

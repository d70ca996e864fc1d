"""Questions of SQuAD 1.1 and 2.0, one row each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from berthead.errors import DataError
from berthead.formats.documents import Document
from berthead.formats.json_values import kind_of, wanted
from berthead.records import Row


def is_squad(document: Any) -> bool:
    """Whether a JSON document has the form of SQuAD.

    Args:
        document: a value from JSON.

    Returns:
        True for an object whose "data" is a list with an article that has "paragraphs", and for a list of those.

    Example:
        >>> is_squad({"version": "1.1", "data": [{"title": "Rome", "paragraphs": []}]})
        True
    """
    if isinstance(document, list):  # paragraphs alone, as simpletransformers has them
        return any(isinstance(one, dict) and "qas" in one for one in document)
    articles = document.get("data") if isinstance(document, dict) else None
    return isinstance(articles, list) and any(isinstance(one, dict) and "paragraphs" in one for one in articles)


def squad_rows(name: str, document: Any) -> Iterator[Row]:
    """The questions of a SQuAD document.

    Args:
        name: the file, for locations.
        document: a document for which `is_squad` is true.

    Returns:
        Rows with "id", "question" and "context"; "answers" as {"text", "answer_start"} each, [] for an impossible
        question, absent if the file has none; "is_impossible" and "title" if given. A question that cannot
        be read is a row with an error.

    Example:
        >>> question = {"id": "q1", "question": "What fell?", "answers": [{"text": "Rome", "answer_start": 0}]}
        >>> document = {"data": [{"paragraphs": [{"context": "Rome fell.", "qas": [question]}]}]}
        >>> row = next(squad_rows("dev.json", document))
        >>> row.where, row.values["question"], row.values["answers"]
        ('dev.json:data[0].paragraphs[0].qas[0]', 'What fell?', [{'text': 'Rome', 'answer_start': 0}])
    """
    if isinstance(document, list):
        for number, paragraph in enumerate(document):
            yield from _paragraph(name, f"[{number}]", paragraph, {})
        return
    for number, article in enumerate(document["data"]):
        place = f"data[{number}]"
        try:
            paragraphs = wanted(_object(article), "paragraphs", list)
        except ValueError as error:
            yield Row({}, f"{name}:{place}", str(error))
            continue
        title = {"title": article["title"]} if isinstance(article.get("title"), str) else {}
        for position, paragraph in enumerate(paragraphs):
            yield from _paragraph(name, f"{place}.paragraphs[{position}]", paragraph, title)


def _paragraph(name: str, place: str, paragraph: Any, title: dict[str, str]) -> Iterator[Row]:
    try:
        questions = wanted(_object(paragraph), "qas", list)
    except ValueError as error:
        yield Row(title, f"{name}:{place}", str(error))
        return
    for number, question in enumerate(questions):
        where = f"{name}:{place}.qas[{number}]"
        try:
            # A fault of the paragraph is told for every question, since none of them can be answered.
            context = wanted(paragraph, "context", str, f"its paragraph, {place},")
            yield Row(_question(_object(question), context) | title, where)
        except ValueError as error:
            asked = question if isinstance(question, dict) else {}
            yield Row({key: asked[key] for key in ("id", "question") if key in asked} | title, where, str(error))


def _question(question: dict[str, Any], context: str) -> dict[str, Any]:
    name = {"id": question["id"]} if "id" in question else {}
    if name and type(name["id"]) not in (str, int):
        raise ValueError(f'has {kind_of(name["id"])} as "id"; expected a text or a number')
    values = name | {"question": wanted(question, "question", str), "context": context}
    impossible = question.get("is_impossible")
    if not isinstance(impossible, bool | None):
        raise ValueError(f'has {kind_of(impossible)} as "is_impossible"; expected true or false')
    if "answers" in question or impossible:
        values["answers"] = _answers(question) if "answers" in question else []
    if impossible is False and values.get("answers") == []:
        del values["answers"]  # nothing is known of it: a file without its answers, or a fault that a fit has to tell
    if impossible and values["answers"]:
        raise ValueError('has "answers" although "is_impossible" is true; expected [], or "is_impossible": false')
    return values if impossible is None else values | {"is_impossible": impossible}


def _answers(question: dict[str, Any]) -> list[dict[str, Any]]:
    answers = []
    for number, answer in enumerate(wanted(question, "answers", list)):
        place = f"answers[{number}]"
        if not isinstance(answer, dict):
            raise ValueError(f"{place} is {kind_of(answer)}; expected an object")
        text, start = wanted(answer, "text", str, place), wanted(answer, "answer_start", int, place)
        answers.append({"text": text, "answer_start": start})
    return answers


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError(f"is {kind_of(value)}; expected an object")


def _rows(name: str, document: Any) -> Iterator[Row]:
    rows = squad_rows(name, document)
    first = next(rows, None)
    if first is None:
        saw, allowed = "is a SQuAD document without a question", "questions under qas"
        raise DataError(name, saw, allowed, "Check that this is the right file.")
    return itertools.chain([first], rows)


def _lacks(document: Any) -> str:
    nearly = isinstance(document, dict) and isinstance(document.get("data"), list) and not is_squad(document)
    return 'none of "data" has "paragraphs"' if nearly else ""


SQUAD = Document(
    name="squad",
    described='a SQuAD document, such as {"data": [{"paragraphs": [...]}]}',
    is_one=is_squad,
    rows=_rows,
    needed=("question", "context"),
    target="answers",
    lacks=_lacks,
)

"""What Python shows: errors that speak of arguments, and short words for a function and an answer."""

import ast
import inspect
import json
import pickle
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import toy_rows, write_csv

import berthead
import berthead.errors
from berthead import Prediction, Span, TextClassifier
from berthead.errors import DataError, UsageError
from berthead.options import FitOptions, PredictOptions
from berthead.options.base import flag
from berthead.options.python_words import in_python

# Errors


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("leave them out with --skip-bad-rows.", "leave them out with skip_bad_rows=True."),
        ("Name one: --label COLUMN.", "Name one: label=COLUMN."),
        ("Name them: --choices COLUMN,COLUMN.", "Name them: choices=COLUMN,COLUMN."),
        ("--valid: is 1.5", "valid: is 1.5"),
        ("--epochs 2 or more", "epochs=2 or more"),
        ("--layer-decay 0.5: no", "layer_decay=0.5: no"),
        ("Leave --precision out.", "Leave precision out."),
        ("--precision int8: no", 'precision="int8": no'),
        ("--adapt lora:33: no", 'adapt="lora:33": no'),
        ("--pooling poler: no", 'pooling="poler": no'),
        ("--adapt frozen, top:K or lora:R", 'adapt="frozen", top:K or lora:R'),
        ('if it separates: --separator ","', 'if it separates: separator=","'),
        ("Lower --stride, or raise --max-tokens.", "Lower stride, or raise max_tokens."),
        ("Give --overwrite, not --resume, to go on", "Give overwrite=True, not resume=True, to go on"),
        ("--resume: needs --out", "resume: needs out"),
        ("Try: berthead export m --onnx DIR. No --base.", "Try: berthead export m --onnx DIR. No base."),
        ("to fit on pairs: --pair claim", 'to fit on pairs: pair="claim"'),
        ("pip install --no-deps x", "pip install --no-deps x"),
        ("/data/a--label b/--text c.csv: --name x", "/data/a--label b/--text c.csv: --name x"),
        ("a -- b --- c", "a -- b --- c"),
    ],
)  # fmt: skip
def test_flags_become_arguments(said, wanted):
    assert in_python(said) == wanted
    assert in_python(wanted) == wanted


def test_every_option_has_its_words():
    for spec in (*fields(FitOptions), *fields(PredictOptions)):
        wanted = f"{spec.name}=True" if isinstance(spec.default, bool) else spec.name
        assert in_python(f"give {flag(spec.name)}.") == f"give {wanted}."


def test_errors_in_python_speak_python_and_those_of_the_command_line_flags(toy_csv, toy_model, tmp_path, cli):
    blank = dict.fromkeys(toy_rows(1)[0], "1") | {"text": ""}
    bad = write_csv(tmp_path / "bad.csv", [*toy_rows(1), blank])
    calls = {
        "skip_bad_rows=True": lambda: berthead.fit(bad),
        "label=COLUMN": lambda: berthead.fit([{"text": "a"}]),
        "valid: is 2.0": lambda: berthead.fit(toy_csv, valid=2),
        'class_weight="none"': lambda: berthead.fit(toy_csv, task="regress", label="stars", class_weight="balanced"),
        "overwrite=True": lambda: berthead.fit(toy_csv, out=toy_model),
        "precision: is": lambda: berthead.load(toy_model, precision="int3"),
        "with skip_bad_rows": lambda: berthead.load(toy_model).evaluate(bad),
        "shard: is": lambda: berthead.load(toy_model).predict_file(toy_csv, tmp_path / "o.csv", shard="x"),
        "uniform=True": lambda: berthead.soup([toy_model, toy_model]),
        "max_tokens: is": lambda: TextClassifier(max_tokens=10**6, valid=0).fit(["a", "b"], [0, 1]),
        "epochs: is 0": lambda: TextClassifier(epochs=0, valid=0).fit(["a", "b"], [0, 1]),
    }
    for words, call in calls.items():
        with pytest.raises((UsageError, DataError, berthead.OutputError), match=re.escape(words)) as caught:
            call()
        assert "--" not in str(caught.value)
    assert "--skip-bad-rows" in cli("fit", bad, "--out", tmp_path / "m").err
    assert "skip_bad_rows" not in cli("eval", toy_model, bad).err
    assert "--valid: is 2" in cli("fit", toy_csv, "--out", tmp_path / "m", "--valid", 2).err


def test_notes_in_python_speak_python_and_those_of_the_command_line_flags(fit, toy_model, tiny_bert, tmp_path, cli):
    few = write_csv(tmp_path / "few.csv", toy_rows(1))
    model = fit(few)
    assert 'column "pair" is not read; to fit on pairs: pair="pair"' in model.warnings
    assert any(note.endswith("; valid=0.1 holds out a tenth") for note in model.warnings)
    options = ("--encoder", tiny_bert, "--epochs", 1, "--out", tmp_path / "m", "--json")
    ran = cli("fit", few, *options)
    for said in (ran.err, "\n".join(json.loads(ran.out)["warnings"])):
        assert 'column "pair" is not read; to fit on pairs: --pair pair' in said
        assert "; --valid 0.1 holds out a tenth" in said
    assert fit(few).warnings == model.warnings  # the command line leaves nothing behind

    # Faults of rows that are left out, and notes of eval, compare and bench.
    bad = write_csv(tmp_path / "bad.csv", [*toy_rows(1), toy_rows(1)[0] | {"text": ""}])
    model = berthead.load(toy_model)
    theta = dict(model.theta)
    theta["embeddings.word_embeddings.weight"][model.artifact.tokenizer.ids(["3"])[0][0]] = 3e38
    rows = [*toy_rows(1), {"text": "3", "label": "positive"}]
    broken = model.with_parameters(theta=theta)
    python, shell = 'in this precision (precision="fp32")', "in this precision (--precision fp32)"
    assert python in str(broken.evaluate(rows, skip_bad_rows=True)["warnings"])
    assert python in str(berthead.compare(model, broken, rows, skip_bad_rows=True).notes)
    broken.save(tmp_path / "broken")
    data = write_csv(tmp_path / "rows.csv", [{"text": row["text"], "label": row["label"]} for row in rows])
    for words in (("eval", tmp_path / "broken"), ("compare", toy_model, tmp_path / "broken")):
        assert shell in cli(*words, data, "--skip-bad-rows").err
    assert cli("eval", toy_model, bad, "--skip-bad-rows").code == 4


def test_an_error_is_the_same_after_pickling_but_for_its_words():
    error = UsageError("--valid", "is 2", "a share", "Lower --lr.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.message) == (str(error), "--valid: is 2; expected a share. Lower --lr.")


def test_every_error_that_a_docstring_names_is_public():
    named = set()
    for path in (Path(berthead.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                section = re.search(r"Raises:\n(.*?)(\n\s*\n|$)", ast.get_docstring(node) or "", re.DOTALL)
                named |= set(re.findall(r"^\s*([A-Z]\w+):", section[1], re.MULTILINE)) if section else set()
    errors = {
        name for name, one in vars(berthead.errors).items() if inspect.isclass(one) and issubclass(one, Exception)
    }
    assert named & errors <= set(berthead.__all__)
    assert errors <= set(berthead.__all__)
    assert berthead.Interrupted is berthead.errors.Interrupted


# A function and its answers


def test_a_function_shows_the_formula_its_labels_and_its_score(toy_model, fit_toy, tmp_path):
    model = berthead.load(toy_model)
    accuracy = model.info()["run"]["metrics"]["accuracy"]
    labels, score = '"negative", "positive"', f"accuracy {accuracy:.4f} on 14 held-out rows"
    wanted = f"Fitted(y = Predict(BERT(text)), classify: {labels}, {score})"
    assert repr(model) == wanted
    scores = model.info()["run"]["metrics"]
    assert model.metrics == {name: value for name, value in scores.items() if isinstance(value, float)}
    model.export_onnx(tmp_path / "onnx")
    graph = berthead.load(tmp_path / "onnx")
    assert (repr(graph), graph.metrics) == (wanted, model.metrics)
    pairs = berthead.load(fit_toy(task="regress", label="stars", pair="pair", valid=0))
    assert repr(pairs) == "Fitted(y = Predict(BERT(text + pair)), regress: numbers from 1.5 to 4.5)"
    assert pairs.metrics == {}
    both = berthead.join({"one": model, "two": model})
    assert repr(both) == "Fitted(joined: one, two)"
    with pytest.raises(UsageError, match="one function"):
        _ = both.metrics


def test_an_answer_is_shown_in_a_line():
    shares = {f"l{number}": 0.001 for number in range(1000)}
    assert repr(Prediction("a", 0.98765, shares, n_tokens=9)) == "Prediction('a', score=0.9877)"
    assert repr(Prediction(2.5)) == "Prediction(2.5)"
    assert repr(Prediction(None, error="is blank", where="row 3")) == "Prediction(error='is blank', where='row 3')"
    spans = [Span(0, 1, "x" * 1000, "L")] * 50
    assert len(repr(Prediction(spans, spans=spans))) < 230
    assert repr(Prediction(["a", "b"], np.float32(0.5))) == "Prediction(['a', 'b'], score=0.5)"
    assert Prediction("a", 0.5) == Prediction("a", 0.5)

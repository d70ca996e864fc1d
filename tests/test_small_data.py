"""Fits of few rows: nothing is held out by default, and there are enough steps; what is asked for is done."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
from conftest import all_bytes, daily, toy_rows, write_csv

import berthead
from berthead.estimators import TextClassifier
from berthead.options import FitOptions
from berthead.tasks import Classify
from berthead.tasks.span import Extract, Gold
from berthead.train.settings import DEFAULTS, FEW_ROWS, HELD_OUT, LEAST_STEPS, held_out_by_default, settings_for

WORDS_OF = {"praise": "good great fine", "blame": "bad poor awful", "colour": "red blue", "animal": "cat dog"}
OTHER_WORDS = ["the", "sat", "on", "mat", "ran", "a", "b", "c", "d", "e"]


def rows_of_four_labels(per_label: int, seed: int) -> list[dict[str, str]]:
    """Rows whose label one of their words decides."""
    draw, rows = random.Random(seed), []
    for label, words in WORDS_OF.items():
        for _ in range(per_label):
            text = [*draw.choices(OTHER_WORDS, k=draw.randint(2, 5)), draw.choice(words.split())]
            draw.shuffle(text)
            rows.append({"text": " ".join(text), "label": label})
    draw.shuffle(rows)
    return rows


def steps_of(run: dict, batch: int = 32) -> int:
    return run["settings"]["epochs"] * -(-run["rows"] // batch)


@pytest.mark.parametrize("seed", daily(range(4), 0, 1))
@pytest.mark.parametrize("adapt", ["full", "frozen"])
def test_thirty_two_rows_of_four_labels_are_all_fitted_and_learnt(tiny_bert, adapt, seed):
    # The vectors of a random encoder, which does not learn, say little of a text.
    encoder = str(tiny_bert) if adapt == "full" else "minilm"
    rows = rows_of_four_labels(8, seed)
    fitted = berthead.fit(rows, encoder=encoder, adapt=adapt, seed=seed, threads=1, quiet=True)
    run = fitted.info()["run"]
    assert (run["rows"], run["held_out_rows"]) == (32, 0)
    if adapt == "frozen":  # its head is solved: folds judge it
        assert run["solved"]["scored_rows"] == 32
        assert not any("held-out" in line for line in fitted.warnings)
    else:
        assert not {"metrics", "gate"} & set(run)
        assert steps_of(run) >= LEAST_STEPS
        note = (
            "32 rows are too few for a held-out set (fewer than 256): the last epoch is kept, without scores; "
            "valid=0.1 holds out a tenth"
        )
        assert note in fitted.warnings
    # By chance a quarter would be right; three standard deviations above it are 0.34 of 200 rows.
    assert fitted.evaluate(rows_of_four_labels(50, seed + 100))["accuracy"] > 0.5


def test_what_is_asked_for_is_done(tiny_bert):
    rows = rows_of_four_labels(8, 0)
    options = {"encoder": str(tiny_bert), "threads": 1, "quiet": True}
    run = berthead.fit(rows, valid=0.25, epochs=2, **options).info()["run"]
    assert (run["rows"], run["held_out_rows"], run["settings"]["epochs"]) == (24, 8, 2)
    assert run["metrics"]["accuracy"] >= 0
    fitted = berthead.fit(rows, valid=0, **options)
    assert not any("held-out" in line for line in fitted.warnings)
    assert steps_of(fitted.info()["run"]) >= LEAST_STEPS
    fitted = berthead.fit(rows, valid=0.25, batch=8, **options)
    assert steps_of(fitted.info()["run"], batch=8) >= LEAST_STEPS
    assert not any("held-out" in line for line in fitted.warnings)


def test_held_out_files_are_read_beside_few_rows(tiny_bert, tmp_path):
    valid = write_csv(tmp_path / "valid.csv", rows_of_four_labels(2, 1))
    options = {"encoder": str(tiny_bert), "threads": 1, "quiet": True, "valid": str(valid)}
    run = berthead.fit(rows_of_four_labels(8, 0), **options).info()["run"]
    assert (run["rows"], run["held_out_rows"]) == (32, 8)
    assert steps_of(run) >= LEAST_STEPS


def test_from_enough_rows_on_fits_are_the_usual_ones(tiny_bert, tmp_path):
    rows = (toy_rows(20))[:FEW_ROWS]
    assert len(rows) == FEW_ROWS
    options = {"encoder": str(tiny_bert), "threads": 1, "quiet": True, "adapt": "frozen"}
    said = {"valid": HELD_OUT, "epochs": DEFAULTS["frozen"]["epochs"]}
    berthead.fit(rows, out=tmp_path / "default", **options)
    berthead.fit(rows, out=tmp_path / "said", **options, **said)
    assert all_bytes(tmp_path / "default") == all_bytes(tmp_path / "said")
    run = berthead.fit(rows[1:], **options).info()["run"]
    assert (run["rows"], run["held_out_rows"]) == (FEW_ROWS - 1, 0)


def test_estimators_hold_out_as_fits_do(tiny_bert):
    rows = rows_of_four_labels(8, 0)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    with pytest.warns(UserWarning, match="32 rows are too few for a held-out set"):
        fitted = TextClassifier(encoder=str(tiny_bert), threads=1).fit(texts, labels).fitted_
    run = fitted.info()["run"]
    assert run["held_out_rows"] == 0
    assert steps_of(run) >= LEAST_STEPS
    fitted = TextClassifier(encoder=str(tiny_bert), threads=1, valid=0.25, epochs=1).fit(texts, labels).fitted_
    assert fitted.info()["run"]["held_out_rows"] == 8
    with pytest.raises(ValueError, match=r"valid: is 1; expected None, \(X, y\), or a share from 0 to 0\.9"):
        TextClassifier(encoder=str(tiny_bert), threads=1, valid=1).fit(texts, labels)


def test_where_answers_hang_on_a_threshold_some_rows_are_held_out(tiny_bert):
    options = {"encoder": str(tiny_bert), "adapt": "frozen", "threads": 1, "quiet": True}
    fitted = berthead.fit(toy_rows(3), task="multilabel", label="tags", **options)
    run = fitted.info()["run"]
    assert 2 <= run["held_out_rows"] <= 6
    assert steps_of(run) >= LEAST_STEPS
    assert run["metrics"]["micro_f1"] >= 0
    assert not any("held-out" in line for line in fitted.warnings)
    answer = (Gold("Paris", 3),)
    assert not Extract.from_targets([answer], "rows").needs_held_out
    assert Extract.from_targets([answer, ()], "rows").needs_held_out


@pytest.mark.parametrize("adapt", ["full", "frozen", "top:1", "lora:2", "bitfit"])
def test_few_rows_get_more_epochs_and_never_fewer(adapt):
    usual = settings_for(FitOptions(adapt=adapt), Classify, 384).epochs
    assert usual == DEFAULTS[adapt.partition(":")[0]]["epochs"]
    for rows in (1, 16, 32, 33, 200, FEW_ROWS - 1):
        epochs = settings_for(FitOptions(adapt=adapt), Classify, 384, few=rows).epochs
        per_epoch = -(-rows // 32)
        assert epochs * per_epoch >= LEAST_STEPS
        assert epochs == usual or (epochs - 1) * per_epoch < LEAST_STEPS
        assert settings_for(FitOptions(adapt=adapt, epochs=2), Classify, 384, few=rows).epochs == 2


def test_help_texts_say_the_numbers():
    labels = Classify.from_targets(["yes", "no"], "rows")
    assert [held_out_by_default(rows, labels) for rows in (FEW_ROWS - 1, FEW_ROWS)] == [0.0, HELD_OUT]
    help_of = {field.name: field.metadata["help"] for field in fields(FitOptions)}
    assert f"[default: {HELD_OUT}; below {FEW_ROWS} rows: 0]" in help_of["valid"]
    assert f"below {FEW_ROWS} rows at least {LEAST_STEPS} steps." in help_of["epochs"]
    assert f"below {FEW_ROWS} rows 0." in (TextClassifier.__doc__ or "")

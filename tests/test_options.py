"""Options: where a value comes from, which values are refused and in which words, and the loop's defaults."""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import get_type_hints

import numpy as np
import pytest
from conftest import ROOT

import berthead
from berthead.errors import UsageError
from berthead.options import ADAPT_ALLOWED, ESTIMATOR_OPTIONS, FitOptions, PredictOptions
from berthead.options.base import flag
from berthead.options.keywords import FitKeywords
from berthead.tasks import TASKS, Classify, Multilabel
from berthead.train import learn, settings
from berthead.train.settings import settings_for

RECORDS = [FitOptions, PredictOptions]
FIELDS = [(record, spec) for record in RECORDS for spec in fields(record)]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for _, spec in FIELDS:
        monkeypatch.delenv(f"BERTHEAD_{spec.name.upper()}", raising=False)


def config(folder, text):
    path = folder / "fit.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(record=FitOptions, path=None, **values):
    """What is said about values that are not allowed."""
    with pytest.raises(UsageError) as error:
        record.from_sources(values, path)
    assert error.value.exit_code == 2
    return str(error.value)


# Sources


def test_a_flag_wins_over_the_environment_that_over_yaml_and_that_over_the_default(tmp_path, monkeypatch):
    path = config(tmp_path, "epochs: 5\nbatch: 5\nseed: 5\n")
    monkeypatch.setenv("BERTHEAD_EPOCHS", "6")
    monkeypatch.setenv("BERTHEAD_BATCH", "6")
    options = FitOptions.from_sources({"epochs": 7, "batch": None, "seed": None}, path)
    assert (options.epochs, options.batch, options.seed, options.clip) == (7, 6, 5, 1.0)
    assert FitOptions.from_sources({}).epochs == 6
    monkeypatch.delenv("BERTHEAD_EPOCHS")
    assert FitOptions.from_sources({}, path).epochs == 5
    assert FitOptions.from_sources({}).epochs is None


def test_a_flag_that_says_false_or_zero_is_given(tmp_path):
    path = config(tmp_path, "overwrite: true\nweight_decay: 0.5\n")
    options = FitOptions.from_sources({"overwrite": False, "weight_decay": 0}, path)
    assert (options.overwrite, options.weight_decay) == (False, 0)


@pytest.mark.parametrize("name", [spec.name for spec in fields(FitOptions)])
def test_every_option_is_read_from_the_environment(name, monkeypatch):
    spec = next(spec for spec in fields(FitOptions) if spec.name == name)
    other = {"choices": (spec.metadata["choices"] or ("",))[-1], "int": "7", "float": "0.25", "bool": "true"}
    kind = spec.type.split(" ")[0]
    text = other["choices"] if spec.metadata["choices"] else other.get(kind, "top:2")
    monkeypatch.setenv(f"BERTHEAD_{name.upper()}", text)
    value = getattr(FitOptions.from_sources({}), name)
    assert value == {"int": 7, "float": 0.25, "bool": True, "str": text}[kind]
    assert type(value).__name__ == kind
    assert value != spec.default


def test_yaml_keys_are_written_with_a_dash_or_an_underscore(tmp_path):
    assert FitOptions.from_sources({}, config(tmp_path, "max-tokens: 9\nweight_decay: 1e-3\n")).max_tokens == 9
    assert FitOptions.from_sources({}, tmp_path / "fit.yaml").weight_decay == 0.001  # text for PyYAML


def test_yaml_null_is_the_default(tmp_path):
    assert FitOptions.from_sources({}, config(tmp_path, "epochs: null\nmetric: ~\n")) == FitOptions()


def test_a_config_file_reaches_fit(tmp_path, toy_csv):
    with pytest.raises(UsageError, match=r'fit\.yaml: epochs: is "many"; expected a whole number'):
        berthead.fit(toy_csv, config=config(tmp_path, "epochs: many\n"))


# Unknown names


def test_an_unknown_flag_gets_the_nearest_name():
    message = refused(epoch=3)
    assert message.startswith(
        "epoch: is not an option; expected one of task, text, pair, label, choices, intent, separator, labels, "
    )
    assert message.endswith('overwrite, resume, checkpoint_minutes. Did you mean "epochs"?')
    assert refused(zzz=None).startswith("zzz: is not an option")


def test_an_unknown_key_of_yaml_gets_the_nearest_name(tmp_path):
    path = config(tmp_path, "batch: 8\nlearning_rat: 1\nmax-token: 3\n")
    assert refused(path=path).startswith(f"{path}: learning_rat: is not an option; expected one of task, text,")
    path = config(tmp_path, "max-token: 3\n")
    assert refused(path=path).endswith('Did you mean "max_tokens"?')
    assert refused(path=config(tmp_path, "1: 3\n")).startswith(f"{path}: 1: is not an option")
    assert refused(PredictOptions, config(tmp_path, "epochs: 3\n")).startswith(f"{path}: epochs: is not an option")


def test_an_unknown_keyword_of_fit_is_an_error_before_the_data_is_read():
    with pytest.raises(UsageError, match='Did you mean "epochs"'):
        berthead.fit("no-such-file.csv", epcohs=3)


@pytest.mark.parametrize(
    ("text", "saw"),
    [
        ("epochs: [1, 2\n", "cannot be read as YAML"),
        ("a: b: c\n", "cannot be read as YAML"),
        ("\tepochs: 3\n", "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
        ("- epochs\n", "does not hold a mapping"),
        ("epochs 3\n", "does not hold a mapping"),
        ("", "does not hold a mapping"),
    ],
)
def test_broken_yaml_is_refused_in_one_line(tmp_path, text, saw):
    path = config(tmp_path, text)
    message = refused(path=path)
    assert message.startswith(f"{path}: {saw}")
    assert "\n" not in message


def test_yaml_that_is_missing_or_not_text_is_refused(tmp_path):
    assert refused(path=tmp_path / "none.yaml").startswith(f"{tmp_path}/none.yaml: cannot be read as YAML")
    assert refused(path=tmp_path).startswith(f"{tmp_path}: cannot be read as YAML")
    (tmp_path / "a.yaml").write_bytes(b"epochs: \xff\xfe")
    assert refused(path=tmp_path / "a.yaml").startswith(f"{tmp_path}/a.yaml: cannot be read as YAML")


# Wrong values


def test_an_error_says_which_source_the_value_is_from(tmp_path, monkeypatch):
    path = config(tmp_path, "epochs: 0\n")
    assert refused(path=path) == f"{path}: epochs: is 0; expected at least 1"
    monkeypatch.setenv("BERTHEAD_EPOCHS", "-1")
    assert refused(path=path) == "BERTHEAD_EPOCHS: is -1; expected at least 1"
    assert refused(path=path, epochs=-2) == "--epochs: is -2; expected at least 1"
    assert FitOptions.from_sources({"epochs": 3}, path).epochs == 3  # only the value that is used is judged


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"task": "clasify"},
            '--task: is "clasify"; expected one of classify, multilabel, regress, tag, span, choose, joint. '
            'Did you mean "classify"?',
        ),
        ({"head": "cfr"}, '--head: is "cfr"; expected one of auto, linear, crf. Did you mean "crf"?'),
        ({"on_long": "cut"}, '--on-long: is "cut"; expected one of window, truncate, error'),
        ({"windows": "sum"}, '--windows: is "sum"; expected one of mean, max, attention'),
        ({"stride": -1}, "--stride: is -1; expected at least 0"),
        ({"adapt": "half"}, f'--adapt: is "half"; expected {ADAPT_ALLOWED}'),
        ({"head_lr": 0}, "--head-lr: is 0.0; expected a number above 0"),
        ({"layer_decay": 0}, "--layer-decay: is 0.0; expected a number above 0"),
        ({"layer_decay": 1.1}, "--layer-decay: is 1.1; expected at most 1"),
        (
            {"pooling": "max"},
            '--pooling: is "max"; expected one of auto, cls, mean, pooler, cls_normalised, mean_normalised',
        ),
        ({"precision": "fp16"}, '--precision: is "fp16"; expected one of auto, fp32, bf16. Did you mean "bf16"?'),
        ({"class_weight": "yes"}, '--class-weight: is "yes"; expected one of none, balanced'),
        ({"epochs": 0}, "--epochs: is 0; expected at least 1"),
        ({"batch": -1}, "--batch: is -1; expected at least 1"),
        ({"lr": 0}, "--lr: is 0.0; expected a number above 0"),
        ({"lr": "-1e-5"}, "--lr: is -1e-05; expected a number above 0"),
        ({"clip": 0}, "--clip: is 0.0; expected a number above 0"),
        ({"weight_decay": -0.1}, "--weight-decay: is -0.1; expected at least 0"),
        ({"warmup": 1.01}, "--warmup: is 1.01; expected at most 1"),
        ({"warmup": -0.01}, "--warmup: is -0.01; expected at least 0"),
        ({"max_tokens": 3}, "--max-tokens: is 3; expected at least 4"),
        ({"threads": 0}, "--threads: is 0; expected at least 1"),
        ({"seed": -1}, "--seed: is -1; expected at least 0"),
        ({"seed": 2**32}, "--seed: is 4294967296; expected at most 4294967295"),
        ({"encoder": ["a"]}, "--encoder: is ['a']; expected one text"),
        ({"label": {"a": 1}}, "--label: is {'a': 1}; expected one text"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(values, message):
    assert refused(**values) == message
    with pytest.raises(UsageError) as error:
        FitOptions(**values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "value", ["3.5", 3.5, "three", "", " ", "0x10", "1e3", math.nan, math.inf, "nan", True, [3], {}, 10**400, b"\xff"],
    ids=lambda value: str(value)[:9],
)  # fmt: skip
@pytest.mark.parametrize("name", ["epochs", "batch", "seed"])
def test_what_is_no_whole_number_is_refused(name, value):
    message = refused(**{name: value})
    assert message in (
        f'--{name}: is "{str(value)[:80]}"; expected a whole number',
        f"--{name}: is {value}; expected at most 4294967295",
    )


@pytest.mark.parametrize(
    "value", ["much", "", "1,5", math.nan, "nan", "NaN", math.inf, "inf", -math.inf, False, [0.1], 10**400],
    ids=lambda value: str(value)[:9],
)  # fmt: skip
@pytest.mark.parametrize("name", ["lr", "warmup", "weight_decay"])
def test_what_is_no_finite_number_is_refused(name, value):
    assert refused(**{name: value}) == f'{flag(name)}: is "{str(value)[:80]}"; expected a number'


@pytest.mark.parametrize("value", ["ja", "", "2", 2, 1.0, [True], "truefalse"], ids=str)
def test_what_is_neither_true_nor_false_is_refused(value):
    assert refused(overwrite=value) == f'--overwrite: is "{value}"; expected true or false'


@pytest.mark.parametrize("name", ["batch", "task", "overwrite", "warmup"])
def test_null_in_yaml_is_refused_where_a_value_is_needed(tmp_path, name):
    path = config(tmp_path, f"{name}: null\n")
    assert refused(path=path).startswith(f"{path}: {name}: is empty; expected a value such as ")


# Sound values


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, True), ("true", True), ("YES", True), ("on", True), ("1", True), (1, True),
     (False, False), ("False", False), ("no", False), ("off", False), ("0", False), (0, False)],
)  # fmt: skip
def test_the_usual_words_for_true_and_false_are_read(value, wanted):
    assert FitOptions(overwrite=value).overwrite is wanted


@pytest.mark.parametrize("value", [3, "3", " 3 ", 3.0, np.int64(3), np.float32(3)], ids=repr)
def test_whole_numbers_become_int(value):
    assert (FitOptions(epochs=value).epochs, type(FitOptions(epochs=value).epochs)) == (3, int)


@pytest.mark.parametrize("value", [1, "1", "1e0", np.float32(1), 1.0], ids=repr)
def test_numbers_become_float(value):
    assert (FitOptions(lr=value).lr, type(FitOptions(lr=value).lr)) == (1.0, float)


def test_the_ends_of_a_range_are_allowed():
    options = FitOptions(warmup=0, weight_decay=0, epochs=1, max_tokens=4, seed=2**32 - 1)
    assert (options.warmup, options.weight_decay, options.seed) == (0, 0, 2**32 - 1)
    assert FitOptions(warmup=1).warmup == 1


def test_paths_and_numbers_become_text(tmp_path):
    options = FitOptions(encoder=tmp_path, valid=0.1, label=3)
    assert (options.encoder, options.valid, options.label) == (str(tmp_path), "0.1", "3")


def test_options_are_frozen_and_are_written_as_json():
    options = FitOptions(epochs=3, valid="0.2")
    with pytest.raises(FrozenInstanceError):
        options.epochs = 4
    assert FitOptions.from_sources(json.loads(json.dumps(options.to_dict()))) == options
    assert set(options.to_dict()) == {spec.name for spec in fields(FitOptions)}


@pytest.mark.parametrize(("record", "spec"), FIELDS, ids=lambda value: getattr(value, "name", ""))
def test_every_option_has_help_and_a_default_that_is_allowed(record, spec):
    words = spec.metadata["help"]
    assert len(words) > 10
    assert words[0].isupper() or words.split(":")[0] in (
        "balanced",
        "eval",
        "choose",
        "classify",
        "joint",
        "multilabel",
    )
    assert words.endswith((".", "].", "none"))
    default = getattr(record(), spec.name)
    assert default == spec.default
    if default is None:
        assert "[default" in words or spec.name == "pair"


# The loop's settings


@pytest.mark.parametrize("adapt", ["full", "frozen", "top:2", "lora:4", "bitfit"])
def test_epochs_and_rate_default_to_what_the_help_promises_for_the_adaptation(adapt):
    settings = settings_for(FitOptions(adapt=adapt), Classify, 768)
    given = settings_for(FitOptions(adapt=adapt, epochs=7, lr=0.5), Classify, 768)
    assert (given.epochs, given.lr) == (7, 0.5)
    help_of = {spec.name: spec.metadata["help"] for spec in fields(FitOptions)}
    for name, value in (("epochs", settings.epochs), ("lr", settings.lr)):
        shown = help_of[name].split("[default: ")[1].split("]")[0]
        values = dict(one.split(": ", 1) for one in f"full: {shown}".split("; "))
        assert float(values[adapt.split(":")[0]].split(" ")[0]) == value


def test_narrow_encoders_and_new_heads_take_larger_steps_in_a_full_fit():
    def rates(width=384, **given):
        settings = settings_for(FitOptions(**given), Classify, width)
        return settings.lr, settings.head_lr

    assert rates() == (1e-4, 1e-3)
    assert rates(768) == (5e-5, 5e-4)
    assert rates(head_lr=0.5) == (1e-4, 0.5)
    # A rate that is given is that of all.
    assert rates(lr=0.25) == (0.25, None)
    assert rates(adapt="top:2") == (2e-4, None)


def test_every_other_setting_is_the_option_s():
    options = FitOptions(batch=5, weight_decay=0.3, warmup=0.4, clip=2, precision="fp32", seed=9, metric="macro_f1")
    settings = settings_for(options, Classify, 768)
    for name in ("batch", "weight_decay", "warmup", "clip", "precision", "seed", "metric"):
        assert getattr(settings, name) == getattr(options, name)
    assert settings.balanced is False
    assert settings_for(FitOptions(class_weight="balanced"), Multilabel, 768).balanced is True


@pytest.mark.parametrize("has_bf16", [True, False])
def test_automatic_precision_is_what_the_processor_has(monkeypatch, has_bf16):
    monkeypatch.setattr(settings, "has_fast_bf16", lambda device: has_bf16)
    assert settings_for(FitOptions(), Classify, 768).precision == ("bf16" if has_bf16 else "fp32")
    for precision in ("fp32", "bf16"):
        assert settings_for(FitOptions(precision=precision), Classify, 768).precision == precision


def test_class_weights_with_a_regression_are_an_error_before_anything_is_fitted(monkeypatch, toy_csv, tiny_bert):
    monkeypatch.setattr(learn, "fit_model", None)
    with pytest.raises(
        UsageError, match='class_weight="balanced": task="regress" has no classes; expected class_weight="none"'
    ):
        berthead.fit(toy_csv, encoder=str(tiny_bert), task="regress", label="stars", class_weight="balanced")


@pytest.mark.parametrize("task", ["classify", "multilabel", "regress"])
def test_an_unknown_metric_is_an_error_before_anything_is_computed(monkeypatch, toy_csv, task):
    def never(*args, **kwargs):
        raise AssertionError("work was done")

    for name in ("read_checkpoint", "fit_model", "_fold"):
        monkeypatch.setattr(learn, name, never)
    column = {"classify": "label", "multilabel": "tags", "regress": "stars"}[task]
    with pytest.raises(UsageError) as error:
        berthead.fit(toy_csv, task=task, label=column, metric="f2")
    own = ", ".join(TASKS[task].metrics)
    assert str(error.value).startswith(f'metric: is "f2"; expected a metric of {task}: {own}')


# Signatures made of the options


def test_the_typed_keywords_are_up_to_date():
    command = [sys.executable, ROOT / "tools" / "keywords.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr


def test_fit_shows_every_option_with_its_default_and_help():
    shown = inspect.signature(berthead.fit).parameters
    for spec in fields(FitOptions):
        assert shown[spec.name].default == spec.default
        assert f"        {spec.name}: " in berthead.fit.__doc__
    assert "{options}" not in berthead.fit.__doc__
    hints = get_type_hints(FitKeywords)
    assert hints.keys() == {spec.name for spec in fields(FitOptions)}


ESTIMATORS = [berthead.TextClassifier, berthead.TextRegressor, berthead.SequenceLabeler, berthead.SpanExtractor,
              berthead.MultipleChoice]  # fmt: skip


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_estimators_have_the_options_of_a_fit(kind):
    shown = {name: one.default for name, one in inspect.signature(kind).parameters.items()}
    options = {spec.name: spec.default for spec in fields(FitOptions)}
    own = shown.keys() - set(ESTIMATOR_OPTIONS)
    assert own == {"valid", "random_state", "verbose"} | (
        {"class_weight"} if kind is berthead.TextClassifier else set()
    )
    assert {name: shown[name] for name in ESTIMATOR_OPTIONS} == {name: options[name] for name in ESTIMATOR_OPTIONS}
    assert kind().get_params() == shown
    assert all(f"        {name}: " in kind.__doc__ for name in shown)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_an_estimator_says_which_parameter_it_does_not_have(kind):
    with pytest.raises(TypeError, match=rf'{kind.__name__} has no parameter .epoch.\. Did you mean "epochs"'):
        kind(epoch=3)

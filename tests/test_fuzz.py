"""Broken folders and files, drawn at random: tools/fuzz.py tries more of them, for minutes."""

from __future__ import annotations

import collections
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from conftest import tries
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import berthead
from berthead.kernels import library
from berthead.kernels.native import NativeEncoder


@pytest.fixture(scope="module")
def home(once):
    return once("fuzz", 1, lambda folder: fuzzing.base_folders(folder))


@pytest.fixture
def copied(home, tmp_path):
    import shutil

    return shutil.copytree(home, tmp_path / "home")


def ends_of(target: str, home: Path, number: int) -> collections.Counter:
    """How the cases of a seeded run end."""
    tried, ends = fuzzing.case(target, home), collections.Counter()

    @seed(number)
    @settings(max_examples=tries(160), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def once(data):
        ends[tried(data)] += 1

    once()
    return ends


@pytest.mark.parametrize("target", [*fuzzing.KINDS, "rows"])
def test_what_is_broken_is_refused_or_changes_nothing(target, copied):
    ends = ends_of(target, copied, 1)
    assert ends["refused"] > 5
    assert len(ends) > 1  # what is not broken, or in a place that nobody reads, is taken


@pytest.fixture(params=["fp32", "bf16", "int8"])
def precision(request, monkeypatch) -> str:
    """A precision of our own kernels, in which folders are loaded."""
    names = [name for name in library.kernels() if request.param != "bf16" or library.has_bf16(name)]
    if not names:
        pytest.skip(f"no kernels here compute {request.param}")
    monkeypatch.setenv(library.SWITCH, names[-1])
    monkeypatch.setenv("BERTHEAD_PRECISION", request.param)
    return request.param


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_loading_packs_the_weights_of_a_folder(home, kind, precision, monkeypatch):
    """The probabilities are near those of the model that torch computes."""
    model = berthead.load(home / kind)
    engine = model.applier.engine
    assert (engine.precision, isinstance(engine.model.encoder, NativeEncoder)) == (precision, True)
    found = model.predict_proba(fuzzing.TEXTS[:3])
    monkeypatch.setenv(library.SWITCH, "torch")
    assert np.abs(found - berthead.load(home / kind, precision="fp32").predict_proba(fuzzing.TEXTS[:3])).max() < 0.02


def test_spoilt_weights_and_records_are_refused_in_every_precision(precision, copied):
    """The seeded run on folders of a model: truncated weights, changed headers, spoilt records."""
    ends = ends_of("model", copied, 2)
    assert ends["refused"] > 5


def test_without_hashes_a_changed_answer_is_found(copied):
    """The fuzzer itself: a function that answers otherwise is no silent success."""
    before = fuzzing.answered(copied / "model")
    with pytest.raises(AssertionError):
        fuzzing.outcome(copied / "model", [one.replace("positive", "other") for one in before], may_differ=False)

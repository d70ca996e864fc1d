"""Broken folders and files, drawn at random: tools/fuzz.py tries more of them, for minutes."""

from __future__ import annotations

import collections

import fuzzing
import pytest
from conftest import tries
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def home(once):
    return once("fuzz", 1, lambda folder: fuzzing.base_folders(folder))


@pytest.fixture
def copied(home, tmp_path):
    import shutil

    return shutil.copytree(home, tmp_path / "home")


@pytest.mark.parametrize("target", [*fuzzing.KINDS, "rows"])
def test_what_is_broken_is_refused_or_changes_nothing(target, copied):
    tried, ends = fuzzing.case(target, copied), collections.Counter()

    @seed(1)
    @settings(max_examples=tries(160), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def once(data):
        ends[tried(data)] += 1

    once()
    assert ends["refused"] > 5
    assert len(ends) > 1  # what is not broken, or in a place that nobody reads, is taken


def test_without_hashes_a_changed_answer_is_found(copied):
    """The fuzzer itself: a function that answers otherwise is no silent success."""
    before = fuzzing.answered(copied / "model")
    with pytest.raises(AssertionError):
        fuzzing.outcome(copied / "model", [one.replace("positive", "other") for one in before], may_differ=False)

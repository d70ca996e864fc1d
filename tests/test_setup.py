"""What setup.py compiles: all kernels, or those of this processor, and what has changed of them."""

from __future__ import annotations

import os
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import setuptools
from conftest import ROOT

KERNELS = ("avx512_amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2")  # each with all that the next one asks for
AVX2 = {"avx2", "fma", "f16c"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.fixture
def built(monkeypatch):
    """The names that setup.py defines; nothing is built."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("BERTHEAD_BUILD", raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **given: None)
    return runpy.run_path(str(ROOT / "setup.py"))


def kernels_of(built) -> list[str]:
    """The instruction sets that would be compiled, in order."""
    names = [Path(source).stem for source in built["sources"]()]
    others = [path.stem for path in (ROOT / "csrc").glob("*.cpp") if not path.stem.startswith("kernels_")]
    assert {name for name in names if not name.startswith("kernels_")} == set(others)
    return [name.removeprefix("kernels_") for name in names if name.startswith("kernels_")]


def test_all_are_compiled_those_that_take_longest_first(built):
    assert kernels_of(built) == list(KERNELS)
    asked = [built["features"](ROOT / "csrc" / f"kernels_{name}.cpp") for name in KERNELS]
    assert all(more > less for more, less in pairwise(asked))
    assert (asked[-1], asked[-2]) == (AVX2, AVX512)


@pytest.mark.parametrize(
    ("has", "wanted"),
    [
        (AVX2 | {"sse2"}, ["avx2"]),
        (AVX512, ["avx512", "avx2"]),
        (AVX512 | {"avx512vnni", "avx512bf16"}, ["avx512_bf16", "avx2"]),
        ({"sse2"}, []),
        (set(), list(KERNELS)),  # the system does not say
    ],
)
def test_of_this_processor_the_best_and_the_least_are_compiled(built, monkeypatch, has, wanted):
    monkeypatch.setitem(built["sources"].__globals__, "BUILD", "native")
    monkeypatch.setitem(built["sources"].__globals__, "processor_features", lambda: has)
    assert kernels_of(built) == wanted


def test_what_is_older_than_one_of_its_parts_is_made_again(built, tmp_path):
    made, source, header = (tmp_path / name for name in ("a.o", "a.cpp", "a.h"))
    for number, path in enumerate((source, header)):
        path.write_text("")
        os.utime(path, (number, number))
    assert built["changed"](made, [str(source), str(header)])
    made.write_text("")
    os.utime(made, (5, 5))
    assert not built["changed"](made, [str(source), str(header)])
    os.utime(header, (6, 6))
    assert built["changed"](made, [str(source), str(header)])

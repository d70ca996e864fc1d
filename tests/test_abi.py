"""A library of kernels that was built from other sources is refused, never misread."""

from __future__ import annotations

import shutil
import subprocess
from types import SimpleNamespace

import pytest

from berthead.errors import UsageError
from berthead.kernels import abi, library

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="this machine has no C compiler")
needs_library = pytest.mark.skipif(not library.built(), reason="this machine has no kernels of ours")


@pytest.fixture
def build(tmp_path):
    """Make a library that describes itself in these lines; None: one of before there was a description."""

    def built(facts: dict[str, str] | None) -> str:
        lines = "".join(f'"{name}: {is_}\\n"\n' for name, is_ in (facts or {}).items())
        function = "int berthead_kernels;" if facts is None else f"const char *berthead_abi(void) {{ return {lines}; }}"
        (tmp_path / "stale.c").write_text(function)
        command = ["cc", "-shared", "-fPIC", "stale.c", "-o", "stale.so"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return str(tmp_path / "stale.so")

    return built


@pytest.fixture
def installed(monkeypatch):
    """Let a file be the library that was installed."""

    def install(path: str) -> None:
        monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=path))
        monkeypatch.delenv(library.SWITCH, raising=False)
        library.loaded.cache_clear()

    yield install
    library.loaded.cache_clear()


def swapped(facts: dict[str, str], one: str, other: str) -> dict[str, str]:
    return facts | {one: facts[other], other: facts[one]}


STALE = {
    "another version": lambda facts: facts | {"version": "0"},
    "another activation": lambda facts: swapped(facts, "relu", "silu"),
    "two fields swapped": lambda facts: swapped(facts, "BlockSpec.up", "BlockSpec.down"),
    "another kind": lambda facts: facts | {"TrainingSpec.seed": facts["TrainingSpec.seed"].replace("uint32", "float")},
    "a field more": lambda facts: facts | {"AdamWSteps.amsgrad": "int32 at 136", "AdamWSteps": "144 bytes"},
    "a field less": lambda facts: {name: is_ for name, is_ in facts.items() if name != "EmbeddingSpec.norm_bias"},
    "a struct more": lambda facts: facts | {"PoolingSpec": "8 bytes"},
    "no description": lambda facts: None,
}


@needs_compiler
@pytest.mark.parametrize("stale", STALE)
def test_a_library_of_other_sources_is_refused(build, installed, monkeypatch, stale):
    path = build(STALE[stale](abi.describe()))
    installed(path)
    for ask in (library.kernels, library.chosen, library.built):
        with pytest.raises(UsageError, match=r"not of this version.*expected.*setup\.py build_ext --inplace") as error:
            ask()
        assert error.value.where == path
    monkeypatch.setenv(library.SWITCH, "torch")
    assert library.chosen() == "torch"


@needs_compiler
def test_what_differs_is_named(build):
    facts = swapped(abi.describe(), "BlockSpec.up", "BlockSpec.down")
    with pytest.raises(UsageError, match=r"BlockSpec\.up: pointer at 64\); expected BlockSpec\.up: pointer at 48"):
        library.load(build(facts))


def test_a_file_that_is_no_library_is_refused(tmp_path, installed):
    (tmp_path / "broken.so").write_bytes(b"\x7fELF and no more")
    installed(str(tmp_path / "broken.so"))
    with pytest.raises(UsageError, match=r"broken\.so: cannot be loaded \(.+\)\. Build it again"):
        library.kernels()


@needs_library
def test_the_library_that_is_installed_is_described_as_python_knows_it():
    loaded = library.loaded()
    lines = loaded.berthead_abi().decode().splitlines()
    assert lines == [f"{name}: {is_}" for name, is_ in abi.describe().items()]


@pytest.mark.parametrize("struct", abi.STRUCTS)
def test_a_field_that_does_not_exist_is_an_error(struct):
    with pytest.raises(AttributeError):
        struct(reach=1)

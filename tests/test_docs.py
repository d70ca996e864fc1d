"""The manual cannot lie: the README's code runs, its flags exist, and the docs name no place of one machine."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import ROOT, SAMPLE, write_csv

from berthead.options import FitOptions, PredictOptions
from berthead.options.base import flag

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `berthead ...` line of the README's shell blocks, as words."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("berthead ")]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_readme_shows_every_verb():
    assert {words[1] for words in commands()} == {
        "fit",
        "eval",
        "predict",
        "gather",
        "compare",
        "bench",
        "join",
        "info",
        "verify",
        "merge",
        "export",
    }
    assert "berthead pull" in README


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_flag_in_the_readme_exists(words):
    known = {flag(spec.name) for kind in (FitOptions, PredictOptions) for spec in fields(kind)}
    used = {word for word in words if word.startswith("--")}
    assert used <= known | {
        "--out",
        "--json",
        "--config",
        "--soup",
        "--uniform",
        "--shared",
        "--name",
        "--onnx",
        "--hf",
    }


@pytest.mark.parametrize("words", [words for words in commands() if words[1] == "fit"], ids=" ".join)
def test_every_option_value_in_the_readme_is_allowed(words):
    given = {words[i].removeprefix("--").replace("-", "_"): words[i + 1] for i in range(3, len(words) - 1, 2)}
    for place in ("out", "shared", "name"):
        given.pop(place, None)
    assert FitOptions.from_sources(given).task == given.get("task", "classify")


def test_the_readmes_python_runs(tiny_bert, tmp_path):
    (tmp_path / "sample" / "tickets").mkdir(parents=True)
    for name in ("train.csv", "test.csv"):  # few rows, which the same code reads in less time
        with (SAMPLE / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        write_csv(tmp_path / "sample" / "tickets" / name, rows[::12])
    code = "\n".join(blocks("python"))
    # By a tiny encoder: of the packaged one the sample's own tests speak.
    env = os.environ | {"BERTHEAD_ENCODER": str(tiny_bert)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280, env=env
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tickets-model" / "berthead.json").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_that_are_made_from_the_code_are_up_to_date():
    command = [sys.executable, ROOT / "tools" / "rooms.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr


MODULES = [(page, name) for page in PAGES for name in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", page.read_text("utf-8"))]


@pytest.mark.parametrize(("page", "name"), MODULES, ids=lambda value: getattr(value, "name", value))
def test_a_module_that_a_page_names_is_there(page, name):
    assert any((ROOT / folder / name).is_file() for folder in ("src/berthead", "", "examples"))


def test_importing_the_package_is_light():
    code = "import sys, berthead; print(sorted({'torch', 'numpy', 'sklearn', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"

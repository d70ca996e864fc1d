"""Heads and tasks of other packages: the example package installed and used, missing, and broken ones."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BAD, GOOD, ROOT, Ran, daily, shell_env, unsealed, write_csv

import berthead
from berthead import plugins
from berthead.errors import ModelError
from berthead.options import FitOptions
from berthead.options.base import flag
from berthead.tasks import OPTIONAL, REQUIRED, TASKS, Task, find_task, wrong_with

EXAMPLE = ROOT / "examples" / "ordinal"
PAGE = (ROOT / "docs" / "own-heads.md").read_text(encoding="utf-8")
FIDDLY = "fit {csv} --encoder {bert} --out {out} --valid 0.25 --threads 1 --epochs 1 -q"


def with_path(folder: object) -> str:
    """PYTHONPATH with a folder before what stands there."""
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="session")
def run(forks):
    """The command line in a process of its own, where a folder's packages are installed: run("info", ..., path=...)."""

    def ran(*arguments: object, path: object = "") -> Ran:
        env = shell_env(PYTHONPATH=with_path(path), BERTHEAD_THREADS="1")
        process = forks.start(*arguments, cwd=Path.cwd(), env=env)
        out, err = process.communicate()
        return Ran(process.returncode, out, err)

    return ran


def put_package(folder: Path, name: str, code: str, **points: str) -> Path:
    """An installed package by hand: a module and its metadata; points: heads="x = module:Class"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    groups = "".join(f"[berthead.{group}]\n{line}\n" for group, line in points.items())
    (info / "entry_points.txt").write_text(groups, encoding="utf-8")
    return folder


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package by hand for one test: install(code, heads="x = {}:Class") -> its module's name."""
    before = set(sys.modules)

    def put(code: str, name: str = "own_package", **points: str) -> str:
        ready = {group: line.replace("{}", name) for group, line in points.items()}
        monkeypatch.syspath_prepend(put_package(tmp_path / f"site-{name}", name, code, **ready))
        return name

    yield put
    for name in set(sys.modules) - before:
        if name.startswith(("own_package", "other_package")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The example package, installed by pip without a network."""
    folder = tmp_path_factory.mktemp("plugins")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    command = [*pip, "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def stars(tmp_path_factory) -> Path:
    """Rows with 1, 3 or 5 stars."""
    rows = []
    for tail in ("", " red", " blue", " a"):
        rows += [{"text": text + tail, "stars": "5"} for text in GOOD]
        rows += [{"text": text + tail, "stars": "1"} for text in BAD]
        rows += [{"text": f"{text} {bad}{tail}", "stars": "3"} for text, bad in zip(GOOD, BAD, strict=True)]
    return write_csv(tmp_path_factory.mktemp("stars") / "stars.csv", rows)


@pytest.fixture(scope="module")
def folder_of(run, tmp_path_factory, site, stars, tiny_bert):
    """Model folders with the example's head and task, fitted once: folder_of("frozen"), folder_of("full")."""
    folders: dict[str, Path] = {}

    def fit(adapt: str) -> Path:
        if adapt not in folders:
            out = tmp_path_factory.mktemp("models") / adapt
            words = f"--task ordinal --head ordinal --label stars --valid 0.25 --encoder {tiny_bert} --adapt {adapt}"
            rate = "--lr 0.1 --epochs 60" if adapt == "frozen" else "--lr 0.003 --epochs 12 --batch 8"
            done = run("fit", stars, *words.split(), *rate.split(), "--out", out, "-q", path=site)
            assert done.code == 0, done.err
            assert "baseline" not in done.out
            folders[adapt] = out
        return folders[adapt]

    return fit


@pytest.fixture(params=daily(["frozen", "full"], "frozen"))
def fitted(request, folder_of) -> Path:
    """A model folder fitted in each way."""
    return folder_of(request.param)


@pytest.fixture
def frozen(folder_of) -> Path:
    """A model folder whose encoder was frozen."""
    return folder_of("frozen")


# The example package


def test_an_own_head_and_task_are_fitted_scored_and_applied(run, fitted, stars, site, tmp_path):
    record = json.loads((fitted / "berthead.json").read_text(encoding="utf-8"))
    assert record["task"]["package"] == record["head"]["package"] == "berthead-ordinal 0.1"
    assert record["head"]["kind"] == "own"
    assert record["task"]["labels"] == [1, 3, 5]
    assert record["parameters"]["theta_is_pretrained"] == (record["parameters"]["adapt"] == "frozen")
    assert record["run"]["settings"]["metric"] == "qwk"

    scored = run("eval", fitted, stars, "--json", path=site)
    assert scored.code == 0, scored.err
    scores = json.loads(scored.out)
    assert scores["qwk"] > 0.6, scores
    assert scores["mae"] < 1, scores

    one = run("predict", fitted, "awful dog red", "--json", path=site)
    answer = json.loads(one.out)
    shares = {pair["label"]: pair["probability"] for pair in answer["probabilities"]}
    assert answer["answer"] == 1
    assert answer["score"] == max(shares.values())
    assert list(shares) == [1, 3, 5]
    assert sum(shares.values()) == pytest.approx(1)

    assert run("predict", fitted, stars, "--out", tmp_path / "answers.csv", path=site).code == 0
    with (tmp_path / "answers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert np.mean([row["prediction"] == row["stars"] for row in rows]) == pytest.approx(scores["accuracy"])


def test_the_columns_of_probabilities_are_the_labels(run, frozen, stars, site):
    done = run("predict", frozen, stars, "--probabilities", path=site)
    first = next(csv.DictReader(done.out.splitlines()))
    assert [name for name in first if name.startswith("p(")] == ["p(1)", "p(3)", "p(5)"]


def test_verify_and_info_of_an_own_head(run, frozen, site):
    assert run("verify", frozen, path=site).code == 0
    told = run("info", frozen, path=site)
    assert "ordinal of berthead-ordinal 0.1" in told.out
    assert "BertModel. AutoModel loads the encoder" in told.out


def test_an_own_model_is_saved_and_loaded_again_in_python(shell, frozen, site, tmp_path):
    code = (
        "import berthead, sys\n"
        "model = berthead.load(sys.argv[1]); model.save(sys.argv[2])\n"
        "again = berthead.load(sys.argv[2]); texts = ['good cat', 'bad dog', 'the cat']\n"
        "assert (model.predict_proba(texts) == again.predict_proba(texts)).all()\n"
        "assert [p.answer for p in again.predict(texts)] == [p.answer for p in model.predict(texts)]\n"
        "assert again.labels == [1, 3, 5] and again.verify() < 1e-4\n"
    )
    again = tmp_path / "again"
    done = shell(frozen, again, program=code, env=shell_env(PYTHONPATH=with_path(site)))
    assert done.code == 0, done.err
    assert (again / "model.safetensors").read_bytes() == (frozen / "model.safetensors").read_bytes()


def test_bf16_goes_through_an_own_head(run, frozen, stars, site):
    done = run("eval", frozen, stars, "--precision", "bf16", "--json", path=site)
    assert done.code == 0, done.err
    assert json.loads(done.out)["qwk"] > 0.5


def test_each_half_works_alone(run, site, stars, tiny_bert, tmp_path):
    words = FIDDLY.format(csv=stars, bert=tiny_bert, out=tmp_path / "task").split()
    task_only = run(*words, "--label", "stars", "--task", "ordinal", "--class-weight", "balanced", path=site)
    assert task_only.code == 0, task_only.err
    words = FIDDLY.format(csv=stars, bert=tiny_bert, out=tmp_path / "head").split()
    head_only = run(*words, "--label", "stars", "--head", "ordinal", path=site)
    assert head_only.code == 0, head_only.err
    for folder, kind in (("task", "row"), ("head", "own")):
        record = json.loads((tmp_path / folder / "berthead.json").read_text(encoding="utf-8"))
        assert record["head"]["kind"] == kind
        assert ("package" in record["task"]) == (folder == "task")


# Without the package


@pytest.mark.parametrize("verb", ["info", "verify", "predict", "eval"])
def test_without_the_package_the_folder_is_refused_in_words(frozen, stars, verb, cli):
    more = {"predict": ["good cat"], "eval": [stars]}.get(verb, [])
    done = cli(verb, frozen, *more)
    assert done.code == 2
    assert done.out == ""
    message = " ".join(done.err.replace(str(frozen), "stars-model").split())
    assert message in " ".join(PAGE.split())  # the guide shows this very message
    with pytest.raises(ModelError, match=r"berthead-ordinal 0\.1"):
        berthead.load(frozen)


def test_a_missing_head_is_named_where_the_task_is_berthead_s_own(install, tiny_bert, toy_csv, tmp_path, cli, shell):
    install(GOOD_HEAD, heads="plain = {}:Plain")
    done = cli(*FIDDLY.format(csv=toy_csv, bert=tiny_bert, out=tmp_path / "model").split(), "--head", "plain")
    assert done.code == 0, done.err
    done = shell("info", tmp_path / "model")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert (
        "head 'plain': is not installed; expected the package own_package 1.0, with which the model was fitted"
        in done.err
    )


def test_nothing_is_imported_from_the_folder(frozen, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(frozen, folder)
    put_package(
        tmp_path / "evil", "evil", "raise SystemExit('imported')", heads="ordinal = evil:A", tasks="ordinal = evil:A"
    )
    shutil.copytree(tmp_path / "evil" / "evil-1.0.dist-info", folder / "evil-1.0.dist-info")
    code = (
        "import sys, berthead\n"
        "try:\n    berthead.load(sys.argv[1])\n"
        "except berthead.ModelError as error:\n    print(error)\n"
        "print(sorted(name for name in sys.modules if name in ('evil', 'berthead_ordinal')))\n"
    )

    def loaded() -> str:
        # -I as an installed `berthead` runs: the current folder is no place for modules.
        command = [sys.executable, "-I", "-c", code, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=shell_env())
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = loaded()
    assert "is not installed" in said
    assert said.endswith("[]\n")
    for name in ("evil.py", "berthead_ordinal.py"):
        (folder / name).write_text("raise SystemExit('imported')", encoding="utf-8")
        said = loaded()
        assert f"holds {name}; expected only safetensors and JSON: pickles and code are refused" in said
        assert said.endswith("[]\n")
        (folder / name).unlink()


@pytest.mark.parametrize("package", [None, 7, "", "x\x1b[31m 1.0", "curl http://evil | sh", "a" * 200 + " 1.0"])
def test_what_a_folder_calls_its_package_is_not_shown_unless_it_is_a_name(frozen, tmp_path, package):
    folder = tmp_path / "model"
    shutil.copytree(frozen, folder)
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    record["task"]["package"] = package
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    with pytest.raises(
        ModelError,
        match=r"is not installed; expected an installed package that offers a task; there is none\. Install the",
    ):
        berthead.load(folder)


def test_a_head_of_another_level_than_its_task_is_refused(toy_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(toy_model, folder)
    record = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))
    record["head"] = {"kind": "token", "crf": False, "outputs": record["head"]["outputs"], "dropout": 0.1}
    (folder / "berthead.json").write_text(json.dumps(unsealed(record)), encoding="utf-8")
    with pytest.raises(ModelError, match="the head answers each token; expected each row, as the task"):
        berthead.load(folder)


def test_an_unknown_name_gets_did_you_mean_with_the_installed_ones(run, site, stars, tmp_path):
    for word, builtin in (("--task", "classify"), ("--head", "linear")):
        done = run("fit", stars, word, "ordnal", "--out", tmp_path / "model", path=site)
        assert done.code == 2
        assert f'{word}: is "ordnal"' in done.err
        assert builtin in done.err
        assert 'Did you mean "ordinal"?' in done.err
    assert 'Did you mean "ordinal"' not in run("fit", stars, "--task", "ordnal", "--out", tmp_path / "model").err


# Broken packages

HEAD = """
from torch import nn
class Plain(nn.Module):
    level = "row"
    def __init__(self, width, outputs, dropout):
        super().__init__()
        self.out = nn.Linear(width, outputs)
    def forward(self, hidden, pack):
        return self.out(hidden.float()[pack.starts])
"""
GOOD_HEAD = HEAD
BROKEN_HEADS = {
    "raises": (
        "raise RuntimeError('no such device')",
        "own_package:Plain of own_package 1.0 cannot be imported (RuntimeError: no such device)",
    ),
    "leaves": ("raise SystemExit(0)", "cannot be imported (SystemExit: 0)"),
    "needs more": (
        "import nothing_like_this",
        "cannot be imported (ModuleNotFoundError: No module named 'nothing_like_this')",
    ),
    "is not there": (
        "Plane = 1",
        "cannot be imported (AttributeError: module 'own_package' has no attribute 'Plain')",
    ),
    "is no class": ("def Plain(width, outputs, dropout): ...", "a torch.nn.Module with `level"),
    "is no module": ("class Plain:\n    level = 'row'", "a torch.nn.Module with `level"),
    "has no level": (HEAD.replace('level = "row"', ""), "a torch.nn.Module with `level"),
    "has a wrong level": (
        HEAD.replace('"row"', '"window"'),
        "with level 'window'; expected a torch.nn.Module with `level",
    ),
    "is made otherwise": (
        HEAD.replace("outputs, dropout)", "classes)").replace("outputs)", "classes)"),
        "Head(width, outputs, dropout)",
    ),
    "cannot be made": (
        HEAD.replace("super()", "raise ValueError('width')\n        super()"),
        "cannot be made (ValueError: width); expected a class that Head(width, outputs, dropout) makes",
    ),
    "answers tokens": (
        HEAD.replace('"row"', '"token"'),
        "answers each token, and --task classify needs an answer for each row",
    ),
}


@pytest.mark.parametrize("case", BROKEN_HEADS)
def test_a_broken_head_is_told_in_words(case, install, tiny_bert, toy_csv, tmp_path, cli):
    code, message = BROKEN_HEADS[case]
    install(code, heads="plain = {}:Plain")
    done = cli(*FIDDLY.format(csv=toy_csv, bert=tiny_bert, out=tmp_path / "model").split(), "--head", "plain")
    assert done.code == 2
    assert "plain" in done.err
    assert message in done.err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("case", ["raises", "needs more", "cannot be made", "has a wrong level", "answers tokens"])
def test_a_package_that_broke_after_the_fit_is_told_in_words(case, install, tiny_bert, toy_csv, tmp_path, cli):
    name = install(HEAD, heads="plain = {}:Plain")
    done = cli(*FIDDLY.format(csv=toy_csv, bert=tiny_bert, out=tmp_path / "model").split(), "--head", "plain")
    assert done.code == 0, done.err
    assert cli("info", tmp_path / "model").code == 0
    del sys.modules[name]
    (tmp_path / f"site-{name}" / f"{name}.py").write_text(BROKEN_HEADS[case][0] + "\n# changed\n", encoding="utf-8")
    importlib.invalidate_caches()
    done = cli("info", tmp_path / "model")
    assert done.code == 2
    assert "the head answers each token" in done.err if case == "answers tokens" else "plain" in done.err


TASK = """
from berthead.tasks import Regress
class Own(Regress):
    name = "own"
"""
BROKEN_TASKS = {
    "raises": (
        "1 / 0",
        "own_package:Own of own_package 1.0 cannot be imported (ZeroDivisionError: division by zero)",
    ),
    "is no class": ("Own = 3", 'is 3; expected a class that inherits from berthead.tasks.Task, with name = "own"'),
    "has another name": (
        TASK.replace('"own"', '"other"'),
        "is <class 'own_package.Own'>; expected a class that inherits",
    ),
    "is a bare class": ("class Own:\n    name = 'own'", "which does not inherit from it"),
    "says nothing": (
        "from berthead.tasks import Task\nclass Own(Task):\n    name = 'own'",
        "lacks check, decode, evaluate, from_json, ",
    ),
    "has a strange form": (TASK + "    form = 'picture'\n", "has form 'picture' (expected one of text, words, "),
    "has a strange level": (TASK + "    level = 'window'\n", "has level 'window' (expected row or token)"),
    "has no loss": (TASK + "    metrics = {'mae': -1}\n", 'has no metric "loss"'),
}


@pytest.mark.parametrize("case", BROKEN_TASKS)
def test_a_broken_task_is_told_in_words(case, install, toy_csv, tmp_path, cli):
    code, message = BROKEN_TASKS[case]
    install(code, tasks="own = {}:Own")
    done = cli("fit", toy_csv, "--task", "own", "--out", tmp_path / "model")
    assert done.code == 2
    assert "task 'own'" in done.err
    assert message in done.err


def test_the_built_in_tasks_are_whole_by_the_same_measure(install):
    assert {name: wrong_with(task) for name, task in TASKS.items()} == dict.fromkeys(TASKS, "")
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}
    assert not set(OPTIONAL) & set(REQUIRED)
    assert set(OPTIONAL) | set(REQUIRED) == {
        name for name in {*vars(Task), *Task.__annotations__} if not name.startswith("_")
    }
    install(TASK, tasks="own = {}:Own")
    assert find_task("own").__name__ == "Own"


# What else a head may hold


def test_what_a_head_holds_beside_its_weights_is_there_after_loading(install, tiny_bert, toy_csv, tmp_path):
    code = HEAD.replace(
        "        self.out =",
        "        import torch\n"
        "        self.register_buffer('steps', torch.ones(1), persistent=False)\n"
        "        self.register_buffer('kept', torch.ones(1))\n"
        "        self.half = torch.tensor(0.5)\n"
        "        self.out =",
    ).replace("hidden.float()", "(hidden.float() * self.half * self.steps * self.kept)")
    install(code, heads="plain = {}:Plain")
    options = {"encoder": str(tiny_bert), "valid": 0.25, "threads": 1, "epochs": 1, "quiet": True}
    model = berthead.fit(toy_csv, head="plain", out=tmp_path / "model", **options)
    state = torch.random.get_rng_state()
    again = berthead.load(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(again.predict_proba(["good cat"]), model.predict_proba(["good cat"]))
    assert sorted(again.artifact.omega()) == ["head.kept", "head.out.bias", "head.out.weight"]


def test_a_package_that_changed_its_weights_is_refused_by_their_names(install, tiny_bert, toy_csv, tmp_path, cli):
    name = install(HEAD, heads="plain = {}:Plain")
    done = cli(*FIDDLY.format(csv=toy_csv, bert=tiny_bert, out=tmp_path / "model").split(), "--head", "plain")
    assert done.code == 0, done.err
    del sys.modules[name]
    changed = HEAD.replace("self.out", "self.last")
    (tmp_path / f"site-{name}" / f"{name}.py").write_text(changed, encoding="utf-8")
    importlib.invalidate_caches()
    done = cli("info", tmp_path / "model")
    assert done.code == 2
    assert "lacks 2 weights: berthead.head.last.bias, berthead.head.last.weight" in done.err


# Nothing is imported before it is asked for


def test_a_package_that_nobody_asked_for_is_not_imported(run, toy_model, toy_csv, tmp_path):
    trip = "from pathlib import Path\nPath(__file__).with_name('tripped').touch()\n" + HEAD + TASK
    points = {"heads": "own = own_package:Plain", "tasks": "own = own_package:Own"}
    site = put_package(tmp_path / "site", "own_package", trip, **points)
    for words in (["--help"], ["fit", "--help"], ["info", toy_model], ["predict", toy_model, "good cat"]):
        done = run(*words, path=site)
        assert done.code == 0, done.err
    assert run("fit", toy_csv, "--task", "owm", "--out", tmp_path / "model", path=site).err.count('"own"') == 1
    assert not (site / "tripped").exists()
    run("fit", toy_csv, "--task", "own", "--label", "no such column", "--out", tmp_path / "model", path=site)
    assert (site / "tripped").exists()


# berthead.plugins itself


def test_names_load_and_package(install):
    assert "plain" not in plugins.names(plugins.HEADS)
    assert plugins.package(plugins.HEADS, "plain") == ""
    install(HEAD, heads="plain = {}:Plain\nanother = {}:Plain")
    assert plugins.names(plugins.HEADS) == ("another", "plain")
    assert plugins.names(plugins.TASKS) == ()
    assert "own_package" not in sys.modules
    assert plugins.package(plugins.HEADS, "plain") == "own_package 1.0"
    assert "own_package" not in sys.modules
    assert plugins.load(plugins.HEADS, "plain").__name__ == "Plain"


def test_loading_what_is_not_there_says_what_is(install):
    with pytest.raises(
        ModelError,
        match=r"own': is not installed; expected an installed package that offers a task; there is none\. Install",
    ):
        plugins.load(plugins.TASKS, "own")
    install(HEAD, heads="plain = {}:Plain")
    with pytest.raises(ModelError, match=r"expected one that is installed: plain\. Did you mean \"plain\"\?"):
        plugins.load(plugins.HEADS, "plane")
    with pytest.raises(
        ModelError,
        match=r"expected the package some-heads 2\.1rc1\+cpu, with which the model was fitted\. Install it, if",
    ):
        plugins.load(plugins.HEADS, "plane", "some-heads 2.1rc1+cpu")


def test_a_name_of_two_packages_is_nobodys(install):
    install(HEAD, heads="plain = {}:Plain")
    install(HEAD, "other_package", heads="plain = {}:Plain")
    assert plugins.names(plugins.HEADS) == ("plain",)
    with pytest.raises(ModelError, match=r"offered by several packages: .*own_package 1\.0.*Uninstall") as told:
        plugins.load(plugins.HEADS, "plain")
    assert "other_package:Plain (other_package 1.0)" in str(told.value)
    assert not {"own_package", "other_package"} & set(sys.modules)


# The guide


@pytest.mark.parametrize("language", ["python", "toml"])
def test_the_code_of_the_guide_is_the_example_s(language):
    file = {"python": "berthead_ordinal.py", "toml": "pyproject.toml"}[language]
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    assert all(block in (EXAMPLE / file).read_text(encoding="utf-8") for block in blocks)


def test_the_commands_of_the_guide_exist():
    known = {flag(spec.name) for spec in fields(FitOptions)} | {"--out"}
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert [words[:2] for words in lines[1:]] == [["berthead", verb] for verb in ("fit", "predict", "info")]
    assert {word for words in lines for word in words if word.startswith("--")} <= known


def test_the_guide_names_what_a_task_has_to_write_and_what_it_need_not():
    (section,) = re.findall(r"## What a task is\n(.*?)\n## ", PAGE, re.DOTALL)
    cells = re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
    said = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(said) == sorted(OPTIONAL)
    (needed,) = re.findall(r"It must define (.*?)\. If one is missing", " ".join(section.split()))
    assert set(re.findall(r"`(\w+)`", needed)) == set(REQUIRED)


# The example's arithmetic


@pytest.fixture
def ordinal(monkeypatch):
    """The example's module."""
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("berthead_ordinal")


def test_the_thresholds_are_in_order_whatever_is_learnt(ordinal):
    head = ordinal.OrdinalHead(8, 4, 0.0)
    with torch.no_grad():
        head.gaps.copy_(torch.tensor([-5.0, 3.0, 0.0]))
        logits = head.classify(torch.randn(50, 8))
    assert (logits.diff(dim=1) < 0).all()
    assert torch.allclose(
        ordinal.OrdinalHead(8, 4, 0.0).classify(torch.zeros(1, 8)), torch.tensor([[1.5, 0.5, -0.5, -1.5]])
    )
    assert ordinal.OrdinalHead(8, 1, 0.0).classify(torch.zeros(2, 8)).shape == (2, 1)


def test_folding_the_scale_changes_no_logit(ordinal):
    head, x = ordinal.OrdinalHead(8, 4, 0.0), torch.randn(20, 8)
    mean, deviation = torch.randn(8), torch.rand(8) + 0.5
    with torch.no_grad():
        wanted = head.classify((x - mean) / deviation)
        head.fold_input(mean, deviation)
        assert torch.allclose(head.classify(x), wanted, atol=1e-5)


def test_the_loss_and_the_metrics_are_scikit_learns(ordinal):
    from sklearn.metrics import cohen_kappa_score, log_loss, mean_absolute_error

    random = np.random.default_rng(0)
    task = ordinal.Ordinal.from_targets([1, 2, 3, 5], "data")
    logits = -np.sort(-random.normal(size=(200, 3)).astype(np.float32), axis=1)
    gold = random.choice([1, 2, 3, 5], 200).tolist()
    targets = task.targets(gold)
    above = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = sum(log_loss(targets > k, above[:, k]) for k in range(3))
    scores = task.evaluate(logits, targets)
    assert scores["loss"] == pytest.approx(wanted, rel=1e-5)
    answers = task.decode(logits)
    predicted = [answer.answer for answer in answers]
    assert scores["mae"] == pytest.approx(mean_absolute_error(gold, predicted))
    places = [task.labels.index(one) for one in predicted]
    assert scores["qwk"] == pytest.approx(cohen_kappa_score(targets, places, weights="quadratic"))
    shares = np.array([list(answer.probabilities.values()) for answer in answers])
    assert np.allclose(shares.sum(1), 1)
    assert np.allclose(shares[:, -1], above[:, -1])
    assert np.allclose(shares[:, 0], 1 - above[:, 0])


def test_kappa_counts_a_label_that_is_not_there(ordinal):
    task = ordinal.Ordinal((1, 2, 3))
    sure = {1: [-9.0, -9.0], 3: [9.0, 9.0]}
    logits = np.array([sure[1], sure[3], sure[1]], dtype=np.float32)
    # Weights are the squares of distances: right, right, and one answer two places off.
    assert task.evaluate(logits, np.array([0, 2, 2]))["qwk"] == pytest.approx(1 - 4 / (5 / 3 * 4))
    assert task.evaluate(logits[:1], np.array([0]))["qwk"] == 0.0


def test_the_prior_answers_the_targets_shares(ordinal):
    task = ordinal.Ordinal((1, 2, 3))
    targets = np.repeat([0, 1, 2], [500, 300, 200])
    shares = task.decode(task.prior(targets)[None])[0].probabilities
    assert shares == pytest.approx({1: 0.5, 2: 0.3, 3: 0.2}, abs=0.002)
    assert task.weights(targets) == pytest.approx([2 / 3, 10 / 9, 5 / 3])


def test_logits_out_of_order_still_give_probabilities(ordinal):
    shares = ordinal.Ordinal((1, 2, 3)).decode(np.array([[-2.0, 3.0]], dtype=np.float32))[0].probabilities
    assert min(shares.values()) >= 0
    assert sum(shares.values()) == pytest.approx(1)


def test_the_ordinal_task_refuses_what_it_cannot_use(ordinal):
    task = ordinal.Ordinal
    assert [task.read(value) for value in ("4", 4.0, np.int64(4), "4.5")] == [4, 4, 4, 4.5]
    for value in ("", None, "four", True, "nan"):
        with pytest.raises(ValueError, match="needs"):
            task.read(value)
    for targets in ([], [3, 3], list(range(101))):
        with pytest.raises(berthead.DataError, match="2 to 100 numbers"):
            task.from_targets(targets, "data")
    with pytest.raises(ValueError, match="is 4; this model knows 1, 2"):
        task((1, 2)).check(4)
    for labels in ([1], ["1", "2"], [2, 1], [1, 1], [1, float("nan")]):
        with pytest.raises(ValueError, match="labels are"):
            task.from_json({"labels": labels})
    one = task((1, 2.5))
    assert task.from_json(json.loads(json.dumps(one.to_json()))) == one == replace(one)

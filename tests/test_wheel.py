"""The wheel holds everything: it installs and runs outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    # The kernels of all processors take minutes.
    native = os.environ | {"BERTHEAD_BUILD": "native"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=native)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_package_and_its_licence_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "berthead/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith(("berthead/", "berthead-")) for name in names)
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert sources <= set(names)


def test_the_wheel_runs_outside_the_checkout(wheel, tmp_path, toy_model):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run([str(word) for word in install], check=True)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import berthead; print(berthead.__file__)").startswith(str(target))
    assert run("-m", "berthead", "predict", str(toy_model), "good cat").startswith("positive")
    assert (target / "bin" / "berthead").is_file()

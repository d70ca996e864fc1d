"""The example for Spark: answers of a broadcast model are those of the model itself."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, shell_env, write_csv

import berthead

EXAMPLE = ROOT / "examples" / "spark" / "predict.py"


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="no pyspark: pip install 'berthead[spark]'")
@pytest.mark.skipif(shutil.which("java") is None, reason="no Java")
def test_the_example_answers_as_the_model(tmp_path, fit_toy):
    model = fit_toy(epochs=6)
    texts = ["good cat", "awful dog, the mat", "", "fine dog ran", "poor"] * 8
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    write_csv(tmp_path / "in.csv", rows)
    env = shell_env(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1", SPARK_LOCAL_DIRS=str(tmp_path))
    env["PYSPARK_SUBMIT_ARGS"] = "--master local[2] --conf spark.ui.enabled=false pyspark-shell"
    command = [sys.executable, EXAMPLE, model, tmp_path / "in.csv", tmp_path / "out"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr

    answered = pd.read_parquet(tmp_path / "out").sort_values("id", key=lambda ids: ids.astype(int))
    assert answered["id"].tolist() == [row["id"] for row in rows]
    predictions = berthead.load(model, threads=1).predict(texts)
    sound = [number for number, one in enumerate(predictions) if one.error is None]
    assert len(sound) == 32
    for number, row in enumerate(answered.to_dict("records")):
        if number in sound:
            assert row["prediction"] == predictions[number].answer
            assert row["score"] == pytest.approx(predictions[number].score, abs=1e-5)
        else:
            assert row["error"] == predictions[number].error

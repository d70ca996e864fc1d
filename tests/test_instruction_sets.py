"""The same answers whatever instructions, threads and neighbours: real processes with the processor capped."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import toy_rows

import berthead
from berthead.kernels import library

TEXTS = [
    *(row["text"] for row in toy_rows(1)),
    "a b c " * 15,
    "good",
    "bad cat, red dog; 1 2 3 and a mat " * 9,
]  # in windows
pytestmark = pytest.mark.slow

CODE = """
import json, sys
import berthead
from berthead.engine.cpu import use_threads
from berthead.records import Example

folder, threads, texts = json.loads(sys.argv[1])
use_threads(threads)
fitted = berthead.load(folder)
examples = [Example(text) for text in texts]
together = fitted.predictor.logits(examples)
alone = [fitted.predictor.logits([one])[0] for one in examples]
labels = [one.answer for one in fitted.predict(texts)]
print(json.dumps([together.tolist(), [row.tolist() for row in alone], labels, fitted.predictor.engine.kernels]))
"""
CAPS = {
    "nothing capped": {},
    **{f"kernels {name}": {library.SWITCH: name} for name in library.kernels()},
    "torch": {library.SWITCH: "torch"},
    "torch, oneDNN to AVX2": {library.SWITCH: "torch", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "torch, oneDNN to SSE4.1": {library.SWITCH: "torch", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "torch, ATen to AVX2": {library.SWITCH: "torch", "ATEN_CPU_CAPABILITY": "avx2"},
    "torch, ATen to its default": {library.SWITCH: "torch", "ATEN_CPU_CAPABILITY": "default"},
    "ATen to its default": {"ATEN_CPU_CAPABILITY": "default"},
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """MiniLM, fitted: answers of real weights."""
    folder = tmp_path_factory.mktemp("models") / "fitted"
    made = berthead.fit(toy_rows(2), encoder="minilm", epochs=1, max_tokens=64, valid="0", quiet=True)
    made.save(folder)
    return folder


def answers(folder, threads, caps):
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", library.SWITCH)}
    given = json.dumps([str(folder), threads, TEXTS])
    done = subprocess.run([sys.executable, "-c", CODE, given], env=clean | caps, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    together, alone, labels, kernels = json.loads(done.stdout.splitlines()[-1])
    return np.array(together), np.array(alone), labels, kernels


@pytest.mark.parametrize("caps", CAPS)
def test_capped_processors_give_the_plain_models_answers(fitted, caps):
    import torch
    from transformers import AutoTokenizer, BertModel

    loaded = berthead.load(fitted)
    tokenizer, head = AutoTokenizer.from_pretrained(fitted), loaded.artifact.model.head
    bert = BertModel.from_pretrained(fitted, add_pooling_layer=False).eval()
    wanted = []
    with torch.no_grad():
        for text in TEXTS[:-1]:
            hidden = bert(**tokenizer(text, return_tensors="pt", max_length=64, truncation=True)).last_hidden_state
            wanted.append(head.out(hidden.mean(1))[0].numpy())
    plain = loaded.predict(TEXTS)
    for threads in (1, 2):
        together, alone, labels, kernels = answers(fitted, threads, CAPS[caps])
        np.testing.assert_allclose(together[:-1], wanted, atol=1e-5)
        np.testing.assert_allclose(alone, together, atol=1e-5)
        assert labels == [one.answer for one in plain]
        if caps.startswith("kernels "):
            assert kernels == caps.removeprefix("kernels ")
        if caps.startswith("torch"):
            assert kernels in ("torch", "oneDNN")

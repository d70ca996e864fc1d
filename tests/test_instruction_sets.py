"""The same answers whatever instructions, threads and neighbours: real processes with the processor capped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
# Loads and computes once for each choice of kernels and each number of threads.
CODE = """
import json, os, sys
import berthead
from berthead.engine.cpu import use_threads
from berthead.kernels import library
from berthead.records import Example

folder, choices, texts = json.loads(sys.argv[1])
examples = [Example(text) for text in texts]
for kernels in choices:
    os.environ.pop(library.SWITCH, None)
    if kernels:
        os.environ[library.SWITCH] = kernels
    for threads in (1, 2):
        use_threads(threads)
        fitted = berthead.load(folder)
        together = fitted.predictor.logits(examples).tolist()
        alone = [fitted.predictor.logits([one])[0].tolist() for one in examples]
        labels = [one.answer for one in fitted.predict(texts)]
        print(json.dumps([kernels, threads, fitted.predictor.engine.kernels, together, alone, labels]))
"""
# Torch and oneDNN read these when they are loaded: each takes a process of its own.
CAPS = {
    "nothing": {},
    "oneDNN to AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN to SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "ATen to AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "ATen to its default": {"ATEN_CPU_CAPABILITY": "default"},
}


@pytest.fixture(scope="module")
def fitted(once) -> Path:
    """MiniLM, fitted: answers of real weights."""

    def fit(folder: Path) -> None:
        berthead.fit(toy_rows(2), encoder="minilm", epochs=1, max_tokens=64, valid="0", quiet=True, out=folder)

    return once("instructions", None, fit)


@pytest.fixture(scope="module")
def wanted(fitted) -> np.ndarray:
    """What transformers computes of the texts that are not in windows, and our head of it."""
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer, head = AutoTokenizer.from_pretrained(fitted), berthead.load(fitted).artifact.model.head
    bert = BertModel.from_pretrained(fitted, add_pooling_layer=False).eval()
    logits = []
    with torch.no_grad():
        for text in TEXTS[:-1]:
            hidden = bert(**tokenizer(text, return_tensors="pt", max_length=64, truncation=True)).last_hidden_state
            logits.append(head.out(hidden.mean(1))[0].numpy())
    return np.array(logits)


@pytest.mark.exhaustive
@pytest.mark.parametrize("caps", CAPS)
def test_capped_processors_give_the_plain_models_answers(fitted, wanted, caps):
    choices = ["", "torch", *library.kernels()] if caps == "nothing" else ["", "torch"]
    given = json.dumps([str(fitted), choices, TEXTS])
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", library.SWITCH)}
    done = subprocess.run([sys.executable, "-c", CODE, given], env=clean | CAPS[caps], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(kernels, threads) for kernels, threads, *_ in answers] == [(k, n) for k in choices for n in (1, 2)]
    plain = [one.answer for one in berthead.load(fitted).predict(TEXTS)]
    for kernels, threads, used, together, alone, labels in answers:
        told = f"{kernels} on {threads} threads"
        np.testing.assert_allclose(np.array(together)[:-1], wanted, atol=1e-5, err_msg=told)
        np.testing.assert_allclose(alone, together, atol=1e-5, err_msg=told)
        assert labels == plain, told
        if kernels:
            assert used in (("torch", "oneDNN") if kernels == "torch" else (kernels,)), told

"""Whichever Auto class loads a folder: it gives our logits, or it refuses, or transformers says what is new or unused.

`python tests/test_transformers_classes.py` prints the table that stands in docs/export.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from conftest import ROOT, daily, toy_rows
from test_families import KINDS, with_tokenizer
from test_plugins import install  # noqa: F401 - a fixture
from toy_tasks import choose_rows, fit_task, span_rows, tag_rows
from transformers import pipeline

import berthead
from berthead.function.checks import golden_input
from berthead.model import families
from berthead.model.checkpoint import read_checkpoint
from berthead.model.tensors import TensorPack
from berthead.text.layout import Layout
from berthead.text.packing import pack
from berthead.verbs.join import join

AUTO = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
ROWS: dict[str, tuple[list[dict], dict[str, Any]]] = {
    "classify": (toy_rows(1), {}), "multilabel": (toy_rows(1), {"label": "tags"}),
    "regress": ([row | {"length": len(row["text"])} for row in toy_rows(1)], {"label": "stars"}),
    "choose": (choose_rows(12), {}),
    "tag": (tag_rows(12), {}), "span": (span_rows(12), {}), "joint": (tag_rows(12), {}),
}  # fmt: skip
MEAN, CLS, POOLER = ({"pooling": pooling} for pooling in ("mean", "cls", "pooler"))
SEVERAL = {"label": "stars,length"}
# A row of the table, and the fits that it speaks of.
FOLDERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "`classify`, `multilabel`, `regress` with `mean` or `cls`": [
        (task, pooling) for task in ("classify", "multilabel", "regress") for pooling in (MEAN, CLS)
    ] + [("regress", MEAN | SEVERAL)],
    "`classify`, `multilabel`, `regress` of several numbers, with `pooler`": [
        ("classify", POOLER), ("multilabel", POOLER), ("regress", POOLER | SEVERAL),
    ],
    "`regress` of one number, with `pooler`": [("regress", POOLER)],
    "`choose` with `mean` or `cls`": [("choose", MEAN), ("choose", CLS)],
    "`choose` with `pooler`": [("choose", POOLER)],
    "`tag`, with `--head crf` too": [("tag", {}), ("tag", {"head": "crf"})],
    "`span`": [("span", {})],
    "`joint`": [("joint", MEAN), ("joint", POOLER), ("joint", MEAN | {"head": "crf"})],
}  # fmt: skip
FITS = [fit for fits in FOLDERS.values() for fit in fits]
RIGHT, REFUSED, WARNED, SILENT = "our logits", "refused", "a warning", "nothing is said"


def fitted(encoder: Path, task: str, options: dict[str, Any], **more: Any) -> Any:
    """A function fitted for one epoch."""
    rows, own = ROWS[task]
    quick = {"epochs": 1, "batch": 8, "lr": 1e-2, "valid": 0, "threads": 1, "precision": "fp32", "quiet": True}
    return berthead.fit(rows, task=task, encoder=str(encoder), **quick | own | options | more)


def has_no_pooler(encoder: Path, options: dict[str, Any]) -> bool:
    checkpoint = read_checkpoint(str(encoder))
    family = families.FAMILIES[checkpoint.config.family]
    lacking = family.row is None or (family.has_trained_pooler and checkpoint.pooler is None)
    return options.get("pooling") == "pooler" and lacking


def both(model: Any, auto: str, function: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Our logits of each row of the golden examples beside theirs, both from the same token numbers."""
    artifact, sides = function.artifact, []
    examples = [golden_input(one) for one in artifact.golden[:3]]
    layout = Layout(artifact.task.encode(artifact.tokenizer, examples, artifact.policy))
    for number in range(len(layout.rows)):
        one = pack(layout.rows, np.array([number]))
        batch = {"input_ids": torch.from_numpy(one.ids)[None]}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if artifact.model.encoder.config.segments > 1:
            batch["token_type_ids"] = torch.from_numpy(one.segments)[None]
        if auto == "MultipleChoice":
            batch = {name: tensor[None] for name, tensor in batch.items()}
        with torch.no_grad():
            ours, said = artifact.model(TensorPack.from_pack(one)), model(**batch)
        if auto == "QuestionAnswering":
            theirs = torch.stack([said.start_logits[0], said.end_logits[0]], 1)
        else:
            theirs = said.logits[0] if auto == "TokenClassification" else said.logits
        if artifact.task.name == "joint":
            ours = ours[:, : artifact.task.tag.outputs]  # all that a class of transformers has a place for
        sides.append((ours.numpy(), theirs.numpy()))
    return sides


def verdict(load: Callable[[], tuple[Any, dict[str, Any]]], auto: str, function: Any) -> str:
    """What comes back where a class loads a folder."""
    try:
        model, report = load()
    except (RuntimeError, OSError, ValueError, AssertionError, KeyError):
        return REFUSED
    try:
        sides = both(model.eval(), auto, function)
        alike = all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-4) for a, b in sides)
    except (RuntimeError, ValueError):  # other numbers of logits than the class reads
        alike = False
    assert np.ptp(np.concatenate([ours for ours, _ in sides])) > 1e-3 if alike else True
    return RIGHT if alike else WARNED if any(report.values()) else SILENT


def by_auto(folder: Path, auto: str) -> Callable[[], tuple[Any, dict[str, Any]]]:
    its_class = getattr(transformers, f"AutoModelFor{auto}")
    return lambda: its_class.from_pretrained(folder, output_loading_info=True)


def verdicts(folder: Path, function: Any) -> dict[str, str]:
    return {auto: verdict(by_auto(folder, auto), auto, function) for auto in AUTO}


def expected(function: Any) -> tuple[str, bool]:
    """The class that berthead.json names, without its stem; whether all others have to refuse."""
    its_class = function.info()["transformers"]["class"]
    _, _, auto = its_class.partition("For")
    return auto, its_class.endswith("Model") or function.artifact.task.name == "joint"


def check(found: dict[str, str], function: Any) -> None:
    """The class that is named gives our logits; another refuses where it can be made to, and else is warned of."""
    named, others_refuse = expected(function)
    for auto, what in found.items():
        allowed = {RIGHT} if auto == named else {REFUSED} if others_refuse else {RIGHT, REFUSED, WARNED}
        assert what in allowed, (auto, what, named)


def check_encoder(folder: Path, function: Any) -> None:
    """AutoModel gives the encoder's vectors."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    encoder = function.artifact.model.encoder
    row = function.artifact.tokenizer.encode(["good great cat"], None, 60)
    with torch.no_grad():
        ours = encoder(TensorPack.from_pack(pack(row, np.array([0]))))
        theirs = model(input_ids=torch.from_numpy(row[0].ids)[None]).last_hidden_state[0]
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory):
    folders: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in folders:
            folders[name] = with_tokenizer(tmp_path_factory.mktemp("encoders") / "encoder", name)
        return folders[name]

    return made


def cell(function: Any, folder: Path) -> dict[str, str]:
    """A row of the table, of one folder; that of its export for transformers is the same."""
    function.save(folder / "model")
    function.export_hf(folder / "hf")
    found = verdicts(folder / "model", function)
    for place in ("model", "hf"):
        check_encoder(folder / place, function)
    assert verdicts(folder / "hf", function) == found
    check(found, function)
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", KINDS)
def test_a_class_gives_our_logits_or_refuses(encoder_of, tmp_path, name):
    for number, (task, options) in enumerate(FITS):
        if not has_no_pooler(encoder_of(name), options):
            function = fitted(encoder_of(name), task, options)
            function.save(tmp_path / str(number))
            check(verdicts(tmp_path / str(number), function), function)
            check_encoder(tmp_path / str(number), function)


def table(encoder: Path, folder: Path) -> str:
    """The table of docs/export.md, by a BERT."""
    lines = [f"| folder | {' | '.join(f'`…For{auto}`' for auto in AUTO)} |", "| --- |" + " --- |" * len(AUTO)]
    for number, (words, fits) in enumerate(FOLDERS.items()):
        cells = [
            cell(fitted(encoder, *fit), folder / f"{number}-{which}") for which, fit in enumerate(fits)
        ]  # fmt: skip
        assert all(one == cells[0] for one in cells), (words, cells)
        lines.append(f"| {words} | {' | '.join(cells[0][auto] for auto in AUTO)} |")
    return "\n".join(lines)


@pytest.mark.exhaustive
def test_the_table_in_the_docs_is_what_comes_back(encoder_of, tmp_path):
    assert table(encoder_of("bert"), tmp_path) in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("task", "options"), [("classify", MEAN), ("classify", POOLER), ("tag", {}), ("joint", MEAN)])
def test_an_adapter_folder_is_refused_without_peft(encoder_of, tmp_path, task, options):
    function = fitted(encoder_of("bert"), task, options, adapt="lora:2")
    function.save(tmp_path / "m")
    assert set(verdicts(tmp_path / "m", function).values()) == {REFUSED}
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModel.from_pretrained(tmp_path / "m")
    check(cell(function.merged(), tmp_path), function)


@pytest.mark.parametrize(
    "name", daily(["bert", "roberta", "distilbert", "deberta-v2, as v3", "modernbert"], "bert", "modernbert")
)
@pytest.mark.parametrize(("task", "options"), [("classify", MEAN), ("joint", MEAN)])
def test_an_adapter_is_refused_in_peft_by_classes_that_answer_otherwise(encoder_of, tmp_path, name, task, options):
    encoder = encoder_of(name)
    function = fitted(encoder, task, options, adapt="lora:2")
    function.save(tmp_path / "m")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "m")

    def load(auto: str) -> tuple[Any, dict[str, Any]]:
        base = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(encoder, config=config)
        return peft.PeftModel.from_pretrained(base, str(tmp_path / "m")), {}

    check({auto: verdict(lambda auto=auto: load(auto), auto, function) for auto in AUTO}, function)


@pytest.mark.parametrize(("task", "options"), [("classify", MEAN), ("classify", POOLER), ("tag", {})])
def test_a_part_of_a_joined_folder_is_refused(encoder_of, tmp_path, task, options):
    """Without the encoder beside it most of its weights would be random."""
    one = fitted(encoder_of("bert"), task, options, adapt="frozen")
    other = fitted(encoder_of("bert"), task, options, adapt="top:1")
    join({"one": one, "other": other}, tmp_path / "both")
    for name, function in (("one", one), ("other", other)):
        folder = tmp_path / "both" / name
        assert json.loads((folder / "berthead.json").read_text(encoding="utf-8"))["format_version"] == 4
        assert set(verdicts(folder, function).values()) == {REFUSED}
        with pytest.raises(OSError, match=r"model\.safetensors"):
            transformers.AutoModel.from_pretrained(folder)
        assert berthead.load(folder).verify() < 1e-5


def test_a_head_of_another_package_is_refused(encoder_of, tmp_path, install):  # noqa: F811
    code = (
        "from torch import nn\n"
        "class Plain(nn.Module):\n"
        "    level = 'row'\n"
        "    def __init__(self, width, outputs, dropout):\n"
        "        super().__init__()\n"
        "        self.out = nn.Linear(width, outputs)\n"
        "    def forward(self, hidden, pack): return self.out(hidden[pack.starts])\n"
    )
    install(code, heads="plain = {}:Plain")
    function = fitted(encoder_of("bert"), "classify", {"head": "plain"})
    assert set(cell(function, tmp_path).values()) == {REFUSED}
    assert berthead.load(tmp_path / "model").verify() < 1e-5


@pytest.mark.parametrize(
    ("kind", "task", "options"),
    [("text-classification", "classify", MEAN), ("text-classification", "classify", CLS),
     ("token-classification", "classify", MEAN), ("text-classification", "joint", MEAN)],
)  # fmt: skip
def test_a_pipeline_refuses_too(encoder_of, tmp_path, kind, task, options):
    """It tries the class that config.json names after its own."""
    fitted(encoder_of("bert"), task, options).save(tmp_path / "m")
    with pytest.raises(ValueError, match="Could not load model"):
        pipeline(kind, str(tmp_path / "m"), device="cpu")
    assert len(pipeline("feature-extraction", str(tmp_path / "m"), device="cpu")("good cat")[0][0]) == 32


def test_the_tags_of_a_joint_function_are_found_by_a_pipeline(tiny_bert, tmp_path):
    function = fit_task(tiny_bert, "joint")
    function.save(tmp_path / "m")
    apply = pipeline("token-classification", str(tmp_path / "m"), device="cpu", aggregation_strategy="first")
    texts = ["the good great cat", "bad dog , good cat .", "a good great b bad c"]
    for text, theirs in zip(texts, apply(texts), strict=True):
        found = [(one["start"], one["end"], one["entity_group"]) for one in theirs]
        assert found == [(span.start, span.end, span.label) for span in function.predict(text).spans] != []


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(table(with_tokenizer(Path(folder) / "encoder", "bert"), Path(folder)))


if __name__ == "__main__":
    main()

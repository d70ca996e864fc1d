"""Several functions on one encoder: the answers of each alone, with shared layers computed once."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from conftest import make_bert, toy_rows, unsealed, write_csv
from safetensors import safe_open
from toy_tasks import fit_task

import berthead
from berthead.errors import ModelError, UsageError
from berthead.function.record import read_record
from berthead.kernels import library, native
from berthead.model.encoder import Block
from berthead.model.sharing import shared, shared_layers
from berthead.predict.joined import JoinedEngine
from berthead.records import Example

ROWS = toy_rows(2)
TEXTS = [row["text"] for row in ROWS] + ["the cat " * 60, "a", "Zoë ran; good?"]
KINDS = {
    "mood": {"adapt": "frozen"},
    "tags": {"adapt": "frozen", "task": "multilabel", "label": "tags"},
    "stars": {"adapt": "top:1", "task": "regress", "label": "stars"},
    "low-rank": {"adapt": "lora:2,targets=value"},
}


@pytest.fixture(scope="module")
def members(tmp_path_factory, tiny_bert) -> dict[str, Path]:
    """Model folders on one encoder, of several tasks and strategies."""
    place = tmp_path_factory.mktemp("members")
    common = {"encoder": str(tiny_bert), "epochs": 3, "batch": 8, "lr": 3e-3, "valid": 0, "threads": 1, "quiet": True}
    for name, options in KINDS.items():
        berthead.fit(ROWS, out=place / name, **common | options)
    fit_task(tiny_bert, "tag", adapt="frozen").save(place / "words")
    return {name: place / name for name in (*KINDS, "words")}


@pytest.fixture(scope="module")
def joined_folder(tmp_path_factory, members) -> Path:
    """All of them as one folder. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("joined") / "all"
    berthead.join(list(members.values()), folder)
    return folder


def answers(predictions) -> list[dict]:
    return [{key: value for key, value in one.to_dict().items() if key not in ("score", "probabilities", "spans")}
            for one in predictions]  # fmt: skip


def nearly(answers) -> list[dict]:
    """Numbers but for the last bit: torch's product of the head rounds by how many rows there are."""
    return [
        {key: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value for key, value in one.items()}
        for one in answers
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_function_answers_as_it_does_alone(members, joined_folder, precision):
    joined = berthead.load(joined_folder, precision=precision)
    together = joined.predict(TEXTS)
    for name, folder in members.items():
        alone = berthead.load(folder, precision=precision).predict(TEXTS)
        mine = [one[name] for one in together]
        assert answers(mine) == nearly(answers(alone))
        for a, b in zip(mine, alone, strict=True):
            wanted = [*(b.probabilities or {}).values(), b.score or 0.0]
            found = [*(a.probabilities or {}).values(), a.score or 0.0]
            np.testing.assert_allclose(found, wanted, atol=1e-5 if precision == "fp32" else 0.02)
        # Each folder in the joined one is a function by itself.
        assert answers(berthead.load(joined_folder / name).predict(TEXTS)) == answers(
            berthead.load(folder).predict(TEXTS)
        )
    assert joined.verify().keys() == members.keys()
    assert max(joined.verify().values()) <= 1e-4


@pytest.fixture(params=["torch", *library.kernels()[-1:]])
def counted(monkeypatch, request) -> list[int]:
    """An entry for each block that is computed, by torch or by kernels of our own."""
    monkeypatch.setenv(library.SWITCH, request.param)
    found: list[int] = []
    by_torch, by_kernels = Block.forward, native.NativeBlocks.run

    def forward(self, hidden, groups, positions):
        found.append(len(hidden))
        return by_torch(self, hidden, groups, positions)

    def run(self, numbers, *rest):
        found.extend(numbers)
        return by_kernels(self, numbers, *rest)

    monkeypatch.setattr(Block, "forward", forward)
    monkeypatch.setattr(native.NativeBlocks, "run", run)
    return found


def test_layers_in_common_are_computed_once(members, counted):
    fitted = {name: berthead.load(folder) for name, folder in members.items()}
    frozen = berthead.join({name: fitted[name] for name in ("mood", "tags", "words")})
    counted.clear()
    frozen.predict("good cat")
    assert len(counted) == 2  # the encoder's two layers, for three functions
    counted.clear()
    berthead.join({name: fitted[name] for name in ("mood", "tags", "words", "stars")}).predict("good cat")
    assert len(counted) == 3  # stars has an upper layer of its own
    assert frozen.shared_layers == 2
    assert berthead.join({name: fitted[name] for name in ("mood", "stars")}).shared_layers == 1
    assert berthead.join({name: fitted[name] for name in ("mood", "low-rank")}).shared_layers == 0


def test_a_row_that_two_functions_read_is_computed_once_and_a_long_one_by_each_in_its_windows(members):
    joined = berthead.join({name: berthead.load(members[name]) for name in ("mood", "words")})
    tokens: list[int] = []
    real = joined.predictor.engine.logits

    def logits(pack, who):
        tokens.append(len(pack.ids) * len(who))
        return real(pack, who)

    joined.predictor.engine.logits = logits
    joined.predict(["good cat", "good cat"])
    assert tokens == [2 * 4]  # one row of four tokens, for both functions


def test_equal_parts_are_one_part_and_others_are_not(members):
    models = [berthead.load(folder).artifact.model for folder in members.values()]
    once = shared(models)
    mood, tags, stars, low_rank, words = once
    assert mood.encoder.blocks[0] is tags.encoder.blocks[0] is stars.encoder.blocks[0] is words.encoder.blocks[0]
    assert mood.encoder.blocks[1] is tags.encoder.blocks[1]
    assert stars.encoder.blocks[1] is not mood.encoder.blocks[1]
    assert low_rank.encoder.blocks[0] is not mood.encoder.blocks[0]
    assert shared_layers(models) == 0
    prepared = JoinedEngine(models).models
    assert prepared[0].encoder.blocks[0] is prepared[2].encoder.blocks[0]


def test_the_folder_holds_the_encoder_once(members, joined_folder):
    assert read_record(joined_folder)["kind"] == "joined"
    theta = transformers.AutoModel.from_pretrained(joined_folder / "theta")
    assert theta.config.num_hidden_layers == 2
    with safe_open(joined_folder / "mood" / "part.safetensors", "pt") as file:
        assert {name.split(".")[-2] for name in file.keys()} == {"dense", "classifier"}  # noqa: SIM118 - the head alone
    with safe_open(joined_folder / "stars" / "part.safetensors", "pt") as file:
        assert {name.split(".")[3] for name in file.keys() if name.startswith("bert.encoder.")} == {"1"}  # noqa: SIM118
    assert (joined_folder / "low-rank" / "adapter_model.safetensors").is_file()
    small = sum(path.stat().st_size for path in joined_folder.rglob("*.safetensors"))
    assert small < 0.6 * sum(
        path.stat().st_size for folder in members.values() for path in folder.rglob("*.safetensors")
    )


def test_a_file_gets_the_columns_of_all(cli, joined_folder, members, tmp_path):
    data = write_csv(tmp_path / "in.csv", ROWS)
    ran = cli("predict", joined_folder, data, "--out", tmp_path / "out.csv")
    assert ran.code == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ROWS)
    for name in ("mood", "tags", "stars"):
        alone = berthead.load(members[name]).predict([row["text"] for row in ROWS])
        wanted = [json.dumps(one.answer) if isinstance(one.answer, list) else one.answer for one in alone]
        found = [row[f"{name}_prediction"] for row in rows]
        assert found == wanted if name != "stars" else np.allclose([float(x) for x in found], wanted, atol=1e-4)
    assert "words_predicted_tags" in rows[0]
    assert rows[0]["label"] == ROWS[0]["label"]  # the input's own columns stay


def test_the_verbs_know_a_joined_folder(cli, joined_folder, members, tmp_path):
    assert "mood" in (text := cli("predict", joined_folder, "good cat").out)
    assert text.splitlines()[0].startswith("mood  ")
    assert cli("predict", joined_folder, "good cat", "--json").out.startswith("{")
    assert "5 functions" in cli("info", joined_folder).out
    assert json.loads(cli("info", joined_folder, "--json").out)["shared_layers"] == 0
    assert cli("verify", joined_folder).out.count("golden examples") == 5
    data = write_csv(tmp_path / "rows.csv", ROWS)
    refused = cli("eval", joined_folder, data)
    assert refused.code == 2
    assert str(joined_folder / "mood") in refused.err
    assert cli("eval", joined_folder / "mood", data).out == cli("eval", members["mood"], data).out


def test_a_function_is_added_without_touching_the_others(cli, joined_folder, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(joined_folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    data = write_csv(tmp_path / "rows.csv", ROWS)
    ran = cli("fit", data, "--shared", folder, "--name", "second", "--epochs", 2, "--valid", 0)
    assert ran.code == 0, ran.err
    assert all(path.read_bytes() == content for path, content in before.items())
    joined = berthead.load(folder)
    assert list(joined)[-1] == "second"
    assert joined["second"].artifact.adapt == "frozen"
    assert joined.predict("good cat")["second"].answer in ("positive", "negative")
    again = cli("fit", data, "--shared", folder, "--name", "second", "--epochs", 2)
    assert (again.code, "has a function of that name" in again.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shared", "{joined}"], "--out DIR, or --shared DIR --name NAME"),
        (["--name", "x"], "--out DIR, or --shared DIR --name NAME"),
        (["--shared", "{joined}", "--name", "../x"], "is not a name"),
        (["--shared", "{joined}", "--name", "theta"], "is not a name"),
        (["--shared", "{joined}", "--name", "x.pt"], "is not a name"),
        (["--shared", "{joined}", "--name", "berthead.json"], "is not a name"),
        (["--shared", "{joined}", "--name", "x" * 300], "is not a name"),
        (["--shared", "{joined}", "--name", "x", "--overwrite"], "--overwrite"),
        (["--shared", "{joined}", "--name", "x", "--pair", "pair"], "single texts"),
        (["--shared", "{member}", "--name", "x"], "is not a joined folder"),
        (["--shared", "{joined}", "--name", "x", "--encoder", "other"], "--encoder"),
    ],
)
def test_a_function_that_cannot_be_added_is_refused_before_any_work(
    cli, joined_folder, members, tmp_path, words, message
):
    data = write_csv(tmp_path / "rows.csv", ROWS)
    ran = cli("fit", data, *[word.format(joined=joined_folder, member=members["mood"]) for word in words])
    assert ran.code == 2
    assert message in ran.err
    assert not (joined_folder / "x").exists()


def test_functions_that_do_not_go_together_are_refused(cli, members, tmp_path, tiny_bert):
    other = make_bert(tmp_path / "other", seed=9)
    options = {"epochs": 1, "valid": 0, "threads": 1, "quiet": True, "adapt": "frozen"}
    berthead.fit(ROWS, encoder=str(other), out=tmp_path / "elsewhere", **options)
    berthead.fit(ROWS, encoder=str(tiny_bert), pair="pair", out=tmp_path / "pairs", **options)
    with pytest.raises(ModelError, match="differs from mood in the pre-trained encoder"):
        berthead.join([members["mood"], tmp_path / "elsewhere"])
    with pytest.raises(ModelError, match="the form of input"):
        berthead.join([members["mood"], tmp_path / "pairs"])
    with pytest.raises(UsageError, match='two functions called "mood"'):
        berthead.join([members["mood"], members["mood"]])
    with pytest.raises(UsageError, match="letters, digits"):
        berthead.join({"a/b": berthead.load(members["mood"])})
    assert len(berthead.join([members["mood"], f"again={members['mood']}"])) == 2
    ran = cli("join", members["mood"], tmp_path / "pairs", "--out", tmp_path / "out")
    assert ran.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "damage", ["a name that leads elsewhere", "no theta", "another theta", "a tensor too many", "two models"]
)
def test_a_broken_joined_folder_is_refused(joined_folder, tmp_path, damage):
    folder = tmp_path / "all"
    shutil.copytree(joined_folder, folder)
    record = json.loads((folder / "berthead.json").read_text())
    if damage == "a name that leads elsewhere":
        record["functions"][0] = "../all/mood"
        (folder / "berthead.json").write_text(json.dumps(unsealed(record)))
    elif damage == "no theta":
        shutil.rmtree(folder / "theta")
    elif damage == "another theta":
        make_bert(folder / "theta", seed=5)
    else:
        name = "part.safetensors" if damage == "a tensor too many" else "model.safetensors"
        shutil.copy(folder / "theta" / "model.safetensors", folder / "mood" / name)
    with pytest.raises(ModelError):
        berthead.load(folder)


def test_an_example_with_an_error_is_one_for_all(joined_folder):
    joined = berthead.load(joined_folder)
    broken = Example("", error="is blank", where="in.csv:3")
    (one,) = joined.predictor.answers([broken])
    assert {prediction.error for prediction in one.values()} == {"is blank"}


def test_a_strange_name_is_refused_before_it_makes_the_folder_unreadable(members):
    for name in ("b.pt", "code.py", "theta", "berthead.json", "n" * 200):
        with pytest.raises(UsageError, match="a function called"):
            berthead.join({name: berthead.load(members["mood"])})


def test_the_encoder_in_the_folder_is_read_wherever_the_user_stands(joined_folder, members, tmp_path, monkeypatch):
    shutil.copytree(joined_folder / "theta", tmp_path / "theta")
    tokenizer = json.loads((tmp_path / "theta" / "tokenizer.json").read_text())
    (tmp_path / "theta" / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": None}))
    monkeypatch.chdir(tmp_path)
    alone = berthead.load(members["mood"]).predict("GOOD Cat")
    assert berthead.load(joined_folder)["mood"].predict("GOOD Cat").n_tokens == alone.n_tokens


def test_the_encoder_holds_no_labels_of_a_function(joined_folder):
    config = json.loads((joined_folder / "theta" / "config.json").read_text())
    assert not {"id2label", "label2id", "problem_type"} & config.keys()


def test_options_from_a_file_count_for_a_function_that_is_added(cli, joined_folder, tmp_path):
    folder = tmp_path / "all"
    shutil.copytree(joined_folder, folder)
    data = write_csv(tmp_path / "rows.csv", ROWS)
    (tmp_path / "c.yaml").write_text("adapt: lora:2\nepochs: 1\nvalid: '0'\n")
    ran = cli("fit", data, "--shared", folder, "--name", "third", "--config", tmp_path / "c.yaml")
    assert ran.code == 0, ran.err
    assert berthead.load(folder)["third"].artifact.adapt == "lora:2"
    (tmp_path / "c.yaml").write_text("encoder: minilm2\n")
    assert (
        "--encoder minilm2" in cli("fit", data, "--shared", folder, "--name", "x", "--config", tmp_path / "c.yaml").err
    )


def test_what_was_fitted_is_kept_where_it_cannot_be_added(cli, joined_folder, tmp_path, monkeypatch):
    folder = tmp_path / "all"
    shutil.copytree(joined_folder, folder)
    data = write_csv(tmp_path / "rows.csv", ROWS)

    def fail(*_):
        raise ModelError("desk", "is broken")

    monkeypatch.setattr("berthead.verbs.join.add", fail)
    ran = cli("fit", data, "--shared", folder, "--name", "late", "--epochs", 1, "--valid", 0)
    assert ran.code == 2
    assert f"The function is kept in {tmp_path / 'all-late'}" in ran.err
    assert berthead.load(tmp_path / "all-late").predict("good cat").answer


@pytest.mark.parametrize(
    "modes",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
        {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False, "pooling_mode_max_tokens": True},
    ],
    ids=["mean", "cls", "max"],
)
def test_the_encoder_of_a_joined_folder_says_how_it_was_trained_to_pool(tmp_path, modes, monkeypatch):
    encoder = make_bert(tmp_path / "bert")
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    monkeypatch.chdir(tmp_path)
    options = {"encoder": "bert", "adapt": "frozen", "pooling": "mean", "epochs": 1, "threads": 1, "quiet": True}
    two = [berthead.fit(toy_rows(1), seed=seed, **options) for seed in (0, 1)]
    berthead.join({"a": two[0], "b": two[1]}).save(tmp_path / "joined")
    assert json.loads((tmp_path / "joined" / "theta" / "1_Pooling" / "config.json").read_text()) == modes

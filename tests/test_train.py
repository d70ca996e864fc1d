"""Fitting: the schedule, the optimiser, every step against plain torch, and which epoch is kept."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
import transformers
from conftest import make_bert, toy_rows
from sklearn.metrics import recall_score
from sklearn.preprocessing import StandardScaler
from torch import nn

import berthead
from berthead.data.examples import TargetCells
from berthead.engine.cpu import CpuEngine
from berthead.kernels import training as kernels
from berthead.kernels.native import NativeEncoder
from berthead.model import families
from berthead.model.adapt import Adapt, adapt
from berthead.model.checkpoint import read_checkpoint
from berthead.model.encoder import Encoder
from berthead.model.heads import RowHead
from berthead.model.model import Model
from berthead.model.tensors import TensorPack
from berthead.records import Example
from berthead.tasks import TASKS, Classify, Regress
from berthead.text.layout import Layout
from berthead.text.packing import pack
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import LengthPolicy
from berthead.train import modes, steps
from berthead.train.fold import Fold
from berthead.train.loop import fit_model
from berthead.train.optim import Optimiser, adamw, rate
from berthead.train.settings import Settings

COLUMNS = {"classify": "label", "multilabel": "tags", "regress": "stars"}
SEVERAL = "several numbers"


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A tiny BERT without dropout, so that a fit has no chance in it but the order."""
    folder = tmp_path_factory.mktemp("calm") / "tiny"
    return make_bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def settings(**changes):
    plain = {
        "epochs": 3, "batch": 8, "lr": 2e-3, "weight_decay": 0.1, "warmup": 0.25, "clip": 1.0, "metric": "accuracy",
        "precision": "fp32", "seed": 0, "balanced": False,
    }  # fmt: skip
    return Settings(**plain | changes)


def problem(folder, task="classify", rows=None, held_out=8, pooling="pooler", strategy="full", dropout=0.0):
    """A new model, the task, and the rows to fit and to score."""
    rows = rows or toy_rows(2)
    kind = TASKS["regress" if task == SEVERAL else task]
    targets = [_numbers(row) if task == SEVERAL else row[COLUMNS[task]] for row in rows]
    examples = [Example(row["text"], target=kind.read(one)) for row, one in zip(rows, targets, strict=True)]
    made = kind.from_targets([one.target for one in examples], "toy")
    tokenizer = Tokenizer.from_folder(folder)
    halves = (examples[held_out:], examples[:held_out]) if held_out else (examples, [])
    folds = [fold_of(made, tokenizer, part) if part else None for part in halves]
    checkpoint = read_checkpoint(str(folder))
    torch.manual_seed(1)
    head = RowHead(checkpoint.config.width, made.outputs, pooling, dropout)
    if pooling == "pooler":
        head.dense.load_state_dict({name.removeprefix("dense."): t for name, t in checkpoint.pooler.items()})
    model = Model(checkpoint.encoder(), head)
    adapt(model, Adapt.parse(strategy))
    return model, made, *folds


def _numbers(row):
    return TargetCells({"stars": row["stars"], "length": len(row["text"])})


def fold_of(task, tokenizer, examples):
    """Examples read to be fitted or scored."""
    inputs = task.encode(tokenizer, examples, LengthPolicy(64))
    return Fold(examples, inputs, task.targets([one.target for one in examples], inputs))


def encoded(fold):
    """The rows that the encoder reads: one for each of these short examples."""
    layout = Layout(fold.inputs)
    assert layout.plain
    return layout.rows


def logits_of(model, fold):
    """The plain model, row by row."""
    model.eval()
    rows = encoded(fold)
    with torch.no_grad():
        logits = [model(TensorPack.from_pack(pack(rows, [row]))) for row in range(len(rows))]
    return torch.cat(logits).numpy()


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    """Whether two state dicts are equal bit for bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def spied(monkeypatch, name):
    """Arguments and results of a function of the steps."""
    calls, real = [], getattr(steps, name)

    def spy(*args):
        result = real(*args)
        calls.append((args, result))
        return result

    monkeypatch.setattr(steps, name, spy)
    return calls


def counted(monkeypatch):
    """Rows of each pack that any encoder computes from now on."""
    packs = []

    def watch(kind):
        real = kind.forward

        def forward(self, tensors):
            packs.append(len(tensors.lengths))
            return real(self, tensors)

        monkeypatch.setattr(kind, "forward", forward)

    watch(Encoder)
    watch(NativeEncoder)
    real = kernels.hidden

    def hidden(encoder, tensors, *rest):
        packs.append(len(tensors.lengths))
        return real(encoder, tensors, *rest)

    monkeypatch.setattr(kernels, "hidden", hidden)
    return packs


# Schedule and optimiser


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 333])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.1, 0.5, 1.0])
def test_the_rate_is_that_of_transformers_with_the_rise_one_step_earlier(steps, warmup):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rising = int(warmup * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimiser, rising, steps)
    theirs = []
    for _ in range(steps + 1):
        theirs.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    ours = [rate(step, steps, warmup) for step in range(steps)]
    # Theirs begins with a step of rate 0, which learns nothing; the fall is the same.
    assert ours[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert ours[: max(0, rising - 1)] == pytest.approx(theirs[1:rising])
    assert ours[rising:] == pytest.approx(theirs[rising:steps])


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_every_step_learns_and_one_has_the_peak_rate(steps, warmup):
    rates = [rate(step, steps, warmup) for step in range(steps)]
    assert min(rates) > 0
    assert max(rates) == 1
    peak = rates.index(1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_matrices_decay_and_biases_and_norms_do_not_as_in_transformers_trainer(tiny_bert):
    from transformers.trainer_pt_utils import get_parameter_names

    model = transformers.BertForSequenceClassification.from_pretrained(tiny_bert)
    decaying, other = adamw(model, 1e-3, 0.03).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = {name for name in get_parameter_names(model, [nn.LayerNorm]) if "bias" not in name}
    assert {names[id(parameter)] for parameter in decaying["params"]} == wanted
    assert {names[id(parameter)] for parameter in other["params"]} == set(names.values()) - wanted
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.03, 0)
    for group in (decaying, other):
        assert (group["lr"], group["betas"], group["eps"], group["amsgrad"]) == (1e-3, (0.9, 0.999), 1e-8, False)


def test_parameters_that_do_not_learn_are_not_in_the_optimiser(calm):
    model, *_ = problem(calm, strategy="frozen")
    learning = [parameter for group in adamw(model, 1e-3, 0.1).param_groups for parameter in group["params"]]
    assert {id(one) for one in learning} == {id(one) for one in model.head.parameters()}


# Step by step


class Plain:
    """Batches, schedule, clipping and AdamW written down once more in plain torch."""

    def __init__(self, named, chosen, rows):
        decay = [p for name, p in named if "bias" not in name and "LayerNorm" not in name]
        rest = [p for name, p in named if "bias" in name or "LayerNorm" in name]
        self.parameters, self.chosen = decay + rest, chosen
        self.optimiser = torch.optim.AdamW(
            [{"params": decay, "weight_decay": chosen.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=chosen.lr, foreach=False, fused=False,
        )  # fmt: skip
        order = np.random.default_rng(chosen.seed)
        self.batches = []
        for _ in range(chosen.epochs):
            shuffled = order.permutation(rows)
            self.batches += [shuffled[start : start + chosen.batch] for start in range(0, rows, chosen.batch)]
        self.losses, self.norms = [], []

    def fit(self, loss_of):
        steps = len(self.batches)
        rising = int(self.chosen.warmup * steps)
        for step, rows in enumerate(self.batches):
            share = (step + 1) / rising if step < rising else (steps - step) / (steps - rising)
            for group in self.optimiser.param_groups:
                group["lr"] = self.chosen.lr * share
            self.optimiser.zero_grad()
            loss = loss_of(rows)
            loss.backward()
            self.norms.append(nn.utils.clip_grad_norm_(self.parameters, self.chosen.clip).item())
            self.optimiser.step()
            self.losses.append(loss.item())
        return self


def their_inputs(folder, texts):
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def their_model(folder, head, outputs):
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=outputs)
    model.classifier.load_state_dict(head.out.state_dict())
    return model.train()


@pytest.mark.parametrize(
    ("balanced", "task"), [(False, "classify"), (False, "multilabel"), (False, "regress"), (False, SEVERAL),
                           (True, "classify"), (True, "multilabel")],
)  # fmt: skip
def test_every_step_is_that_of_transformers_with_plain_torch(calm, monkeypatch, task, balanced):
    rows = toy_rows(2) + [row | {"text": f"the {row['text']}"} for row in toy_rows(1) if row["label"] == "negative"]
    model, made, train, valid = problem(calm, task, rows=rows)
    chosen = settings(clip=0.5, balanced=balanced, metric=next(iter(made.metrics)))
    their = their_model(calm, model.head, made.outputs)
    texts = [row["text"] for row in rows[8:]]
    targets = torch.from_numpy(train.targets)
    inputs = their_inputs(calm, texts)
    weights = torch.from_numpy(made.weights(train.targets)) if balanced else None
    criterion = {
        "classify": lambda: nn.CrossEntropyLoss(weight=weights, reduction="sum"),
        "multilabel": lambda: nn.BCEWithLogitsLoss(pos_weight=weights),
        "regress": nn.MSELoss,
        SEVERAL: nn.MSELoss,
    }[task]()
    if task in ("regress", SEVERAL):
        mean, deviation = (torch.tensor([getattr(one, name) for one in made.scales]) for name in ("mean", "deviation"))

    def loss_of(chosen_rows):
        rows_wanted = torch.from_numpy(chosen_rows)
        logits = their(**{name: tensor[rows_wanted] for name, tensor in inputs.items()}).logits
        if task == "classify":
            return criterion(logits, targets[rows_wanted]) / len(chosen_rows)
        if task in ("regress", SEVERAL):  # the head learns standardised targets
            return criterion(logits, (targets[rows_wanted] - mean) / deviation)
        return criterion(logits, targets[rows_wanted])

    plain = Plain(list(their.named_parameters()), chosen, len(texts)).fit(loss_of)
    calls = spied(monkeypatch, "_passes")
    # The last epoch is compared: without held-out rows it is the one that is kept.
    fit_model(model, made, train, None, chosen, quiet=True)
    sizes = [len(args[3]) for args, _ in calls]
    assert sizes[:4] == [8, 8, 8, 3]  # the last batch is smaller
    assert max(plain.norms) > chosen.clip  # so that clipping is at work
    losses = [total / size for (_, total), size in zip(calls, sizes, strict=True)]
    assert losses == pytest.approx(plain.losses, rel=2e-4)
    their.eval()
    with torch.no_grad():
        wanted = their(**their_inputs(calm, [row["text"] for row in rows[:8]])).logits
    if task in ("regress", SEVERAL):
        wanted = wanted * deviation + mean
    np.testing.assert_allclose(logits_of(model, valid), wanted.numpy(), atol=2e-3)
    assert model.encoder.config.dropout == 0
    compare_weights(model, their)


def compare_weights(model, their):
    """Every weight of theta; keys' biases are left out: their gradient is 0 but for rounding, which Adam enlarges."""
    ours = families.to_checkpoint(model.encoder.state_dict(), model.encoder.config)
    theirs = their.bert.state_dict()
    assert set(ours) <= set(theirs)
    for name, tensor in ours.items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(tensor, theirs[name], atol=5e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_a_frozen_fit_is_a_linear_layer_on_standardised_means(calm, monkeypatch):
    rows = toy_rows(2)
    model, made, train, valid = problem(calm, pooling="mean", strategy="frozen")
    chosen = settings(epochs=5, lr=0.02, clip=0.5)
    bert = transformers.BertModel.from_pretrained(calm).eval()
    inputs = their_inputs(calm, [row["text"] for row in rows])
    with torch.no_grad():
        hidden = bert(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    pooled = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    scaler = StandardScaler().fit(pooled[8:].astype(np.float64))
    features = torch.from_numpy(scaler.transform(pooled)).float()
    layer = nn.Linear(32, 2)
    layer.load_state_dict(model.head.out.state_dict())
    targets = torch.from_numpy(train.targets)

    def loss_of(chosen_rows):
        return nn.functional.cross_entropy(layer(features[8:][chosen_rows]), targets[chosen_rows])

    plain = Plain(list(layer.named_parameters()), chosen, len(targets)).fit(loss_of)
    calls = spied(monkeypatch, "_passes")
    fit_model(model, made, train, None, chosen, quiet=True)
    assert [total / len(args[3]) for args, total in calls] == pytest.approx(plain.losses, rel=1e-3, abs=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(logits_of(model, valid), layer(features[:8]).numpy(), atol=2e-3)


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_every_row_is_fitted_once_in_each_epoch_in_a_new_order(calm, monkeypatch, strategy):
    model, made, train, valid = problem(calm, strategy=strategy)
    calls = spied(monkeypatch, "_passes")
    history = fit_model(model, made, train, valid, settings(), quiet=True)
    rows = [args[3].tolist() for args, _ in calls]
    epochs = [list(itertools.chain(*rows[start : start + 3])) for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    for number, epoch in enumerate(history.epochs):
        total = sum(result for _, result in calls[3 * number : 3 * number + 3])
        assert epoch["train_loss"] == pytest.approx(total / 20)
        assert set(epoch) == {"train_loss", *Classify.metrics}


@pytest.mark.parametrize("task", list(COLUMNS))
def test_a_batch_computed_in_parts_has_the_gradient_of_the_whole(calm, monkeypatch, task):
    gradients, packs = [], []
    for micro_tokens in (10**6, 24, 1):
        monkeypatch.setattr(modes, "MICRO_TOKENS", micro_tokens)
        model, made, train, _ = problem(calm, task, held_out=0)

        def keep(optimiser, share, model=model):
            gradients.append(torch.cat([one.grad.to_dense().flatten() for one in model.parameters()]).double())

        with monkeypatch.context() as patch:
            seen = counted(patch)
            patch.setattr(Optimiser, "step", keep)
            chosen = settings(epochs=1, batch=len(encoded(train)), clip=1e9, balanced=task != "regress")
            fit_model(model, made, train, None, chosen, quiet=True)
        assert sum(seen) == len(encoded(train))
        packs.append(len(seen))
    assert packs[0] == 1 < packs[1] < packs[2] == 28
    for other in gradients[1:]:
        # Rounding in float32 is about 1e-6; a part with a wrong share would be off by percents.
        assert (other - gradients[0]).norm() / gradients[0].norm() < 3e-6


def test_bf16_rounds_the_encoder_and_nothing_else(calm):
    histories = []
    for precision in ("fp32", "bf16"):
        model, made, train, _ = problem(calm)
        histories.append(fit_model(model, made, train, None, settings(precision=precision), quiet=True))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact, rounded = ([epoch["train_loss"] for epoch in history.epochs] for history in histories)
    assert exact != rounded
    assert rounded == pytest.approx(exact, abs=0.05)


# Frozen and full


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_a_frozen_encoder_keeps_its_bytes_and_reads_each_row_once(calm, monkeypatch, pooling):
    model, made, train, valid = problem(calm, pooling=pooling, strategy="frozen", dropout=0.1)
    theta, omega = state_of(model.encoder), state_of(model.head)
    seen = counted(monkeypatch)
    fit_model(model, made, train, valid, settings(epochs=6), quiet=True)
    assert sum(seen) == len(encoded(train)) + len(encoded(valid))
    assert same(state_of(model.encoder), theta)
    moved = {name for name, tensor in model.head.state_dict().items() if not torch.equal(tensor, omega[name])}
    assert moved == set(omega)


def test_a_full_fit_moves_every_weight_that_the_rows_reach(calm):
    model, made, train, _ = problem(calm)
    before = state_of(model)
    fit_model(model, made, train, None, settings(weight_decay=0.0), quiet=True)
    for name, tensor in model.state_dict().items():
        assert not torch.equal(tensor, before[name]), name
    # Words that no row holds stay where they were.
    words = set(np.concatenate([one.ids for one in encoded(train)]).tolist())
    moved = (model.encoder.embeddings.word.weight != before["encoder.embeddings.word.weight"]).any(1)
    assert set(torch.nonzero(moved)[:, 0].tolist()) == words


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("task", list(COLUMNS))
def test_folding_the_scale_of_the_features_keeps_the_logits(calm, monkeypatch, pooling, task):
    model, made, train, valid = problem(calm, task, pooling=pooling, strategy="frozen")
    before, finish = [], modes.CachedFeatures.finish

    def spy(self):
        before.append(self.valid_logits())
        raw = self.head.out(self.valid_vectors) * self.head.scale + self.head.shift
        assert np.abs(raw.detach().numpy() - before[0]).max() > 1e-2  # so that there is something to fold
        finish(self)

    monkeypatch.setattr(modes.CachedFeatures, "finish", spy)
    fit_model(model, made, train, valid, settings(metric=next(iter(made.metrics)), lr=0.02), quiet=True)
    np.testing.assert_allclose(logits_of(model, valid), before[0], rtol=1e-4, atol=1e-4)


def test_a_feature_that_never_varied_in_the_fit_is_not_blown_up(calm):
    rows = [row | {"text": "good cat"} for row in toy_rows(2)]
    model, made, train, _ = problem(calm, rows=rows, held_out=0, pooling="mean", strategy="frozen")
    fit_model(model, made, train, None, settings(), quiet=True)
    other = fold_of(made, Tokenizer.from_folder(calm), [Example("bad dog ran !", target="positive")])
    assert np.abs(logits_of(model, other)).max() < 10


@pytest.mark.parametrize("strategy", ["full", "frozen"])
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
@pytest.mark.parametrize("task", list(COLUMNS))
def test_the_model_that_is_left_has_the_scores_of_the_best_epoch(calm, task, pooling, strategy):
    model, made, train, valid = problem(calm, task, pooling=pooling, strategy=strategy, dropout=0.1)
    metric = {"classify": "loss", "multilabel": "average_precision", "regress": "rmse"}[task]
    history = fit_model(model, made, train, valid, settings(epochs=4, metric=metric, lr=0.01), quiet=True)
    values = [epoch[metric] * made.metrics[metric] for epoch in history.epochs]
    assert history.epochs[history.best_epoch - 1][metric] * made.metrics[metric] == max(values)
    again = made.evaluate(logits_of(model, valid), valid.targets)
    for name in made.metrics:
        assert again[name] == pytest.approx(history.epochs[history.best_epoch - 1][name], rel=1e-3, abs=1e-4)
    assert not model.training
    assert (model.head.scale, model.head.shift) == (1.0, 0.0)


def test_the_logits_of_a_regression_are_in_the_users_unit(calm):
    rows = [row | {"stars": 5000 + 100 * float(row["stars"])} for row in toy_rows(3)]
    model, made, train, valid = problem(calm, "regress", rows=rows)
    fit_model(model, made, train, valid, settings(epochs=15, metric="rmse"), quiet=True)
    assert (model.head.scale, model.head.shift) == (1.0, 0.0)
    logits = logits_of(model, train)
    assert np.abs(logits - train.targets).mean() < 30  # their standard deviation is 150
    np.testing.assert_allclose(CpuEngine(model).logits(pack(encoded(train), [0, 1])), logits[:2], rtol=1e-5)


# Which epoch is kept


def scripted(monkeypatch, model, values):
    """Let held-out rows score (accuracy, loss) as given, epoch by epoch; the states that the model had then."""
    states = []

    def evaluate(self, logits, targets, batch=None):
        states.append(state_of(model))
        accuracy, loss = values[len(states) - 1]
        return dict.fromkeys(self.metrics, 0.0) | {"accuracy": accuracy, "loss": loss, "warnings": []}

    monkeypatch.setattr(Classify, "evaluate", evaluate)
    return states


@pytest.mark.parametrize("strategy", ["full", "frozen"])
@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [(0.1, 1), (0.2, 1), (0.9, 9), (0.3, 1), (0.8, 1)], 3),
        ("accuracy", [(0.9, 1), (0.2, 1), (0.1, 1), (0.3, 1), (0.8, 1)], 1),
        ("accuracy", [(0.1, 1), (0.2, 1), (0.3, 1), (0.4, 1), (0.5, 1)], 5),
        ("accuracy", [(0.1, 1), (0.8, 5), (0.8, 3), (0.8, 4), (0.7, 1)], 3),
        ("accuracy", [(0.8, 5), (0.8, 5), (0.8, 5), (0.8, 5), (0.8, 5)], 1),
        ("loss", [(0.9, 5), (0.8, 3), (0.1, 1), (0.9, 2), (0.9, 4)], 3),
    ],
    ids=["middle", "first", "last", "ties-by-loss", "all-equal", "lower-is-better"],
)
def test_the_best_epoch_is_restored_whole(calm, monkeypatch, strategy, metric, values, best):
    model, made, train, valid = problem(calm, strategy=strategy, dropout=0.1)
    states = scripted(monkeypatch, model, values)
    history = fit_model(model, made, train, valid, settings(epochs=5, metric=metric), quiet=True)
    assert history.best_epoch == best
    assert [epoch["accuracy"] for epoch in history.epochs] == [accuracy for accuracy, _ in values]
    assert same(state_of(model), states[best - 1])
    assert not any(same(state_of(model), state) for state in states[: best - 1] + states[best:])
    assert history.interrupted is False


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_without_held_out_rows_the_last_epoch_is_kept(calm, monkeypatch, strategy):
    model, made, train, valid = problem(calm, strategy=strategy, dropout=0.1)
    states = scripted(monkeypatch, model, [(0.9, 1), (0.5, 2), (0.1, 3)])
    torch.manual_seed(0)
    fit_model(model, made, train, valid, settings(), quiet=True)
    other, *_ = problem(calm, strategy=strategy, dropout=0.1)
    torch.manual_seed(0)
    history = fit_model(other, made, train, None, settings(), quiet=True)
    assert (history.best_epoch, [set(epoch) for epoch in history.epochs]) == (3, [{"train_loss"}] * 3)
    # Scoring does not disturb the fit: its last epoch is the same, bit for bit.
    assert same(state_of(other), states[2])
    assert same(state_of(model), states[0])


def stopped(monkeypatch, call):
    """Ctrl-C in the middle of the given step, counted from 1."""
    real, calls = Classify.loss, []

    def loss(self, logits, targets, weights, sizes=()):
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(self, logits, targets, weights, sizes)

    monkeypatch.setattr(Classify, "loss", loss)


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_ctrl_c_keeps_the_best_epoch_so_far(calm, monkeypatch, strategy):
    model, made, train, valid = problem(calm, strategy=strategy)
    states = scripted(monkeypatch, model, [(0.2, 1), (0.9, 1), (0.5, 1)])
    stopped(monkeypatch, 11)  # 3 steps an epoch: in the second step of epoch 4
    history = fit_model(model, made, train, valid, settings(epochs=9), quiet=True)
    assert history.interrupted is True
    assert (history.best_epoch, len(history.epochs)) == (2, 3)
    assert same(state_of(model), states[1])
    assert not model.training


def test_ctrl_c_without_held_out_rows_keeps_the_last_whole_epoch(calm, monkeypatch):
    model, made, train, _ = problem(calm)
    stopped(monkeypatch, 8)
    copies = spied(monkeypatch, "_copy")
    history = fit_model(model, made, train, None, settings(), quiet=True)
    assert (history.interrupted, history.best_epoch, len(history.epochs)) == (True, 2, 2)
    assert same(state_of(model), copies[1][1])


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_ctrl_c_in_the_first_epoch_leaves_a_model_that_answers(calm, monkeypatch, strategy):
    model, made, train, valid = problem(calm, strategy=strategy, pooling="mean")
    stopped(monkeypatch, 2)
    history = fit_model(model, made, train, valid, settings(), quiet=True)
    assert (history.interrupted, history.best_epoch, history.epochs) == (True, 0, [])
    logits = logits_of(model, valid)
    assert np.isfinite(logits).all()
    assert np.abs(logits).max() < 10


# The whole fit


def fitted(folder, rows=None, **options):
    plain = {"encoder": str(folder), "epochs": 2, "batch": 8, "lr": 2e-3, "valid": 0.25, "threads": 1, "quiet": True}
    return berthead.fit(rows or toy_rows(2), **plain | options)


@pytest.mark.parametrize("strategy", ["full", "frozen"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny_bert, strategy):
    torch.manual_seed(5)
    one = fitted(tiny_bert, adapt=strategy, threads=2)
    torch.manual_seed(6)
    np.random.seed(6)
    random.seed(6)
    two = fitted(tiny_bert, adapt=strategy, threads=2)
    other = fitted(tiny_bert, adapt=strategy, threads=2, seed=1)
    states = [state_of(each.artifact.model) for each in (one, two, other)]
    assert same(states[0], states[1])
    assert not torch.equal(states[0]["head.out.weight"], states[2]["head.out.weight"])
    assert one.info()["run"] == two.info()["run"]
    assert one.artifact.task.to_json() == two.artifact.task.to_json()
    run = one.info()["run"]
    assert (run["seed"], run["threads"]) == (0, 2)
    assert run["versions"]["torch"] == torch.__version__
    assert run["data_sha256"] == other.info()["run"]["data_sha256"]


def test_the_encoders_dropout_is_at_work_in_a_fit(tiny_bert, calm):
    # With dropout, torch's random state changes the losses; without it, it changes nothing.
    assert read_checkpoint(str(tiny_bert)).config.dropout == 0.1
    losses = []
    for folder, seed in ((tiny_bert, 1), (tiny_bert, 2), (calm, 1), (calm, 2)):
        model, made, train, _ = problem(folder)
        torch.manual_seed(seed)
        losses.append(fit_model(model, made, train, None, settings(), quiet=True).epochs[0]["train_loss"])
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]


def test_a_fit_leaves_the_callers_random_state(tiny_bert):
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    fitted(tiny_bert)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


@pytest.mark.parametrize(("strategy", "is_pretrained"), [("frozen", True), ("full", False)])
def test_the_record_says_whether_theta_is_the_pretrained_one(tiny_bert, strategy, is_pretrained):
    record = fitted(tiny_bert, adapt=strategy).info()["parameters"]
    assert record["theta_is_pretrained"] is is_pretrained
    assert (record["theta_sha256"] == record["pretrained"]["theta_sha256"]) is is_pretrained


def skewed(rows=400):
    """A rare class that is likely, but not likelier than the common one, where the text says `awful`."""
    chance = random.Random(0)
    made = []
    for _ in range(rows):
        awful = chance.random() < 0.2
        words = chance.choices(["cat", "dog", "mat", "red", "blue", "fine", "good"], k=5) + ["awful"] * awful * 2
        chance.shuffle(words)
        label = "rare" if awful and chance.random() < 0.3 else "common"
        made.append({"text": " ".join(words), "label": label})
    return made


def test_balanced_weights_find_the_rare_class(tiny_bert):
    rows = skewed()
    recall = {}
    for weight in ("none", "balanced"):
        chosen = {"adapt": "frozen", "pooling": "mean", "epochs": 40, "batch": 32, "lr": 0.01, "valid": 0}
        model = fitted(tiny_bert, rows, class_weight=weight, **chosen)
        answers = [one.answer for one in model.predict([row["text"] for row in rows])]
        recall[weight] = recall_score([row["label"] == "rare" for row in rows], [one == "rare" for one in answers])
    assert recall["none"] < 0.3
    assert recall["balanced"] > 0.8


def test_regress_reports_numbers_in_the_users_unit(tiny_bert):
    rows = [row | {"label": 1000 * float(row["stars"])} for row in toy_rows(2)]
    model = fitted(tiny_bert, rows, task="regress", adapt="frozen", pooling="mean", epochs=40, lr=0.02)
    good, bad = model.predict(["good cat", "awful dog"])
    assert isinstance(model.artifact.task, Regress)
    assert 3500 < good.answer <= 4500
    assert 1500 <= bad.answer < 2500

"""Every encoder family: parity with transformers, its own tokenizer, and folders that transformers loads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import transformers
from conftest import daily, toy_rows, write_csv
from in_transformers import by_the_note
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from toy_tasks import ROWS, fit_task

import berthead
from berthead.engine.prepacked import prepacked
from berthead.errors import ModelError, UsageError
from berthead.kernels import library, native
from berthead.model import attention as attention_module
from berthead.model import families
from berthead.model.checkpoint import read_checkpoint
from berthead.model.model import Model
from berthead.text.tokenizer import Tokenizer as OurTokenizer

TOLERANCE = 1e-5
CORPUS = [row["text"] for row in toy_rows()] + [
    "Zoë hasn't seen 猫 and 🙂 here, has she?",
    "The quick brown fox; jumps.",
]
TEXTS = [
    "good great cat",
    "a",
    "Zoë ran; DOG?",
    "unheard-of wörds 12 3",
    " good  cat\n",
    "🙂 !",
    "cat.",
    "naïve\u00a0猫",
]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory):
    """Our encoder and transformers' model of a case, made once; whoever lets one learn takes its gradients away."""

    @cache
    def made(name: str):
        case = parity.CASES[name]
        return parity.both(parity.make(tmp_path_factory.mktemp("families") / "encoder", case), case)

    return made


# --- parity ---


needs_kernels = pytest.mark.skipif(not library.kernels(), reason="this machine has no kernels of ours")


@pytest.mark.parametrize(
    "gap", [pytest.param(gap, marks=needs_kernels if "kernels" in gap else ()) for gap in parity.GAPS]
)
@pytest.mark.parametrize("name", parity.CASES)
def test_a_family_computes_what_transformers_computes(pair_of, name, gap):
    assert parity.GAPS[gap](*pair_of(name)) <= TOLERANCE


@pytest.mark.parametrize("name", parity.CASES)
def test_each_attention_path_of_a_family_computes_the_same(pair_of, monkeypatch, name):
    ours, theirs = pair_of(name)
    for setting, value in (("LONGEST_MATMUL", 0), ("LOCAL_QUERIES", 7), ("MOST_SCORES", 1)):
        monkeypatch.setattr(attention_module, setting, value)
        assert parity.packed_gap(ours, theirs) <= TOLERANCE
        assert parity.train_gap(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("name", parity.CASES)
def test_the_engine_in_bfloat16_is_near(pair_of, name):
    ours, _ = pair_of(name)
    pack = parity.packed(parity.rows(), ours)
    with torch.no_grad():
        exact = ours(pack)
        near = prepacked(Model(ours, torch.nn.Identity()), "bf16").encoder(pack)
    assert near.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(near.float(), exact, dim=1)
    assert float(cosine.min()) > 0.99


@pytest.mark.parametrize("kernels", library.kernels())
@pytest.mark.parametrize("name", parity.CASES)
def test_each_kernel_computes_the_same(pair_of, monkeypatch, name, kernels):
    """In each precision, on one thread and three: rows that are shared out, and one that all compute together."""
    monkeypatch.setenv(library.SWITCH, kernels)
    ours, _ = pair_of(name)
    threads = torch.get_num_threads()
    for precision, far in {"fp32": 1e-5, "bf16": 2e-2, "int8": 6e-2}.items():
        if not native.computes(ours, precision):
            assert (precision, library.has_bf16(kernels)) == ("bf16", False)
            continue
        encoder = native.pack_weights(Model(ours, torch.nn.Identity()), precision).encoder
        for rows in (parity.rows(), parity.rows()[:1]):
            pack = parity.packed(rows, ours)
            with torch.no_grad():
                exact, alone = ours(pack), encoder(pack)
                assert float((alone - exact).abs().max()) <= far
                try:
                    torch.set_num_threads(3)
                    torch.testing.assert_close(encoder(pack), alone, atol=0, rtol=0)
                finally:
                    torch.set_num_threads(threads)


def test_every_family_is_in_the_parity_table():
    said = {name.split(",")[0] for name in parity.CASES}
    assert said == set(families.FAMILIES)
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    for name in parity.CASES:
        assert f"| {name} |" in page


# --- tokenizers ---


def unknown_of(names: list[str]) -> str:
    return next(name for name in names if "unk" in name.lower())


def wordpiece(names: list[str]) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=unknown_of(names)))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=names))
    return backend


def byte_level(names: list[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
    )
    return backend


def unigram(names: list[str]) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=140, initial_alphabet=list('!":()猫犬'), special_tokens=names, unk_token=unknown_of(names)
        ),
    )
    return backend


BERT_NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # the padding token is number 1, as MPNet has it for sure
KINDS = {
    "bert": (wordpiece, BERT_NAMES), "roberta": (byte_level, ROBERTA_NAMES), "xlm-roberta": (unigram, ROBERTA_NAMES),
    "camembert": (unigram, ROBERTA_NAMES), "distilbert": (wordpiece, BERT_NAMES), "electra": (wordpiece, BERT_NAMES),
    "albert": (unigram, BERT_NAMES), "mpnet": (wordpiece, ROBERTA_NAMES), "deberta-v2, as v3": (unigram, BERT_NAMES),
    "modernbert": (byte_level, BERT_NAMES), "nomic_bert": (wordpiece, BERT_NAMES),
}  # fmt: skip


def with_tokenizer(folder: Path, name: str) -> Path:
    """A tiny checkpoint of a family with a tokenizer of its kind."""
    make_backend, names = KINDS[name]
    backend = make_backend(names)
    first, pad, last, unknown, mask = names if names is ROBERTA_NAMES else [names[i] for i in (2, 0, 3, 1, 4)]
    special = [(one, backend.token_to_id(one)) for one in (first, last)]
    doubled = f"{last}:0 {last}:0 $B:0 {last}:0" if names is ROBERTA_NAMES else f"{last}:0 $B:1 {last}:1"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0", pair=f"{first}:0 $A:0 {doubled}", special_tokens=special
    )
    case = parity.CASES[name]
    more = {} if "pad_token_id" not in case.changes else {"pad_token_id": backend.token_to_id(pad)}
    sizes = {"vocab_size": backend.get_vocab_size()} | more
    parity.make(folder, case, **sizes)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, unk_token=unknown, cls_token=first, sep_token=last, mask_token=mask
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_of(once):
    """A family's encoder with a tokenizer of its kind."""
    return lambda name: once("encoder", ["family", name], lambda folder: with_tokenizer(folder, name))


def their_batch(folder: Path, first, second=None) -> dict[str, torch.Tensor]:
    batch = transformers.AutoTokenizer.from_pretrained(folder)(first, second, padding=True, return_tensors="pt")
    kinds = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("type_vocab_size", 0)
    if kinds < 2:
        batch.pop("token_type_ids", None)
    return dict(batch)


@pytest.mark.parametrize("name", KINDS)
def test_the_tokenizer_gives_transformers_ids(encoder_of, name):
    folder = encoder_of(name)
    ours, theirs = OurTokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text, pair in zip(TEXTS, reversed(TEXTS), strict=True):
        assert ours.encode([text], None, 60)[0].ids.tolist() == theirs(text)["input_ids"]
        assert ours.encode([text], [pair], 60)[0].ids.tolist() == theirs(text, pair)["input_ids"]


# --- fitted folders ---

# The others have the head of one of these.
OF_EACH_HEAD = ("bert", "roberta", "deberta-v2, as v3", "modernbert")


def their_model(folder: Path):
    """The model that berthead.json names; what it lacks of the folder is told."""
    said = json.loads((folder / "berthead.json").read_text(encoding="utf-8"))["transformers"]
    model, report = getattr(transformers, said["class"]).from_pretrained(folder, output_loading_info=True)
    return model.eval(), {kind: sorted(map(str, names)) for kind, names in report.items() if names}, said


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("name", daily(KINDS, *OF_EACH_HEAD))
def test_a_row_head_gives_the_same_logits_in_transformers(encoder_of, tmp_path, name, pooling):
    data = write_csv(tmp_path / "toy.csv", toy_rows(1))
    options = {"encoder": str(encoder_of(name)), "epochs": 2, "batch": 4, "lr": 1e-3, "valid": 0, "threads": 1}
    kind = families.FAMILIES[name.split(",")[0]]
    checkpoint = read_checkpoint(str(encoder_of(name)))
    if pooling == "pooler" and (kind.row is None or (kind.has_trained_pooler and checkpoint.pooler is None)):
        with pytest.raises(UsageError, match="no pooler"):
            berthead.fit(data, pooling=pooling, quiet=True, **options)
        return
    fitted = berthead.fit(data, out=tmp_path / "model", pooling=pooling, quiet=True, **options)
    ours = berthead.load(tmp_path / "model").predict(TEXTS)
    assert [one.answer for one in ours] == [one.answer for one in fitted.predict(TEXTS)]
    logits = berthead.load(tmp_path / "model").predictor.logits([berthead.records.Example(text) for text in TEXTS])
    batch = their_batch(tmp_path / "model", TEXTS)
    if pooling == "pooler":
        theirs, left, _ = their_model(tmp_path / "model")
        assert left == {}
        with torch.no_grad():
            wanted = theirs(**batch).logits
    else:
        wanted = by_the_note(tmp_path / "model", pooling)(**batch)
    assert np.ptp(logits, axis=0).min() > 1e-4
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", KINDS)
def test_tags_spans_and_choices_are_fitted_and_load_in_transformers(encoder_of, tmp_path, name):
    kind = families.FAMILIES[name.split(",")[0]]
    for task in ("tag", "span"):
        fitted = fit_task(encoder_of(name), task, ROWS[task](24), epochs=1)
        fitted.save(tmp_path / task)
        _, left, said = their_model(tmp_path / task)
        auto = {"tag": "TokenClassification", "span": "QuestionAnswering"}[task]
        assert said["class"] == (f"{kind.stem}For{auto}" if auto in kind.classes else f"{kind.stem}Model")
        assert left == {} or said["class"].endswith("Model")


ODD_TEXTS = [
    "good  red cat",
    " good cat\n",
    "Zoë saw the bad 猫 🙂",
    "a\u00a0good\tcat",
    "is it (good)?",
    "bad,good;bad.",
]


# Its tokens begin with the space before them: where a token begins is the tokenizer's, whatever the encoder.
OF_EACH_KIND = ("roberta",)


@pytest.mark.parametrize("name", daily(KINDS, *OF_EACH_KIND))
def test_places_are_those_of_the_text(encoder_of, name):
    """Byte-level and SentencePiece tokens begin with the space before them: an answer does not."""
    tagger, reader = (fit_task(encoder_of(name), task, epochs=12) for task in ("tag", "span"))
    found = [(text, span) for text in ODD_TEXTS for span in tagger.predict(text).spans]
    found += [(text, span) for text in ODD_TEXTS for span in reader.predict((ODD_TEXTS[0], text)).spans]
    assert len(found) > 10
    for text, span in found:
        assert text[span.start : span.end] == span.text
        assert span.text == span.text.strip() != ""
    assert {span.text for text, span in found[:8]} & {"good", "bad"}


@pytest.mark.parametrize("name", KINDS)
def test_words_are_berts_words(encoder_of, name):
    """Whatever the tokens, punctuation stands alone; a token that spans more is one word."""
    tokenizer = OurTokenizer.from_folder(encoder_of(name))
    text = 'The fox, a (good) cat\u00a0ran; said:\n "go!" 猫犬'
    pieces = tokenizer.pieces([text])[0]
    words = [
        text[pieces.starts[pieces.words == word].min() : pieces.ends[pieces.words == word].max()]
        for word in set(pieces.words)
    ]
    assert sorted(word for word in words if word.strip()) == sorted(
        ["The", "fox", ",", "a", "(", "good", ")", "cat", "ran", ";", "said", ":", '"', "go", "!", '"', "猫", "犬"]
    )


@pytest.mark.parametrize("name", KINDS)
def test_given_words_are_read_as_behind_a_space(encoder_of, name):
    folder = encoder_of(name)
    ours, theirs = OurTokenizer.from_folder(folder), transformers.AutoTokenizer.from_pretrained(folder)
    words = ["good", "Zoë", "cat", ",", "unheard-of"]
    wanted = [theirs("a " + word, add_special_tokens=False)["input_ids"] for word in words]
    first = len(theirs("a", add_special_tokens=False)["input_ids"])
    assert ours.word_ids([words])[0] == [ids[first:] for ids in wanted]


# --- what is refused ---


def changed(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("roberta", {"model_type": "gpt2"}, ["gpt2", "expected one of bert, roberta", "modernbert"]),
        ("roberta", {"model_type": "robertaa"}, ['Did you mean "roberta"']),
        ("roberta", {"max_position_embeddings": 2}, ["max_position_embeddings", "pad_token_id"]),
        ("roberta", {"position_embedding_type": "relative_key"}, ["relative_key", "absolute"]),
        ("albert", {"num_hidden_groups": 99}, ["num_hidden_groups", "num_hidden_layers"]),
        ("albert", {"inner_group_num": 3}, ["lacks", "albert_layers"]),
        ("mpnet", {"relative_attention_num_buckets": 16}, ["relative_attention_num_buckets", "32"]),
        ("deberta-v2, as v3", {"relative_attention": False}, ["relative_attention", "true"]),
        ("deberta-v2, as v3", {"conv_kernel_size": 3}, ["conv_kernel_size", "0"]),
        ("deberta-v2, as v3", {"pos_att_type": "p2p"}, ["pos_att_type", "c2p"]),
        ("deberta-v2, as v3", {"pos_att_type": 5}, ["pos_att_type", "c2p"]),
        ("deberta-v2, as v3", {"pos_att_type": [["c2p"]]}, ["pos_att_type", "c2p"]),
        ("modernbert", {"layer_types": [{}, {}, {}]}, ["layer_types", "each layer"]),
        ("albert", {"num_hidden_layers": 900, "inner_group_num": 900}, ["inner_group_num", "at most 1"]),
        ("deberta-v2, as v3", {"position_buckets": 4}, ["rel_embeddings", "shape"]),
        ("modernbert", {"layer_types": ["full_attention"]}, ["layer_types", "each layer"]),
        ("modernbert", {"rope_scaling": {"factor": 2}}, ["scaled rotary"]),
        ("modernbert", {"attention_bias": True}, ["lacks", "Wqkv.bias"]),
        ("modernbert", {"hidden_size": 36}, ["shape", "as config.json says"]),
        ("electra", {"embedding_size": 16}, ["embeddings_project"]),
        ("distilbert", {"n_heads": 5}, ["dim 32", "n_heads", "a multiple of 5"]),
        ("nomic_bert", {"head_dim": 3}, ["head_dim"]),
        ("bert", {"is_decoder": True}, ["is_decoder", "false"]),
    ],
)
def test_a_config_that_lies_is_refused_with_the_key(tmp_path, name, changes, words):
    folder = changed(parity.make(tmp_path / "encoder", parity.CASES[name]), **changes)
    with pytest.raises(ModelError) as caught:
        read_checkpoint(str(folder))
    for word in words:
        assert word in str(caught.value)

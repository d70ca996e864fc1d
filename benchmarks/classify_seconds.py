"""Seconds to classify texts with the packaged encoder, as one JSON line: ours in a table of peers.

    python benchmarks/classify_seconds.py DATA.csv COLUMN ROWS [--precision fp32] [--threads 2]

A head of five labels on BERT's pooler is fitted to the first rows first, which is not timed: the time is what counts
here, not the answers. Then all rows are classified twice, and the second pass is timed: from texts in memory to
answers, tokenising included, at most 512 tokens of a text.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LABELS, FIT_ROWS, MAX_TOKENS = 5, 50, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("column")
    parser.add_argument("rows", type=int)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    import berthead
    from berthead.infer.predict import Predictor
    from berthead.records import Example

    with open(args.data, newline="", encoding="utf-8") as file:
        texts = [row[args.column] for row, _ in zip(csv.DictReader(file), range(args.rows), strict=False)]
    some = [{"text": text, "label": str(number % LABELS)} for number, text in enumerate(texts[:FIT_ROWS])]
    fitted = berthead.fit(
        some, encoder="minilm", pooling="pooler", adapt="frozen", epochs=1, max_tokens=MAX_TOKENS, on_long="truncate",
        valid="0", threads=args.threads, quiet=True,
    )  # fmt: skip
    predictor = Predictor(fitted.artifact, args.precision)
    examples = [Example(text) for text in texts]
    list(predictor.predict(examples))
    start = time.perf_counter()
    answers = list(predictor.predict(examples))
    assert len(answers) == len(texts)
    print(json.dumps({"seconds": time.perf_counter() - start, "kernels": predictor.engine.kernels}))


if __name__ == "__main__":
    main()

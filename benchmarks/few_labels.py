"""From few labelled rows to all: what each way to fit gets right, and how long it takes.

    python benchmarks/few_labels.py run --data DATA [--case NAME ...] [--per-label 8 64 0 ...] [--way NAME ...]
                                        [--draws 0 1 2 3 4] [--out FILE]
    python benchmarks/few_labels.py table FILE...

`run` appends one JSON line per fit to FILE; `table` prints a Markdown table. DATA holds one folder per public data set.
A draw takes so many training rows of each label (0: all rows), and is the fit's seed; all rows of the test file are
scored, at most 2,000. Texts are cut at 64 tokens (abstracts: 256). All ways read the packaged encoder.

Ways: `frozen` and `full` as the command line fits by default; `logistic`, scikit-learn's logistic regression on the
encoder's vectors divided by their lengths, C by five folds; `tfidf`, the same on TF-IDF of words and pairs of words.
Seconds hold everything from texts to the fitted function, each way encoding for itself.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

# Set before torch is imported: threads that wait leave the processor to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from lines import keep, parsed, verbs
from small_data import Case, drawn, rows_of

CASES = {
    "banking77": Case("banking77", "text", "category"),
    "sentence-polarity": Case("sentence-polarity", "text", "label"),
    "medical-abstracts": Case("medical-abstracts", "abstract", "condition"),
    "snips": Case("snips", "text", "intent"),
    "goemotions": Case("goemotions", "text", "emotions"),
}
TOKENS = {"medical-abstracts": 256}
TEST_ROWS = 2_000
GRID = [0.01, 0.1, 1, 10, 100, 1000]


def read(case: Case, folder: Any, part: str) -> list[dict[str, Any]]:
    """The rows of a file that have one label."""
    return [row for row in rows_of(case, folder, part) if row[case.label] and "|" not in row[case.label]]


def fit(way: str, case: Case, rows: list[dict[str, Any]], tokens: int, seed: int) -> Any:
    """What a way fits: a function of texts, that gives labels and the probability of each."""
    if way in ("frozen", "full"):
        return ours(way, case, rows, tokens, seed)
    texts, labels = [row[case.text] for row in rows], [row[case.label] for row in rows]
    return regression(labels, *(encoded(texts, tokens) if way == "logistic" else tfidf(texts)))


def ours(adapt: str, case: Case, rows: list[dict[str, Any]], tokens: int, seed: int) -> Any:
    import berthead

    fitted = berthead.fit(
        rows,
        text=case.text,
        label=case.label,
        adapt=adapt,
        seed=seed,
        max_tokens=tokens,
        on_long="truncate",
        quiet=True,
    )

    def answer(texts: Sequence[str]) -> tuple[list[str], np.ndarray, list[str]]:
        answers = fitted.predict(list(texts))
        shares = np.array([list(one.probabilities.values()) for one in answers])
        return [one.answer for one in answers], shares, list(fitted.labels)

    return answer


def encoded(texts: Sequence[str], tokens: int) -> tuple[Any, Any]:
    """Vectors by our engine, and the function that makes more."""
    import torch

    from berthead.engine.cpu import engine_for
    from berthead.model.checkpoint import read_checkpoint
    from berthead.model.heads import RowHead
    from berthead.model.model import Model
    from berthead.model.units import by_row
    from berthead.text.tokenizer import Tokenizer
    from berthead.text.windows import LengthPolicy, read_texts

    checkpoint = read_checkpoint("minilm")
    tokenizer = Tokenizer.from_checkpoint(checkpoint.folder)
    model = Model(checkpoint.encoder().eval(), RowHead(checkpoint.config.width, 2, "mean_normalised"))
    engine = engine_for(model, torch.device("cpu"), "fp32")

    def vectors(some: Sequence[str]) -> np.ndarray:
        inputs = read_texts(tokenizer, list(some), None, LengthPolicy(tokens, "truncate", None))
        return by_row([one.rows[0] for one in inputs], engine.pooled, 1, 8192, lambda done: None)

    return vectors(texts), vectors


def tfidf(texts: Sequence[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return vectoriser.fit_transform(texts), vectoriser.transform


def regression(labels: list[str], features: Any, more: Any) -> Any:
    """Logistic regression, its C by five stratified folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    least = min(labels.count(label) for label in set(labels))
    folds = StratifiedKFold(max(2, min(5, least)), shuffle=True, random_state=0)
    found = GridSearchCV(LogisticRegression(max_iter=500), {"C": GRID}, cv=folds).fit(features, labels)

    def answer(texts: Sequence[str]) -> tuple[list[str], np.ndarray, list[str]]:
        unseen = more(texts)
        return list(found.predict(unseen)), found.predict_proba(unseen), list(found.classes_)

    return answer


def score(answer: Any, case: Case, test: list[dict[str, Any]]) -> dict[str, float]:
    said, shares, names = answer([row[case.text] for row in test])
    gold = [row[case.label] for row in test]
    place = {str(name): number for number, name in enumerate(names)}
    of_gold = np.array([row[place[label]] if label in place else 0.0 for row, label in zip(shares, gold, strict=True)])
    right = np.mean([str(one) == label for one, label in zip(said, gold, strict=True)])
    return {"accuracy": 100 * float(right), "loss": float(-np.log(np.clip(of_gold, 1e-7, 1)).mean())}


def print_table(lines: list[dict[str, Any]]) -> None:
    """Rows by case and size, a column a way: accuracy, its standard deviation over draws, loss in nats, seconds."""
    ways = list(dict.fromkeys(line["way"] for line in lines))
    print(f"| set | rows a label | {' | '.join(ways)} |\n| {' | '.join(['---'] * (len(ways) + 2))} |")
    for case, per_label in dict.fromkeys((line["case"], line["per_label"]) for line in lines):
        cells = []
        for way in ways:
            some = [one for one in lines if (one["case"], one["per_label"], one["way"]) == (case, per_label, way)]
            points = [one["score"]["accuracy"] for one in some]
            loss, seconds = (
                ([*one] for one in zip(*((one["score"]["loss"], one["seconds"]) for one in some), strict=True))
                if some
                else ([], [])
            )
            cells.append(
                f"{statistics.mean(points):.1f} ± {statistics.pstdev(points):.1f}, {statistics.mean(loss):.2f}, "
                f"{statistics.median(seconds):.1f} s"
                if some
                else ""
            )
        print(f"| {case} | {per_label or 'all'} | {' | '.join(cells)} |")
    print(f"\n{len({line['draw'] for line in lines})} draws")


def main() -> None:
    parser, run = verbs(__doc__, "few_labels.jsonl")
    run.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    run.add_argument("--per-label", nargs="+", type=int, default=[8, 64])
    run.add_argument("--way", nargs="+", default=["frozen", "logistic", "tfidf"])
    run.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parsed(parser, print_table)
    for name in args.case:
        case = CASES[name]
        train, test = read(case, args.data, "train"), read(case, args.data, "test")
        test = [test[number] for number in np.random.default_rng(0).permutation(len(test))[:TEST_ROWS]]
        for per_label, draw, way in itertools.product(args.per_label, args.draws, args.way):
            rows = drawn(case, train, per_label or len(train), draw)
            start = time.perf_counter()
            answer = fit(way, case, rows, TOKENS.get(name, 64), draw)
            seconds = time.perf_counter() - start
            line = {"case": name, "per_label": per_label, "rows": len(rows), "draw": draw, "way": way}
            keep(line | {"seconds": seconds, "test_rows": len(test), "score": score(answer, case, test)}, args.out)


if __name__ == "__main__":
    main()

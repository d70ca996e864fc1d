"""Examples to predictions in input order; eval, files and Python all use it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Full, Queue
from typing import Any, TypeVar

import numpy as np

from berthead.artifact import Artifact
from berthead.infer.engine import Engine
from berthead.records import Example, FloatArray, Pack, Prediction
from berthead.tasks import Answer
from berthead.text.packing import pack, plan
from berthead.text.tokenizer import Encoded, Tokenizer

T = TypeVar("T")

# Rows of one length are found among this many; memory stays bounded by characters where texts are long.
CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 4_000_000
DECODED_ROWS = 128
TOKEN_BUDGET = 2048
READER_THREAD = "berthead-reader"


class Predictor:
    """A fitted function prepared to be applied; safe to call from many threads.

    Args:
        artifact: the fitted function.
        precision: `fp32` (exact) or `bf16`.
        token_budget: tokens computed at once.
    """

    def __init__(self, artifact: Artifact, precision: str = "fp32", token_budget: int = TOKEN_BUDGET) -> None:
        self.artifact = artifact
        self.engine = Engine(artifact.model, precision)
        self.token_budget = token_budget

    def predict(self, examples: Iterable[Example]) -> Iterator[Prediction]:
        """Answers in input order, streaming: memory does not grow with the rows.

        Args:
            examples: texts or pairs; one with an error gets a prediction with that error.

        Yields:
            One prediction an example.
        """
        for chunk, encoded in prefetched(self._encoded_chunks(examples)):
            answers = zip(self._decoded(self.compute(encoded)), encoded, strict=True)
            for example in chunk:
                yield _prediction(example, None if example.error else next(answers))

    def logits(self, examples: Sequence[Example]) -> FloatArray:
        """Logits of examples without errors, float32 [rows, outputs]."""
        parts = [self.compute(encoded) for _, encoded in prefetched(self._encoded_chunks(examples))]
        return np.concatenate(parts) if parts else self.compute([])

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics over examples with targets.

        Args:
            examples: without errors, every target known.

        Returns:
            The task's metrics, `rows`, and `warnings`.
        """
        artifact = self.artifact
        logits, truncated = [], 0
        for _, encoded in prefetched(self._encoded_chunks(examples)):
            logits.append(self.compute(encoded))
            truncated += sum(one.truncated for one in encoded)
        targets = artifact.task.targets([example.target for example in examples])
        scores = artifact.task.evaluate(np.concatenate(logits), targets)
        scores["warnings"] += truncation_note(truncated, len(examples), artifact.max_tokens)
        return {"rows": len(examples)} | scores

    def compute(self, encoded: Sequence[Encoded]) -> FloatArray:
        """Logits of tokenised inputs, in their order, float32 [rows, outputs]."""
        logits = np.zeros((len(encoded), self.artifact.task.outputs), dtype=np.float32)
        for one in packs(encoded, self.token_budget):
            logits[one.row] = self.engine.logits(one)
        return logits

    def _decoded(self, logits: FloatArray) -> Iterator[Answer]:
        # A few rows at a time: a row of 1,000 labels is a large dict.
        for start in range(0, len(logits), DECODED_ROWS):
            yield from self.artifact.task.decode(logits[start : start + DECODED_ROWS])

    def _encoded_chunks(self, examples: Iterable[Example]) -> Iterator[tuple[list[Example], list[Encoded]]]:
        artifact = self.artifact
        for chunk in chunks(examples):
            sound = [example for example in chunk if not example.error]
            yield chunk, encode(artifact.tokenizer, sound, bool(artifact.columns["pair"]), artifact.max_tokens)


def encode(tokenizer: Tokenizer, examples: Sequence[Example], pairs: bool, max_tokens: int) -> list[Encoded]:
    """Token numbers of examples.

    Args:
        tokenizer: the encoder's.
        examples: texts, or pairs.
        pairs: whether each example has a second text.
        max_tokens: longest input; the rest is cut.

    Returns:
        One record an example.
    """
    second = [example.pair or "" for example in examples] if pairs else None
    return tokenizer.encode([example.text for example in examples], second, max_tokens)


def packs(encoded: Sequence[Encoded], token_budget: int) -> Iterator[Pack]:
    """Inputs as packs, longest rows first."""
    for rows in plan([len(one.ids) for one in encoded], token_budget):
        yield pack(encoded, rows)


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Examples in lists bounded by rows and by characters."""
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += len(example.text) + len(example.pair or "")
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made in another thread while the caller works on this one.

    An error of the maker is raised here, in its place.
    """
    ready: Queue[tuple[T | None, BaseException | None]] = Queue(1)
    stopped = threading.Event()

    def hand_over(item: T | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(Full):
                ready.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                hand_over(item, None)
                if stopped.is_set():
                    return
            hand_over(None, None)
        except BaseException as error:
            hand_over(None, error)

    # A daemon: Ctrl-C must not wait for input that may never come.
    threading.Thread(target=make, daemon=True, name=READER_THREAD).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()


def truncation_note(truncated: int, rows: int, max_tokens: int) -> list[str]:
    """How many rows were longer than the model reads, as a line; nothing where none were."""
    if not truncated:
        return []
    share = 100 * truncated / rows
    return [f"{truncated:,} of {rows:,} rows ({share:.1f} %) have over {max_tokens} tokens; their ends were not read"]


def _prediction(example: Example, found: Any) -> Prediction:
    if found is None:
        return Prediction(None, error=example.error, where=example.where)
    answer, encoded = found
    return Prediction(
        answer.answer, answer.score, answer.probabilities, encoded.n_tokens, encoded.truncated, where=example.where
    )

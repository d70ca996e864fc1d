"""Reading and encoding examples in chunks, ahead of the computation."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Full, Queue
from typing import TypeVar

from berthead.engine.forks import refuse_child
from berthead.errors import DataError, counted
from berthead.records import Example
from berthead.tasks import Task
from berthead.text.tokenizer import Tokenizer
from berthead.text.windows import EncodedExample, LengthPolicy

T = TypeVar("T")

# Rows in a chunk, among which rows of one length are grouped; for long texts characters bound the memory.
CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 4_000_000
READER_THREAD = "berthead-reader"

# Examples, and their encodings for each function; None if the example has an error.
ReadChunk = tuple[list[Example], list[list[EncodedExample | None]]]


def chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Examples in lists bounded by rows and by characters."""
    chunk: list[Example] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += len(example.text) + len(example.pair or "") + sum(map(len, example.choices or ()))
        if len(chunk) >= CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def prefetched(items: Iterator[T]) -> Generator[T]:
    """The same items, the next one made in another thread while the caller works on this one.

    A producer's error is raised here, at its position. A forked child starts over: the thread stays in the parent.
    """
    ready: Queue[tuple[T | None, BaseException | None]] = Queue(1)
    stopped, process = threading.Event(), os.getpid()

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

    # A daemon thread: Ctrl-C must not wait for input that may never come.
    try:
        threading.Thread(target=make, daemon=True, name=READER_THREAD).start()
    except RuntimeError:  # the system gives no more threads: the caller makes the items itself
        yield from items
        return
    try:
        while True:
            refuse_child(process, "predict", "was begun before this process was forked", "Begin it in the child.")
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()


def split_readable(
    task: Task, tokenizer: Tokenizer, examples: Sequence[Example], policy: LengthPolicy
) -> tuple[list[Example], list[str]]:
    """Examples that can be encoded, and a line for each of the others.

    Args:
        task: the task that encodes them.
        tokenizer: the encoder's.
        examples: without errors.
        policy: how long inputs are handled; with `window` and `truncate` all can be encoded.

    Returns:
        The good examples, and `file:line: what is wrong`.
    """
    if policy.on_long != "error" and tokenizer.special_tokens(pair=False):  # no row is without tokens
        return list(examples), []
    sound, bad = [], []
    for chunk in chunks(examples):
        for example, one in zip(chunk, task.encode(tokenizer, chunk, policy), strict=True):
            if one.error:
                bad.append(f"{example.where}: {one.error}")
            else:
                sound.append(example)
    return sound, bad


def readable(examples: Sequence[Example], inputs: Sequence[EncodedExample | None]) -> list[EncodedExample]:
    """The encoded examples.

    Raises:
        DataError: one of them cannot be read.
    """
    sound = []
    for example, one in zip(examples, inputs, strict=True):
        error = example.error or (one.error if one else None)
        if error or one is None:
            fix = "" if one is None or one.n_tokens <= 1 else ", or fit with --on-long window"
            raise DataError(example.where, str(error), "", f"Correct the row{fix}.")
        sound.append(one)
    return sound


def length_notes(inputs: Sequence[EncodedExample], policy: LengthPolicy) -> list[str]:
    """Notes on how many rows were longer than the model reads at once; empty if none."""
    cut, windowed = sum(one.truncated for one in inputs), sum(one.n_windows > 1 for one in inputs)
    return long_notes(cut, windowed, len(inputs), policy.max_tokens)


def long_notes(truncated: int, windowed: int, rows: int, max_tokens: int) -> list[str]:
    """Notes on how many rows were longer than a function reads at once; empty if none.

    Args:
        truncated: rows with tokens cut.
        windowed: rows that were read in several windows.
        rows: all rows.
        max_tokens: tokens of a window.

    Returns:
        Lines.
    """
    whats = ((truncated, "truncated"), (windowed, "read in windows"))
    return [
        f"{count:,} of {counted(rows, 'row')} ({100 * count / rows:.1f} %) "
        f"{'has' if count == 1 else 'have'} over {max_tokens} tokens and {'was' if count == 1 else 'were'} {what}"
        for count, what in whats
        if count
    ]

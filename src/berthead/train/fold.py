"""Some rows of a fit: those that are fitted, or those that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from berthead.records import Example, IntArray
from berthead.tasks import Batch
from berthead.text.windows import EncodedExample


@dataclass(frozen=True, slots=True)
class Fold:
    """Training rows or held-out rows.

    Args:
        examples: the rows.
        inputs: each row as encoded.
        targets: as the task's loss reads them, [rows, ...].
    """

    examples: Sequence[Example]
    inputs: Sequence[EncodedExample]
    targets: np.ndarray

    @property
    def batch(self) -> Batch:
        """The rows as a task sees them."""
        return Batch(self.examples, self.inputs)

    def of(self, rows: IntArray) -> Fold:
        """Some of the rows, by their numbers."""
        return Fold([self.examples[row] for row in rows], [self.inputs[row] for row in rows], self.targets[rows])

"""Draws of a training batch that a resumed run repeats: a collator seeded by the run, the epoch and the rows."""

from collections.abc import Callable, Sequence

import numpy as np
import torch


class SeededCollator:
    """Wraps a collator for training, making its draws a function of the seed, the epoch and the rows.

    A batch is the same whichever worker makes it, and whatever it made before: a resumed run draws what the
    uninterrupted run would have drawn. Another batch or another epoch has other draws.

    Args:
        collator: called with the rows and a `numpy.random.Generator`, as the collators of this module are.
        seed (`int`): seed of the run, non-negative.

    A call takes rows with a `row` key, their non-negative index in the dataset, and returns the collator's batch with
    `clips`, each row's `file_name` or else its index.

    Raises (from a call):
        ValueError: if a row has no `row`.

    Example:

    ```python
    >>> from processing import SeededCollator

    >>> draw = SeededCollator(lambda rows, generator: {"number": generator.integers(1000)}, seed=0)
    >>> draw([{"row": 3}, {"row": 8}]) == draw([{"row": 3}, {"row": 8}])
    True
    >>> draw.set_epoch(1)

    ```
    """

    def __init__(self, collator: Callable[[Sequence[dict], np.random.Generator], dict], seed: int):
        self.collator, self.seed = collator, seed
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()  # shared with persistent workers

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of all further draws, in all workers."""
        self.epoch.fill_(epoch)

    def __call__(self, rows: Sequence[dict]) -> dict:
        numbers = [row.get("row") for row in rows]
        if None in numbers:
            raise ValueError(
                "A training row has no `row`, its number in the data set, by which its augmentation and masks are"
                ' drawn. Add the column: `dataset.add_column("row", range(len(dataset)))`.'
            )
        generator = np.random.default_rng((self.seed, int(self.epoch), *numbers))
        clips = [row.get("file_name") or str(row["row"]) for row in rows]
        return {**self.collator(rows, generator), "clips": clips}

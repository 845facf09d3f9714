"""Overlap by admission: batches are collected while earlier ones are trained on, and never further ahead than staleness allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")


def admit(collect: Callable[[int], Batch], first: int, last: int, staleness: int) -> Iterator[Batch]:
    """The batches of steps `first` to `last`, each `collect(step)`, one after the other in a thread of their own.

    A batch is admitted, i.e. its collection may begin, when at most `staleness` batches before it are not trained on yet. To ask
    for a batch says that the one before it is trained on and its weights are sent:

        staleness 0    collect 1 | train 1 | collect 2 | train 2 | ...
        staleness 1    collect 1 | collect 2 | collect 3 | collect 4 | ...
                                 | train 1   | train 2   | train 3   | ...

    Hence no batch is older than `staleness` weight versions when it is trained on, whatever collecting and training take.
    Closing the iterator cancels what has not begun and waits for what has.

    Raises:
        what `collect` raised, in the place of its batch.
    """
    admitted: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="collect") as pool:
        try:
            for step in range(first, last + 1):
                while len(admitted) <= staleness and step + len(admitted) <= last:
                    admitted.append(pool.submit(collect, step + len(admitted)))
                yield admitted.popleft().result()
        finally:
            for future in admitted:
                future.cancel()

"""Overlap by admission: batches are collected while earlier ones are trained on, at most `staleness` ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def admit(collect: Callable[[int], T], first: int, last: int, staleness: int) -> Generator[T, None, None]:
    """Yield the batches of steps `first` to `last`, each `collect(step)`, collected one after the other in a background thread.

    A batch is admitted, i.e. its collection may begin, once at most `staleness` earlier batches are still untrained. Requesting a batch
    signals that the one before it has been trained on and its weights have been sent:

        staleness 0    collect 1 | train 1 | collect 2 | train 2 | ...
        staleness 1    collect 1 | collect 2 | collect 3 | collect 4 | ...
                                 | train 1   | train 2   | train 3   | ...

    Hence no batch is older than `staleness` weight versions when it is trained on, whatever the durations of collecting and training.
    Closing the generator cancels collections that have not begun, and does not wait for the running one: it ends with the actors that it
    calls, and may take as long as a batch if they go on.

    Raises:
        whatever `collect` raised, in place of its batch.
    """
    admitted: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collect")
    try:
        for step in range(first, last + 1):
            while len(admitted) <= staleness and step + len(admitted) <= last:
                admitted.append(pool.submit(collect, step + len(admitted)))
            yield admitted.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

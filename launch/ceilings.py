"""What this machine can do at best, measured in the same run as whatever is compared with it: matrix products and copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

ROUNDS = 5


def best_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The shortest of `rounds` timed calls, after one that warms up. The shortest, as a ceiling is what nothing disturbed."""
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def matmul_flops(dtype: torch.dtype = torch.bfloat16, size: int = 2048) -> float:
    """Floating-point operations per second of a square matrix product, with torch's present number of threads."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out))


def memcpy_bytes_per_s(size: int = 2**28) -> float:
    """Bytes per second of copying `size` bytes between two buffers whose pages are all there, by one thread."""
    source, target = (memoryview(bytearray(size)) for _ in range(2))

    def copy() -> None:
        target[:] = source

    return size / best_seconds(copy)

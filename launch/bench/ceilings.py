"""Peak rates of this machine for matrix products and memory copies, measured in the same run as the figures compared with them.

On the accelerator if there is one, else on the CPU with torch's current number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

ROUNDS = 5


def best_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the minimum of `rounds` timed calls after a warm-up; the minimum, as a ceiling should be free of disturbances."""
    _finish(work)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        _finish(work)
        times.append(time.perf_counter() - began)
    return min(times)


def _finish(work: Callable[[], object]) -> None:
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def matmul_flops(dtype: torch.dtype = torch.bfloat16) -> float:
    """Measure the floating-point operations per second of a large square matrix product."""
    device = _device()
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out))


def memcpy_bytes_per_s(size: int = 2**28) -> float:
    """Measure the bytes per second of copying `size` bytes between two resident buffers; on a CPU with one thread."""
    if _device().type != "cpu":
        source, target = (torch.zeros(size, dtype=torch.uint8, device=_device()) for _ in range(2))
        return size / best_seconds(lambda: target.copy_(source))
    plain, other = (memoryview(bytearray(size)) for _ in range(2))

    def copy() -> None:
        other[:] = plain

    return size / best_seconds(copy)

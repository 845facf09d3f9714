"""What this machine can do at best, measured in the same run as whatever is compared with it: matrix products and copies.

On the accelerator where there is one, on the CPU with torch's present number of threads otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

ROUNDS = 5


def best_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The shortest of `rounds` timed calls, after one that warms up. The shortest, as a ceiling is what nothing disturbed."""
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
    """Floating-point operations per second of a large square matrix product."""
    device = _device()
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=device)
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out))


def memcpy_bytes_per_s(size: int = 2**28) -> float:
    """Bytes per second of copying `size` bytes between two buffers whose memory is all there; on a CPU by one thread."""
    if _device().type != "cpu":
        source, target = (torch.zeros(size, dtype=torch.uint8, device=_device()) for _ in range(2))
        return size / best_seconds(lambda: target.copy_(source))
    plain, other = (memoryview(bytearray(size)) for _ in range(2))

    def copy() -> None:
        other[:] = plain

    return size / best_seconds(copy)

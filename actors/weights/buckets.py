"""Wire format of weight backend "cpu": the layout of tensors in buckets, and the shared memory that carries the buckets."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from actors.weights.source import ParamMeta

ALIGNMENT = 64
"""Bytes; tensors in a bucket start at multiples of it, so that views of any dtype are aligned."""

Table = list[tuple[str, str, list[int], int]]
"""A bucket's table of contents: (name, dtype name, shape, offset in bytes) of each tensor."""


def lay_out(metadata: Iterable[ParamMeta], bucket_bytes: int) -> list[Table]:
    """Distribute tensors, in order, over buckets of at most `bucket_bytes`; a larger tensor gets its own bucket."""
    tables: list[Table] = []
    end = 0
    for name, dtype, shape in metadata:
        start = -(-end // ALIGNMENT) * ALIGNMENT
        size = torch.Size(shape).numel() * dtype.itemsize
        if not tables or start + size > bucket_bytes:
            tables.append([])
            start = 0
        tables[-1].append((name, str(dtype).removeprefix("torch."), list(shape), start))
        end = start + size
    return tables


def views(table: Table, bucket: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a bucket (uint8) as views into it."""
    for name, dtype_name, shape, offset in table:
        dtype = getattr(torch, dtype_name)
        size = torch.Size(shape).numel() * dtype.itemsize
        yield name, bucket[offset : offset + size].view(dtype).view(shape)


def table_bytes(table: Table) -> int:
    """Return the length of a bucket in bytes."""
    _, dtype_name, shape, offset = table[-1]
    return offset + torch.Size(shape).numel() * getattr(torch, dtype_name).itemsize


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside `with`: a tensor is too small for more.

    Waking the other threads takes longer than their share of the work, and afterwards they spin on cores that the other side of the
    transfer may need.
    """
    threads = torch.get_num_threads()
    # Not `torch.set_num_threads`: vLLM replaces it by a no-op in its workers.
    torch._C.set_num_threads(1)
    try:
        yield
    finally:
        torch._C.set_num_threads(threads)


class Segment:
    """Memory shared by processes of this machine, for as long as one of them lives.

    It has no name in any file system: nothing is left behind, however its processes end, and the size of /dev/shm does not matter. All
    its pages are allocated up front, so that no update pays for page faults.
    """

    def __init__(self, size: int):
        """Raises MemoryError if the machine does not have `size` bytes available."""
        # Checked first: the kernel would not refuse, but kill processes to make room.
        available = psutil.virtual_memory().available
        if size > available:
            raise MemoryError(f"shared memory for weights: {size:,} bytes needed, {available:,} available. Lower weights.bucket_mib.")
        self._file = os.memfd_create("rlsys-weights", os.MFD_CLOEXEC)
        os.posix_fallocate(self._file, 0, size)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        """Processes of the same user can open it here while this object lives; existing mappings outlive it."""
        self.bytes = attach(self.path, size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def attach(path: str, size: int) -> Tensor:
    """Map another process's `Segment` as a shared tensor of `size` bytes (uint8)."""
    with open(path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return torch.frombuffer(shared, dtype=torch.uint8)

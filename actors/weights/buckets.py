"""The wire format of weight backend "cpu": which tensor lies where in which bucket, and the memory that buckets travel through."""

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
"""Bytes; tensors in a bucket begin at multiples of it, so that views of any dtype are aligned."""

Table = list[tuple[str, str, list[int], int]]
"""A bucket's table of contents: (name, dtype name, shape, offset in bytes) of each tensor."""


def lay_out(metadata: Iterable[ParamMeta], bucket_bytes: int) -> list[Table]:
    """Divide tensors, in order, among buckets of at most `bucket_bytes`; a tensor larger than that gets a bucket of its own."""
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
    """The tensors of a bucket (uint8) as views into it: nothing is copied."""
    for name, dtype_name, shape, offset in table:
        dtype = getattr(torch, dtype_name)
        size = torch.Size(shape).numel() * dtype.itemsize
        yield name, bucket[offset : offset + size].view(dtype).view(shape)


def table_bytes(table: Table) -> int:
    """Length of a bucket in bytes."""
    _, dtype_name, shape, offset = table[-1]
    return offset + torch.Size(shape).numel() * getattr(torch, dtype_name).itemsize


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch's own, inside `with`: a tensor is too small for more.

    To wake the others takes longer than what they would do, and when that is done they spin on, on cores that the other side of
    the transfer may have.
    """
    threads = torch.get_num_threads()
    # Not `torch.set_num_threads`: in its workers vLLM puts a function in its place that does nothing.
    torch._C.set_num_threads(1)
    try:
        yield
    finally:
        torch._C.set_num_threads(threads)


class Segment:
    """Memory that processes of this machine share, for as long as one of them lives.

    It has no name in any file system: nothing is left behind, however its processes end, and the size of /dev/shm does not
    matter. All its pages are there from the beginning, so that no update pays for them.
    """

    def __init__(self, size: int):
        """Raises MemoryError where the machine does not have `size` bytes to spare."""
        # Asked for beforehand: the system would not refuse, but kill processes until there is room.
        available = psutil.virtual_memory().available
        if size > available:
            raise MemoryError(f"shared memory for weights: {size:,} bytes wanted, {available:,} are available. Lower weights.bucket_mib.")
        self._file = os.memfd_create("rlsys-weights", os.MFD_CLOEXEC)
        os.posix_fallocate(self._file, 0, size)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        """Where processes of the same user can open it while this object lives; who has mapped it keeps it after that."""
        self.bytes = attach(self.path, size)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def attach(path: str, size: int) -> Tensor:
    """Map another process's `Segment`: a tensor of `size` bytes (uint8) that all of them see."""
    with open(path, "r+b") as file:
        shared = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return torch.frombuffer(shared, dtype=torch.uint8)

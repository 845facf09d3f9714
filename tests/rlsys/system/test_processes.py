"""Process settings."""

from __future__ import annotations

import subprocess
import sys

ROUNDS = """
import resource, torch
from rlsys.system.processes import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.zeros(2**24) for _ in range(24)]  # 1.5 GiB in all
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    del tensors
"""


FREED = """
import os
from rlsys.system.processes import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

blocks = [bytearray(50_000) for _ in range(4000)]  # 200 MB, small enough to be on the heap
last = bytearray(50_000)
held = resident()
del blocks
freed = resident()
return_freed_memory()
print(held, freed, resident())
"""


def test_freed_memory_is_returned() -> None:
    """The last block keeps the heap from shrinking by itself."""
    output = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, timeout=60, check=True).stdout
    held, freed, after = map(int, output.split())
    assert held - freed < 20e6 and held - after > 180e6


def page_faults(keep: bool) -> list[int]:
    """Count page faults in each of four rounds of the same allocations."""
    command = [sys.executable, "-c", ROUNDS.format(keep=keep)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    return [int(line) for line in output.split()]


def test_freed_memory_is_reused() -> None:
    # Fragmentation may require a little more memory in a round or two.
    first, *_, last = page_faults(keep=True)
    assert last < first / 4, (first, last)
    # Control: without the setting, every round maps all pages again.
    first, *_, last = page_faults(keep=False)
    assert last > first / 2, (first, last)

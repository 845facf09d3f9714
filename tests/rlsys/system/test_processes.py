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

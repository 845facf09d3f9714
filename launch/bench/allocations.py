"""What a piece of code allocates on the CPU, counted by PyTorch's own profiler."""

from __future__ import annotations

from typing import Any

from torch.profiler import ProfilerActivity, profile


class Allocations:
    """Counts the bytes allocated inside `with`, by all threads of this process, autograd's included."""

    growth = 0
    """Allocated and not freed."""
    peak = 0
    """Most that was allocated at a time."""

    def __enter__(self) -> Allocations:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
            self.growth += size
            self.peak = max(self.peak, self.growth)

"""Hand-made tables for the viewer, and the viewer served."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from page_folders import trajectory

from rlsys.data.trajectories import TRAJECTORIES
from rlsys.reporting.view.server import serve
from rlsys.reporting.view.viewer import Viewer


def sample(group: int, number: int, scores: list[int] | None, **changes: Any) -> dict[str, Any]:
    """Sample `number` of a group whose second response is the best: scores are in the record's order."""
    correct = scores is not None and scores[1] > scores[0]
    row = trajectory(group, "ab"[group % 2], correct, None if scores else "no_box")
    row |= {"sample": number, "source": "tasks", "scores": scores, "ground_truth": [0.0, 1.0], "finish_reason": "stop", "weight_version": 3}
    return row | changes


def table(path: Path, rows: Sequence[dict[str, Any]], row_group_size: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, TRAJECTORIES), path, row_group_size=row_group_size)


STEP = [
    [sample(0, 0, [2, 9]), sample(0, 1, [3, 8])],  # right
    [sample(1, 0, [9, 2]), sample(1, 1, [8, 4])],  # wrong by 5.5
    [sample(2, 0, [6, 5]), sample(2, 1, None)],  # wrong by 1, one unparsed
    [sample(3, 0, [2, 9]), sample(3, 1, [9, 1], finish_reason="length")],  # wrong by 0.5, one right, one cut off
]


@contextmanager
def serving(look: Viewer) -> Iterator[int]:
    """Yield the port of a server on the loopback address."""
    with serve(look, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)

"""Damaged files of every kind, and made-up ones: they are read, or refused in one line that names the file, never with a traceback."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_targets import ROWS, SAMPLES, TARGETS, Unreported, as_file, as_stream, refusal, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated_bytes, mutated_json

from rlsys.config.files import load_config
from rlsys.data.readers import DataError, read
from rlsys.data.trajectories import REWARD_COLUMNS, TRAJECTORIES

JSON = [name for name, target in TARGETS.items() if target.file.endswith((".json", ".jsonl"))]
RUNS = {"steps", "heldout", *(name for name in TARGETS if name.startswith("run/"))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A folder for each target, with the files around the one that it reads."""
    made: dict[str, Path] = {}
    for name, target in TARGETS.items():
        made[name] = tmp_path_factory.mktemp("target")
        target.around(made[name])
    return made


def examples(count: int) -> settings:
    # Always the same examples: launch/fuzz.sh looks for new ones.
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_valid_is_read(name, folders):
    for seed in TARGETS[name].seeds:
        assert run(TARGETS[name], seed, folders[name]) == [None] * len(TARGETS[name].read)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_reported(name, folders):
    @examples(5 if name in RUNS else 20)
    @given(mutated_bytes(TARGETS[name].seeds) | st.binary(max_size=60))
    def check(data: bytes) -> None:
        run(TARGETS[name], data, folders[name])

    check()


@pytest.mark.parametrize("name", JSON)
def test_wrong_values_are_reported(name, folders):
    @examples(5 if name in RUNS else 20)
    @given(mutated_json(TARGETS[name].seeds))
    def check(data: bytes) -> None:
        run(TARGETS[name], data, folders[name])

    check()


COLUMNS = st.sampled_from([[None], [0], [-1.5], ["text"], [True], [b"\xff"], [[0, 1]], [[1]], [[]], [[None, 0]], [["a"]], [{"a": 1}]])


@pytest.mark.parametrize("name", ["steps", "heldout"])
@given(column=st.sampled_from([*TRAJECTORIES.names, *REWARD_COLUMNS.names]), values=COLUMNS | st.none(), rows=st.integers(1, len(SAMPLES)))
@examples(10)
def test_tables_of_other_columns_are_reported(name, folders, column, values, rows):
    """A column is left out, or has other values in some of the rows or, of another type, in all."""
    table = pa.Table.from_pylist(SAMPLES, TRAJECTORIES)
    kept = [other for other in table.column_names if other != column]
    changed = table.select(kept)
    if values is not None:
        own = table[column].to_pylist() if column in table.column_names else [None] * len(SAMPLES)
        try:
            changed = changed.append_column(column, pa.array(values * rows + own[rows:], TRAJECTORIES.field(column).type))
        except (KeyError, pa.ArrowException):
            changed = changed.append_column(column, pa.array(values * len(SAMPLES)))
    refusals = run(TARGETS[name], as_file(pq.write_table, changed.to_pylist(), changed.schema), folders[name])
    if values is None and column in ("prompt_id", "text", "token_count"):
        assert any(refusals), f"nobody misses {column}"


@pytest.mark.parametrize("write", [as_stream, pa.feather.write_feather])
def test_an_offset_that_points_out_of_an_arrow_file_does_not_end_the_process(write, tmp_path):
    offsets = (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    damaged = (
        as_file(write, ROWS) if write is as_stream else as_file(lambda table, sink: write(table, sink, compression="uncompressed"), ROWS)
    )
    assert offsets in damaged  # of the ids, "1" and "2"
    (tmp_path / "rows.arrow").write_bytes(damaged.replace(offsets, offsets[:4] + (0x7FFF_FFFF).to_bytes(4, "little") + offsets[8:]))
    with pytest.raises(DataError, match=r"rows.arrow: the file is damaged"):
        list(read(tmp_path / "rows.arrow", "rlsys"))


ALIASES = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1]"] + [f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]" for a, b in zip("abcdefghijkl", "bcdefghijklm")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{" + ", ".join(ALIASES) + "}", "100,000 values"),
        ("{a: 2024-13-45}", "expected a valid timestamp, found '2024-13-45'"),
        ("{a: !!timestamp soon}", "expected a valid timestamp"),
        ("{a: !!int x}", "expected a valid int"),
        ("{a: !!bool x}", "expected a valid bool"),
        ("{a: " + "9" * 5000 + "}", "expected a valid int"),
        ("{[a, b]: 1}", "expected text as a key"),
        (r'{a: "b\0"}', "no file can hold"),
        (r'{a: "\ud800"}', "no file can hold"),
    ],
)
def test_values_that_yaml_cannot_hold_are_reported(body, words, tmp_path):
    """In the file and in an override alike."""
    (tmp_path / "config.yaml").write_text(f"rft: {{teacher: {{body: {body}}}}}\n")
    in_file = refusal(lambda: load_config(tmp_path / "config.yaml"), "config.yaml")
    override = refusal(lambda: load_config(None, [f"rft.teacher.body={body}"]), "override 'rft.teacher.body=")
    assert words in str(in_file) and words in str(override)


def test_an_error_of_a_library_is_no_message():
    with pytest.raises(Unreported, match="KeyError"):
        refusal(lambda: {}["a"], "a")
    with pytest.raises(Unreported, match="no.yaml"):
        refusal(lambda: load_config(Path("no.yaml")), "somewhere else")

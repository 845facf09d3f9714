"""`rlsys view`, without a browser: summaries, filters, comparisons, bounded reading, and the server's answers."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ROOT
from page_folders import HOSTILE, write
from view_folders import STEP, sample, serving, table

from rlsys.algorithms.rejection import SAMPLED
from rlsys.data.readers import DataError
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.io.run_folder import write_parquet
from rlsys.reporting.view import viewer as viewing
from rlsys.reporting.view.groups import lead
from rlsys.reporting.view.tables import ParquetTable, open_sources
from rlsys.reporting.view.viewer import NotFound, Viewer, parts
from rlsys.system.local_http import is_loopback


@pytest.fixture
def run(tmp_path):
    table(tmp_path / "run/trajectories/step_000001.parquet", [row for group in STEP for row in group], row_group_size=3)
    return tmp_path / "run"


def viewer(*paths) -> Viewer:
    return Viewer(open_sources(paths, [path.name for path in paths]))


def places(answer) -> list[int]:
    return [group["place"] for group in answer["groups"]]


def test_filters_find_confident_mistakes_first(run) -> None:
    look, query = viewer(run), {"run": "0", "table": "step_000001"}
    answer = look.groups(query)
    assert places(answer) == [0, 1, 2, 3]
    assert answer["counts"] == {"all": 4, "wrong": 3, "unparsed": 1, "cut_off": 1, "mixed": 1, "changed": 0}
    assert [group["outcomes"] for group in answer["groups"]] == ["rr", "ww", "wf", "rw"]
    assert places(look.groups(query | {"filter": "wrong"})) == [1, 2, 3]
    assert places(look.groups(query | {"filter": "unparsed"})) == [2]
    assert places(look.groups(query | {"filter": "cut_off"})) == [3]
    assert places(look.groups(query | {"filter": "mixed"})) == [3]
    assert places(look.groups(query | {"family": "b"})) == [1, 3]
    assert places(look.groups(query | {"search": "ROW-2"})) == [2]
    assert places(look.groups(query | {"filter": "wrong", "offset": "1", "limit": "1"})) == [2]
    assert answer["families"] == [{"name": "a", "groups": 2, "rewards": [0.0]}, {"name": "b", "groups": 2, "rewards": [-0.5]}]


@pytest.mark.parametrize("group", range(4))
def test_a_group_is_shown_as_the_judge_saw_it(run, group) -> None:
    answer = viewer(run).group({"run": "0", "table": "step_000001", "place": str(group)})
    assert [one["text"]["parts"] for one in answer["samples"]] == [[{"label": "", "text": f"critique {group}"}]] * 2
    # The order is [1, 0]: the best response, the record's second, was shown first.
    assert answer["order"] == [1, 0] and answer["truth"] == "[1] is the best response"
    given = [row["scores"] for row in STEP[group]]
    assert [one["shown"] for one in answer["samples"]] == [scores and scores[::-1] for scores in given]
    parsed = [scores[::-1] for scores in given if scores]
    assert answer["means"] == [sum(column) / len(parsed) for column in zip(*parsed)]
    assert answer["lead"] == answer["means"][0] - answer["means"][1]


def test_the_lead_of_a_single_response_is_of_right_samples_over_wrong_ones() -> None:
    rows = [{"scores": [1], "ground_truth": [1.0], "correct": correct} for correct in (True, True, True, False)]
    assert lead(rows) == 0.5
    assert lead([{"scores": None, "ground_truth": [1.0], "correct": False}]) is None


def test_two_tables_are_compared_on_the_same_rows(tmp_path) -> None:
    table(tmp_path / "a/trajectories/heldout_base.parquet", [sample(i, 0, [9, 2]) for i in range(4)])
    after = [sample(3, 0, [2, 9]), sample(1, 0, [9, 3]), sample(0, 0, [9, 2]), sample(7, 0, [2, 9])]
    table(tmp_path / "b/trajectories/heldout_rl.parquet", after)
    query = {"run": "0", "table": "heldout_base", "other_run": "1", "other_table": "heldout_rl"}
    answer = viewer(tmp_path / "a", tmp_path / "b").groups(query | {"filter": "changed"})
    # Row 3 became right, row 1 is wrong by less, row 0 is the same, row 2 is missing there.
    assert [(group["id"], group["other"]["id"], group["change"]) for group in answer["groups"]] == [
        ("row-3", "row-3", (2.0, 14.0)),
        ("row-1", "row-1", (0.0, 1.0)),
    ]
    assert answer["unmatched"] == 1 and answer["counts"]["all"] == 3
    assert answer["families"][1] == {"name": "b", "groups": 2, "rewards": [-1.0, 0.0]}


def test_tables_appear_grow_and_go_while_the_viewer_runs(run) -> None:
    look = viewer(run)
    step, query = run / "trajectories/step_000010.parquet", {"run": "0", "table": "step_000010"}
    names = lambda: [one["name"] for one in look.runs({})["runs"][0]["tables"]]  # noqa: E731
    assert names() == ["step_000001"] and look.runs({})["runs"][0]["complete"] is False
    for stage in ("rl", "step_000010", "base", "cold_start"):
        table(run / f"trajectories/heldout_{stage}.parquet", STEP[0])
    table(step, STEP[0])
    (run / "trajectories/.step_000011.parquet.partial").write_bytes(b"half")
    write(run / "summary.json", {})
    assert names() == ["heldout_base", "heldout_cold_start", "step_000001", "step_000010", "heldout_step_000010", "heldout_rl"]
    assert look.runs({})["runs"][0]["complete"] is True
    assert places(look.groups(query)) == [0]
    table(step, STEP[0] + STEP[1])  # written again by a resumed run
    assert places(look.groups(query)) == [0, 1]
    step.unlink()
    with pytest.raises(NotFound, match="has no table step_000010"):
        look.groups(query)


MEASURE = """
import json, sys
from pathlib import Path
import pyarrow as pa
from rlsys.reporting.view.tables import open_sources
from rlsys.reporting.view.viewer import Viewer

look, query = Viewer(open_sources([Path(sys.argv[1])], ["run"])), {"run": "0", "table": "step_000001", "place": "150"}
total, peaks = look.groups(query)["total"], [pa.default_memory_pool().max_memory()]
text = look.group(query)["samples"][1]["text"]["parts"][0]["text"]
print(json.dumps([total, text, *peaks, pa.default_memory_pool().max_memory()]))
"""


@pytest.mark.parametrize("write_table, limit", [(write_parquet, 12e6), (pq.write_table, 60e6)], ids=["a run's", "in one row group"])
def test_large_tables_are_read_in_parts(tmp_path, write_table, limit) -> None:
    """4,000 samples with 144 MB of text."""
    rows = [sample(group, n, [2, 9], text=f"{group:06d}" * 6_000, prompt=f"{group}") for group in range(2_000) for n in range(2)]
    (tmp_path / "run/trajectories").mkdir(parents=True)
    write_table(pa.Table.from_pylist(rows, TRAJECTORIES), tmp_path / "run/trajectories/step_000001.parquet")
    child = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr
    total, text, listing, showing = json.loads(child.stdout)
    assert total == 2_000 and text == ("000150" * 6_000)[: viewing.TEXT]
    assert listing < 4e6
    assert showing < limit


def test_row_groups_without_the_rows_are_not_read(tmp_path, monkeypatch) -> None:
    table(tmp_path / "t.parquet", [sample(group, n, [2, 9]) for group in range(6) for n in range(3)], row_group_size=4)
    read = []
    plain = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, *a, **kw: (read.append(kw["row_groups"]), plain(self, *a, **kw))[1])
    found = ParquetTable(tmp_path / "t.parquet").samples(3, 9, 3)
    assert [(row["group"], row["sample"]) for row in found] == [(3, 0), (3, 1), (3, 2)]
    assert read == [[2]]
    assert ParquetTable(tmp_path / "t.parquet").samples(9, 99, 3) == []


def test_hostile_texts_are_bounded_and_sanitised(tmp_path) -> None:
    million = "z" * 1_000_000
    rows = [sample(0, 0, None, text=HOSTILE, prompt=HOSTILE, prompt_id=HOSTILE, parse_failure=HOSTILE), sample(1, 0, [2, 9], text=million)]
    arrays = {name: pa.array([row[name] for row in rows], TRAJECTORIES.field(name).type) for name in TRAJECTORIES.names}
    # A lone surrogate, as bytes that are not UTF-8.
    surrogate = [HOSTILE.encode() + b" \xed\xa0\x80 end", million.encode()]
    arrays["text"] = pa.array(surrogate, pa.binary()).view(pa.string())
    (tmp_path / "run/trajectories").mkdir(parents=True)
    pq.write_table(pa.table(arrays), tmp_path / "run/trajectories/step_000001.parquet")
    look, query = viewer(tmp_path / "run"), {"run": "0", "table": "step_000001"}
    first = look.group(query | {"place": "0"})
    text = first["samples"][0]["text"]["parts"][0]["text"]
    assert "<script>" in text and text.endswith(" end")
    assert not any(char in json.dumps([first, look.groups(query)], ensure_ascii=False) for char in "\x1b\u202e\ud800")
    second = look.group(query | {"place": "1"})["samples"][0]["text"]
    assert second["length"] == 1_000_000 and second["sent"] == len(second["parts"][0]["text"]) == viewing.TEXT
    pieces = [look.text(query | {"place": "1", "start": str(start)})["text"] for start in range(viewing.TEXT, 1_000_000, viewing.TEXT)]
    assert second["parts"][0]["text"] + "".join(pieces) == million


def test_tables_of_rejective_fine_tuning_say_what_was_kept(tmp_path) -> None:
    rows = [sample(0, 0, [2, 9], hinted=False, kept=True, why="kept"), sample(0, 1, [9, 2], hinted=True, kept=False, why="incorrect")]
    (tmp_path / "trajectories").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SAMPLED), tmp_path / "trajectories/rft_round_1.parquet")
    shown = viewer(tmp_path).group({"run": "0", "table": "rft_round_1", "place": "0"})["samples"]
    assert [(one["hinted"], one["kept"], one["why"]) for one in shown] == [(False, True, "kept"), (True, False, "incorrect")]


def test_judged_lines_are_tables_too(tmp_path) -> None:
    line = {"id": "r1", "source": "s", "n": 2, "gold": 1, "samples": [{"order": [1, 0], "scores": [9, 2], "tokens": 5, "text": "a \ud800"}]}
    line["samples"] += [{"order": [0, 1], "scores": [7, 7]}, {"order": [0, 1], "scores": None, "failure": "no_box", "truncated": True}]
    aside = {"id": "r2", "n": 0, "samples": [], "skipped": "too long: 9"}
    lines = [json.dumps(line), json.dumps(aside), '{"id": "r3", "sam']
    look, query = viewer(write(tmp_path / "judged.jsonl.part", "\n".join(lines))), {"run": "0", "table": "judged"}
    answer = look.groups(query)
    assert [group["outcomes"] for group in answer["groups"]] == ["rwf", "f"]
    assert answer["counts"] | {"all": 2, "unparsed": 2, "cut_off": 1} == answer["counts"]
    shown = look.group(query | {"place": "0"})
    assert [one["shown"] for one in shown["samples"]] == [[9, 2], [7, 7], None]
    assert [one["scores"] for one in shown["samples"]] == [(2, 9), (7, 7), None]
    assert shown["order"] is None and shown["truth"] == "[2] is the best response" and shown["lead"] == 8 - 4.5
    assert look.group(query | {"place": "1"})["samples"][0]["failure"] == "too long: 9"


def test_lines_that_are_no_judgements_are_named(tmp_path) -> None:
    good = json.dumps({"id": "r1", "samples": []})
    for line, message in (('{"id": 1}', "judged.jsonl, row 2: has no id and samples"), ("{", "judged.jsonl, row 2: expected JSON")):
        look = viewer(write(tmp_path / "judged.jsonl", f"{good}\n{line}\n{good}\n"))
        with pytest.raises(DataError, match=message):
            look.groups({"run": "0", "table": "judged"})


def test_critiques_are_split_at_their_labels() -> None:
    text = "<think>x</think>\nSpecific Criteria: a: b\n**Analysis:** c\nd\nScores: \\boxed{1, 2}"
    assert parts(text) == [
        {"label": "", "text": "<think>x</think>\n"},
        {"label": "Specific Criteria", "text": "a: b"},
        {"label": "Analysis", "text": "c\nd"},
        {"label": "Scores", "text": "\\boxed{1, 2}"},
    ]
    assert parts("no labels") == [{"label": "", "text": "no labels"}] and parts(" \n") == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("missing", "missing: no such file or folder; expected a run folder"),
        ("empty", "empty: holds no judgements; .* These folders in it are runs: inner."),
        ("a.txt", "the name ends in .txt; expected"),
    ],
)
def test_other_paths_are_refused(tmp_path, name, message) -> None:
    (tmp_path / "empty/inner/trajectories").mkdir(parents=True)
    write(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match=message):
        open_sources([tmp_path / name], [name])


def test_files_that_are_no_tables_are_named(tmp_path) -> None:
    (tmp_path / "run/trajectories").mkdir(parents=True)
    write(tmp_path / "run/trajectories/step_000001.parquet", "no parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "run/trajectories/step_000002.parquet")
    look = viewer(tmp_path / "run")
    with pytest.raises(DataError, match="step_000001.parquet: cannot be read as Parquet"):
        look.groups({"run": "0", "table": "step_000001"})
    with pytest.raises(DataError, match="step_000002.parquet: has no column group, prompt_id, text"):
        look.groups({"run": "0", "table": "step_000002"})


# --- HTTP -----------------------------------------------------------------------------------------------------------


def get(port: int, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_the_server_answers_its_own_page_only(run) -> None:
    with serving(viewer(run)) as port:
        response, body = get(port, "/")
        assert response.status == 200 and b"view.js" in body
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        for name in ("/view.js", "/render.js", "/view.css"):
            assert get(port, name)[0].status == 200
        for path in ("/../server.py", "/viewer.py", "/api", "/api/runs/"):
            assert get(port, path)[0].status == 404
        # A foreign name that points at this machine.
        assert get(port, "/api/runs", Host=f"evil.example:{port}")[0].status == 403
        assert get(port, "/api/runs", Host=f"localhost:{port}")[0].status == 200


def test_the_server_answers_questions_and_mistakes_in_json(run) -> None:
    with serving(viewer(run)) as port:
        response, body = get(port, "/api/group?run=0&table=step_000001&place=2")
        assert response.status == 200 and json.loads(body)["outcomes"] == "wf"
        tag = response.headers["ETag"]
        response, body = get(port, "/api/group?run=0&table=step_000001&place=2", **{"If-None-Match": tag})
        assert response.status == 304 and body == b""
        for query, message in (
            ("group?run=1&table=x", "run 1: there are 1 runs."),
            ("group?run=0&table=x", "has no table x"),
            ("group?run=0&table=step_000001&place=4", "group 4: the table has 4 groups."),
            ("groups?run=0&table=step_000001&offset=x", "offset=x: expected an integer."),
            ("groups?run=0&table=step_000001&filter=x", "filter x: expected one of all, wrong"),
            ("text?run=0&table=step_000001&place=0&number=9", "expected a sample below 2"),
        ):
            response, body = get(port, f"/api/{query}")
            assert response.status == 404 and message in json.loads(body)["error"]


def test_loopback_addresses_are_recognised() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))

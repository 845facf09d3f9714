"""Readers: each native format against records written by hand; what is malformed, and that it is counted where it stands."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlsys.readers import READERS, DataError, RecordFile, Report, read
from rlsys.records import Record, Worked

NAN = float("nan")
USER, ANSWER = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
LATER = {"role": "user", "content": "And?"}
Q = (USER,)


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(source: str, rewards, context=Q, id="f:1", **rest) -> Record:
    return Record(id, source, context, ("one", "two"), rewards, **rest)


IDS = ("id", "idx", "pair_uid", "bon_uid", "question_id", "pair_id")
TWO = {"chosen": "one", "rejected": "two"}
FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)
WORKED = {"criteria": "Count.", "notes": ["right", "wrong"], "scores": [9, 2]}
HH = "\n\nHuman: Q?\n\nAssistant: A.\n\nHuman: And?\n\nAssistant: "
HH_CONTEXT = (USER, ANSWER, LATER)
PPE_K = {"prompt": "Q?", "question_id": "q7", "scores": [True, False, False]}
PPE_K |= {"response_1": "one", "response_2": "two", "response_3": "three"}
RB2 = {"id": "7", "prompt": "Q?", "subset": "Ties", "rejected": ["two", "three"]}
PANDALM = {"response1": "one", "response2": "two"}
OWN = {"id": "x", "source": "s", "context": [USER], "responses": ["one", "two"], "rewards": [0.5, -2]}

# (format, row, the records it holds)
GOOD = [
    ("rlsys", OWN, [Record("x", "s", Q, ("one", "two"), (0.5, -2.0))]),
    (
        "rlsys",
        OWN | {"strength": 2, "reference": "ref", "family": "count", "worked": WORKED},
        [Record("x", "s", Q, ("one", "two"), (0.5, -2.0), 2.0, "ref", "count", Worked("Count.", ("right", "wrong"), (9, 2)))],
    ),
    ("rlsys", {"context": [USER], "responses": ["one"], "rewards": [0]}, [Record("f:1", "rlsys", Q, ("one",), (0.0,))]),
    ("trl_preference", {"prompt": "Q?"} | TWO, [pair("trl_preference", FIRST)]),
    ("trl_preference", {"prompt": [USER], "chosen": [assistant("one")], "rejected": [assistant("two")]}, [pair("trl_preference", FIRST)]),
    ("trl_preference", {"prompt": [USER], "chosen": "one", "rejected": [USER, assistant("two")]}, [pair("trl_preference", FIRST)]),
    (
        "trl_preference",
        {"chosen": [USER, ANSWER, LATER, assistant("one")], "rejected": [USER, ANSWER, LATER, assistant("two")]},
        [pair("trl_preference", FIRST, HH_CONTEXT)],
    ),
    (
        "trl_preference",  # TRL's own example of an implicit prompt
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        [Record("f:1", "trl_preference", ({"role": "user", "content": "The sky is"},), (" blue.", " black."), FIRST)],
    ),
    ("responses", {"prompt": "Q?", "responses": ["one"]}, [Record("f:1", "responses", Q, ("one",), (0.0,))]),
    ("trl_unpaired", {"prompt": "Q?", "completion": "one", "label": True}, [Record("f:1", "trl_unpaired", Q, ("one",), (1.0,))]),
    (
        "trl_unpaired",
        {"prompt": [USER], "completion": [assistant("one")], "label": False, "id": 3},
        [Record("3", "trl_unpaired", Q, ("one",), (0.0,))],
    ),
    ("hh_rlhf", {"chosen": HH + "one", "rejected": HH + "two"}, [pair("hh_rlhf", FIRST, HH_CONTEXT)]),
    (
        "hh_rlhf",  # a speaker twice in a row is one turn; marks inside a line are text
        {
            "chosen": "\n\nHuman: Q?\n\nAssistant: a\n\nAssistant: b\n\nHuman: And\n\nso?\n\nAssistant: Human: one",
            "rejected": "\n\nHuman: Q?\n\nAssistant: a\n\nAssistant: b\n\nHuman: And\n\nso?\n\nAssistant: two\n\nAssistant: three",
        },
        [
            Record(
                "f:1",
                "hh_rlhf",
                (USER, assistant("a\n\nb"), {"role": "user", "content": "And\n\nso?"}),
                ("Human: one", "two\n\nthree"),
                FIRST,
            )
        ],
    ),
    (
        "ultrafeedback",
        {
            "instruction": "Q?",
            "source": "sharegpt",
            "completions": [
                {"response": "one", "overall_score": 6.5},
                {"response": "unscored", "overall_score": NAN},
                {"response": "two", "overall_score": 8},
                {"response": "three", "overall_score": None},
            ],
        },
        [Record("f:1", "ultrafeedback", Q, ("one", "two"), (6.5, 8.0), family="sharegpt")],
    ),
    (
        "ultrafeedback_binarized",
        {
            "prompt": "Q?",
            "prompt_id": "not an id of the row",
            "chosen": [USER, assistant("one")],
            "rejected": [USER, assistant("two")],
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        [pair("ultrafeedback_binarized", (8.5, 6.0), strength=2.5)],
    ),
    (
        "helpsteer2",
        {"prompt": "Q?", "response_1": "one", "response_2": "two", "preference_strength": 2},
        [pair("helpsteer2", SECOND, strength=2.0)],
    ),
    (
        "helpsteer2",
        {
            "prompt": "Q?\n<extra_id_1>Assistant\nA.\n<extra_id_1>User\nAnd?",
            "response_1": "one",
            "response_2": "two",
            "preference_strength": -3,
        },
        [pair("helpsteer2", FIRST, HH_CONTEXT, strength=3.0)],
    ),
    (
        "helpsteer3",
        {"context": [USER, ANSWER, LATER], "response1": "one", "response2": "two", "overall_preference": -1, "domain": "code"},
        [pair("helpsteer3", FIRST, HH_CONTEXT, strength=1.0, family="code")],
    ),
    (
        "helpsteer3",
        {"context": [USER], "response1": "one", "response2": "two", "overall_preference": 3},
        [pair("helpsteer3", SECOND, strength=3.0)],
    ),
    ("offsetbias", {"instruction": "Q?", "output_1": "one", "output_2": "two", "label": 1}, [pair("offsetbias", FIRST)]),
    ("llmbar", {"input": "Q?", "output_1": "one", "output_2": "two", "label": 2}, [pair("llmbar", SECOND)]),
    (
        "skywork",
        {"chosen": [USER, ANSWER, LATER, assistant("one")], "rejected": [USER, ANSWER, LATER, assistant("two")], "source": "magpie"},
        [pair("skywork", FIRST, HH_CONTEXT, family="magpie")],
    ),
    ("rewardbench", {"id": 30, "prompt": "Q?", "subset": "hep-cpp"} | TWO, [pair("hep-cpp", FIRST, id="30", family="hep-cpp")]),
    (
        "rewardbench2",
        RB2 | {"chosen": ["one"], "num_correct": 1},
        [Record("7", "Ties", Q, ("one", "two", "three"), (1.0, 0.0, 0.0), family="Ties")],
    ),
    (
        "rewardbench2",  # each of several chosen responses against all the rejected ones
        RB2 | {"chosen": ["one", "eins"], "num_correct": 2},
        [Record(f"7/{i}", "Ties", Q, (best, "two", "three"), (1.0, 0.0, 0.0), family="Ties") for i, best in enumerate(("one", "eins"))],
    ),
    (
        "rmb_pair",
        {"pair_uid": "u", "conversation_input": [USER], "chosen": {"answer": "one"}, "reject": {"answer": "two"}},
        [pair("rmb_pair", FIRST, id="u")],
    ),
    (
        "rmb_bon",
        {
            "bon_uid": "u",
            "conversation_input": [USER],
            "bon_best": {"llm_name": "m", "answer": "one"},
            "loser_list": [{"answer": "two"}, {"answer": "three"}],
        },
        [Record("u", "rmb_bon", Q, ("one", "two", "three"), (1.0, 0.0, 0.0))],
    ),
    (
        "ppe_preference",
        {"question_id": "q", "prompt": "Q?", "response_1": "one", "response_2": "two", "winner": "model_b"},
        [pair("ppe_preference", SECOND, id="q")],
    ),
    (
        "ppe_best_of_k",  # pairs count from 0, columns from 1
        PPE_K | {"sampled_conflict_pairs": [[0, 2], [1, 0]]},
        [Record("q7/0", "ppe_best_of_k", Q, ("one", "three"), FIRST), Record("q7/1", "ppe_best_of_k", Q, ("two", "one"), SECOND)],
    ),
    (
        "judgebench",
        {"pair_id": "p", "source": "livebench", "question": "Q?", "response_A": "one", "response_B": "two", "label": "B>A"},
        [pair("judgebench", SECOND, id="p", family="livebench")],
    ),
    ("judgebench", {"question": "Q?", "response_A": "one", "response_B": "two", "label": "A>B"}, [pair("judgebench", FIRST)]),
    ("realmistake", {"input": "Q?", "llm_response": "one", "error_label": "error"}, [Record("f:1", "realmistake", Q, ("one",), (0.0,))]),
    ("realmistake", {"input": "Q?", "llm_response": "one", "label": "no_error"}, [Record("f:1", "realmistake", Q, ("one",), (1.0,))]),
    ("realmistake", {"input": "Q?", "llm_response": "one", "error_label": True}, [Record("f:1", "realmistake", Q, ("one",), (0.0,))]),
    ("realmistake", {"input": "Q?", "llm_response": "one", "error_label": False}, [Record("f:1", "realmistake", Q, ("one",), (1.0,))]),
    (
        "pandalm",
        PANDALM | {"idx": 4, "instruction": "Add.", "input": "1 1", "annotator1": 2, "annotator2": 0, "annotator3": 2},
        [pair("pandalm", SECOND, ({"role": "user", "content": "Add.\n\n1 1"},), id="4", strength=2.0)],
    ),
    (
        "pandalm",
        PANDALM | {"instruction": "Q?", "input": "", "annotator1": 1, "annotator2": 1, "annotator3": 1},
        [pair("pandalm", FIRST, strength=3.0)],
    ),
]
ROWS = {format: row for format, row, _ in reversed(GOOD)}
"""The first good row of each format."""

# (format, what to change in its good row, key that the message names)
MALFORMED = [
    ("rlsys", {"rewards": [1, NAN]}, "rewards[1]"),
    ("rlsys", {"rewards": [1, True]}, "rewards[1]"),
    ("rlsys", {"rewards": [1]}, "rewards"),
    ("rlsys", {"rewards": [10**400, 1]}, "rewards[0]"),
    ("rlsys", {"responses": ["one"], "rewards": [0.5]}, "rewards"),
    ("rlsys", {"responses": ["one", " \n"]}, "responses[1]"),
    ("rlsys", {"responses": ["one", "\ud800"]}, "responses[1]"),
    ("rlsys", {"responses": []}, "responses"),
    ("rlsys", {"context": [USER, ANSWER]}, "context"),
    ("rlsys", {"context": [{"role": "human", "content": "Q?"}]}, "context[0].role"),
    ("rlsys", {"context": [{"role": "user", "content": 3}]}, "context[0].content"),
    ("rlsys", {"context": [{"role": "user", "content": "  "}]}, "context"),
    ("rlsys", {"context": "Q?"}, "context"),
    ("rlsys", {"id": True}, "id"),
    ("rlsys", {"id": 1.5}, "id"),
    ("rlsys", {"strength": "much"}, "strength"),
    ("rlsys", {"family": 3}, "family"),
    ("rlsys", {"worked": WORKED | {"scores": [9]}}, "worked.scores"),
    ("rlsys", {"worked": WORKED | {"scores": [9, 11]}}, "worked.scores[1]"),
    ("rlsys", {"worked": WORKED | {"notes": ["right", None]}}, "worked.notes[1]"),
    ("rlsys", {"worked": {}}, "worked.criteria"),
    ("trl_preference", {"prompt": False}, "prompt"),
    ("trl_preference", {"prompt": ""}, "prompt"),
    ("trl_preference", {"chosen": True}, "chosen"),
    ("trl_preference", {"chosen": [ANSWER, ANSWER]}, "chosen"),
    ("trl_preference", {"prompt": None}, "prompt"),  # "one" and "two" begin with nothing alike
    ("responses", {"responses": []}, "responses"),
    ("responses", {"responses": ["one", None]}, "responses[1]"),
    ("responses", {"prompt": 7}, "prompt"),
    ("trl_unpaired", {"label": 1}, "label"),
    ("trl_unpaired", {"label": "true"}, "label"),
    ("trl_unpaired", {"completion": None}, "completion"),
    ("hh_rlhf", {"chosen": "no marks"}, "chosen"),
    ("hh_rlhf", {"chosen": "Hello\n\nHuman: Q?\n\nAssistant: one"}, "chosen"),
    ("hh_rlhf", {"chosen": HH}, "chosen"),
    ("hh_rlhf", {"rejected": HH + "one\n\nHuman: More?"}, "rejected"),
    ("hh_rlhf", {"rejected": HH + "one\n\nHuman: More?\n\nAssistant: two"}, "rejected"),
    ("hh_rlhf", {"chosen": "\n\nAssistant: one", "rejected": "\n\nAssistant: two"}, "context"),
    ("ultrafeedback", {"completions": [{"response": "one"}]}, "completions[0].overall_score"),
    ("ultrafeedback", {"completions": [{"response": "one", "overall_score": "5"}]}, "completions[0].overall_score"),
    ("ultrafeedback", {"completions": [{"overall_score": 5}]}, "completions[0].response"),
    ("ultrafeedback", {"completions": ["one"]}, "completions[0]"),
    ("ultrafeedback_binarized", {"score_rejected": NAN}, "score_rejected"),
    ("ultrafeedback_binarized", {"score_chosen": 1.0}, "score_chosen"),
    ("helpsteer2", {"preference_strength": 4}, "preference_strength"),
    ("helpsteer2", {"preference_strength": False}, "preference_strength"),
    ("helpsteer3", {"context": []}, "context"),
    ("offsetbias", {"label": 0}, "label"),
    ("llmbar", {"label": "1"}, "label"),
    ("llmbar", {"label": True}, "label"),
    ("skywork", {"chosen": [USER]}, "chosen"),
    ("skywork", {"rejected": [LATER, assistant("two")]}, "rejected"),
    ("skywork", {"rejected": "two"}, "rejected"),
    ("rewardbench", {"subset": None}, "subset"),
    ("rewardbench2", {"rejected": []}, "rejected"),
    ("rewardbench2", {"num_correct": 3}, "num_correct"),
    ("rmb_pair", {"reject": "two"}, "reject"),
    ("rmb_pair", {"chosen": {"text": "one"}}, "chosen.answer"),
    ("rmb_bon", {"loser_list": [{"answer": ""}]}, "loser_list[0].answer"),
    ("ppe_preference", {"winner": "model_c"}, "winner"),
    ("ppe_best_of_k", {"sampled_conflict_pairs": [[0, 3]]}, "sampled_conflict_pairs[0]"),
    ("ppe_best_of_k", {"sampled_conflict_pairs": [[0, 1], [0, 1, 2]]}, "sampled_conflict_pairs[1]"),
    ("ppe_best_of_k", {"scores": [1, 0, 0]}, "scores[0]"),
    ("ppe_best_of_k", {"response_3": None}, "response_3"),
    ("judgebench", {"label": "A=B"}, "label"),
    ("realmistake", {"error_label": "maybe"}, "error_label"),
    ("realmistake", {"error_label": 1}, "error_label"),
    ("pandalm", {"instruction": False}, "instruction"),
    ("pandalm", {"response1": True}, "response1"),
    ("pandalm", {"annotator2": 3}, "annotator2"),
    ("pandalm", {"instruction": " ", "input": ""}, "instruction"),
]

NO_UNIQUE_BEST = [
    ("rlsys", {"rewards": [2, 2]}),
    ("rlsys", {"responses": ["same", "same"]}),
    ("ultrafeedback", {"completions": [{"response": "one", "overall_score": 5}, {"response": "two", "overall_score": NAN}]}),
    ("ultrafeedback", {"completions": [{"response": "one", "overall_score": 5}, {"response": "two", "overall_score": 5}]}),
    ("ultrafeedback_binarized", {"score_chosen": 6}),
    ("helpsteer2", {"preference_strength": 0}),
    ("helpsteer3", {"overall_preference": 0}),
    ("ppe_preference", {"winner": "tie"}),
    ("ppe_preference", {"winner": "tie (bothbad)"}),
    ("ppe_best_of_k", {"sampled_conflict_pairs": [[1, 2]]}),
    ("pandalm", {"annotator1": 0}),  # two of three say tie
    ("pandalm", {"annotator1": 1}),  # 1, 0, 2: a split
]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, format: str, **options):
    report = Report()
    return list(read(path, format, report=report, **options)), report


def test_every_format_has_a_hand_made_row():
    assert set(ROWS) == set(READERS)


@pytest.mark.parametrize("format, row, expected", GOOD)
def test_native_rows_become_the_expected_records(tmp_path, format, row, expected):
    records, report = load(write(tmp_path / "f.jsonl", [row]), format)
    assert records == expected
    assert [record.worked for record in records] == [record.worked for record in expected]
    assert (report.rows, report.records, report.malformed_count, report.no_unique_best) == (1, len(expected), 0, 0)


def test_rows_without_a_ground_truth_are_for_those_who_want_none(tmp_path):
    row = {"id": "a", "context": [{"role": "user", "content": "Q?"}], "responses": ["one", "two"]}
    path = write(tmp_path / "f.jsonl", [row])
    kept, report = load(path, "responses", truth=False)
    assert kept == [Record("a", "responses", Q, ("one", "two"), (0.0, 0.0))] and report.records == 1
    kept, report = load(path, "responses")
    assert kept == [] and report.no_unique_best == 1


@pytest.mark.parametrize("format, change, key", MALFORMED)
def test_malformed_rows_name_file_row_and_key_and_are_set_aside(tmp_path, format, change, key):
    # The good rows around it have no ids, so that nothing repeats.
    good = {name: value for name, value in ROWS[format].items() if name not in IDS}
    path = write(tmp_path / "f.jsonl", [good, ROWS[format] | change, good])
    records, report = load(path, format)
    assert [record.id.split("/")[0] for record in records if record.id.split("/")[0] != "f:1"] == ["f:3"] * (len(records) // 2)
    assert report.malformed_count == 1
    [(row, message)] = report.malformed
    assert row == 2 and message.startswith(f"{path}, row 2: {key}: expected ") and "found" in message
    with pytest.raises(DataError, match="row 2") as error:
        load(path, format, strict=True)
    assert (error.value.file, error.value.row, error.value.key) == (str(path), 2, key)


@pytest.mark.parametrize("format, row", [(format, row) for format, row, _ in GOOD])
def test_a_row_of_the_wrong_format_never_passes_for_a_good_one(tmp_path, format, row):
    for other in {"llmbar", "pandalm", "helpsteer3", "rmb_bon", "judgebench", "ppe_best_of_k"} - {format}:
        records, report = load(write(tmp_path / "f.jsonl", [row]), other)
        assert not records and report.malformed_count == 1


@pytest.mark.parametrize("format, change", NO_UNIQUE_BEST)
def test_ties_are_counted_apart_and_are_no_error_even_if_strict(tmp_path, format, change):
    records, report = load(write(tmp_path / "f.jsonl", [ROWS[format] | change]), format, strict=True)
    assert not records
    assert (report.no_unique_best, report.malformed_count) == (1, 0)


def test_unscored_completions_are_counted(tmp_path):
    _, report = load(write(tmp_path / "f.jsonl", [ROWS["ultrafeedback"]]), "ultrafeedback")
    assert report.dropped_responses == 2


def test_an_id_that_occurs_twice_is_malformed(tmp_path):
    path = write(tmp_path / "f.jsonl", [OWN, OWN | {"id": "y"}, OWN, OWN | {"source": "other"}])
    records, report = load(path, "rlsys")
    # An id is unique within one source only: Reward Bench numbers each subset.
    assert [(record.source, record.id) for record in records] == [("s", "x"), ("s", "y"), ("other", "x")]
    assert "'x' again" in report.malformed[0][1] and report.malformed[0][0] == 3


def test_our_own_records_survive_a_round_trip(tmp_path):
    expected = [record for _, _, records in GOOD for record in records]
    expected = [Record(**{**vars(record), "id": f"{record.id}-{i}"}) for i, record in enumerate(expected)]
    records, report = load(write(tmp_path / "f.jsonl", [record.to_json() for record in expected]), "rlsys")
    assert records == expected and [r.worked for r in records] == [r.worked for r in expected]
    assert report.malformed_count == 0


# Attacks: whatever stands in a file, the only outcomes are records, counted ties and counted malformed rows.

TEXTS = st.text(max_size=5) | st.sampled_from(["user", "assistant", HH, "A>B", "tie"])
KEYS = st.sampled_from(["role", "content", "answer", "response"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@cache
def good_rows(format: str) -> list[dict]:
    return [row for name, row, _ in GOOD if name == format]


@st.composite
def rows(draw, format: str):
    """A good row with some places, at any depth, replaced by other JSON, or removed."""
    row = copy.deepcopy(draw(st.sampled_from(good_rows(format))))
    for _ in range(draw(st.integers(1, 3))):
        node = row
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(node[key], (dict, list)) or draw(st.booleans()):
                if draw(st.integers(0, 4)) == 0:
                    del node[key]
                else:
                    node[key] = draw(JSON)
                break
            node = node[key]
    return row


def assert_settled(path: Path, format: str, count: int) -> None:
    records, report = load(path, format)
    assert report.rows == count
    assert len(records) == report.records
    for record in records:
        assert record.context[-1]["role"] == "user"
        assert len(record.responses) == len(record.rewards) >= 1
        assert all(isinstance(text, str) and text.strip() for text in record.responses)
        assert all(math.isfinite(reward) for reward in record.rewards)
        assert sum(reward == max(record.rewards) for reward in record.rewards) == 1
        json.dumps(record.to_json(), ensure_ascii=False).encode()
    if records:
        file = RecordFile(path, format)
        assert list(file) == records and len(file) == count
        # By number, ids are not compared: what streaming sets aside as a repetition is a record among these.
        fetched = iter([record for found in file.fetch(range(count)) for record in found])
        assert all(record in fetched for record in records)
    else:
        with pytest.raises(DataError):
            RecordFile(path, format)


@pytest.mark.parametrize("format", READERS)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_mutilated_rows_never_raise(tmp_path, format, data):
    found = data.draw(st.lists(rows(format), min_size=1, max_size=4))
    assert_settled(write(tmp_path / "f.jsonl", found), format, len(found))


@pytest.mark.parametrize("format", READERS)
@given(lines=st.lists(st.binary(min_size=1, max_size=30) | JSON.map(lambda value: json.dumps(value).encode()), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_and_random_json_never_raise(tmp_path, format, lines):
    whole = b"{}\n" + b"\n".join(lines)
    (tmp_path / "f.jsonl").write_bytes(whole)
    assert_settled(tmp_path / "f.jsonl", format, sum(bool(line.strip()) for line in whole.split(b"\n")))

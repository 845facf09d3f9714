"""Readers: each format against hand-written records; malformed rows are counted and located."""

from __future__ import annotations

import copy
import csv
import json
import math
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import load, write

from rlsys.data.readers import READERS, DataError, RecordFile, formats_of, read, read_all
from rlsys.data.readers.messages import as_messages
from rlsys.data.records import Record, TeacherJudgement

NAN = float("nan")
USER, ANSWER = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
LATER = {"role": "user", "content": "And?"}
Q = (USER,)
RULE = {"rule": "word_count", "count": 2}


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
PART = {"type": "text", "image": None, "mimeType": None}
PARTS = {"role": "user", "content": [PART | {"text": "Q?"}]}
ARENA = {"winner": "model_b", "turn": 1, "question_id": 81}
ARENA |= {"conversation_a": [USER, assistant("one"), LATER, assistant("eins")]}
ARENA |= {"conversation_b": [USER, assistant("two"), LATER, assistant("zwei")]}
PKU = {"prompt": "Q?", "response_0": "one", "response_1": "two", "better_response_id": 1}
OWN = {"id": "x", "source": "s", "context": [USER], "responses": ["one", "two"], "rewards": [0.5, -2]}

# (format, row, its records)
GOOD = [
    ("rlsys", OWN, [Record("x", "s", Q, ("one", "two"), (0.5, -2.0))]),
    (
        "rlsys",
        OWN | {"strength": 2, "reference": "ref", "family": "count", "worked": WORKED},
        [Record("x", "s", Q, ("one", "two"), (0.5, -2.0), 2.0, "ref", "count", TeacherJudgement("Count.", ("right", "wrong"), (9, 2)))],
    ),
    ("rlsys", {"context": [USER], "responses": ["one"], "rewards": [0]}, [Record("f:1", "rlsys", Q, ("one",), (0.0,))]),
    ("rlsys", OWN | {"checks": [RULE]}, [Record("x", "s", Q, ("one", "two"), (0.5, -2.0), checks=(RULE,))]),
    ("prompts", {"prompt": "Q?", "checks": [RULE]}, [Record("f:1", "prompts", Q, (), (), checks=(RULE,), labelled=False)]),
    (
        "prompts",
        {"messages": [USER, ANSWER], "checks": f"[{json.dumps(RULE)}]"},
        [Record("f:1", "prompts", Q, (), (), checks=(RULE,), labelled=False)],
    ),
    ("prompts", {"context": [USER], "family": "f"}, [Record("f:1", "prompts", Q, (), (), family="f", labelled=False)]),
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
    ("responses", {"prompt": "Q?", "responses": ["one"]}, [Record("f:1", "responses", Q, ("one",), (0.0,), labelled=False)]),
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
    (
        "trl_preference",  # this system's natural row
        {"prompt": "Q?", "chosen": "one", "rejected": ["two", "three"]},
        [Record("f:1", "trl_preference", Q, ("one", "two", "three"), (1.0, 0.0, 0.0))],
    ),
    (
        "trl_preference",
        {"prompt": [USER], "chosen": [[assistant("one")], "eins"], "rejected": [[USER, assistant("two")]], "id": 7.0},
        [Record(f"7/{i}", "trl_preference", Q, (best, "two"), FIRST) for i, best in enumerate(("one", "eins"))],
    ),
    (
        "trl_preference",  # what both begin with is context, the rest is judged
        {
            "chosen": [USER, ANSWER, LATER, assistant("one")],
            "rejected": [USER, ANSWER, {"role": "user", "content": "Why?"}, assistant("two")],
        },
        [
            Record(
                "f:1",
                "trl_preference",
                Q,
                ("Assistant: A.\n\nUser: And?\n\nAssistant: one", "Assistant: A.\n\nUser: Why?\n\nAssistant: two"),
                FIRST,
            )
        ],
    ),
    (
        "trl_preference",
        {"system": "Be brief.", "history": [["Q?", "A."]], "prompt": "And?", "chosen": "one", "rejected": ""},
        [Record("f:1", "trl_preference", ({"role": "system", "content": "Be brief."}, *HH_CONTEXT), ("one", ""), FIRST)],
    ),
    (
        "hh_rlhf",
        {"chosen": HH + "one", "rejected": HH + "two\n\nHuman: More?\n\nAssistant: three"},
        [Record("f:1", "hh_rlhf", HH_CONTEXT, ("one", "Assistant: two\n\nUser: More?\n\nAssistant: three"), FIRST)],
    ),
    ("hh_rlhf", {"chosen": HH + "one", "rejected": HH}, [Record("f:1", "hh_rlhf", HH_CONTEXT, ("one", ""), FIRST)]),
    ("trl_unpaired", {"prompt": "Q?", "completion": "one", "label": 1.0}, [Record("f:1", "trl_unpaired", Q, ("one",), (1.0,))]),
    ("trl_unpaired", {"prompt": "Q?", "completion": " ", "label": "False"}, [Record("f:1", "trl_unpaired", Q, (" ",), (0.0,))]),
    ("llmbar", {"id": NAN, "input": "Q?", "output_1": "one", "output_2": "two", "label": "2.0"}, [pair("llmbar", SECOND)]),
    ("realmistake", {"input": "Q?", "llm_response": "one", "label": 1}, [Record("f:1", "realmistake", Q, ("one",), (0.0,))]),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Q?"}], "chosen": {"from": "gpt", "value": "one"}, "rejected": "two"},
        [pair("sharegpt", FIRST)],
    ),
    ("kto", {"messages": [USER, assistant("one")], "label": True}, [Record("f:1", "kto", Q, ("one",), (1.0,))]),
    (
        "kto",
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "one"}], "kto_tag": False},
        [Record("f:1", "kto", Q, ("one",), (0.0,))],
    ),
    ("arena", ARENA, [pair("arena", SECOND)]),
    (
        "arena",  # Arena's later releases (100k, 140k): ids, no turn, content in parts
        {
            "id": "u1",
            "winner": "model_a",
            "evaluation_order": 1,
            "conversation_a": [PARTS, assistant([PART | {"text": "one"}])],
            "conversation_b": [PARTS, assistant([PART | {"text": "two"}])],
        },
        [pair("arena", FIRST, id="u1")],
    ),
    (
        "arena",  # the second turn is judged with the first answer of the same model
        ARENA | {"turn": 2, "winner": "model_a"},
        [
            Record(
                "f:1",
                "arena",
                Q,
                ("Assistant: one\n\nUser: And?\n\nAssistant: eins", "Assistant: two\n\nUser: And?\n\nAssistant: zwei"),
                FIRST,
            )
        ],
    ),
    (
        "arena_votes",
        {
            "id": 5,
            "prompt": '["Q?"]',
            "response_a": '["one"]',
            "response_b": '["two"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        [pair("arena_votes", FIRST, id="5")],
    ),
    (
        "auto_j",
        {"prompt": "Q?", "response 1": "one", "response 2": "two", "label": 1, "scenario": "chat"},
        [pair("auto_j", SECOND, family="chat")],
    ),
    (
        "alpaca_eval",
        {"instruction": "Q?", "output_1": "one", "output_2": "two", "preference": 1.25, "dataset": "koala"},
        [pair("alpaca_eval", FIRST, strength=0.25, family="koala")],
    ),
    (
        "shp",
        {"history": "Q?", "human_ref_A": "one", "human_ref_B": "two", "labels": 0, "score_ratio": 2.5, "domain": "askhr"},
        [pair("shp", SECOND, strength=2.5, family="askhr")],
    ),
    ("pku_saferlhf", PKU | {"safer_response_id": 0}, [pair("pku_saferlhf", SECOND)]),
    ("pku_saferlhf_safer", PKU | {"safer_response_id": 0}, [pair("pku_saferlhf_safer", FIRST)]),
    (
        "summarize_from_feedback",
        {
            "info": {"post": "I have a cat.", "title": "Cat", "subreddit": "pets"},
            "summaries": [{"text": "one"}, {"text": "two"}],
            "choice": 1,
        },
        [
            pair(
                "summarize_from_feedback",
                SECOND,
                ({"role": "user", "content": "Summarize this post.\n\nTitle: Cat\n\nI have a cat."},),
                family="pets",
            )
        ],
    ),
    (
        "webgpt",
        {"question": {"full_text": "Q?", "dataset": "eli5"}, "answer_0": "one", "answer_1": "two", "score_0": -0.5, "score_1": 0.5},
        [pair("webgpt", (-0.5, 0.5), strength=1.0, family="eli5")],
    ),
    (
        "nectar",
        {
            "prompt": "\n\nHuman: Q?\n\nAssistant: ",
            "answers": [{"answer": "two", "rank": 2.0}, {"answer": "one", "rank": 1.0}, {"answer": "three", "rank": 3.0}],
            "source": ["lmsys-chat-1m"],
        },
        [Record("f:1", "nectar", Q, ("two", "one", "three"), (-2.0, -1.0, -3.0), family="lmsys-chat-1m")],
    ),
    (
        "prometheus",
        {"orig_instruction": "Q?", "orig_response": "one", "orig_score": "5", "orig_reference_answer": "ref"},
        [Record("f:1", "prometheus", Q, ("one",), (1.0,), 2.0, "ref")],
    ),
    (
        "prometheus",
        {"orig_instruction": "Q?", "orig_response_A": "one", "orig_response_B": "two", "orig_preference": "B"}
        | {"orig_score_A": "2", "orig_score_B": "4", "orig_criteria": "Is it short?"},
        [pair("prometheus", SECOND, ({"role": "user", "content": "Q?\n\n(Answers are judged by this: Is it short?)"},), strength=2.0)],
    ),
    (
        "biggen",
        {"id": "grounding_1", "input": "Q?", "system_prompt": "Be brief.", "response": "one", "human_score": 2, "capability": "grounding"},
        [Record("f:1", "biggen", ({"role": "system", "content": "Be brief."}, USER), ("one",), (0.0,), 1.0, family="grounding")],
    ),
    (
        "evalbiasbench",
        {"group": "length", "id": 3, "instruction": "Q?", "response1": "one", "response2": "two", "label": 2},
        [pair("length", SECOND, id="3", family="length")],
    ),
    (
        "rm_bench",
        {"id": "9", "prompt": "Q?", "chosen": ["one", "eins"], "rejected": ["two", "zwei"], "domain": "math"},
        [Record(f"9/{i}", "rm_bench", Q, (best, "two", "zwei"), (1.0, 0.0, 0.0), family="math") for i, best in enumerate(("one", "eins"))],
    ),
    (
        "hhh_alignment",
        {"input": "Q?", "targets": {"choices": ["one", "two"], "labels": [1, 0]}},
        [pair("hhh_alignment", FIRST)],
    ),
]
ROWS = {format: row for format, row, _ in reversed(GOOD)}
"""The first good row of each format."""

# (format, changes to its good row, key that the message names)
MALFORMED = [
    ("prompts", {"checks": [{"rule": "word_cuont", "count": 2}]}, "checks[0]"),
    ("prompts", {"checks": [{"rule": "word_count"}]}, "checks[0]"),
    ("prompts", {"checks": [{"rule": "word_count", "count": True}]}, "checks[0]"),
    ("prompts", {"checks": [{"rule": "includes", "words": ["one", ""]}]}, "checks[0]"),
    ("prompts", {"checks": "two words"}, "checks"),
    ("prompts", {"prompt": " "}, "prompt"),
    ("rlsys", {"rewards": [1, NAN]}, "rewards[1]"),
    ("rlsys", {"rewards": [1, True]}, "rewards[1]"),
    ("rlsys", {"rewards": [1]}, "rewards"),
    ("rlsys", {"rewards": [10**400, 1]}, "rewards[0]"),
    ("rlsys", {"responses": ["one"], "rewards": [0.5]}, "rewards"),
    ("rlsys", {"responses": ["one", "\ud800"]}, "responses[1]"),
    ("rlsys", {"responses": []}, "responses"),
    ("rlsys", {"context": [USER, ANSWER]}, "context"),
    ("rlsys", {"context": [{"role": "human", "content": "Q?"}]}, "context[0].role"),
    ("rlsys", {"context": [{"role": "user", "content": 3}]}, "context[0].content"),
    ("rlsys", {"context": [{"role": "user", "content": "  "}]}, "context"),
    ("rlsys", {"context": "Q?"}, "context"),
    ("rlsys", {"id": True}, "id"),
    ("rlsys", {"id": 1.5}, "id"),
    ("rlsys", {"responses": ["one", None]}, "responses[1]"),
    ("rlsys", {"rewards": ["1", "x"]}, "rewards[1]"),
    ("rlsys", {"context": [USER | {"images": ["a.png"]}]}, "context[0].images"),
    ("rlsys", {"context": [{"role": "user", "content": None}]}, "context[0].content"),
    ("rlsys", {"context": [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}]}, "context[0].content[0]"),
    ("rlsys", {"context": [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}]}, "context[0].tool_calls[0].name"),
    ("rlsys", {"context": [{"from": "narrator", "value": "Q?"}]}, "context[0].from"),
    ("trl_preference", {"system": "Be brief.", "prompt": [{"role": "system", "content": "Be long."}, USER]}, "system"),
    ("trl_preference", {"history": ["Q?"]}, "history[0]"),
    ("trl_preference", {"images": ["a.png"]}, "images"),
    ("trl_preference", {"rejected": ["two", None]}, "rejected[1]"),
    ("trl_preference", {"chosen": [assistant("one"), LATER]}, "chosen"),
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
    ("trl_unpaired", {"label": 2}, "label"),
    ("trl_unpaired", {"label": "yes"}, "label"),
    ("trl_unpaired", {"label": NAN}, "label"),
    ("trl_unpaired", {"completion": None}, "completion"),
    ("trl_preference", {"score_chosen": 1, "score_rejected": 2.5}, "score_chosen"),
    ("hh_rlhf", {"chosen": "no marks"}, "chosen"),
    ("hh_rlhf", {"chosen": "Hello\n\nHuman: Q?\n\nAssistant: one"}, "chosen"),
    ("hh_rlhf", {"rejected": HH + "one\n\nHuman: More?"}, "rejected"),
    ("hh_rlhf", {"chosen": "\n\nAssistant: one", "rejected": "\n\nAssistant: two"}, "rejected"),
    ("ultrafeedback", {"completions": [{"response": "one"}]}, "completions[0].overall_score"),
    ("ultrafeedback", {"completions": [{"overall_score": 5}]}, "completions[0].response"),
    ("ultrafeedback", {"completions": ["one"]}, "completions[0]"),
    ("ultrafeedback_binarized", {"score_rejected": NAN}, "score_rejected"),
    ("ultrafeedback_binarized", {"score_chosen": 1.0}, "score_chosen"),
    ("helpsteer2", {"preference_strength": 4}, "preference_strength"),
    ("helpsteer2", {"preference_strength": False}, "preference_strength"),
    ("helpsteer3", {"context": []}, "context"),
    ("offsetbias", {"label": 0}, "label"),
    ("llmbar", {"label": True}, "label"),
    ("llmbar", {"label": 1.5}, "label"),
    ("llmbar", {"label": "first"}, "label"),
    ("llmbar", {"label": NAN}, "label"),
    ("skywork", {"chosen": [USER]}, "chosen"),
    ("skywork", {"rejected": [LATER, assistant("two")]}, "rejected"),
    ("skywork", {"rejected": "two"}, "rejected"),
    ("rewardbench", {"subset": None}, "subset"),
    ("rewardbench2", {"rejected": []}, "rejected"),
    ("rewardbench2", {"num_correct": 3}, "num_correct"),
    ("rmb_pair", {"reject": "two"}, "reject"),
    ("rmb_pair", {"chosen": {"text": "one"}}, "chosen.answer"),
    ("ppe_preference", {"winner": "model_c"}, "winner"),
    ("ppe_best_of_k", {"sampled_conflict_pairs": [[0, 3]]}, "sampled_conflict_pairs[0]"),
    ("ppe_best_of_k", {"sampled_conflict_pairs": [[0, 1], [0, 1, 2]]}, "sampled_conflict_pairs[1]"),
    ("ppe_best_of_k", {"response_3": None}, "response_3"),
    ("judgebench", {"label": "A=B"}, "label"),
    ("realmistake", {"error_label": "maybe"}, "error_label"),
    ("ppe_best_of_k", {"scores": [2, 0, 0]}, "scores[0]"),
    ("rmb_bon", {"loser_list": [{"answer": None}]}, "loser_list[0].answer"),
    ("sharegpt", {"chosen": None}, "chosen"),
    ("sharegpt", {"conversations": []}, "conversations"),
    ("kto", {"messages": [USER]}, "messages"),
    ("kto", {"label": None}, "kto_tag"),
    ("arena", {"winner": "model_c"}, "winner"),
    ("arena", {"turn": 0}, "turn"),
    ("arena", {"conversation_b": [LATER, assistant("two")]}, "conversation_b"),
    ("arena_votes", {"prompt": "not JSON"}, "prompt"),
    ("arena_votes", {"response_a": '["one", "more"]'}, "response_a"),
    ("auto_j", {"label": 3}, "label"),
    ("auto_j", {"response 2": None}, "response 2"),
    ("alpaca_eval", {"preference": 2.5}, "preference"),
    ("alpaca_eval", {"preference": None}, "preference"),
    ("shp", {"labels": 2}, "labels"),
    ("pku_saferlhf", {"better_response_id": -1}, "better_response_id"),
    ("pku_saferlhf_safer", {"safer_response_id": None}, "safer_response_id"),
    ("summarize_from_feedback", {"info": {"title": "Cats"}}, "info.article"),
    ("summarize_from_feedback", {"summaries": [{"text": "one"}]}, "summaries"),
    ("summarize_from_feedback", {"choice": 2}, "choice"),
    ("webgpt", {"question": "Q?"}, "question"),
    ("webgpt", {"score_1": "high"}, "score_1"),
    ("nectar", {"answers": [{"answer": "one", "rank": None}]}, "answers[0].rank"),
    ("nectar", {"prompt": "Q?"}, "prompt"),
    ("prometheus", {"orig_score": "6"}, "orig_score"),
    ("prometheus", {"orig_preference": "C"}, "orig_preference"),
    ("biggen", {"human_score": None}, "human_score"),
    ("evalbiasbench", {"label": 0}, "label"),
    ("rm_bench", {"domain": None}, "domain"),
    ("rm_bench", {"rejected": []}, "rejected"),
    ("hhh_alignment", {"targets": {"choices": ["one", "two"], "labels": [1, 2]}}, "targets.labels[1]"),
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
    ("arena", {"winner": "tie"}),
    ("arena", {"winner": "tie (bothbad)"}),
    ("arena", {"winner": "tie (inconsistent)"}),
    ("arena", {"winner": "both_bad"}),
    ("arena_votes", {"winner_model_a": 0}),
    ("auto_j", {"label": 2}),
    ("alpaca_eval", {"preference": 1.5}),
    ("alpaca_eval", {"preference": 0}),
    ("webgpt", {"score_0": 0, "score_1": 0}),
    ("nectar", {"answers": [{"answer": "one", "rank": 1}, {"answer": "two", "rank": 1}]}),
    ("prometheus", {"orig_score": "3"}),
    ("biggen", {"human_score": 3}),
    ("hhh_alignment", {"targets": {"choices": ["one", "two"], "labels": [1, 1]}}),
    ("pandalm", {"annotator1": 0}),  # two of three say tie
    ("pandalm", {"annotator1": 1}),  # 1, 0, 2: a split
]


def test_every_format_has_a_handwritten_row():
    assert set(ROWS) == set(READERS)


@pytest.mark.parametrize("format, row, expected", GOOD)
def test_native_rows_become_the_expected_records(tmp_path, format, row, expected):
    records, report = load(write(tmp_path / "f.jsonl", [row]), format)
    assert records == expected
    assert [record.worked for record in records] == [record.worked for record in expected]
    assert (report.rows, report.records, report.malformed_count, report.no_unique_best) == (1, len(expected), 0, 0)


def test_unlabelled_rows_are_read_only_without_truth(tmp_path):
    row = {"id": "a", "context": [{"role": "user", "content": "Q?"}], "responses": ["one", "two"]}
    path = write(tmp_path / "f.jsonl", [row])
    kept, report = load(path, "responses", truth=False)
    assert kept == [Record("a", "responses", Q, ("one", "two"), (0.0, 0.0), labelled=False)] and report.records == 1
    kept, report = load(path, "responses")
    assert kept == [] and report.no_unique_best == 1


@pytest.mark.parametrize("format, change, key", MALFORMED)
def test_malformed_rows_name_file_row_and_key_and_are_set_aside(tmp_path, format, change, key):
    # The good rows around it have no ids, so that there are no duplicates.
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
def test_row_of_another_format_is_malformed(tmp_path, format, row):
    for other in {"llmbar", "pandalm", "helpsteer3", "rmb_bon", "judgebench", "ppe_best_of_k"} - {format}:
        records, report = load(write(tmp_path / "f.jsonl", [row]), other)
        assert not records and report.malformed_count == 1


@pytest.mark.parametrize("format, change", NO_UNIQUE_BEST)
def test_ties_are_counted_separately_and_allowed_if_strict(tmp_path, format, change):
    records, report = load(write(tmp_path / "f.jsonl", [ROWS[format] | change]), format, strict=True)
    assert not records
    assert (report.no_unique_best, report.malformed_count) == (1, 0)


def test_unscored_completions_are_counted(tmp_path):
    _, report = load(write(tmp_path / "f.jsonl", [ROWS["ultrafeedback"]]), "ultrafeedback")
    assert report.dropped_responses == 2


def test_duplicate_id_is_malformed(tmp_path):
    path = write(tmp_path / "f.jsonl", [OWN, OWN | {"id": "y"}, OWN, OWN | {"source": "other"}])
    records, report = load(path, "rlsys")
    # An id is unique within one source only: Reward Bench numbers each subset.
    assert [(record.source, record.id) for record in records] == [("s", "x"), ("s", "y"), ("other", "x")]
    assert "'x' again" in report.malformed[0][1] and report.malformed[0][0] == 3


def test_messages_about_a_row_are_encodable(tmp_path):
    """JSON may contain lone surrogates, also in keys and ids."""
    path = write(tmp_path / "a.jsonl", [{"\ud800": 1, "prompt": "q"}, {"id": "\udfff", "prompt": "q", "chosen": "a", "rejected": "b"}])
    aside = list(read_all(path, "trl_preference"))
    assert [one.id.encode() for one in aside] == [b"a:1", b"\\udfff"] and all(one.message.encode() for one in aside)


def test_records_survive_a_round_trip(tmp_path):
    expected = [record for _, _, records in GOOD for record in records if record.n]
    expected = [Record(**{**vars(record), "id": f"{record.id}-{i}"}) for i, record in enumerate(expected)]
    records, report = load(write(tmp_path / "f.jsonl", [record.to_json() for record in expected]), "rlsys")
    assert records == expected and [r.worked for r in records] == [r.worked for r in expected]
    assert report.malformed_count == 0


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOLD = 'Tool call: weather({"city": "Oslo"})'
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "3 C"}
SECOND_CALL = {"id": "c2", "name": "clock", "arguments": "{}"}
ANTHROPIC = [
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3 C"}]}]},
]

# (published messages, rendered roles and texts)
SPOKEN = [
    ([{"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT], [("assistant", TOLD), ("tool", "Result of weather: 3 C")]),
    ([{"role": "assistant", "content": None, "tool_calls": [CALL]}], [("assistant", TOLD)]),
    ([{"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}], [("assistant", f"Let me see.\n{TOLD}")]),
    (
        [
            {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
            {"role": "function", "name": "weather", "content": "3 C"},
        ],
        [("assistant", TOLD), ("tool", "Result of weather: 3 C")],
    ),
    (
        [{"role": "assistant", "tool_calls": [CALL, SECOND_CALL]}, {"role": "tool", "tool_call_id": "c2", "content": "noon"}, RESULT],
        [
            ("assistant", TOLD.replace("call", "call c1") + "\nTool call c2: clock()"),
            ("tool", "Result of clock (c2): noon"),
            ("tool", "Result of weather (c1): 3 C"),
        ],
    ),
    ([{"role": "tool", "tool_call_id": "lost", "content": "3 C"}], [("tool", "Result of (lost): 3 C")]),
    ([{"role": "assistant", "tool_calls": [{"name": "say", "arguments": "not JSON"}]}], [("assistant", "Tool call: say(not JSON)")]),
    (ANTHROPIC, [("assistant", f"Let me see.\n{TOLD}"), ("tool", "Result of weather: 3 C")]),
    (
        [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "input_text", "text": "?", "image": None}]}],
        [("user", "Q\n?")],
    ),
    ([{"role": "assistant", "content": None, "refusal": "No."}], [("assistant", "No.")]),
    (
        [
            {"from": "human", "value": "Q?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
            {"from": "observation", "value": "3 C"},
        ],
        [("user", "Q?"), ("assistant", TOLD), ("tool", "3 C")],
    ),
]


@pytest.mark.parametrize("messages, expected", SPOKEN)
def test_calls_results_and_parts_are_rendered(messages, expected):
    assert [(message["role"], message["content"]) for message in as_messages(messages, "prompt")] == expected


def test_an_answer_may_be_a_call_and_a_context_may_end_with_a_result(tmp_path):
    call = [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    other = [{"role": "assistant", "content": "It is warm."}]
    rows = [{"prompt": [USER], "chosen": call, "rejected": other}, {"prompt": [USER, *call, RESULT], "chosen": "3 C.", "rejected": other}]
    (first, second), report = load(write(tmp_path / "f.jsonl", rows), "trl_preference")
    assert first.responses == (TOLD, "It is warm.") and second.context[-1] == {"role": "tool", "content": "Result of weather: 3 C"}
    assert report.malformed_count == 0


OPENING = "\n\nHuman: Name a bird\n\nAssistant:"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "Which river?", "chosen": "It is the Po.", "rejected": "It is the Don."}, "columns={prompt: question}"),
        ({"userQuery": "Which river?", "chosen": "It is the Po.", "rejected": "It is the Don."}, "columns={prompt: userQuery}"),
        ({"chat": [USER], "chosen": "It is the Po.", "rejected": "It is the Don."}, "columns={prompt: chat}"),
        ({"chosen": f"{OPENING} A bird is a lark", "rejected": f"{OPENING} A bird is a spoon"}, "middle of the assistant's turn"),
        (
            {
                "chosen": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nIt is a",
                "rejected": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nIt is b",
            },
            "middle of",
        ),
        ({"chosen": "[INST] Q [/INST] It is a", "rejected": "[INST] Q [/INST] It is b"}, "middle of"),
        ({"chosen": "### Instruction: Q\n\n### Response: It is a", "rejected": "### Instruction: Q\n\n### Response: It is b"}, "middle of"),
        ({"chosen": "USER: Q\nASSISTANT: It is a", "rejected": "USER: Q\nASSISTANT: It is b"}, "middle of"),
    ],
)
def test_prompt_is_not_inferred_if_another_column_has_it_or_it_ends_in_an_answer(tmp_path, row, message):
    records, report = load(write(tmp_path / "f.jsonl", [row]), "trl_preference")
    assert not records and message in report.malformed[0][1]


@pytest.mark.parametrize(
    "opening",
    [
        "USER: Q ASSISTANT:",
        "<|user|>\nQ<|assistant|>\n",
        "<start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n",
        "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<\uff5cUser\uff5c>Q<\uff5cAssistant\uff5c>",
        "<user>Q</user><assistant>",
        "Q: why A:",
        "Customer: why\nAgent:",
        "SUBREDDIT: r/x\nPOST: long\nTL;DR:",
        "**User:** Q\n**Assistant:**",
    ],
)
def test_transcripts_that_diverge_inside_an_answer_are_rejected(tmp_path, opening):
    inside, before = ({"chosen": f"{opening} {more}one", "rejected": f"{opening} {more}two"} for more in ("it is ", ""))
    (record,), report = load(write(tmp_path / "f.jsonl", [inside, before]), "trl_preference")
    assert report.malformed_count == 1 and record.context[0]["content"] == opening.rstrip()


@pytest.mark.parametrize("prompt", ["Which, [A] red or [B] blue?", "See <a> and </a> in HTML.", "Title: Birds\nPost: They sing."])
def test_other_tags_and_labels_are_not_speakers(tmp_path, prompt):
    (record,), _ = load(write(tmp_path / "f.jsonl", [{"chosen": f"{prompt} one", "rejected": f"{prompt} two"}]), "trl_preference")
    assert record.context[0]["content"] == prompt


@pytest.mark.parametrize("more", [{}, {"source": "magpie"}, {"id": 3}, {"prompt_id": "ab12"}, {"score": 0.5}, {"question": None}])
def test_common_beginning_of_texts_is_the_prompt(tmp_path, more):
    row = {"chosen": f"{OPENING} lark", "rejected": f"{OPENING} spoon"} | more
    (record,), _ = load(write(tmp_path / "f.jsonl", [row]), "trl_preference")
    assert record.context == ({"role": "user", "content": OPENING},) and record.responses == (" lark", " spoon")


def test_missing_prompt_is_not_inferred(tmp_path):
    texts = {"chosen": "The river is long.", "rejected": "The river is short."}
    rows = [{key: value, **texts} for key, value in (("prompt", None), ("frage", "Wie lang?"), ("q", "2+2?"), ("\u95ee", "\u6cb3\u957f"))]
    assert load(write(tmp_path / "a.jsonl", rows), "trl_preference")[1].malformed_count == len(rows)
    records, report = load(write(tmp_path / "b.jsonl", [{"ask": "How?", **texts}, texts]), "trl_preference", columns={"prompt": "ask"})
    assert [record.context[0]["content"] for record in records] == ["How?"] and report.malformed_count == 1


@pytest.mark.parametrize("shown", [json.dumps, repr])
def test_messages_encoded_as_text_in_csv_are_decoded(tmp_path, shown):
    chosen, rejected = ([Q[0], assistant(word)] for word in ("yes, it's so", "no"))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], ["Q?", shown(chosen), shown(rejected)]])
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["chosen", "rejected"], [shown(chosen), shown(rejected)]])
    for name in ("a.csv", "b.csv"):
        (record,), _ = load(tmp_path / name, "trl_preference")
        assert (record.context, record.responses) == (({"role": "user", "content": Q[0]["content"]},), ("yes, it's so", "no"))


def test_undecodable_messages_are_malformed_and_other_lists_are_text(tmp_path):
    numpys = "[{'role': 'user', 'content': 'Q?'}\n {'role': 'assistant', 'content': 'no'}]"
    rows = [{"prompt": "Q?", "chosen": numpys, "rejected": "b"}, {"prompt": "Q?", "chosen": '[{"content": 1}]', "rejected": "b"}]
    records, report = load(write(tmp_path / "a.jsonl", rows), "trl_preference")
    assert [record.responses[0] for record in records] == ['[{"content": 1}]'] and "text with messages" in report.malformed[0][1]


def test_renamed_columns(tmp_path):
    rows = [{"question": "Q?", "prompt": "ignored", "answers": {"best": "one"}, "answers.worst": "two"}] * 2
    path, columns = write(tmp_path / "f.jsonl", rows), {"prompt": "question", "chosen": "answers.best", "rejected": "answers.worst"}
    records, report = load(path, "trl_preference", columns=columns)
    assert records == [pair("trl_preference", FIRST), pair("trl_preference", FIRST, id="f:2")]
    file = RecordFile(path, "trl_preference", columns=columns)
    assert list(file) == records and [one for (one,) in file.fetch([0, 1])] == records
    _, report = load(path, "trl_preference", columns=columns | {"promt": "question"})
    assert report.malformed_count == 2 and "keys of the format, found promt" in report.malformed[0][1]
    _, report = load(path, "trl_preference", columns=columns | {"chosen": "answers.first"})
    assert report.malformed_count == 2 and "chosen" in report.malformed[0][1]


@pytest.mark.parametrize("format", READERS)
def test_format_is_suggested_by_the_rows(format):
    row = ROWS[format]
    found = formats_of([row] * 3)
    same = {"llmbar": "llmbar", "skywork": "skywork"}.get(format, format)
    # Formats with the same layout are indistinguishable.
    twins = {"skywork": "trl_preference", "rmb_pair": "rmb_pair"}
    assert same in found or twins.get(format) in found


def test_mistyped_format_is_suggested_by_rows_and_name(tmp_path):
    path = write(tmp_path / "f.jsonl", [ROWS["nectar"]])
    with pytest.raises(DataError, match="'ranked'. Did you mean nectar"):
        read(path, "ranked")
    with pytest.raises(DataError, match="none of the 1 rows is usable as llmbar.*Formats that read them: nectar"):
        RecordFile(path, "llmbar")


def test_max_unusable_limits_malformed_rows(tmp_path):
    path = write(tmp_path / "f.jsonl", [OWN, {}, {}, OWN | {"id": "y", "rewards": [1, 1]}])
    file = RecordFile(path, "rlsys", max_unusable=0.5)  # a tie is no fault of the file
    assert file.report.unusable == 0.5
    with pytest.raises(DataError, match="2 of the first 4 rows are malformed as rlsys.*max_unusable=0.4.*row 2"):
        RecordFile(path, "rlsys", max_unusable=0.4)


# Fuzzing: for any content, the only outcomes are records, counted ties and counted malformed rows.

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
    """A good row with some values, at any depth, replaced by other JSON or removed."""
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
        assert record.context[-1]["role"] in ("user", "tool")
        assert len(record.responses) == len(record.rewards) >= (format != "prompts")
        assert all(isinstance(text, str) for text in record.responses)
        assert all(math.isfinite(reward) for reward in record.rewards)
        assert format == "prompts" or record.rewards.count(max(record.rewards)) == 1
        json.dumps(record.to_json(), ensure_ascii=False).encode()
    if records:
        file = RecordFile(path, format)
        assert list(file) == records and len(file) == count
        # Random access does not compare ids: duplicates that streaming sets aside are records here.
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
    assert_settled(tmp_path / "f.jsonl", format, sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in whole.split(b"\n")))

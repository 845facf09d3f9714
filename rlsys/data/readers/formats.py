"""Readers, one small function per format: a row of the file in, its records out (docs/method.md, section 7).

A reader takes a `Row` and returns a list of records, usually one. It raises `DataError` if the row violates the format; the invariants of
all records (a unique best, finite rewards, ...) are left to `fields.check`. The chosen response comes first wherever a format has one;
the presentation order is shuffled later.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rlsys.data.readers.dialogues import prompt_of, replies, reply, split, split_messages, split_texts, transcript
from rlsys.data.readers.fields import (
    DataError,
    Row,
    as_boolean,
    as_integer,
    as_list,
    as_number,
    as_object,
    as_text,
    boolean,
    checks_of,
    choice,
    integer,
    items,
    number,
    optional_text,
    required,
    row_id,
    text,
    wrong,
)
from rlsys.data.readers.messages import Messages, as_messages, ask, conversation, read_back
from rlsys.data.records import NoUniqueBest, Record

FIRST, SECOND, TIE = (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)
"""Rewards of a pair."""


def rlsys(row: Row) -> list[Record]:
    """The project's own JSON records, as `Record.to_json` writes them; `id` and `source` may be missing."""
    count = len(items(row, "responses"))
    for position, response in enumerate(row["responses"]):
        as_text(response, f"responses[{position}]", blank=True)
    rewards = [as_number(reward, f"rewards[{position}]") for position, reward in enumerate(items(row, "rewards"))]
    strength = None if row.get("strength") is None else number(row, "strength")
    keys = dict(row, id=row_id(row, "id"), context=as_messages(row.get("context"), "context"), rewards=rewards, strength=strength)
    keys["source"] = optional_text(row, "source") or "rlsys"
    keys |= {key: optional_text(row, key) for key in ("reference", "family")}
    keys["checks"] = checks_of(row)
    keys["labelled"] = True if row.get("labelled") is None else boolean(row, "labelled")
    if row.get("worked") is not None:
        worked = as_object(row["worked"], "worked")
        text(worked, "criteria", "worked.")
        for key in ("notes", "scores"):
            if len(as_list(worked.get(key), f"worked.{key}")) != count:
                raise wrong(f"worked.{key}", f"one for each of the {count} responses", worked[key])
        for position, (note, score) in enumerate(zip(worked["notes"], worked["scores"], strict=True)):
            as_text(note, f"worked.notes[{position}]")
            as_integer(score, f"worked.scores[{position}]", *((0, 1) if count == 1 else (1, 10)))
    return [Record.from_json(keys)]


def responses(row: Row) -> list[Record]:
    """Responses without ground truth, to be judged: prompt or context (messages or text), responses. All rewards are 0."""
    items(row, "responses")
    context = prompt_of(row, "context" if row.get("context") is not None else "prompt")
    found = replies(row, "responses", context)
    return [Record(row_id(row, "id"), "responses", context, found, (0.0,) * len(found), labelled=False)]


def prompts(row: Row) -> list[Record]:
    """Prompts without responses: prompt, context or messages (text or messages), and checks if a program can check the answer. An
    assistant's turn at the end of messages is left out.
    """
    key = next((key for key in ("prompt", "context", "messages") if row.get(key) is not None), "prompt")
    context = prompt_of(row, key)
    if key == "messages" and context[-1]["role"] == "assistant":
        context = context[:-1]
    family = optional_text(row, "family")
    return [Record(row_id(row, "id"), "prompts", context, (), (), family=family, checks=checks_of(row), labelled=False)]


def trl_preference(row: Row) -> list[Record]:
    """TRL preference: prompt, chosen, rejected; texts or message lists. Without a prompt: the common beginning of chosen and rejected.

    Either side may be a list of responses: each chosen one is compared with all the rejected ones, in its own record (ids `id/0`, ...
    if there are several). `system` and `history` precede the prompt. TRL reads no scores: score_chosen and score_rejected, which some
    data sets have, only refuse a row that they contradict.
    """
    scores = row.get("score_chosen"), row.get("score_rejected")
    if all(isinstance(score, int | float | Decimal) for score in scores) and scores[0] < scores[1]:
        raise wrong("score_chosen", f"at least score_rejected ({scores[1]:g})", scores[0])
    if row.get("prompt") is not None:
        context = prompt_of(row)
        chosen, rejected = replies(row, "chosen", context), replies(row, "rejected", context)
    elif all(isinstance(read_back(row.get(key), key), str) for key in ("chosen", "rejected")):
        context, *sides = split_texts(row)
        chosen, rejected = (sides[0],), (sides[1],)
    else:
        context, chosen, rejected = split_messages(row)
    return each_against(row_id(row, "id"), "trl_preference", context, chosen, rejected)


def trl_unpaired(row: Row) -> list[Record]:
    """TRL unpaired preference: prompt, completion, label (boolean); a single response with reward 1 or 0."""
    context = prompt_of(row)
    label = boolean(row, "label")
    return [Record(row_id(row, "id"), "trl_unpaired", context, (reply(row, "completion", context),), (float(label),))]


def hh_rlhf(row: Row) -> list[Record]:
    """HH-RLHF: chosen and rejected, whole transcripts. Their common beginning is the context, mostly all but the last assistant turn."""
    context, (chosen, rejected) = split([transcript(row, key) for key in ("chosen", "rejected")], ("chosen", "rejected"))
    return [Record(row_id(row, "id"), "hh_rlhf", context, (chosen, rejected), FIRST)]


def ultrafeedback(row: Row) -> list[Record]:
    """UltraFeedback: instruction, completions[].response and .overall_score.

    A completion whose score is NaN or null is dropped and counted (`Row.dropped`); the others can still be compared. With fewer than two
    scores there is no unique best.
    """
    responses, rewards = [], []
    for position, entry in enumerate(items(row, "completions")):
        where = f"completions[{position}]"
        completion = as_object(entry, where)
        score = completion.get("overall_score")
        if "overall_score" not in completion:
            raise DataError(f"{where}.overall_score: expected a number, found nothing.", key=f"{where}.overall_score")
        if score is None or (isinstance(score, (float, Decimal)) and math.isnan(score)):
            row.dropped += 1
            continue
        rewards.append(as_number(score, f"{where}.overall_score"))
        responses.append(text(completion, "response", f"{where}.", blank=True))
    context = ask(text(row, "instruction"))
    if len(responses) < 2:
        raise NoUniqueBest(f"{row.name}: {len(responses)} of {len(row['completions'])} completions have a score.")
    family = optional_text(row, "source")
    return [Record(row_id(row, "id"), "ultrafeedback", context, tuple(responses), tuple(rewards), family=family)]


def ultrafeedback_binarized(row: Row) -> list[Record]:
    """UltraFeedback binarized: prompt, chosen, rejected, score_chosen, score_rejected. `prompt_id` identifies the prompt, not the row."""
    context = conversation(row, "prompt")
    rewards = number(row, "score_chosen"), number(row, "score_rejected")
    if rewards[0] < rewards[1]:
        raise wrong("score_chosen", f"at least score_rejected ({rewards[1]:g})", rewards[0])
    responses = reply(row, "chosen", context), reply(row, "rejected", context)
    return [Record(row_id(row, "id"), "ultrafeedback_binarized", context, responses, rewards, strength=rewards[0] - rewards[1])]


def helpsteer2(row: Row) -> list[Record]:
    """HelpSteer2 preference: prompt, response_1, response_2, preference_strength -3..3 (> 0 means response_2, 0 is a tie)."""
    strength = integer(row, "preference_strength", -3, 3)
    # Several turns are in one text, separated by NeMo's turn markers; the first turn is the user's and has none.
    parts = re.split(r"\n?<extra_id_1>(User|Assistant)\n", text(row, "prompt"))
    roles = ["user"] + [role.lower() for role in parts[1::2]]
    context = tuple({"role": role, "content": content} for role, content in zip(roles, parts[::2], strict=True))
    responses = text(row, "response_1", blank=True), text(row, "response_2", blank=True)
    return [Record(row_id(row, "id"), "helpsteer2", context, responses, _signed(strength), strength=float(abs(strength)))]


def helpsteer3(row: Row) -> list[Record]:
    """HelpSteer3 preference: context, response1, response2, overall_preference -3..3 (< 0 means response1)."""
    strength = integer(row, "overall_preference", -3, 3)
    responses = text(row, "response1", blank=True), text(row, "response2", blank=True)
    context, family = conversation(row, "context"), optional_text(row, "domain")
    return [Record(row_id(row, "id"), "helpsteer3", context, responses, _signed(strength), strength=float(abs(strength)), family=family)]


def offsetbias(row: Row) -> list[Record]:
    """OffsetBias: instruction, output_1, output_2, label 1|2."""
    return _labelled(row, "offsetbias", "instruction")


def llmbar(row: Row) -> list[Record]:
    """LLMBar: input, output_1, output_2, label 1|2."""
    return _labelled(row, "llmbar", "input")


def skywork(row: Row) -> list[Record]:
    """Skywork preference v0.2: chosen and rejected as message lists that share all turns but the last."""
    context, chosen, rejected = split_messages(row)
    return each_against(row_id(row, "id"), "skywork", context, chosen, rejected, family=optional_text(row, "source"))


def rewardbench(row: Row) -> list[Record]:
    """Reward Bench: id, prompt, chosen, rejected, subset. The subset is the source, as ids are unique within a subset."""
    context, subset = conversation(row, "prompt"), text(row, "subset")
    responses = reply(row, "chosen", context), reply(row, "rejected", context)
    return [Record(row_id(row, "id"), subset, context, responses, FIRST, family=subset)]


def rewardbench2(row: Row) -> list[Record]:
    """Reward Bench 2: prompt, chosen [..], rejected [..], num_correct, subset.

    Several chosen responses (the Ties subset) have no unique best, so Eq. 10 is applied to each: one record per chosen response, against
    all the rejected ones, with ids `id/0`, `id/1`, ...
    """
    context, subset, name = conversation(row, "prompt"), text(row, "subset"), row_id(row, "id")
    chosen = [as_text(value, f"chosen[{position}]", blank=True) for position, value in enumerate(items(row, "chosen"))]
    rejected = [as_text(value, f"rejected[{position}]", blank=True) for position, value in enumerate(items(row, "rejected"))]
    if row.get("num_correct") is not None and integer(row, "num_correct", 1, len(chosen)) != len(chosen):
        raise wrong("num_correct", f"the number of chosen responses ({len(chosen)})", row["num_correct"])
    return each_against(name, subset, context, chosen, rejected, family=subset)


def rmb_pair(row: Row) -> list[Record]:
    """RMB pairwise: conversation_input, chosen.answer, reject.answer (the key is `reject`)."""
    responses = _answer(row, "chosen"), _answer(row, "reject")
    context, family = conversation(row, "conversation_input"), optional_text(row, "category_path")
    return [Record(row_id(row, "id", "pair_uid"), "rmb_pair", context, responses, FIRST, family=family)]


def rmb_bon(row: Row) -> list[Record]:
    """RMB best-of-N: bon_best.answer and loser_list[].answer, all of them in one record."""
    losers = [_text_of(as_object(value, f"loser_list[{i}]"), f"loser_list[{i}].") for i, value in enumerate(items(row, "loser_list"))]
    responses = (_answer(row, "bon_best"), *losers)
    context, family = conversation(row, "conversation_input"), optional_text(row, "category_path")
    return [Record(row_id(row, "id", "bon_uid"), "rmb_bon", context, responses, (1.0,) + (0.0,) * len(losers), family=family)]


def ppe_preference(row: Row) -> list[Record]:
    """PPE human preference: prompt, response_1, response_2, winner (model_a, model_b, or a tie: "tie", "tie (bothbad)")."""
    winner = text(row, "winner")
    if winner not in ("model_a", "model_b") and not winner.startswith("tie"):
        raise wrong("winner", '"model_a", "model_b" or a tie', winner)
    responses = text(row, "response_1", blank=True), text(row, "response_2", blank=True)
    rewards = {"model_a": FIRST, "model_b": SECOND}.get(winner, TIE)
    return [Record(row_id(row, "id", "question_id"), "ppe_preference", conversation(row, "prompt"), responses, rewards)]


def ppe_best_of_k(row: Row) -> list[Record]:
    """PPE best-of-K: response_1..response_K, scores (K booleans), sampled_conflict_pairs.

    One record per sampled pair, in the pair's own order, with id `id/0`, `id/1`, ...; pairs are 0-based, columns 1-based.
    """
    context, name, scores = conversation(row, "prompt"), row_id(row, "id", "question_id"), list(items(row, "scores"))
    records = []
    for position, entry in enumerate(items(row, "sampled_conflict_pairs")):
        where = f"sampled_conflict_pairs[{position}]"
        pair = [as_integer(index, where, 0, len(scores) - 1) for index in as_list(entry, where)]
        if len(pair) != 2:
            raise wrong(where, "two indices", entry)
        for index in pair:
            scores[index] = as_boolean(scores[index], f"scores[{index}]")
        first, second = pair
        responses = text(row, f"response_{first + 1}", blank=True), text(row, f"response_{second + 1}", blank=True)
        records.append(Record(f"{name}/{position}", "ppe_best_of_k", context, responses, (float(scores[first]), float(scores[second]))))
    return records


def judgebench(row: Row) -> list[Record]:
    """JudgeBench: question, response_A, response_B, label "A>B" | "B>A"."""
    rewards = FIRST if choice(row, "label", ("A>B", "B>A")) == "A>B" else SECOND
    responses = text(row, "response_A", blank=True), text(row, "response_B", blank=True)
    context, family = conversation(row, "question"), optional_text(row, "source")
    return [Record(row_id(row, "id", "pair_id"), "judgebench", context, responses, rewards, family=family)]


def realmistake(row: Row) -> list[Record]:
    """ReaLMistake: input, llm_response, error_label or label ("error" | "no_error", or true for an error); reward 1 for NO error."""
    key = "error_label" if row.get("error_label") is not None else "label"
    named = row.get(key) in ("error", "no_error")
    error = row[key] == "error" if named else boolean(row, key, '"error", "no_error" or a boolean')
    response = text(row, "llm_response", blank=True)
    return [Record(row_id(row, "id"), "realmistake", ask(text(row, "input")), (response,), (float(not error),))]


def pandalm(row: Row) -> list[Record]:
    """PandaLM: instruction, input (may be blank), response1, response2, annotator1..3 (0 tie, 1, 2); decided by at least two of the three.

    A majority for a tie or three different votes yield no unique best. The strength is the number of votes (2 or 3).
    """
    vote, count = Counter(integer(row, f"annotator{k}", 0, 2) for k in (1, 2, 3)).most_common(1)[0]
    rewards = {1: FIRST, 2: SECOND}.get(vote, TIE) if count >= 2 else TIE
    query = "\n\n".join(part for part in (text(row, key, blank=True) for key in ("instruction", "input")) if part.strip())
    responses = text(row, "response1", blank=True), text(row, "response2", blank=True)
    return [Record(row_id(row, "id", "idx"), "pandalm", ask(as_text(query, "instruction")), responses, rewards, strength=float(count))]


def each_against(
    name: str, source: str, context: Messages, chosen: Sequence[str], rejected: Sequence[str], family: str | None = None
) -> list[Record]:
    """Return a record per chosen response, against all the rejected ones (Eq. 10 needs one best); ids `name/0`, ... if several."""
    names = [name] if len(chosen) == 1 else [f"{name}/{position}" for position in range(len(chosen))]
    rewards = (1.0,) + (0.0,) * len(rejected)
    return [Record(key, source, context, (best, *rejected), rewards, family=family) for key, best in zip(names, chosen, strict=True)]


def _signed(strength: int) -> tuple[float, float]:
    return SECOND if strength > 0 else FIRST if strength < 0 else TIE


def _labelled(row: Row, source: str, query: str) -> list[Record]:
    rewards = FIRST if integer(row, "label", 1, 2) == 1 else SECOND
    responses = text(row, "output_1", blank=True), text(row, "output_2", blank=True)
    return [Record(row_id(row, "id"), source, ask(text(row, query)), responses, rewards)]


def _answer(row: Row, key: str) -> str:
    return _text_of(as_object(required(row, key, "an object with an answer"), key), f"{key}.")


def _text_of(answer: dict[str, Any], prefix: str) -> str:
    return text(answer, "answer", prefix, blank=True)

"""Readers of published datasets and benchmarks, each in its published layout."""

from __future__ import annotations

from rlsys.data.readers.dialogues import transcript_to_answer
from rlsys.data.readers.fields import (
    Row,
    as_integer,
    as_number,
    as_object,
    as_text,
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
from rlsys.data.readers.formats import FIRST, SECOND, TIE, each_against
from rlsys.data.readers.messages import Messages, ask, conversation
from rlsys.data.records import NoUniqueBest, Record


def auto_j(row: Row) -> list[Record]:
    """Auto-J's pairwise test set: prompt, `response 1`, `response 2`, label 0 (the first), 1 (the second) or 2 (a tie), scenario."""
    rewards = (FIRST, SECOND, TIE)[integer(row, "label", 0, 2)]
    responses = text(row, "response 1", blank=True), text(row, "response 2", blank=True)
    return [Record(row_id(row, "id"), "auto_j", conversation(row, "prompt"), responses, rewards, family=optional_text(row, "scenario"))]


def alpaca_eval(row: Row) -> list[Record]:
    """AlpacaEval annotations: instruction, input?, output_1, output_2, preference 1.0 (the first) .. 2.0 (the second), 1.5 or 0 a tie."""
    preference = number(row, "preference")
    if preference and not 1 <= preference <= 2:
        raise wrong("preference", "1.0 .. 2.0, or 0 for a tie", row["preference"])
    margin = preference - 1.5 if preference else 0.0
    query = "\n\n".join(part for part in (text(row, "instruction", blank=True), optional_text(row, "input")) if part)
    responses = text(row, "output_1", blank=True), text(row, "output_2", blank=True)
    rewards, family = SECOND if margin > 0 else FIRST if margin < 0 else TIE, optional_text(row, "dataset")
    context = ask(as_text(query, "instruction"))
    return [Record(row_id(row, "id"), "alpaca_eval", context, responses, rewards, strength=abs(margin), family=family)]


def shp(row: Row) -> list[Record]:
    """Stanford Human Preferences: history, human_ref_A, human_ref_B, labels (1: A is preferred, 0: B), score_ratio, domain."""
    rewards = FIRST if integer(row, "labels", 0, 1) else SECOND
    responses = text(row, "human_ref_A", blank=True), text(row, "human_ref_B", blank=True)
    strength = None if row.get("score_ratio") is None else number(row, "score_ratio")
    context, family = ask(text(row, "history")), optional_text(row, "domain")
    return [Record(row_id(row, "id"), "shp", context, responses, rewards, strength=strength, family=family)]


def pku_saferlhf(row: Row) -> list[Record]:
    """PKU-SafeRLHF by helpfulness: prompt, response_0, response_1, better_response_id 0|1."""
    return _pku(row, "pku_saferlhf", "better_response_id")


def pku_saferlhf_safer(row: Row) -> list[Record]:
    """PKU-SafeRLHF by harmlessness: prompt, response_0, response_1, safer_response_id 0|1."""
    return _pku(row, "pku_saferlhf_safer", "safer_response_id")


def summarize_from_feedback(row: Row) -> list[Record]:
    """OpenAI's summarize-from-feedback, comparisons: info.post or .article (.title, .subreddit), summaries [2] .text, choice 0|1.

    The dataset has a post but no query: the query asks for a summary of it.
    """
    info = as_object(required(row, "info", "an object with a post"), "info")
    rewards = SECOND if integer(row, "choice", 0, 1) else FIRST
    summaries = [
        text(as_object(value, f"summaries[{i}]"), "text", f"summaries[{i}].", blank=True) for i, value in enumerate(items(row, "summaries"))
    ]
    if len(summaries) != 2:
        raise wrong("summaries", "two", row["summaries"])
    kind = "post" if info.get("post") is not None else "article"
    title = optional_text(info, "title")
    query = "\n\n".join([f"Summarize this {kind}.", *([f"Title: {title}"] if title else []), text(info, kind, "info.")])
    family = optional_text(info, "subreddit") or optional_text(info, "site")
    return [Record(row_id(row, "id"), "summarize_from_feedback", ask(query), tuple(summaries), rewards, family=family)]


def webgpt(row: Row) -> list[Record]:
    """OpenAI's WebGPT comparisons: question.full_text (.dataset), answer_0, answer_1, score_0, score_1 (-1..1, both 0 for a tie)."""
    question = as_object(required(row, "question", "an object with full_text"), "question")
    rewards = number(row, "score_0"), number(row, "score_1")
    responses = text(row, "answer_0", blank=True), text(row, "answer_1", blank=True)
    context, family = ask(text(question, "full_text", "question.")), optional_text(question, "dataset")
    return [Record(row_id(row, "id"), "webgpt", context, responses, rewards, strength=abs(rewards[0] - rewards[1]), family=family)]


def nectar(row: Row) -> list[Record]:
    r"""Nectar: prompt ("\n\nHuman: ... \n\nAssistant: "), answers[].answer and .rank (1 is the best); rewards are the ranks, negated."""
    responses, rewards = [], []
    for position, entry in enumerate(items(row, "answers")):
        where = f"answers[{position}]"
        answer = as_object(entry, where)
        responses.append(text(answer, "answer", f"{where}.", blank=True))
        rewards.append(-as_number(required(answer, "rank", "a rank", f"{where}."), f"{where}.rank"))
    context = transcript_to_answer(row, "prompt")
    return [Record(row_id(row, "id"), "nectar", context, tuple(responses), tuple(rewards), family=_family(row, "source"))]


def prometheus(row: Row) -> list[Record]:
    """Prometheus' Feedback Collection and Bench (orig_response, orig_score 1..5), Preference Collection and Bench (orig_response_A and _B,
    orig_preference "A" | "B"): orig_instruction, orig_criteria?, orig_reference_answer?. Ratings are converted by `rated`.
    """
    context = ask(_with_criteria(text(row, "orig_instruction"), optional_text(row, "orig_criteria")))
    reference = optional_text(row, "orig_reference_answer")
    if row.get("orig_preference") is None:
        score = integer(row, "orig_score", 1, 5)
        return [rated(row_id(row, "id"), "prometheus", context, text(row, "orig_response", blank=True), score, reference)]
    rewards = FIRST if choice(row, "orig_preference", ("A", "B")) == "A" else SECOND
    responses = text(row, "orig_response_A", blank=True), text(row, "orig_response_B", blank=True)
    scores = [as_integer(row[key], key, 1, 5) for key in ("orig_score_A", "orig_score_B") if row.get(key) is not None]
    strength = float(abs(scores[0] - scores[1])) if len(scores) == 2 else None
    return [Record(row_id(row, "id"), "prometheus", context, responses, rewards, strength, reference)]


def biggen(row: Row) -> list[Record]:
    """BiGGen Bench results: input, system_prompt?, response, human_score 1..5 (or another judge's, by `data.columns`),
    score_rubric.criteria?, reference_answer?, capability?. Ratings are converted by `rated`; `id` identifies the question, not the row.
    """
    rubric = row.get("score_rubric")
    criteria = optional_text(rubric, "criteria") if isinstance(rubric, dict) else None
    context, system = ask(_with_criteria(text(row, "input"), criteria)), optional_text(row, "system_prompt")
    if system:
        context = ({"role": "system", "content": system}, *context)
    score, family = integer(row, "human_score", 1, 5), optional_text(row, "capability")
    reference = optional_text(row, "reference_answer")
    return [rated(row_id(row), "biggen", context, text(row, "response", blank=True), score, reference, family)]


def evalbiasbench(row: Row) -> list[Record]:
    """EvalBiasBench, OffsetBias' own benchmark ({bias: [rows]}): instruction, response1, response2, label 1|2; the bias is the family."""
    rewards = FIRST if integer(row, "label", 1, 2) == 1 else SECOND
    responses = text(row, "response1", blank=True), text(row, "response2", blank=True)
    family = optional_text(row, "group")
    # Row numbers restart in each bias.
    return [Record(row_id(row, "id"), family or "evalbiasbench", ask(text(row, "instruction")), responses, rewards, family=family)]


def rm_bench(row: Row) -> list[Record]:
    """RM-Bench: id, prompt, chosen [3], rejected [3] (concise, detailed, detailed with markdown), domain.

    One record per chosen response, against all the rejected ones; the benchmark `rm_bench` scores the matrix of pairs.
    """
    chosen, rejected = (
        [as_text(value, f"{key}[{i}]", blank=True) for i, value in enumerate(items(row, key))] for key in ("chosen", "rejected")
    )
    return each_against(row_id(row, "id"), "rm_bench", conversation(row, "prompt"), chosen, rejected, family=text(row, "domain"))


def hhh_alignment(row: Row) -> list[Record]:
    """HHH alignment: input, targets.choices [2] and targets.labels (1 for the best)."""
    targets = as_object(required(row, "targets", "an object with choices and labels"), "targets")
    choices = [as_text(value, f"targets.choices[{i}]", blank=True) for i, value in enumerate(items(targets, "choices"))]
    labels = [float(as_integer(value, f"targets.labels[{i}]", 0, 1)) for i, value in enumerate(items(targets, "labels"))]
    return [Record(row_id(row, "id"), "hhh_alignment", ask(text(row, "input")), tuple(choices), tuple(labels))]


def rated(
    name: str, source: str, context: Messages, response: str, score: int, reference: str | None = None, family: str | None = None
) -> Record:
    """Return a single-response record of a rating 1..5: reward 1 for 4 and 5, 0 for 1 and 2; the strength is the distance from 3.

    Raises:
        NoUniqueBest: the rating is 3.
    """
    if score == 3:
        raise NoUniqueBest(f"{name}: a rating of 3 is neither good nor bad.")
    return Record(name, source, context, (response,), (float(score > 3),), float(abs(score - 3)), reference, family)


def _pku(row: Row, source: str, key: str) -> list[Record]:
    rewards = SECOND if integer(row, key, 0, 1) else FIRST
    responses = text(row, "response_0", blank=True), text(row, "response_1", blank=True)
    return [Record(row_id(row, "id"), source, conversation(row, "prompt"), responses, rewards)]


def _with_criteria(query: str, criteria: str | None) -> str:
    return f"{query}\n\n(Answers are judged by this: {criteria})" if criteria else query


def _family(row: Row, key: str) -> str | None:
    """Return a family given as text or as a list of texts."""
    value = row.get(key)
    return ", ".join(map(str, value)) or None if isinstance(value, list) else optional_text(row, key)

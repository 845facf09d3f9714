"""Thoughts: scores in them do not count, in the spellings of all supported families."""

from __future__ import annotations

import pytest

from rlsys.rewards.extraction import ScoreFormat, extract
from rlsys.rewards.thoughts import closing_mark, has_end, open_mark

SPELLINGS = [
    ("<think>", "</think>"),
    ("<Thinking >", "</ thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought_process>", "</thought_process>"),
    ("<inner-monologue>", "</inner-monologue>"),
    ("<CoT>", "</CoT>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("< think >", "< / think >"),
    ("<think type='draft'>", "</think>"),
    ("<antThinking>", "</antThinking>"),
    ("<|think|>", "<|/think|>"),
    ("<|thinking_start|>", "<|thinking_end|>"),
    ("<|begin_of_thinking|>", "<|end_of_thinking|>"),
    ("<\uff5cbegin\u2581of\u2581thought\uff5c>", "<\uff5cend\u2581of\u2581thought\uff5c>"),
]


@pytest.mark.parametrize(("begin", "end"), SPELLINGS)
def test_scores_in_a_thought_do_not_count(begin: str, end: str) -> None:
    draft, verdict = "perhaps \\boxed{9, 3}", "Scores: \\boxed{2, 8}"
    assert extract(f"{begin}{draft}, but", 2, 1, 10).failure == "unfinished_thought"
    assert extract(f"So: {verdict} {begin}{draft}", 2, 1, 10).failure == "unfinished_thought"
    assert extract(f"{begin}{draft}{end}I cannot tell.", 2, 1, 10).failure == "no_box"
    assert extract(f"{draft}{end}I cannot tell.", 2, 1, 10).failure == "no_box"  # the prompt began the thought
    assert extract(f"{begin}{draft}{end}{verdict}", 2, 1, 10).scores == (2, 8)
    assert extract(f"{begin}{draft}{end}{begin}{draft}{end}{verdict}", 2, 1, 10).scores == (2, 8)
    assert extract(f"{begin}{draft}{end}{begin}{verdict}", 2, 1, 10).failure == "unfinished_thought"


@pytest.mark.parametrize(("begin", "end"), SPELLINGS)
def test_a_thought_opened_by_the_prompt_must_be_closed(begin: str, end: str) -> None:
    assert open_mark(f"...assistant\n{begin}\n").startswith(begin.split("<|message|>")[0].strip())
    assert open_mark(f"...assistant\n{begin}\n\n{end}\n\n") == open_mark("...assistant\n") == ""
    score_format = ScoreFormat(thought=open_mark(begin))
    assert score_format.extract("\\boxed{9, 3}", 2).failure == "unfinished_thought"
    assert score_format.extract(f"\\boxed{{9, 3}}{end}\\boxed{{2, 8}}", 2).scores == (2, 8)


@pytest.mark.parametrize(("begin", "end"), SPELLINGS)
def test_the_closing_mark_closes_a_thought(begin: str, end: str) -> None:
    assert has_end(closing_mark(open_mark(begin)))


@pytest.mark.parametrize("text", ["I think <b>so</b>", "a[thinking] < 3", "</thin>", "<thinker>", "think", "<unused9>"])
def test_ordinary_text_is_not_a_thought(text: str) -> None:
    assert extract(f"{text} \\boxed{{9, 3}}", 2, 1, 10).scores == (9, 3) or text == "a[thinking] < 3"

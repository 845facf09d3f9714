r"""From a record to the tokens that the policy sees, and from a teacher's judgement to the completion it should write.

The wording is a Jinja file (rlsys/prompts/templates, or a user's own); everything goes into one user turn of the model's chat
template. Conversation and responses are material, never instructions: before they enter the prompt, whatever in them
could end a section, open another, or pass for a score is *defused*, by a visible dot after its first character:
`<|im_end|>` -> `<·|im_end|>`, `\boxed{9}` -> `\·boxed{9}`, `[End of Response 1]` -> `[·End of Response 1]`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlsys.config.schema import Prompt
from rlsys.data.records import Record
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.defusing import Defuser, mark_pattern
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.rewards.rules import check_order

TEMPLATES = Path(__file__).parent / "templates"


class PromptError(ValueError):
    """A template or tokenizer that cannot be used; the message names the file, the fault and what is expected."""


def template_source(template: str) -> str:
    """The text of a template by its name, or by the path of its file.

    Raises:
        PromptError: there is none, or it cannot be read; the message says which ones there are.
    """
    named = re.fullmatch(r"\w+", template)
    path = TEMPLATES / f"{template}.jinja" if named else Path(template)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))
        meant = difflib.get_close_matches(path.stem.strip(), known, n=1)
        if isinstance(error, FileNotFoundError):
            told = "there is none of that name." if named else "there is no such file."
            told += f" Did you mean {meant[0]}?" if meant else ""
        elif isinstance(error, OSError):
            told = f"cannot be read ({error.strerror})."
        else:
            told = "is not UTF-8 text."
        raise PromptError(f"template {template}: {told} Name one of {', '.join(known)}, or the path of a text file.") from error


class Prompter:
    """Renders records through one template and one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        template: name of a file in rlsys/prompts/templates (`pointwise`, `compact`), or path of one's own. It is given messages
            (dicts of role and content), responses (as shown), n, low, high, principles, and sets `marks` (see pointwise.jinja).
        score_format: the scores that are asked for, and how they are read; what the end of the prompt begins is found here.
        principles: ask for criteria before the analysis.
        template_args: what the chat template is given besides the conversation.

    Raises:
        PromptError: no such template; it does not compile or uses what it is not given; its marks are missing, or do not
            enclose every response once; or the tokenizer has no chat template that can be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "pointwise",
        score_format: ScoreFormat = DEFAULT_FORMAT,
        principles: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.principles = tokenizer, principles
        try:
            self.chat = Chat(tokenizer, template_args)
        except ChatError as error:
            raise PromptError(str(error)) from error
        self.score_format = replace(score_format, thought=self.chat.thought)
        self.name, source = str(template), template_source(template)
        # The sandbox: a downloaded template may format text, and do nothing else.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise PromptError(f"template {template}, line {error.lineno}: {error.message}") from error
        marks = self._read_marks()
        try:
            self.defuse = Defuser(marks, self.chat)
        except ValueError as error:
            raise PromptError(f"template {template}: {error}") from error
        self._check_marks()

    @classmethod
    def from_config(cls, tokenizer: Any, prompt: Prompt) -> Prompter:
        """The one that a run's settings ask for."""
        return cls(tokenizer, prompt.template, ScoreFormat(**prompt.scores.model_dump()), prompt.principles, prompt.chat_template_args)

    def render(self, record: Record, order: Sequence[int], hint: str = "") -> str:
        """The whole prompt as text, up to where the model's answer begins.

        Args:
            order: order[p] is the index of the response at place p.
            hint: what the model is told at the end of the user turn (`hint_for`, `other_judgements`).
        """
        return self.chat.render([{"role": "user", "content": self.user_turn(record, order) + (f"\n\n{hint}" if hint else "")}])

    def tokens(self, record: Record, order: Sequence[int]) -> list[int]:
        """Token ids of `render`."""
        return self.encode(self.render(record, order))

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a rendered prompt. The chat template has written all special tokens that belong there, so none is added."""
        return self.chat.encode(prompt)

    def user_turn(self, record: Record, order: Sequence[int]) -> str:
        """The template filled with defused content, without the chat template around it.

        Raises:
            ValueError: `order` is not a permutation of the record's responses.
        """
        check_order(order, record.n)
        messages = [{"role": self._role(message["role"]), "content": self.defuse(message["content"])} for message in record.context]
        return str(self._module(messages, [self.defuse(record.responses[original]) for original in order])).strip("\n")

    def other_judgements(self, judgements: Sequence[str]) -> str:
        """Judgements of the same responses in the same order, defused, for the end of a prompt that asks for another one."""
        shown = "\n\n".join(f"Judgement {number}:\n{self.defuse(text)}" for number, text in enumerate(judgements, 1))
        return f"Others have judged these responses before you. Weigh what they say, then judge anew, in the form asked for.\n\n{shown}"

    def _role(self, text: str) -> str:
        """A defused role. A template puts a sign of its own right behind it, which must not complete a mark."""
        return self.defuse(text) + ("" if re.fullmatch(r"[\w ]*", text) else self.defuse.guard)

    def _module(self, messages: list[dict[str, str]], responses: list[str]) -> Any:
        low, high = self.score_format.limits(len(responses))
        given = {"messages": messages, "responses": responses, "n": len(responses), "low": low, "high": high, "principles": self.principles}
        try:
            return self._template.make_module(given)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(f"template {self.name}: {error}. It is given {', '.join(given)}.") from error

    def _read_marks(self) -> list[str]:
        """The marks for a single response and those for several, which need not be the same."""
        return list(dict.fromkeys([*self._marks_of(1), *self._marks_of(2)]))

    def _marks_of(self, n: int) -> list[str]:
        marks = getattr(self._module([{"role": "user", "content": "q"}], ["r"] * n), "marks", None)
        example = '{% set marks = ["[Begin of Response #]", "[End of Response #]"] %}'
        if not isinstance(marks, list) or not all(isinstance(mark, str) and len(mark.strip()) > 1 for mark in marks):
            raise PromptError(f"template {self.name}: expected it to set its marks, for example {example}.")
        numbered = sum("#" in mark for mark in marks)
        if numbered != 2 and not (n == 1 and numbered == 0 and len(marks) > 1):
            raise PromptError(f"template {self.name}: expected two marks with # (index of a response), as in {example}; found {marks}.")
        return marks

    def _check_marks(self) -> None:
        """Fill the template with harmless words and see that each response stands once, between its own two marks."""
        for n in (1, 2, 3, 12):
            marks = self._marks_of(n)
            # Of a single response the first two, where none carries a number.
            begin, end = [mark for mark in marks if "#" in mark] or marks[:2]
            turns = [("user", "queryzero"), ("assistant", "queryone"), ("user", "querytwo")]
            words = [f"wordnumber{i}x" for i in range(1, n + 1)]
            text = str(self._module([{"role": role, "content": content} for role, content in turns], words))
            for content in (content for _, content in turns):
                if text.count(content) != 1:
                    raise PromptError(f"template {self.name}: expected every message once; it shows one {text.count(content)} times.")
            for i, word in enumerate(words, 1):
                enclosed = re.escape(begin.replace("#", str(i))) + r"\s*" + word + r"\s*" + re.escape(end.replace("#", str(i)))
                if text.count(word) != 1 or not re.search(enclosed, text):
                    raise PromptError(f"template {self.name}: expected response {i} of {n} once, between {begin!r} and {end!r} (# is {i}).")
            for mark in (begin, end):
                found = len(re.findall(mark_pattern(mark), text, re.IGNORECASE))
                if found != n:
                    raise PromptError(f"template {self.name}: expected {mark!r} only around responses, found {found} for {n} of them.")


def worked_text(record: Record, order: Sequence[int], principles: bool = True) -> str:
    r"""The teacher's judgement as a completion in the output form, notes and scores in the order shown.

        Specific Criteria: {criteria}
        Analysis: Response 1: {note} Response 2: {note}
        Scores: \boxed{9, 2}

    Args:
        principles: with the first line.

    Raises:
        ValueError: the record has no worked judgement, or one of another length; or `order` is no permutation.
    """
    check_order(order, record.n)
    worked = record.worked
    if worked is None or len(worked.notes) != record.n or len(worked.scores) != record.n:
        raise ValueError(f"record {record.id}: expected a worked judgement with {record.n} notes and scores, found {worked}.")
    notes = " ".join(f"Response {place}: {worked.notes[original]}" for place, original in enumerate(order, 1))
    scores = ", ".join(str(worked.scores[original]) for original in order)
    criteria = f"Specific Criteria: {worked.criteria}\n" if principles else ""
    return f"{criteria}Analysis: {notes}\nScores: \\boxed{{{scores}}}"


def hint_for(record: Record, order: Sequence[int], single: tuple[int, int] = DEFAULT_FORMAT.single) -> str:
    """The ground truth in words, for hinted sampling (arXiv 2504.02495, rejective fine-tuning): the best place; how clearly, if known.

    Args:
        single: lowest and highest score of a single response.
    """
    if record.n == 1:
        return f"Hint: the correct score is {single[record.rewards[0] == 1]}."
    strength = "" if record.strength is None else f", by a margin of {abs(record.strength):g}"
    return f"Hint: Response {list(order).index(record.best) + 1} is the best one{strength}."


def shuffled(n: int, *key: str | int | float | bool | None) -> list[int]:
    """A permutation of 0..n-1 that depends on the key alone, for example shuffled(4, seed, epoch, record.id).

    Uniform over keys, and the same in every process and version of Python (unlike hash() and random.shuffle).
    """
    return sorted(range(n), key=lambda i: _digest(["order", list(key), i]))


def seed_for(*key: str | int | float | bool | None) -> int:
    """A sampling seed, 0 <= seed < 2**31, that depends on the key alone, for example seed_for(seed, step, record.id, sample)."""
    return int.from_bytes(_digest(["seed", list(key)])) >> 33


def _digest(key: list[Any]) -> bytes:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()

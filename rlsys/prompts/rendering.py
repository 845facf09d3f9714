r"""Rendering of records as prompts, and of a teacher's judgement as the completion to learn.

The wording is in a Jinja template (rlsys/prompts/templates, or a user's own file), rendered as a single user turn of the model's chat
template. The conversation and the responses are untrusted: text that could end a section, open another, or be read as a score is *defused*
with a visible dot after its first character: `<|im_end|>` -> `<·|im_end|>`, `\boxed{9}` -> `\·boxed{9}`, `[End of Response 1]` ->
`[·End of Response 1]`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlsys.config.schema import Prompt
from rlsys.data.records import Record
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.defusing import Defuser, mark_pattern
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat
from rlsys.rewards.rules import check_order

TEMPLATES = Path(__file__).parent / "templates"
FORM_FILE = "rlsys.json"
"""File beside a trained model's weights that holds its template, among others (`rlsys.io.model_form`)."""


class PromptError(ValueError):
    """An unusable template or tokenizer; the message names the file, the error and the expected content."""


def template_source(template: str) -> str:
    """Read a template by name or by path; of a file called rlsys.json, the template of that model.

    Raises:
        PromptError: it does not exist or cannot be read; the message lists the known names.
    """
    named = re.fullmatch(r"\w+", template)
    path = TEMPLATES / f"{template}.jinja" if named else Path(template)
    try:
        text = path.read_text(encoding="utf-8")
        return str(json.loads(text)["template"]) if path.name == FORM_FILE else text
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise PromptError(f"template {template}: expected a JSON object with the key template.") from error
    except (OSError, UnicodeDecodeError) as error:
        known = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))
        meant = difflib.get_close_matches(path.stem.strip(), known, n=1)
        if isinstance(error, FileNotFoundError):
            problem = "there is no template of that name." if named else "there is no such file."
            problem += f" Did you mean {meant[0]}?" if meant else ""
        elif isinstance(error, OSError):
            problem = f"cannot be read ({error.strerror})."
        else:
            problem = "is not UTF-8 text."
        raise PromptError(f"template {template}: {problem} Expected one of {', '.join(known)}, or the path of a text file.") from error


class Renderer(Protocol):
    """What turns a record into a prompt."""

    tokenizer: Any
    chat: Chat
    principles: bool
    score_format: ScoreFormat

    def render(self, record: Record, order: Sequence[int]) -> str:
        """Render the whole prompt as text, up to the start of the model's answer."""
        ...

    def tokens(self, record: Record, order: Sequence[int]) -> list[int]:
        """Render the whole prompt as token ids."""
        ...


class UserTurns:
    """Renders records as user turns with one template.

    Args:
        template: name of a file in rlsys/prompts/templates (`pointwise`, `compact`), or the path of another file. Its variables are
            messages (dicts with role and content), responses (in the order shown), n, low, high and principles; it sets `marks` (see
            pointwise.jinja).
        score_format: the requested scores.
        principles: ask for criteria before the analysis.
        chat: the chat template that will render the turn, whose marks are defused. None: that of an unknown model behind an endpoint;
            the marks of the well-known templates are defused.

    Raises:
        PromptError: the template does not exist, does not compile, or uses an undefined variable; or its marks are missing or do not
            enclose each response exactly once.
    """

    def __init__(
        self, template: str = "pointwise", score_format: ScoreFormat = DEFAULT_FORMAT, principles: bool = True, chat: Chat | None = None
    ) -> None:
        self.score_format, self.principles = score_format, principles
        self.name, source = str(template), template_source(template)
        # Sandboxed, so that a downloaded template can format text but do nothing else.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise PromptError(f"template {template}, line {error.lineno}: {error.message}") from error
        marks = self._read_marks()
        try:
            self.defuse = Defuser(marks, chat)
        except ValueError as error:
            raise PromptError(f"template {template}: {error}") from error
        self._check_marks()

    @classmethod
    def for_endpoint(cls, prompt: Prompt) -> UserTurns:
        """Create the renderer for an endpoint, which applies its own chat template, from a run's settings."""
        return cls(prompt.template, ScoreFormat(**prompt.scores.model_dump()), prompt.principles)

    def hinted_turn(self, record: Record, order: Sequence[int], hint: str = "", given: str | None = None) -> str:
        """Render the user turn with a text appended to it (`hint_for`, `other_judgements`)."""
        return self.user_turn(record, order, given) + (f"\n\n{hint}" if hint else "")

    def user_turn(self, record: Record, order: Sequence[int], given: str | None = None) -> str:
        """Render the template with defused content, without the chat template around it. `given` principles follow it, defused.

        Raises:
            ValueError: `order` is not a permutation of the record's responses, or there are none.
        """
        if not record.responses:
            raise ValueError(f"record {record.id} ({record.source}) is a prompt without responses: there is nothing to judge.")
        check_order(order, record.n)
        messages = [{"role": self._role(message["role"]), "content": self.defuse(message["content"])} for message in record.context]
        responses = [self.defuse(record.responses[original]) for original in order]
        text = str(self._module(messages, responses, self.principles and given is None)).strip("\n")
        return text if given is None else f"{text}\n\nJudge by these principles:\n{self.defuse(given)}"

    def other_judgements(self, judgements: Sequence[str]) -> str:
        """Format earlier judgements of the same responses in the same order, defused, to append to a prompt that asks for another one."""
        shown = "\n\n".join(f"Judgement {number}:\n{self.defuse(text)}" for number, text in enumerate(judgements, 1))
        return f"Others have judged these responses before you. Weigh what they say, then judge anew, in the form asked for.\n\n{shown}"

    def _role(self, text: str) -> str:
        """Defuse a role, so that the character that a template writes right after it cannot complete a mark."""
        return self.defuse(text) + ("" if re.fullmatch(r"[\w ]*", text) else self.defuse.guard)

    def _module(self, messages: list[dict[str, str]], responses: list[str], principles: bool | None = None) -> Any:
        low, high = self.score_format.limits(len(responses))
        variables = {
            "messages": messages,
            "responses": responses,
            "n": len(responses),
            "low": low,
            "high": high,
            "principles": self.principles if principles is None else principles,
        }
        try:
            return self._template.make_module(variables)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(f"template {self.name}: {error}. Its variables are {', '.join(variables)}.") from error

    def _read_marks(self) -> list[str]:
        """Return the marks for a single response and for several responses, which may differ."""
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
        """Render the template with probe words, and check that each response appears once, between its own two marks."""
        for n in (1, 2, 3, 12):
            marks = self._marks_of(n)
            # For a single response without numbered marks, the first two marks count.
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


class Prompter(UserTurns):
    """Renders records as whole prompts, with one template and one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        template, score_format, principles: as for `UserTurns`; the thought that the chat template opens is added to the score format.
        template_args: further arguments of the chat template.

    Raises:
        PromptError: as by `UserTurns`, or the tokenizer has no usable chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "pointwise",
        score_format: ScoreFormat = DEFAULT_FORMAT,
        principles: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        try:
            self.chat = Chat(tokenizer, template_args)
        except ChatError as error:
            raise PromptError(str(error)) from error
        super().__init__(template, replace(score_format, thought=self.chat.thought), principles, self.chat)

    @classmethod
    def from_config(cls, tokenizer: Any, prompt: Prompt) -> Prompter:
        """Create a prompter from a run's settings."""
        return cls(tokenizer, prompt.template, ScoreFormat(**prompt.scores.model_dump()), prompt.principles, prompt.chat_template_args)

    def render(self, record: Record, order: Sequence[int], hint: str = "", given: str | None = None) -> str:
        """Render the whole prompt as text, up to the start of the model's answer.

        Args:
            order: order[p] is the index of the response shown at place p.
            hint: text appended to the user turn (`hint_for`, `other_judgements`).
            given: principles to judge by, instead of asking for criteria.
        """
        return self.chat.render([{"role": "user", "content": self.hinted_turn(record, order, hint, given)}])

    def tokens(self, record: Record, order: Sequence[int]) -> list[int]:
        """Render the whole prompt as token ids."""
        return self.encode(self.render(record, order))

    def encode(self, prompt: str) -> list[int]:
        """Encode a rendered prompt. No special tokens are added, as the chat template wrote all that are needed."""
        return self.chat.encode(prompt)


def worked_text(record: Record, order: Sequence[int], principles: bool = True) -> str:
    r"""Format the teacher's judgement as a completion in the output format, with notes and scores in the order shown.

        Specific Criteria: {criteria}
        Analysis: Response 1: {note} Response 2: {note}
        Scores: \boxed{9, 2}

    Args:
        principles: include the line with the criteria.

    Raises:
        ValueError: the record has no worked judgement, or one of the wrong length; or `order` is not a permutation.
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
    """Return the ground truth in words for hinted sampling (arXiv 2504.02495, rejective fine-tuning): best place and margin, if known.

    Args:
        single: lowest and highest score of a single response.
    """
    if record.n == 1:
        return f"Hint: the correct score is {single[record.rewards[0] == 1]}."
    strength = "" if record.strength is None else f", by a margin of {abs(record.strength):g}"
    return f"Hint: Response {list(order).index(record.best) + 1} is the best one{strength}."


def shuffled(n: int, *key: str | int | float | bool | None) -> list[int]:
    """Return a permutation of 0..n-1 that depends on the key alone, for example shuffled(4, seed, epoch, record.id).

    It is uniform over keys, and stable across processes and Python versions, unlike hash() and random.shuffle.
    """
    return sorted(range(n), key=lambda i: _digest(["order", list(key), i]))


def seed_for(*key: str | int | float | bool | None) -> int:
    """Return a sampling seed in [0, 2**31) that depends on the key alone, for example seed_for(seed, step, record.id, sample)."""
    return int.from_bytes(_digest(["seed", list(key)])) >> 33


def _digest(key: list[Any]) -> bytes:
    return hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()

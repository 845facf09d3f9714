"""Rendering of conversations by a model's chat template; the only module that calls `apply_chat_template`.

Templates support different sequences of roles. Some reject a system turn, consecutive turns of one role, or roles other than user and
assistant; others silently drop such turns. Each sequence of roles is therefore first rendered with probe words. If the template does not
show all of them, the conversation is adapted: system text moves into the following user turn, consecutive turns of one role are merged, and
a turn of any other role becomes a user turn that names the role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from jinja2 import TemplateError

from rlsys.rewards import thoughts

Messages = Sequence[Mapping[str, str]]
"""Dicts with role and content."""

_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""Exceptions that a chat template may raise."""


class ChatError(ValueError):
    """A conversation that the chat template cannot render, or an unusable chat template; the message gives the reason."""


class Chat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template_args: further arguments of the template, for example {"enable_thinking": False}.

    Raises:
        ChatError: there is no chat template, it does not render a user turn, or it does not read a name in `template_args`.
    """

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self._args = tokenizer, dict(template_args or {})
        self.name = f"chat template of {tokenizer.name_or_path}"
        self._errors: dict[tuple[Any, ...], Exception | None] = {}
        self._content_parts = False
        """Whether the template expects content as a list of parts, as templates of multimodal models do."""
        if not tokenizer.chat_template:
            raise ChatError(
                f"tokenizer {tokenizer.name_or_path}: it has no chat template, which is needed to render the prompt as a user turn."
            )
        self._check_args()
        error = self._template_error(("user",), True)
        if error is not None:
            self._content_parts, self._errors = True, {}
            if self._template_error(("user",), True) is not None:
                raise ChatError(f"{self.name}: it does not render a user turn ({error}).")

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """Render a conversation as text, up to the start of the assistant's answer.

        Args:
            add_generation_prompt: False ends the text after the last turn instead.

        Raises:
            ChatError: the template supports no adapted form of the conversation, for example of one that starts with the assistant.
        """
        return self._apply(self._adapt(messages, add_generation_prompt), add_generation_prompt)

    def tokens(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Render a conversation as token ids."""
        return self.encode(self.render(messages, add_generation_prompt))

    def encode(self, text: str) -> list[int]:
        """Encode rendered text, or an assistant's answer. No special tokens are added, as the template writes all that are needed."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    @cached_property
    def end(self) -> int:
        """Id of the token that ends an assistant turn: the first reserved token that the template writes after it, else `eos_token`.

        Raises:
            ChatError: there is neither.
        """
        try:
            text, (_, word) = self.render_probe(("user", "assistant"), False)
            tail = self.encode(text[text.rindex(word) + len(word) :])
        except _TEMPLATE_ERRORS:
            tail = []
        reserved = {number for number, token in self.tokenizer.added_tokens_decoder.items() if str(token).strip()}
        reserved.update(self.tokenizer.all_special_ids)
        end = next((number for number in tail if number in reserved), self.tokenizer.eos_token_id)
        if end is None:
            raise ChatError(f"{self.name}: it writes no reserved token after an assistant turn, and the tokenizer has no eos_token.")
        return end

    @cached_property
    def thought(self) -> str:
        """Opening mark of the thought that the template opens for the assistant; empty if it opens none."""
        text, (word,) = self.render_probe(("user",), True)
        return thoughts.open_mark(text[text.rindex(word) :])

    @cached_property
    def opening(self) -> str:
        """Text that the template writes before the content of an assistant turn: a blank, a channel, or an empty thought."""
        prompt, _ = self.render_probe(("user",), True)
        try:
            turn, (_, word) = self.render_probe(("user", "assistant"), False)
        except _TEMPLATE_ERRORS:
            return ""
        before = turn[: turn.rfind(word)]
        return before.removeprefix(prompt) if word in turn and before.startswith(prompt) else ""

    def answer(self, text: str) -> str:
        """Return `text` as an assistant's answer in the form that the template writes.

        If the template opens a thought and the text closes none, an empty thought is closed first.
        """
        if thoughts.has_end(text):
            return text
        if self.thought:
            return f"\n{thoughts.closing_mark(self.thought)}\n\n{text}"
        return text if not self.opening.strip() and text[:1].isspace() else self.opening + text

    # --- support for sequences of roles ----------------------------------------------------------------------------------

    def _adapt(self, messages: Messages, add_generation_prompt: bool) -> Messages:
        """Return the messages in the first adapted form of which the template shows every turn."""
        first = self._template_error(_roles(messages), add_generation_prompt)
        if first is None:
            return messages
        for change in (_merged, _with_known_roles, _merged, _with_leading_system, _merged, _without_system, _merged):
            messages = change(messages)
            if self._template_error(_roles(messages), add_generation_prompt) is None:
                return messages
        raise ChatError(f"{self.name}: it does not support conversations of {', '.join(_roles(messages))} ({first}).")

    def _template_error(self, roles: tuple[str, ...], add_generation_prompt: bool) -> Exception | None:
        """Return why the template does not show turns of these roles, each once and in order; None if it does."""
        key = (roles, add_generation_prompt)
        if key not in self._errors:
            try:
                text, words = self.render_probe(roles, add_generation_prompt)
                places = [text.find(word) for word in words]
                shown = -1 not in places and places == sorted(places)
                self._errors[key] = None if shown else ValueError("it drops turns")
            except _TEMPLATE_ERRORS as error:
                self._errors[key] = error
        return self._errors[key]

    def supports(self, roles: Sequence[str]) -> bool:
        """Return whether the template shows turns of these roles unchanged, each once and in order."""
        return self._template_error(tuple(roles), True) is None

    def render_probe(self, roles: Sequence[str], add_generation_prompt: bool = True) -> tuple[str, list[str]]:
        """Render a conversation with one probe word per turn; returns (text, words)."""
        words = [f"wordnumber{number}x" for number in range(len(roles))]
        messages = [{"role": role, "content": word} for role, word in zip(roles, words)]
        return self.tokenizer.apply_chat_template(
            self._contents(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **self._args
        ), words

    def _apply(self, messages: Messages, add_generation_prompt: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                self._contents(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **self._args
            )
            return text
        except _TEMPLATE_ERRORS as error:
            raise ChatError(f"{self.name}: {error}") from error

    def _contents(self, messages: Messages) -> list[dict[str, Any]]:
        if not self._content_parts:
            return [dict(message) for message in messages]
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]

    def _check_args(self) -> None:
        try:
            source = self.tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of them the default
            raise ChatError(f"{self.name}: {error}") from error
        for name in self._args:
            if not re.search(rf"\b{re.escape(name)}\b", source) or name in ("messages", "add_generation_prompt"):
                raise ChatError(f"prompt.chat_template_args: the {self.name} does not use {name!r}.")


def _roles(messages: Messages) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _merged(messages: Messages) -> Messages:
    """Merge consecutive turns of one role."""
    turns = [(role, [message["content"] for message in neighbours]) for role, neighbours in groupby(messages, lambda one: one["role"])]
    return [{"role": role, "content": "\n\n".join(contents)} for role, contents in turns]


def _with_known_roles(messages: Messages) -> Messages:
    """Map `developer` to `system`, and every other unknown role to a user turn that names it."""
    return [_known_role(message) for message in messages]


def _known_role(message: Mapping[str, str]) -> Mapping[str, str]:
    role, content = message["role"], message["content"]
    if role in ("system", "user", "assistant"):
        return message
    return {"role": "system", "content": content} if role == "developer" else {"role": "user", "content": f"{role}:\n{content}"}


def _with_leading_system(messages: Messages) -> Messages:
    """Turn system messages after the first message into user turns."""
    return [*messages[:1], *_without_system(messages[1:])]


def _without_system(messages: Messages) -> Messages:
    return [{**message, "role": "user"} if message["role"] == "system" else message for message in messages]

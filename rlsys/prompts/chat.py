"""Conversations as a model's chat template writes them: the only place that calls `apply_chat_template`.

Templates differ in what they take. Some refuse a system turn, two turns of one role in a row, or roles other than user and assistant;
some leave out in silence what they do not know. So each sequence of roles is tried on marked words first, and what a template does not
show is shown in another way: system text goes into the user's turn that follows, neighbours of one role become one turn, and a turn of
any other role becomes one of the user's that says whose it is.
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
"""Dicts of role and content."""

_FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a chat template may end in."""


class ChatError(ValueError):
    """A conversation that the chat template cannot show, or a chat template that cannot be used; the message says why."""


class Chat:
    """One tokenizer with its chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template_args: what the template is given besides the conversation, for example {"enable_thinking": False}.

    Raises:
        ChatError: there is no chat template, it does not show a user's turn, or it reads none of the names in `template_args`.
    """

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self._args = tokenizer, dict(template_args or {})
        self.name = f"chat template of {tokenizer.name_or_path}"
        self._known: dict[tuple[Any, ...], Exception | None] = {}
        self._in_parts = False
        """Whether the template wants content as a list of parts, as those of models for images do."""
        if not tokenizer.chat_template:
            raise ChatError(f"tokenizer {tokenizer.name_or_path}: it has no chat template; the prompt is a user turn and needs one.")
        self._check_args()
        fault = self._fault(("user",), True)
        if fault is not None:
            self._in_parts, self._known = True, {}
            if self._fault(("user",), True) is not None:
                raise ChatError(f"{self.name}: it does not show a user's turn ({fault}).")

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as text, up to where the assistant's answer begins (without `add_generation_prompt`: to its last turn's end).

        Raises:
            ChatError: the template takes such a conversation in no form, for example one that the assistant begins.
        """
        return self._apply(self._fitting(messages, add_generation_prompt), add_generation_prompt)

    def tokens(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of `render`."""
        return self.encode(self.render(messages, add_generation_prompt))

    def encode(self, text: str) -> list[int]:
        """Token ids of rendered text, or of what an assistant says. The template writes all special tokens that belong there."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    @cached_property
    def end(self) -> int:
        """Id of the token that ends an assistant's turn: the first reserved one that the template writes behind it, else `eos_token`.

        Raises:
            ChatError: neither is there.
        """
        try:
            text, (_, word) = self.marked(("user", "assistant"), False)
            tail = self.encode(text[text.rindex(word) + len(word) :])
        except _FAULTS:
            tail = []
        reserved = {number for number, token in self.tokenizer.added_tokens_decoder.items() if str(token).strip()}
        reserved.update(self.tokenizer.all_special_ids)
        end = next((number for number in tail if number in reserved), self.tokenizer.eos_token_id)
        if end is None:
            raise ChatError(f"{self.name}: it writes no reserved token behind an assistant's turn, and the tokenizer has no eos_token.")
        return end

    @cached_property
    def thought(self) -> str:
        """The mark of a thought that the template begins where the assistant's answer does; empty where it begins none."""
        text, (word,) = self.marked(("user",), True)
        return thoughts.open_mark(text[text.rindex(word) :])

    @cached_property
    def opening(self) -> str:
        """What the template writes between where the assistant's answer begins and its words: a blank, a channel, an empty thought."""
        prompt, _ = self.marked(("user",), True)
        try:
            turn, (_, word) = self.marked(("user", "assistant"), False)
        except _FAULTS:
            return ""
        before = turn[: turn.rfind(word)]
        return before.removeprefix(prompt) if word in turn and before.startswith(prompt) else ""

    def answer(self, text: str) -> str:
        """What an assistant says to answer `text`, as the template writes it.

        Where the template begins a thought and the text ends none, an empty one comes first.
        """
        if thoughts.has_end(text):
            return text
        if self.thought:
            return f"\n{thoughts.closing_mark(self.thought)}\n\n{text}"
        return text if not self.opening.strip() and text[:1].isspace() else self.opening + text

    # --- what a template takes ---------------------------------------------------------------------------------------

    def _fitting(self, messages: Messages, add_generation_prompt: bool) -> Messages:
        """The messages, in the first form that the template shows all of."""
        first = self._fault(_roles(messages), add_generation_prompt)
        if first is None:
            return messages
        for change in (_merged, _known_roles, _merged, _one_system, _merged, _no_system, _merged):
            messages = change(messages)
            if self._fault(_roles(messages), add_generation_prompt) is None:
                return messages
        raise ChatError(f"{self.name}: it takes no conversation of {', '.join(_roles(messages))} ({first}).")

    def _fault(self, roles: tuple[str, ...], add_generation_prompt: bool) -> Exception | None:
        """Why the template does not show turns of these roles, each once and in this order; None: it does."""
        key = (roles, add_generation_prompt)
        if key not in self._known:
            try:
                text, words = self.marked(roles, add_generation_prompt)
                places = [text.find(word) for word in words]
                shown = -1 not in places and places == sorted(places)
                self._known[key] = None if shown else ValueError("it leaves turns out")
            except _FAULTS as error:
                self._known[key] = error
        return self._known[key]

    def takes(self, roles: Sequence[str]) -> bool:
        """Whether the template shows turns of these roles as they are, each once and in this order."""
        return self._fault(tuple(roles), True) is None

    def marked(self, roles: Sequence[str], add_generation_prompt: bool = True) -> tuple[str, list[str]]:
        """(text, words): a conversation of one word a turn, as the template writes it, and the words."""
        words = [f"wordnumber{number}x" for number in range(len(roles))]
        messages = [{"role": role, "content": word} for role, word in zip(roles, words)]
        return self.tokenizer.apply_chat_template(
            self._contents(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **self._args
        ), words

    def _apply(self, messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                self._contents(messages), add_generation_prompt=add_generation_prompt, tokenize=False, **self._args
            )
        except _FAULTS as error:
            raise ChatError(f"{self.name}: {error}") from error

    def _contents(self, messages: Messages) -> list[dict[str, Any]]:
        if not self._in_parts:
            return [dict(message) for message in messages]
        return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]

    def _check_args(self) -> None:
        try:
            source = self.tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of which is the default
            raise ChatError(f"{self.name}: {error}") from error
        for name in self._args:
            if not re.search(rf"\b{re.escape(name)}\b", source) or name in ("messages", "add_generation_prompt"):
                raise ChatError(f"prompt.chat_template_args: the {self.name} reads no {name!r}.")


def _roles(messages: Messages) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _merged(messages: Messages) -> Messages:
    """Neighbours of one role as one turn."""
    turns = [(role, [message["content"] for message in neighbours]) for role, neighbours in groupby(messages, lambda one: one["role"])]
    return [{"role": role, "content": "\n\n".join(contents)} for role, contents in turns]


def _known_roles(messages: Messages) -> Messages:
    """A developer is the system; anybody else but the assistant is a user who is named."""
    return [_known_role(message) for message in messages]


def _known_role(message: Mapping[str, str]) -> Mapping[str, str]:
    role, content = message["role"], message["content"]
    if role in ("system", "user", "assistant"):
        return message
    return {"role": "system", "content": content} if role == "developer" else {"role": "user", "content": f"{role}:\n{content}"}


def _one_system(messages: Messages) -> Messages:
    """The system speaks at the beginning only; later it is a user."""
    return [*messages[:1], *_no_system(messages[1:])]


def _no_system(messages: Messages) -> Messages:
    return [{**message, "role": "user"} if message["role"] == "system" else message for message in messages]

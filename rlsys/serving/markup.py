"""Chat markup in what trainers send: prompts as their policy reads them, and responses that end as it ends a turn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlsys.serving.contract import Message

if TYPE_CHECKING:
    from rlsys.serving.rewards import Conversation

_FORMS = (
    # ChatML (Qwen, SmolLM2, Hermes), Llama 3, Gemma: the start of a turn with its role, and its end.
    (r"<\|im_start\|>(\w+)\n", r"<|im_end|>"),
    (r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", r"<|eot_id|>"),
    (r"<start_of_turn>(\w+)\n", r"<end_of_turn>"),
)
_BEGINS = ("<|begin_of_text|>", "<bos>", "<s>")
_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end|>")
_ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {"model": "assistant", "ipython": "tool"}


def conversation_of(prompt: str) -> Conversation:
    """Return the messages of a prompt in ChatML or the markup of Llama 3 or Gemma; any other prompt as it is.

    The start of the assistant's turn, with which such prompts end, is not a message.
    """
    turns = prompt
    for begin in _BEGINS:
        turns = turns.removeprefix(begin)
    for start, end in _FORMS:
        if re.match(start, turns) and (messages := _messages(turns, start, end)):
            return messages
    return prompt


def _messages(prompt: str, start: str, end: str) -> list[Message]:
    """Return the messages, or none if the prompt has text outside its turns."""
    before, *pieces = re.split(start, prompt)
    turns = list(zip(pieces[::2], pieces[1::2], strict=True))
    if turns and turns[-1][0] in ("assistant", "model") and end not in turns[-1][1]:
        turns.pop()
    whole = [content.rstrip().split(end) for _, content in turns]
    if before or any(role not in _ROLES for role, _ in turns) or any(len(parts) != 2 or parts[1] for parts in whole):
        return []
    return [Message(role=_ROLES[role], content=parts[0]) for (role, _), parts in zip(turns, whole, strict=True)]


def without_end(response: str) -> str:
    """Return a response without the marks that end a turn or a text at its end."""
    text, before = response.rstrip(), ""
    while text != before:
        before = text
        for end in _ENDS:
            text = text.removesuffix(end).rstrip()
    return text if text != response.rstrip() else response

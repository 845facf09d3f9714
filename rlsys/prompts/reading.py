"""The way back from a rendered prompt to what it shows: the turns of the conversation and the responses, as the judge read them.

Trajectories keep prompts as text. What a template writes around the contents is known from rendering it with probe words, and its marks
cannot occur in the contents, as they are defused there (`rlsys.prompts.defusing`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from rlsys.data.records import Record
from rlsys.prompts.rendering import UserTurns

Turn = tuple[str, str]
"""(role, content)."""
ROLES = ("user", "assistant", "system", "tool")
CHAT_TURN = re.compile(
    r"(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>)(?P<role>\w+)(?:<\|end_header_id\|>)?\s*\n(?P<content>.*?)"
    r"(?:<\|im_end\|>|<end_of_turn>|<\|eot_id\|>)"
    r"|\[INST\](?P<query>.*?)\[/INST\]",
    re.DOTALL,
)
"""A complete turn in the forms of ChatML, Gemma, Llama 3 and Mistral."""


@dataclass(frozen=True)
class Shown:
    """What a prompt shows."""

    turns: list[Turn]
    """The last one is the query."""
    responses: list[str]
    """In the order shown."""


class PromptReader:
    """Reads the prompts that `turns` renders, within any chat template. A hint that follows the template is ignored."""

    def __init__(self, turns: UserTurns) -> None:
        self._turns = turns
        self._forms: dict[int, tuple[re.Pattern[str], dict[str, str]]] = {}

    def read(self, prompt: str, responses: int) -> Shown | None:
        """Return what `prompt` shows with this number of responses, or None if another template made it."""
        if responses not in self._forms:
            self._forms[responses] = self._form(responses)
        pattern, openings = self._forms[responses]
        found = pattern.search(prompt)
        if found is None:
            return None
        opening, conversation, *shown = found.groups()
        contents = re.split("(" + "|".join(map(re.escape, self._separators)) + ")", conversation)
        roles = [openings[opening], *(self._separators[separator] for separator in contents[1::2])]
        return Shown(list(zip(roles, contents[::2], strict=True)), shown)

    def _form(self, n: int) -> tuple[re.Pattern[str], dict[str, str]]:
        """Return a regular expression of the opening, the conversation and each response, and the role of the first turn by opening."""
        openings = {self._pieces([(role, "querywordx")], n)[0]: role for role in ROLES}
        _, *between, end = self._pieces([("user", "querywordx")], n)
        contents = "".join(f"(.*?){re.escape(piece)}" for piece in (*between, end.rstrip()))
        return re.compile("(" + "|".join(map(re.escape, openings)) + ")" + contents, re.DOTALL), openings

    @cached_property
    def _separators(self) -> dict[str, str]:
        """Text between two turns -> role of the second."""
        return {self._pieces([("user", "querywordx"), (role, "otherwordx")], 2)[1]: role for role in ROLES}

    def _pieces(self, turns: list[Turn], n: int) -> list[str]:
        """Return what the template writes before, between and after the contents of these turns and n responses."""
        words = [f"responseword{i}x" for i in range(n)]
        context = tuple({"role": role, "content": content} for role, content in turns)
        text = self._turns.user_turn(Record("probe", "probe", context, tuple(words), tuple(range(n))), range(n))
        return re.split("|".join([content for _, content in turns] + words), text)


def chat_turns(prompt: str) -> list[Turn]:
    """Return the complete turns of a prompt in one of the common chat templates; empty if it is in another one."""
    return [
        (found["role"] or "user", (found["content"] if found["query"] is None else found["query"]).strip())
        for found in CHAT_TURN.finditer(prompt)
    ]

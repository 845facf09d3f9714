"""The policy's prompts: plain conversations, without a judge's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config.schema import Prompt
from rlsys.data.records import Record
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.rendering import PromptError
from rlsys.rewards.extraction import DEFAULT_FORMAT, ScoreFormat


class ConversationPrompter:
    """Renders the conversation of a record by the model's chat template; the policy writes the next turn.

    The methods are those of `rlsys.prompts.rendering.Prompter`; the record's own responses and their order do not matter.

    Raises:
        PromptError: the tokenizer has no usable chat template.
    """

    principles = False
    score_format: ScoreFormat = DEFAULT_FORMAT
    """Of no use: a policy writes no scores."""

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any] | None = None):
        self.tokenizer = tokenizer
        try:
            self.chat = Chat(tokenizer, template_args)
        except ChatError as error:
            raise PromptError(str(error)) from error

    @classmethod
    def from_config(cls, tokenizer: Any, prompt: Prompt) -> ConversationPrompter:
        """Create a prompter from a run's settings."""
        return cls(tokenizer, prompt.chat_template_args)

    def render(self, record: Record, order: Sequence[int] = ()) -> str:
        """Render the conversation as text, up to the start of the policy's answer."""
        return self.chat.render(record.context)

    def tokens(self, record: Record, order: Sequence[int] = ()) -> list[int]:
        """Render the conversation as token ids."""
        return self.chat.tokens(record.context)

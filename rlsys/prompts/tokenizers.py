"""Comparison of two tokenizers, and conversion of token ids from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PROBE = "The 1st of 23,456 tests: don't\n\n\tskip  naïve cafés, Grüße, Привет, 你好, ਸਤ 🙂🙂; x_1 = {'a': [0.5, -7]}  # done</s><|x|>\r\n "
"""Words, numbers, whitespace, several scripts and code: text that tokenizers with the same vocabulary may still split differently."""


def tokenizer_difference(one: Any, other: Any) -> str | None:
    """Describe how the token ids of two tokenizers differ; None if both encode any text to the same ids.

    Chat templates are not compared: they only produce text, and the texts are already rendered.
    """
    vocabularies = [tokenizer.get_vocab() for tokenizer in (one, other)]
    if vocabularies[0] != vocabularies[1]:
        unequal = sum(vocabularies[1].get(token) != number for token, number in vocabularies[0].items())
        sizes = " and ".join(f"{len(vocabulary):,}" for vocabulary in vocabularies)
        return f"vocabularies of {sizes} tokens; {unequal:,} of the first have another id in the second"
    if set(one.all_special_ids) != set(other.all_special_ids):
        return "different special tokens"
    if one.encode(PROBE, add_special_tokens=False) != other.encode(PROBE, add_special_tokens=False):
        return "the same vocabulary, but different rules for splitting text"
    return None


@dataclass(frozen=True)
class Retokenizer:
    """Converts the token ids of one tokenizer to those of another for the same text."""

    source: Any
    target: Any

    def prompts(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Convert prompts, int32 [tokens] each, keeping the text of special tokens."""
        return self._convert(prompts, skip_special_tokens=False)

    def texts(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Convert sampled texts, int32 [tokens] each, without special tokens, as in trajectories."""
        return self._convert(texts, skip_special_tokens=True)

    def _convert(self, ids: Sequence[np.ndarray], skip_special_tokens: bool) -> list[np.ndarray]:
        texts = [
            self.source.decode(one.tolist(), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False) for one in ids
        ]
        return [np.array(self.target.encode(text, add_special_tokens=False), np.int32) for text in texts]

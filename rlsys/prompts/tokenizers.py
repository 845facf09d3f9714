"""Whether two tokenizers mean the same by their token ids, and texts from the ids of one to those of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PROBE = "The 1st of 23,456 tests: don't\n\n\tskip  naïve cafés, Grüße, Привет, 你好, ਸਤ 🙂🙂; x_1 = {'a': [0.5, -7]}  # done</s><|x|>\r\n "
"""Words, numbers, white space, several scripts, code: what tokenizers of one vocabulary take apart differently."""


def difference(one: Any, other: Any) -> str | None:
    """In which way the ids of two tokenizers differ, in words; None: whatever either encodes, the other would have encoded alike.

    The chat template does not matter here: it makes texts, and those stand already.
    """
    vocabularies = [tokenizer.get_vocab() for tokenizer in (one, other)]
    if vocabularies[0] != vocabularies[1]:
        unequal = sum(vocabularies[1].get(token) != number for token, number in vocabularies[0].items())
        sizes = " and ".join(f"{len(vocabulary):,}" for vocabulary in vocabularies)
        return f"vocabularies of {sizes} tokens, {unequal:,} of the first with another id in the second"
    if set(one.all_special_ids) != set(other.all_special_ids):
        return "other special tokens"
    if one.encode(PROBE, add_special_tokens=False) != other.encode(PROBE, add_special_tokens=False):
        return "the same vocabulary, but other rules by which text is taken apart"
    return None


@dataclass(frozen=True)
class Translation:
    """From the ids of one tokenizer to those by which another encodes the same text."""

    source: Any
    target: Any

    def prompts(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Prompts, int32 [tokens] each, whose special tokens are written out as the source's chat template wrote them.

        Equal prompts stay equal, and are encoded once.
        """
        known = {prompt.tobytes(): prompt for prompt in prompts}
        encoded = dict(zip(known, self._encoded(list(known.values()), skip_special_tokens=False)))
        return [encoded[prompt.tobytes()] for prompt in prompts]

    def texts(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Sampled texts, int32 [tokens] each, without their special tokens, as trajectories keep them."""
        return self._encoded(texts, skip_special_tokens=True)

    def _encoded(self, ids: Sequence[np.ndarray], skip_special_tokens: bool) -> list[np.ndarray]:
        written = [
            self.source.decode(one.tolist(), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False) for one in ids
        ]
        return [np.array(self.target.encode(text, add_special_tokens=False), np.int32) for text in written]

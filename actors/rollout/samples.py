"""From a vLLM engine's outputs to a table of samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from rlsys.data.chain import SAMPLES, Sample, batch_of
from rlsys.prompts.chat import Chat
from rlsys.rewards.thoughts import is_mark


class SampleLogprobs(NamedTuple):
    """Log-probabilities of one sample's tokens, and their mean self-certainty (None where that is off)."""

    logprobs: list[float]
    certainty: float | None


class Decoder:
    """Turns sampled tokens into text: without special tokens other than the marks of a thought, and without the end-of-turn token."""

    def __init__(self, tokenizer: Any, template_args: dict[str, Any] | None):
        self._tokenizer = tokenizer
        special = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._thought_marks = {number for number, token in special.items() if is_mark(token)}
        self._hidden = set(special) - self._thought_marks
        self.end: int | None = Chat(tokenizer, template_args).end if tokenizer.chat_template else tokenizer.eos_token_id
        """The token that ends a turn, which need not be a special token."""

    def texts(self, tokens: list[list[int]]) -> list[str]:
        """Decode each sample."""
        if not tokens:  # batch_decode would return one text for none
            return []
        own = [sample[:-1] if sample and sample[-1] == self.end else sample for sample in tokens]
        if not self._thought_marks:
            return self._tokenizer.batch_decode(own, skip_special_tokens=True)
        return self._tokenizer.batch_decode([[token for token in sample if token not in self._hidden] for sample in own])


def sample_batch(keys: list[tuple[int, int]], outputs: list[Any], logprobs: list[SampleLogprobs], decoder: Decoder) -> pa.RecordBatch:
    """Return SAMPLES, in the order of `keys`.

    Args:
        keys: (group, sample) of each output.
        outputs: vLLM's `CompletionOutput`s.
    """
    token_ids = [list(output.token_ids) for output in outputs]
    samples = [
        Sample(
            *key,
            token_ids=tokens,
            logprobs=found.logprobs,
            text=text,
            finish_reason=output.finish_reason,
            weight_version=min(int(span.version) for span in output.weight_versions),
            certainty=found.certainty,
        )
        for key, tokens, text, output, found in zip(keys, token_ids, decoder.texts(token_ids), outputs, logprobs, strict=True)
    ]
    return batch_of(samples, SAMPLES)

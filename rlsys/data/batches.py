"""Prompts for the RL loop, sampled from the data or held out, and supervised examples for the cold start."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rlsys.data.accounts import EXCLUDED, TOO_LONG, RowCounts
from rlsys.data.chain import PromptItem, SeedPart, SupervisedExample
from rlsys.data.mixtures import Mixture
from rlsys.data.readers import DataError, strict_rows
from rlsys.data.records import Record
from rlsys.data.trajectories import RowKey
from rlsys.prompts.chat import Chat, ChatError
from rlsys.prompts.rendering import Renderer, shuffled, worked_text
from rlsys.rewards.rules import judge


def render_prompts(prompter: Renderer, records: Sequence[Record], keys: Sequence[tuple[SeedPart, ...]]) -> list[PromptItem]:
    """Render each record, with its responses shuffled by its key."""
    orders = [shuffled(record.n, *key) for record, key in zip(records, keys, strict=True)]
    prompts = [prompter.render(record, order) for record, order in zip(records, orders)]
    # One call for all prompts: the tokenizer then runs on all cores, outside the GIL.
    tokens = prompter.tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    return [PromptItem(*fields) for fields in zip(records, orders, prompts, tokens)]


@dataclass
class Feed:
    """Samples prompt items from a mixture; excluded rows and rows with an overlong prompt are skipped and counted.

    The mixture's state is the only state: the items depend on the seed and the mixture's position.
    """

    source: Mixture
    prompter: Renderer
    max_prompt_tokens: int
    excluded: Set[RowKey] = frozenset()
    """(source, id) of the rows to skip."""

    def take(self, count: int, seed: int) -> list[PromptItem]:
        """Return the next `count` usable items; the response order of each depends on (seed, epoch, id).

        Raises:
            DataError: a whole epoch of a source yielded no usable row.
        """

        def usable_items(found: Sequence[tuple[int, Record]], account: RowCounts) -> list[PromptItem]:
            included = [(epoch, record) for epoch, record in found if record.key not in self.excluded]
            account.aside[EXCLUDED] += len(found) - len(included)
            keys: list[tuple[SeedPart, ...]] = [(seed, epoch, record.id) for epoch, record in included]
            items = render_prompts(self.prompter, [record for _, record in included], keys)
            return _within_limit(items, self.max_prompt_tokens, account)

        return self.source.take(count, usable_items)


def _within_limit(items: Sequence[PromptItem], max_prompt_tokens: int, account: RowCounts) -> list[PromptItem]:
    """Return the items whose prompt is at most `max_prompt_tokens` long, and count the others."""
    kept = [item for item in items if len(item.token_ids) <= max_prompt_tokens]
    account.aside[TOO_LONG] += len(items) - len(kept)
    return kept


def heldout_rows(source: Mixture, prompter: Renderer, limit: int, max_prompt_tokens: int) -> list[PromptItem]:
    """Return the first `limit` items within the length limit, alternating between sources; every row read is counted.

    The response order depends on the row's id only: it is the same at every stage and in every run, so that comparisons are paired.

    Raises:
        DataError: no row is within the limit.
    """
    kept: list[PromptItem] = []
    records = source.scan()
    while found := list(islice(records, limit - len(kept))):
        items = render_prompts(prompter, [record for _, record in found], [("heldout", record.id) for _, record in found])
        for (part, _), item in zip(found, items, strict=True):
            usable = _within_limit([item], max_prompt_tokens, part.account)
            part.account.used += len(usable)
            kept += usable
    if not kept:
        counts = "; ".join(f"{part.name}: {part.account}" for part in source.parts)
        raise DataError(f"data.heldout: no row is left to evaluate on ({counts}). prompt.max_tokens is {max_prompt_tokens}.")
    return kept


def cold_start_examples(items: Sequence[PromptItem], prompter: Renderer) -> tuple[list[SupervisedExample], dict[str, int]]:
    """Return the teacher's correct trajectories (Eq. 10), and {kept, dropped}.

    Raises:
        ValueError: a record has no teacher judgement.
    """
    examples: list[SupervisedExample] = []
    for item in items:
        record = item.record
        if record.worked is None:
            raise ValueError(
                f"record {record.id} ({record.source}) has no teacher judgement: the cold start needs generated tasks "
                "(data.train: tasks:train) or sft.data; set sft.rows=0 to skip it."
            )
        text = worked_text(record, item.order, prompter.principles)
        if judge(text, record.rewards, item.order, replace(prompter.score_format, thought="")).correct:
            examples.append(SupervisedExample(item.token_ids, completion(prompter.chat, text)))
    return examples, {"kept": len(examples), "dropped": len(items) - len(examples)}


def completion(chat: Chat, text: str) -> list[int]:
    """Encode an answer to imitate: without a thinking section, and ending with the assistant's end-of-turn token."""
    return [*chat.encode(chat.answer(text)), chat.end]


def prompt_completion_examples(path: Path, limit: int, chat: Chat) -> list[SupervisedExample]:
    """Return examples of the first `limit` rows of a file of {"prompt": text, "completion": text}; later rows are not read.

    Raises:
        DataError: a row has another form; the message names file and row.
    """
    examples: list[SupervisedExample] = []
    for number, row in islice(strict_rows(path), limit):
        prompt, answer = row.get("prompt"), row.get("completion")
        if not (isinstance(prompt, str) and isinstance(answer, str) and answer):
            expected = '{"prompt": text, "completion": text} with a non-empty completion'
            raise DataError(f"expected {expected}, found {', '.join(row) or 'no keys'}.", file=str(path), row=number)
        try:
            tokens = chat.tokens([{"role": "user", "content": prompt}])
        except ChatError as error:
            raise DataError(str(error), file=str(path), row=number) from error
        examples.append(SupervisedExample(tokens, completion(chat, answer)))
    return examples

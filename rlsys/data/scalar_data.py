"""Training data of the scalar reward model: judged critiques (trajectory tables) or preference rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlsys.config.schema import Config, ConfigError
from rlsys.data.accounts import MALFORMED, NO_UNIQUE_BEST
from rlsys.data.datasets import GENERATED
from rlsys.data.mixtures import Mixture, open_mixture
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.trajectories import NOT_PARQUET, trajectory_files, unreadable
from rlsys.documents.scalar import Texts
from rlsys.models.scalar import Group
from rlsys.prompts.chat import ChatError
from rlsys.prompts.rendering import Prompter, seed_for

TEXT, TRUTH = (pa.string(), pa.large_string()), (pa.bool_(),)
COLUMNS = {"prompt_id": TEXT, "prompt": TEXT, "text": TEXT, "correct": TRUTH, "parse_failure": (*TEXT, pa.null())}
"""Columns read from a trajectory table, and their accepted types."""
OPTIONAL = {"hinted": TRUTH, "source": (*TEXT, pa.null())}
"""Columns that may be missing; they default to null, `hinted` to false."""
TOKENIZER_BATCH = 4096
"""Texts per tokenizer call: enough to use all cores."""


@dataclass(frozen=True)
class ScalarData:
    """The training and held-out groups of a run. No row and no prompt is in both."""

    train: list[Group]
    heldout: list[Group]
    account: dict[str, int]
    """Samples (bce) or training rows (bt) read, and how many of them were used or skipped, by reason; these add up."""


def load_scalar_data(config: Config, tokenizer: Any) -> ScalarData:
    """Read the data that `config.meta_rm` specifies.

    Raises:
        DataError: unusable files or rows, an empty side of the split, or critiques of one label only.
        ConfigError: generated tasks without a number of rows.
    """
    settings = config.meta_rm
    if settings.objective == "bce":
        groups, counts = read_critiques(trajectory_files(settings.data), tokenizer, settings.max_tokens, settings.parse_failures)
        train, heldout = split(groups, settings.heldout)
        total = _texts(train)
        if settings.mixed_rows:
            train = with_both_labels(train)
        counts["one_label"], total = total - _texts(train), _texts(train)
        train = first_texts(train, settings.rows, config.seed)
        counts |= {"not_needed": total - _texts(train), "heldout": _texts(heldout), "used": _texts(train)}
        if len({label for group in train for label in group.labels}) < 2:
            found = "correct" if train[0].labels[0] else "wrong"
            raise DataError(f"meta_rm.data: all {describe(train).texts} critiques are {found}; expected both correct and wrong ones.")
        return ScalarData(train, heldout, counts)
    generated = [source.path for source in config.data.sources("train") if str(source.path).startswith(GENERATED)]
    if generated and settings.rows is None:
        raise ConfigError(f"data.train: {generated[0]} is unbounded: set the number of rows to train on, for example meta_rm.rows=2000.")
    prompter = Prompter.from_config(tokenizer, config.prompt)
    rows, heldout_rows = (open_mixture(config.data, which, config.seed) for which in ("train", "heldout"))
    heldout, _ = read_preferences(heldout_rows, prompter, config.data.heldout_rows, settings.max_tokens)
    train, counts = read_preferences(rows, prompter, settings.rows or len(rows), settings.max_tokens, heldout, shuffle=True)
    return ScalarData(train, heldout, counts)


def _texts(groups: Sequence[Group]) -> int:
    return sum(len(group.texts) for group in groups)


def describe(groups: Sequence[Group]) -> Texts:
    """Count the distinct rows, groups, texts and tokens."""
    texts = _texts(groups)
    return Texts(
        rows=len({group.row for group in groups}),
        groups=len(groups),
        texts=texts,
        positive=sum(sum(group.labels) for group in groups) / texts if texts else None,
        tokens=sum(len(group.prompt) * len(group.texts) + sum(map(len, group.texts)) for group in groups),
    )


# --- critiques ---------------------------------------------------------------------------------------------------------


def read_critiques(
    files: Sequence[Path], tokenizer: Any, max_tokens: int, parse_failures: bool = False
) -> tuple[list[Group], dict[str, int]]:
    """Read judged critiques, grouped by the prompt that they were sampled for; label 1 if the critique is correct (Eq. 10).

    Hinted samples are skipped, as their prompt contained the answer. So are parse failures, unless `parse_failures`: they have
    no vote, so their meta reward is never needed. Tokens stay in memory, 4 bytes each, a prompt's once.

    Args:
        max_tokens: maximum length of prompt and text together; a longer sample is skipped, never truncated.

    Returns:
        The groups, in order of first appearance of their prompts; and counts: samples read, and skipped as hinted, parse_failures or
        too_long.

    Raises:
        DataError: a file is not a trajectory table, a row has no prompt, text or label, or no sample is left.
    """
    table = pa.concat_tables([_read_table(path) for path in files])
    counts = {"samples": table.num_rows, "hinted": 0, "parse_failures": 0}
    filters: dict[str, Callable[[], pa.Array]] = {"hinted": lambda: table["hinted"]}
    if not parse_failures:
        filters["parse_failures"] = lambda: pc.is_valid(table["parse_failure"])
    for name, dropped in filters.items():
        kept = table.filter(pc.invert(dropped()))
        counts[name], table = table.num_rows - kept.num_rows, kept

    prompts = pc.dictionary_encode(table["prompt"]).combine_chunks()
    prompt_tokens = _encode(tokenizer, prompts.dictionary.to_pylist())
    texts = _encode(tokenizer, table["text"].to_pylist())
    rows = zip(table["source"].to_pylist(), table["prompt_id"].to_pylist())
    members: dict[int, list[tuple[tuple[str | None, str], np.ndarray, float]]] = {}
    for prompt, row, text, correct in zip(prompts.indices.to_pylist(), rows, texts, table["correct"].to_pylist()):
        if len(prompt_tokens[prompt]) + len(text) <= max_tokens:
            members.setdefault(prompt, []).append((row, text, float(correct)))
    groups = []
    for prompt, found in members.items():
        ((source, prompt_id), *_), own, labels = zip(*found)
        groups.append(Group(prompt_id, prompt_tokens[prompt], own, labels, source))
    counts["too_long"] = table.num_rows - sum(len(group.texts) for group in groups)
    if not groups:
        raise DataError(f"{', '.join(map(str, files))}: no sample to train on ({_format_counts(counts)}).")
    return groups, counts


def _read_table(path: Path) -> pa.Table:
    """Read and check the columns COLUMNS and OPTIONAL of one table."""
    try:
        file = pq.ParquetFile(path)
        with file:
            present = file.schema_arrow.names
            missing = [name for name in COLUMNS if name not in present]
            if missing:
                raise DataError(f"no column {', '.join(missing)}: expected a trajectory table, with {', '.join(COLUMNS)}.", file=str(path))
            wanted = COLUMNS | {name: types for name, types in OPTIONAL.items() if name in present}
            table = file.read(columns=list(wanted))
    except NOT_PARQUET as error:
        raise unreadable(path, error) from error
    columns = {}
    for name, types in wanted.items():
        column = table[name]
        if column.type not in types:
            raise DataError(f"{name}: expected {types[0]}, found {column.type}.", key=name, file=str(path))
        if column.null_count and pa.null() not in types:
            row = pc.index(pc.is_null(column), True).as_py() + 1
            raise DataError(f"{name}: expected {types[0]}, found null.", key=name, file=str(path), row=row)
        columns[name] = column.cast(types[0])
    absent = {"hinted": pa.array(np.zeros(table.num_rows, bool)), "source": pa.nulls(table.num_rows, pa.string())}
    return pa.table(absent | columns)


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the token ids of each text; special tokens are already in the text, from the chat template."""
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), TOKENIZER_BATCH):
        batch = tokenizer(texts[start : start + TOKENIZER_BATCH], add_special_tokens=False)["input_ids"]
        ids += [np.array(tokens, np.int32) for tokens in batch]
    return ids


def split(groups: Sequence[Group], share: float) -> tuple[list[Group], list[Group]]:
    """Return (training, held-out) groups; about `share` of all ids are held out, always the same ones whatever the rest of the data.

    Only the id decides, not the source: rows with one id in several sources, or in tables with and without a source, are on one side.

    Raises:
        DataError: one side is empty.
    """
    sides: tuple[list[Group], list[Group]] = [], []
    for group in groups:
        sides[seed_for("meta_rm.heldout", group.id) < share * 2**31].append(group)
    if not all(sides):
        side = "held out" if sides[0] else "to train on"
        rows = len({group.row for group in groups})
        raise DataError(f"meta_rm.heldout={share}: no row is left {side} ({rows} in all); change the share, or provide more rows.")
    return sides


# --- preferences -------------------------------------------------------------------------------------------------------


def preference_group(record: Record, prompter: Prompter) -> Group:
    """Return a conversation and its responses in the model's chat format, defused; label 1 for the best. No judging template is used.

    Raises:
        ChatError: the chat template rejects the conversation.
    """
    turns = [{"role": prompter.defuse(turn["role"]), "content": prompter.defuse(turn["content"])} for turn in record.context]
    prompt = prompter.chat.tokens(turns)
    texts = _encode(prompter.tokenizer, [prompter.chat.answer(prompter.defuse(response)) for response in record.responses])
    labels = tuple(float(i == record.best) for i in range(record.n))
    return Group(record.id, np.array(prompt, np.int32), tuple(texts), labels, record.source)


def read_preferences(
    source: Mixture, prompter: Prompter, limit: int, max_tokens: int, heldout: Sequence[Group] = (), shuffle: bool = False
) -> tuple[list[Group], dict[str, int]]:
    """Return the groups of up to `limit` rows with two or more responses.

    Args:
        max_tokens: maximum length of conversation and response together; a row that exceeds it is skipped.
        heldout: rows with the conversation of one of these groups are skipped.
        shuffle: read the rows in the order of the mixture's seed, each once; False: in file order.

    Returns:
        The groups; and counts that add up: rows read; used; skipped as single (one response only), too_long, heldout, refused by the chat
        template, no_unique_best or malformed; and not_needed, which were read ahead.

    Raises:
        DataError: no row is left.
    """
    groups: list[Group] = []
    counts = {"single": 0, "too_long": 0, "heldout": 0, "refused": 0}
    refusal = ""
    heldout_prompts = {group.prompt.tobytes() for group in heldout}
    for record in source.once() if shuffle else (record for _, record in source.scan()):
        if record.n == 1:
            counts["single"] += 1
            continue
        try:
            group = preference_group(record, prompter)
        except ChatError as error:
            counts["refused"] += 1
            refusal = f" {error}"
            continue
        if len(group.prompt) + max(map(len, group.texts)) > max_tokens:
            counts["too_long"] += 1
        elif group.prompt.tobytes() in heldout_prompts:
            counts["heldout"] += 1
        else:
            groups.append(group)
            if len(groups) == limit:
                break
    account = source.account
    unusable = {"no_unique_best": account.aside[NO_UNIQUE_BEST], "malformed": account.aside[MALFORMED]}
    counts = {"rows": account.rows, "used": len(groups), **unusable, **counts}
    counts["not_needed"] = account.rows - sum(count for name, count in counts.items() if name != "rows")
    if not groups:
        raise DataError(f"no preference row to train on ({_format_counts(counts)}); meta_rm.max_tokens is {max_tokens}.{refusal}")
    return groups, counts


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


# --- batches -----------------------------------------------------------------------------------------------------------


def with_both_labels(groups: Sequence[Group]) -> list[Group]:
    """Return the groups of rows that have both labels, over all of a row's groups.

    Raises:
        DataError: no row has both.
    """
    labels: dict[tuple[str | None, str], set[float]] = {}
    for group in groups:
        labels.setdefault(group.row, set()).update(group.labels)
    found = [group for group in groups if len(labels[group.row]) > 1]
    if not found:
        raise DataError(f"meta_rm.mixed_rows: none of {len(labels)} rows has both correct and wrong critiques; provide more samples.")
    return found


def first_texts(groups: Sequence[Group], limit: int | None, seed: int) -> list[Group]:
    """Return whole groups in the order of `seed` until they have at least `limit` texts; without a limit, all in the given order."""
    if limit is None:
        return list(groups)
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes = np.cumsum([len(groups[i].texts) for i in order])
    return [groups[i] for i in order[: np.searchsorted(sizes, limit) + 1]]


def batches(groups: Sequence[Group], texts: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the indices of the groups that each optimizer step trains on; every epoch covers all groups in a different order.

    Each step has about `texts` texts, nearly the same number within an epoch; a group is never split between steps.
    """
    steps: list[list[int]] = []
    sizes = np.array([len(group.texts) for group in groups])
    count = max(1, round(sizes.sum() / texts))
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(groups))
        begins = np.cumsum(sizes[order]) - sizes[order]
        number = begins * count // sizes.sum()
        steps += [[int(i) for i, _ in members] for _, members in groupby(zip(order, number), key=lambda each: each[1])]
    return steps

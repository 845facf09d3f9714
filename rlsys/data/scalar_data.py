"""What the scalar reward model learns from: critiques that were judged (trajectory tables), or preference rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlsys.config.schema import Config, ConfigError
from rlsys.data.accounts import MALFORMED, TIE
from rlsys.data.datasets import TASKS
from rlsys.data.mixtures import Mixture, open_mixture
from rlsys.data.readers import DataError
from rlsys.data.records import Record
from rlsys.data.trajectories import trajectory_files
from rlsys.models.scalar import Group
from rlsys.prompts.chat import ChatError
from rlsys.prompts.rendering import Prompter, seed_for

TEXT, TRUTH = (pa.string(), pa.large_string()), (pa.bool_(),)
COLUMNS = {"prompt_id": TEXT, "prompt": TEXT, "text": TEXT, "correct": TRUTH, "parse_failure": (*TEXT, pa.null())}
"""What is read of a trajectory table, and the types it may have."""
OPTIONAL = {"hinted": TRUTH, "source": (*TEXT, pa.null())}
"""What is read as well where there is such a column; null otherwise, false for `hinted`."""
AT_ONCE = 4096
"""Texts that the tokenizer gets in one call: enough for all cores."""


@dataclass(frozen=True)
class ScalarData:
    """What one run trains on and is judged on. No row, and no prompt, is on both sides."""

    train: list[Group]
    heldout: list[Group]
    account: dict[str, int]
    """Samples (bce) or training rows (bt) seen; and what became of them, which adds up: used, or left out by reason."""


def load_scalar_data(config: Config, tokenizer: Any) -> ScalarData:
    """Read what `config.meta_rm` names.

    Raises:
        DataError: files or rows that cannot be used, nothing left on a side, or critiques of one label only.
        ConfigError: all rows of generated tasks are asked for.
    """
    settings = config.meta_rm
    if settings.objective == "bce":
        groups, counts = read_critiques(trajectory_files(settings.data), tokenizer, settings.max_tokens, settings.parse_failures)
        train, heldout = split(groups, settings.heldout)
        every = _texts(train)
        if settings.mixed_rows:
            train = mixed(train)
        counts["one_label"], every = every - _texts(train), _texts(train)
        train = first_texts(train, settings.rows, config.seed)
        counts |= {"not_needed": every - _texts(train), "heldout": _texts(heldout), "used": _texts(train)}
        if len({label for group in train for label in group.labels}) < 2:
            found = "correct" if train[0].labels[0] else "wrong"
            raise DataError(
                f"meta_rm.data: all {describe(train)['texts']} critiques are {found}; expected right and wrong ones to tell apart."
            )
        return ScalarData(train, heldout, counts)
    endless = [source.path for source in config.data.sources("train") if str(source.path).startswith(TASKS)]
    if endless and settings.rows is None:
        raise ConfigError(f"data.train: {endless[0]} goes on for ever: say how many rows to train on, for example meta_rm.rows=2000.")
    prompter = Prompter.from_config(tokenizer, config.prompt)
    rows, heldout_rows = (open_mixture(config.data, which, config.seed) for which in ("train", "heldout"))
    heldout, _ = read_preferences(heldout_rows, prompter, config.data.heldout_rows, settings.max_tokens)
    train, counts = read_preferences(rows, prompter, settings.rows or len(rows), settings.max_tokens, heldout, drawn=True)
    return ScalarData(train, heldout, counts)


def _texts(groups: Sequence[Group]) -> int:
    return sum(len(group.texts) for group in groups)


def describe(groups: Sequence[Group]) -> dict[str, Any]:
    """{rows, groups, texts, positive, tokens}: distinct rows, groups, texts, share of texts with label 1, tokens with prompts repeated."""
    texts = _texts(groups)
    return {
        "rows": len({group.row for group in groups}),
        "groups": len(groups),
        "texts": texts,
        "positive": sum(sum(group.labels) for group in groups) / texts if texts else None,
        "tokens": sum(len(group.prompt) * len(group.texts) + sum(map(len, group.texts)) for group in groups),
    }


# --- critiques ---------------------------------------------------------------------------------------------------------


def read_critiques(
    files: Sequence[Path], tokenizer: Any, max_tokens: int, parse_failures: bool = False
) -> tuple[list[Group], dict[str, int]]:
    """Judged critiques, grouped by the prompt that they were sampled for; label 1 where the critique is correct (Eq. 10).

    Hinted samples are left out, as they were written with the answer in sight. So are samples that did not parse, unless
    `parse_failures`: without scores they have no vote, so nobody asks for their meta reward. Tokens stay in memory, 4 bytes each, a
    prompt's once.

    Args:
        max_tokens: longest prompt and text together; a longer sample is set aside, never cut.

    Returns:
        groups, in the order in which their prompts first appear; and counts: samples seen, and those set aside as hinted,
        parse_failures or too_long.

    Raises:
        DataError: a file that is no trajectory table, a row without prompt, text or label, or nothing left.
    """
    table = pa.concat_tables([_read_table(path) for path in files])
    counts = {"samples": table.num_rows, "hinted": 0, "parse_failures": 0}
    leave_out = {"hinted": lambda: table["hinted"]}
    if not parse_failures:
        leave_out["parse_failures"] = lambda: pc.is_valid(table["parse_failure"])
    for name, dropped in leave_out.items():
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
        raise DataError(f"{', '.join(map(str, files))}: no sample to learn from ({_told(counts)}).")
    return groups, counts


def _read_table(path: Path) -> pa.Table:
    """One table of COLUMNS and OPTIONAL, checked."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot be read as Parquet ({error}).", file=str(path)) from error
    with file:
        present = file.schema_arrow.names
        missing = [name for name in COLUMNS if name not in present]
        if missing:
            raise DataError(f"no column {', '.join(missing)}: expected a trajectory table, with {', '.join(COLUMNS)}.", file=str(path))
        wanted = COLUMNS | {name: types for name, types in OPTIONAL.items() if name in present}
        table = file.read(columns=list(wanted))
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
    """Token ids of each text; the chat template has written all special tokens that belong there."""
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), AT_ONCE):
        part = tokenizer(texts[start : start + AT_ONCE], add_special_tokens=False)["input_ids"]
        ids += [np.array(tokens, np.int32) for tokens in part]
    return ids


def split(groups: Sequence[Group], share: float) -> tuple[list[Group], list[Group]]:
    """(training, held-out): about `share` of all ids are held out, whole, and always the same ones whatever else is in the data.

    The id alone decides, whatever the source: rows of one id in several sources, or in tables with and without a source, share a side.

    Raises:
        DataError: nothing is left on one side.
    """
    sides: tuple[list[Group], list[Group]] = [], []
    for group in groups:
        sides[seed_for("meta_rm.heldout", group.id) < share * 2**31].append(group)
    if not all(sides):
        side = "held out" if sides[0] else "to train on"
        rows = len({group.row for group in groups})
        raise DataError(f"meta_rm.heldout={share}: no row is left {side} ({rows} in all); change the share, or give more rows.")
    return sides


# --- preferences -------------------------------------------------------------------------------------------------------


def preference_group(record: Record, prompter: Prompter) -> Group:
    """A conversation and all its responses as a chat shows them, defused; label 1 for the best. No judging template is involved.

    Raises:
        ChatError: the chat template takes no such conversation.
    """
    turns = [{"role": prompter.defuse(turn["role"]), "content": prompter.defuse(turn["content"])} for turn in record.context]
    prompt = prompter.chat.tokens(turns)
    texts = _encode(prompter.tokenizer, [prompter.chat.answer(prompter.defuse(response)) for response in record.responses])
    labels = tuple(float(i == record.best) for i in range(record.n))
    return Group(record.id, np.array(prompt, np.int32), tuple(texts), labels, record.source)


def read_preferences(
    source: Mixture, prompter: Prompter, limit: int, max_tokens: int, heldout: Sequence[Group] = (), drawn: bool = False
) -> tuple[list[Group], dict[str, int]]:
    """Groups of up to `limit` rows of two or more responses.

    Args:
        max_tokens: longest conversation and response together; a row with a longer one is set aside.
        heldout: rows with the conversation of one of these are set aside.
        drawn: in the order of the mixture's seed, each once; False: in the order of the rows.

    Returns:
        groups; and counts that add up: rows read; those used, those set aside as single (one response has no rival), too_long, heldout,
        refused by the chat template, no_unique_best or malformed, and those not_needed, which were read ahead.

    Raises:
        DataError: nothing left.
    """
    groups: list[Group] = []
    counts = {"single": 0, "too_long": 0, "heldout": 0, "refused": 0}
    refused = ""
    known = {group.prompt.tobytes() for group in heldout}
    for record in source.once() if drawn else (record for _, record in source.scan()):
        if record.n == 1:
            counts["single"] += 1
            continue
        try:
            group = preference_group(record, prompter)
        except ChatError as error:
            counts["refused"] += 1
            refused = f" {error}"
            continue
        if len(group.prompt) + max(map(len, group.texts)) > max_tokens:
            counts["too_long"] += 1
        elif group.prompt.tobytes() in known:
            counts["heldout"] += 1
        else:
            groups.append(group)
            if len(groups) == limit:
                break
    account = source.account
    unusable = {"no_unique_best": account.aside[TIE], "malformed": account.aside[MALFORMED]}
    counts = {"rows": account.rows, "used": len(groups), **unusable, **counts}
    counts["not_needed"] = account.rows - sum(count for name, count in counts.items() if name != "rows")
    if not groups:
        raise DataError(f"no preference row to learn from ({_told(counts)}); meta_rm.max_tokens is {max_tokens}.{refused}")
    return groups, counts


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


# --- batches -----------------------------------------------------------------------------------------------------------


def mixed(groups: Sequence[Group]) -> list[Group]:
    """The groups of rows that have both labels, over all of a row's groups.

    Raises:
        DataError: there is none.
    """
    labels: dict[tuple[str | None, str], set[float]] = {}
    for group in groups:
        labels.setdefault(group.row, set()).update(group.labels)
    found = [group for group in groups if len(labels[group.row]) > 1]
    if not found:
        raise DataError(f"meta_rm.mixed_rows: none of {len(labels)} rows has right and wrong critiques; give more samples of each.")
    return found


def first_texts(groups: Sequence[Group], limit: int | None, seed: int) -> list[Group]:
    """Whole groups in the order of `seed`, until they hold at least `limit` texts; all of them, as they are, without a limit."""
    if limit is None:
        return list(groups)
    order = np.random.default_rng(seed).permutation(len(groups))
    sizes = np.cumsum([len(groups[i].texts) for i in order])
    return [groups[i] for i in order[: np.searchsorted(sizes, limit) + 1]]


def batches(groups: Sequence[Group], texts: int, epochs: int, seed: int) -> list[list[int]]:
    """Which groups each optimizer step trains on: every epoch goes over all of them, in an order of its own.

    A step holds about `texts` texts, and those of an epoch are nearly equal; a group is never divided over two.
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

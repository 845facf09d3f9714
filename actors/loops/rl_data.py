"""The data of an RL run: the base model, the prompts to train on, the held-out prompts, and the account of all rows read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from actors.loops.progress import ProgressReporter
from rlsys.config.schema import Config
from rlsys.data.batches import Feed, heldout_rows
from rlsys.data.chain import PromptItem
from rlsys.data.exclusion import read_exclusion
from rlsys.data.mixtures import Mixture, data_report, open_mixture
from rlsys.io.run_folder import RunFolder, find_model
from rlsys.policy.prompts import ConversationPrompter
from rlsys.prompts.rendering import Prompter


@dataclass
class RunData:
    """What `open_data` opened."""

    base: str
    """Folder or hub name of the base model."""
    feed: Feed
    heldout_source: Mixture
    heldout: list[PromptItem]
    """Of a policy, those rows whose answers a program can check: there may be none."""
    is_policy: bool = False
    """The prompts are plain conversations."""

    def report(self) -> dict[str, Any]:
        """Account for every row read so far."""
        return data_report(self.feed.source, self.heldout_source)


def open_data(config: Config, folder: RunFolder, progress: ProgressReporter, policy: bool = False) -> RunData:
    """Open model and data, and report which rows there are.

    Args:
        policy: use the rows as prompts for a policy, not for a judge.

    Raises:
        rlsys.config.schema.ConfigError, rlsys.data.readers.DataError: the config or the data are unusable.
    """
    with progress.phase("start", "preparing model and data"):
        base = find_model(config.model.path)
        kind = ConversationPrompter if policy else Prompter
        prompter = kind.from_config(AutoTokenizer.from_pretrained(base), config.prompt)
        source = open_mixture(config.data, "train", config.seed)
        excluded = read_exclusion(config.data.exclude, source)
        feed = Feed(source, prompter, config.prompt.max_tokens, excluded.rows)
        heldout_source = open_mixture(config.data, "heldout", config.seed)
        heldout = heldout_rows(heldout_source, prompter, config.data.heldout_rows, config.prompt.max_tokens)
        if policy:
            heldout = [item for item in heldout if item.record.checks]
        data = RunData(base, feed, heldout_source, heldout, policy)
        folder.write_json("data_report.json", data.report())
    for part in source.parts:
        progress.say(f"training rows: {part.name}, {len(part.rows):,} rows, checked when read; data_report.json accounts for them")
    for part in heldout_source.parts:
        progress.say(f"held-out rows: {part.name}, {part.account}")
    if not heldout:
        progress.warn("no held-out row has checks, so the policy is not evaluated on them: only what its rewards say is measured")
    if config.data.exclude is not None:
        progress.say(str(excluded))
    return data

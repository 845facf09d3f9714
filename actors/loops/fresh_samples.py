"""Fresh, judged samples of a model on training rows: training data of a meta reward model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer

from actors.loops.judge import running_judge, write_rows
from rlsys.algorithms.rejection import judged_rows, write_sampled
from rlsys.config.schema import Config
from rlsys.data.mixtures import open_mixture
from rlsys.io.resumable import ResumableRows
from rlsys.io.run_folder import find_model
from rlsys.judging.requests import JudgeRequest, judge_request, render_requests
from rlsys.prompts.rendering import Prompter


def fresh_samples(config: Config, rows: int, samples: int, seed: int, path: Path, console: Console) -> None:
    """Write a table (`rlsys.algorithms.rejection.SAMPLED`) of `samples` samples of `rows` rows of data.train at rollout.temperature.

    Args:
        seed: seed of the rows and their samples; with a seed other than the run's, the rows differ from those the run trained on.
        path: Parquet file. A killed call resumes after the last row; a complete one does nothing.
    """
    if path.exists():
        return
    source = open_mixture(config.data, "train", seed)

    def asks() -> Iterator[JudgeRequest]:
        for record in source.fresh().take(rows):
            yield judge_request(record, samples, "fresh", seed)

    with ResumableRows(path.with_suffix(".jsonl"), {"model": config.model.path, "rows": rows, "samples": samples, "seed": seed}) as file:
        if not file.complete:
            with running_judge(config, console) as judge:
                write_rows(file, rows, asks(), judge.rows(config.rollout.temperature), console, "fresh samples")
        prompter = Prompter.from_config(AutoTokenizer.from_pretrained(find_model(config.model.path)), config.prompt)
        asked = render_requests(asks(), prompter, config.prompt.max_tokens)
        write_sampled(path, judged_rows(asked, file.rows(), score_format=prompter.score_format), prompter.score_format)

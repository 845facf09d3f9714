"""Judging of many rows with progress, into a file that survives a kill."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from actors.cluster.session import ray_session
from actors.cluster.waiting import Pending, fetch
from actors.judges import Judges
from actors.loops.recovery import ConsoleScreen, Recoveries
from rlsys.config.endpoint import Endpoint
from rlsys.config.schema import Config
from rlsys.data.records import Record
from rlsys.io.resumable import ResumableRows
from rlsys.io.run_folder import find_model
from rlsys.judging.requests import Answering, JudgeRequest, JudgeResult, Sampling
from rlsys.judging.sampling_plans import SamplingPlan
from rlsys.prompts.rendering import Prompter, UserTurns
from rlsys.system.terminal import print_text, progress

Row = dict[str, Any]
ROUNDS_AHEAD = 1024
"""Maximum rows in progress at a time: enough for many engines, few enough for memory."""
REPORT_EVERY_S = 30.0
"""Seconds between progress lines where the output is not a terminal, as in a job's log."""


@dataclass
class Judge:
    """A judge that answers, and its request settings."""

    judges: Answering
    prompter: UserTurns
    config: Config

    def answer(self, asks: Iterable[JudgeRequest], temperature: float) -> Iterator[JudgeResult]:
        """Yield the results of `asks`, in order."""
        sampling = Sampling(temperature, self.config.rollout.top_p, self.config.rollout.max_tokens)
        yield from self.judges.answer(asks, self.prompter, sampling, self.config.prompt.max_tokens)

    def answer_by(self, plan: SamplingPlan, records: Iterable[Record], temperature: float) -> Iterator[JudgeResult]:
        """Yield the results of `records`, in order, each sampled until `plan` is satisfied. No engine waits for the end of a round."""
        source, exhausted = enumerate(records), False
        # By index of the record: requests to send next, unsettled results, and settled ones that wait for an earlier record.
        waiting: deque[tuple[int, JudgeRequest]] = deque()
        unsettled: dict[int, JudgeResult | None] = {}
        settled: dict[int, JudgeResult] = {}
        sent, yielded = deque[int](), 0

        def next_requests() -> Iterator[JudgeRequest]:
            nonlocal exhausted
            while True:
                room = len(unsettled) + len(settled) < ROUNDS_AHEAD
                if not waiting and room and (numbered := next(source, None)):
                    number, record = numbered
                    unsettled[number] = None
                    first = plan(record, None)
                    assert first is not None, "a plan requests samples of every record"
                    waiting.append((number, first))
                if not waiting:
                    exhausted = room
                    return
                number, request = waiting.popleft()
                sent.append(number)
                yield request

        while unsettled or not exhausted:
            for answer in self.answer(next_requests(), temperature):
                number = sent.popleft()
                before = unsettled.pop(number)
                answer = before.extended(answer) if before else answer
                more = None if answer.rendered.skipped else plan(answer.record, answer)
                if more is None:
                    settled[number] = answer
                else:
                    unsettled[number] = answer
                    waiting.append((number, more))
                while yielded in settled:
                    yield settled.pop(yielded)
                    yielded += 1

    def rows(self, temperature: float) -> Callable[[Iterable[JudgeRequest]], Iterator[Row]]:
        """Return a function for `write_rows` that turns requests into rows."""
        return lambda asks: (answer.row() for answer in self.answer(asks, temperature))


@dataclass
class EngineJudge(Judge):
    """Running engines (and a scorer)."""

    judges: Judges
    prompter: Prompter

    def sample(self, prompts: pa.RecordBatch, temperature: float) -> list[pa.RecordBatch]:
        """Sample every seed of `prompts` (PROMPTS); returns SAMPLES in parts."""
        rollout = self.config.rollout
        parts = self.judges.rollouts.sample(prompts, temperature, rollout.top_p, rollout.max_tokens)
        return [fetch(Pending(part, "rollout", "sample"), self.judges.rollouts.run.timeout_s("sample")) for part in parts]


@contextmanager
def endpoint_judge(config: Config, endpoint: Endpoint, console: Console) -> Iterator[Judge]:
    """The model behind an endpoint with the template of `config`, until the block ends.

    Raises:
        rlsys.serving.endpoint.EndpointError: the endpoint cannot be used.
    """
    from rlsys.serving.endpoint import EndpointJudge

    with EndpointJudge(endpoint) as judge:
        print_text(console, f"{judge.model} at {judge.url}, up to {endpoint.concurrency} requests at a time")
        yield Judge(judge, UserTurns.for_endpoint(config.prompt), config)
        if judge.unmetered:
            print_text(console, f"{judge.unmetered:,} answers came without a count of their tokens, which are counted as 0", "yellow")


def open_judge(config: Config, endpoint: Endpoint | None, console: Console, meta_rm: str | None = None) -> AbstractContextManager[Judge]:
    """Return `endpoint_judge` if there is an endpoint, else `running_judge`."""
    return endpoint_judge(config, endpoint, console) if endpoint else running_judge(config, console, meta_rm)


@contextmanager
def endpoint_teacher(config: Config, prompter: Prompter, console: Console) -> Iterator[Judge]:
    """The model behind `rft.teacher` as the teacher of a student with `prompter`, until the block ends."""
    from rlsys.serving.teacher import Teacher

    with endpoint_judge(config, config.rft.teacher, console) as teacher:
        yield Judge(Teacher(teacher.judges, teacher.prompter), prompter, config)


@contextmanager
def running_judge(config: Config, console: Console, meta_rm: str | None = None, logs: Path | None = None) -> Iterator[EngineJudge]:
    """Engines with the model `config.model.path` and its template, running until the block ends; one that is lost is replaced.

    Args:
        meta_rm: folder of the meta reward model that scores every sample.
        logs: folder for the actors' log files; None: a temporary one, which errors quote.
    """
    from transformers import AutoTokenizer

    model = find_model(config.model.path)
    prompter = Prompter.from_config(AutoTokenizer.from_pretrained(model), config.prompt)
    with tempfile.TemporaryDirectory(prefix="rlsys-logs-") as scratch, ray_session(config.run):
        began = time.monotonic()
        print_text(console, "starting the engines …")
        recoveries = Recoveries(config.recovery, ConsoleScreen(console))
        with closing(Judges(config, model, logs or Path(scratch) / "logs", meta_rm, recoveries=recoveries)) as judges:
            descriptions = judges.start()
            engines = f"{len(judges.rollouts.actors)} engine(s)"
            if meta_rm:
                engines += ", 1 scorer of the meta reward model"
            print_text(console, f"{engines} ready after {time.monotonic() - began:.0f} s")
            if unlike := next((one["tokens_differ"] for one in descriptions.values() if one.get("tokens_differ")), None):
                print_text(
                    console, f"the meta reward model and the judge have different tokenizers ({unlike}): texts are re-encoded for it"
                )
            yield EngineJudge(judges, prompter, config)


def write_rows(
    file: ResumableRows,
    total: int | None,
    asks: Iterable[Any],
    rows: Callable[[Iterable[Any]], Iterator[Row]],
    console: Console,
    title: str,
) -> None:
    """Ask what is left of `asks` and write a row for each; then give the file its name.

    Args:
        total: number of requests, if known.
        rows: from the asks that are left to their rows, one each, in order; a row's `tokens` are counted for the progress shown.
    """
    if file.done:
        print_text(console, f"resumed after row {file.done:,} of {file.part}")
    with progress(console) as bar:
        task = bar.add_task(title, total=total, completed=file.done, pace="")
        began, tokens = time.monotonic(), 0
        reported = began
        for count, row in enumerate(rows(islice(asks, file.done, None)), file.done + 1):
            file.write(row)
            tokens += row.get("tokens", 0)
            now = time.monotonic()
            pace = f"{tokens / (now - began):,.0f} tokens/s"
            bar.update(task, advance=1, pace=pace)
            if not console.is_terminal and now - reported > REPORT_EVERY_S:
                print_text(console, f"{title}: {count:,}{'' if total is None else f' of {total:,}'} rows, {pace}")
                reported = now
    file.finish()

"""Everything that can be known of a command before anything starts: one list of all mistakes, in seconds.

Neither torch nor Ray is needed, so `python -m rlsys.preflight` does without (it reads a `PreflightTask` as JSON from stdin and writes a
`PreflightReport` to stdout): importing torch would take longer than all checks. Read `run_preflight` first.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlsys.config.checks import find_conflicts
from rlsys.config.schema import Config
from rlsys.io.run_folder import require_same_config, resolve_model
from rlsys.models.folder import check_model_folder, check_vocabulary
from rlsys.models.loading import ModelError, ensure_model, is_built_on_demand
from rlsys.system.environment_errors import describe_environment_error
from rlsys.system.placement import place, place_learners

if TYPE_CHECKING:
    from rlsys.data.records import Record
    from rlsys.prompts.rendering import Prompter

ROWS_CHECKED = 64
"""Rows of a source that are rendered: enough to see that none fits, few enough for a second."""
FEW_HELDOUT = 100
"""Fewer held-out rows than this tell an accuracy to about ten points at best."""
TRAINING = ("train", "sft", "rft", "ladder")
IN_RUN_DIR = (*TRAINING, "meta-rm")
"""Commands that write into run.dir; the others write what `PreflightTask.files` and `PreflightTask.folder` say."""


@dataclass
class PreflightTask:
    """What is to be checked."""

    command: str
    config: dict[str, Any]
    rows: tuple[str, str] | None = None
    """A file to judge, and its format."""
    meta_rm: str | None = None
    files: tuple[str, ...] = ()
    """Files that will be written."""
    folder: str | None = None
    """Folder that will be written into, where it is not run.dir."""
    cpus: int | None = None
    """Cores of this machine; None where a cluster decides."""
    gpus: int = 0


@dataclass
class PreflightReport:
    """What came of it."""

    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is no mistake and yet good to know before a long run."""
    facts: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def collect_errors(self) -> Iterator[None]:
        """Whatever is wrong inside the block becomes one of the mistakes."""
        try:
            yield
        except (ValueError, OSError) as error:
            told = describe_environment_error(error) or str(error)
            if told not in self.mistakes:
                self.mistakes.append(told)


def run_preflight(task: PreflightTask) -> PreflightReport:
    """Check everything of `task` that needs no engine; leaves nothing behind."""
    report, config = PreflightReport(), Config.model_validate(task.config)
    report.mistakes += find_conflicts(config, task.command)
    with report.collect_errors():
        _check_places(task, config)
    with report.collect_errors():
        _check_placement(task, config, report)
    prompter = _check_model(task, config, report)
    if task.meta_rm is not None:
        with report.collect_errors():
            check_model_folder(ensure_model(resolve_model(task.meta_rm)[0]), None)
    if task.rows is not None:
        with report.collect_errors():
            _check_judged_rows(*task.rows, config, prompter, report)
    if task.command in TRAINING or task.command == "filter" or (task.command == "meta-rm" and config.meta_rm.objective == "bt"):
        _check_rows(task.command, config, prompter, report)
    if task.command == "meta-rm" and config.meta_rm.objective == "bce":
        with report.collect_errors():
            _check_trajectories(config)
    if prompter is not None:
        with report.collect_errors():
            _check_supervised(task.command, config, prompter)
    return report


# --- places and machines ---------------------------------------------------------------------------------------------


def _check_places(task: PreflightTask, config: Config) -> None:
    if task.command in IN_RUN_DIR:
        writable_folder(config.run.dir)
        if task.command != "ladder":
            require_same_config(config)
    if task.folder is not None:
        writable_folder(Path(task.folder))
    for name in map(Path, task.files):
        if name.is_dir():
            raise ModelError(f"{name}: is a folder; give the name of a file.")
        if name.exists() and not name.is_file():
            raise ModelError(f"{name}: is no file; the command goes on after what a file holds, so give the name of one.")
        writable_folder(name.parent)


def writable_folder(folder: Path) -> None:
    """See that `folder` can be made, or written into: make another one in its place, and remove it. Permissions alone do not say it.

    Raises:
        OSError: it cannot; the error names the place.
    """
    place = folder = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    try:
        with tempfile.TemporaryDirectory(prefix=".rlsys-", dir=place) as aside:
            Path(aside, *(part for part in folder.relative_to(place).parts if part != "..")).mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as in /proc
        raise OSError(errno.EROFS, "Nothing can be created there", str(place)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder if error.errno == errno.ENAMETOOLONG else place)) from error


def _check_placement(task: PreflightTask, config: Config, report: PreflightReport) -> None:
    if task.cpus is None:
        report.facts["placement"] = "the cluster that this job was submitted to decides"
        return
    cores = f"{task.cpus} core(s)"
    if task.command == "meta-rm":
        _, threads = place_learners(config, task.cpus, task.gpus, 1)
        wanted, told = config.learner.ranks * threads, f"{config.learner.ranks} rank(s) with {threads} thread(s)"
    else:
        placed = place(config, task.cpus, task.gpus, 1)
        learners, engines = config.learner.ranks * placed.learner_threads, config.rollout.actors * placed.rollout_threads
        wanted = max(learners, engines) if placed.colocated or task.gpus else learners + engines
        told = f"{config.rollout.actors} engine(s) with {placed.rollout_threads} thread(s)"
        if task.command in TRAINING:
            told += f", {config.learner.ranks} learner rank(s) with {placed.learner_threads}"
    report.facts["placement"] = f"{told}; {cores}" + (f", {task.gpus} GPU(s)" if task.gpus else "")
    if not task.gpus and wanted > task.cpus:
        todo = "Lower learner.ranks, learner.cpus, rollout.actors or rollout.cpus."
        report.notes.append(f"{told} share {cores}: that works, and slowly. {todo}")


# --- model and template -----------------------------------------------------------------------------------------------


def _check_model(task: PreflightTask, config: Config, report: PreflightReport) -> Prompter | None:
    """The prompter that the command will use; None where there is none yet, or what is wrong is noted."""
    from rlsys.prompts.rendering import Prompter, template_source

    with report.collect_errors():
        base, _ = resolve_model(config.model.path)
        if is_built_on_demand(base):
            report.notes.append(f"model.path={base} is not there yet: it is made first, and prompts are measured only then.")
        else:
            ensure_model(base)
            tokens = config.prompt.max_tokens + max(config.rollout.max_tokens, config.eval.max_tokens or 0)
            trains = task.command in IN_RUN_DIR
            report.facts["model"] = check_model_folder(base, config.meta_rm.max_tokens if task.command == "meta-rm" else tokens, trains)
            prompter = Prompter.from_config(load_tokenizer(base), config.prompt)
            check_vocabulary(base, prompter)
            return prompter
    with report.collect_errors():
        # Whatever is wrong with the model, the template may be wrong, too.
        template_source(config.prompt.template)
    return None


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model's folder or hub name.

    Raises:
        ModelError: it cannot be loaded; the message says why.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # tokenizers and the checks of config.json have exceptions of every kind
        told = " ".join(str(error).split())[:300]
        raise ModelError(f"model {model}: its tokenizer cannot be loaded ({type(error).__name__}: {told}).") from error


# --- rows -------------------------------------------------------------------------------------------------------------


def _check_rows(command: str, config: Config, prompter: Prompter | None, report: PreflightReport) -> None:
    from rlsys.data.exclusion import excluded_ids, read_exclusion
    from rlsys.data.mixtures import open_mixture

    before = len(report.mistakes)
    for name, records in _first_records(config, "train", ROWS_CHECKED, report):
        _check_lengths(f"data.train={name}", records, config, prompter, report)
        if command in ("train", "sft") and config.sft.rows and config.sft.data is None and any(record.worked is None for record in records):
            report.mistakes.append(
                f"sft.rows={config.sft.rows}, but the rows of data.train={name} carry no worked judgements to learn from: name a "
                'file of {"prompt": text, "completion": text} with sft.data, or set sft.rows=0 to go without a cold start.'
            )
    if config.data.exclude is not None:
        with report.collect_errors():
            readable = len(report.mistakes) == before
            read_exclusion(config.data.exclude, open_mixture(config.data, "train", config.seed)) if readable else excluded_ids(
                config.data.exclude
            )
    if command != "filter":
        wanted = config.data.heldout_rows
        usable = [
            _check_lengths(f"data.heldout={name}", records, config, prompter, report)
            for name, records in _first_records(config, "heldout", wanted, report)
        ]
        if usable and sum(usable) < min(FEW_HELDOUT, wanted):
            report.notes.append(
                f"data.heldout has {sum(usable)} usable rows, data.heldout_rows={wanted} are wanted: an accuracy of so few is known to "
                f"{98 / max(sum(usable), 1) ** 0.5:.0f} points either way. Add rows, a few hundred if you can."
            )


def _first_records(
    config: Config, which: Literal["train", "heldout"], count: int, report: PreflightReport
) -> Iterator[tuple[str, list[Record]]]:
    """(name, the first `count` usable records) of each source that can be opened."""
    from rlsys.data.mixtures import open_source_rows

    for source in config.data.sources(which):
        with report.collect_errors():
            rows = open_source_rows(source, config.data, config.seed)
            report.facts[f"data.{which}={source.path}"] = f"{len(rows):,} rows"
            yield str(source.path), list(islice(iter(rows), count))


def _check_lengths(name: str, records: list[Record], config: Config, prompter: Prompter | None, report: PreflightReport) -> int:
    """How many of the records fit; none that does is a mistake."""
    if prompter is None or not records:
        return len(records)
    limit = config.prompt.max_tokens
    lengths: list[int] = []
    with report.collect_errors():
        lengths = sorted(len(prompter.tokens(record, list(range(record.n)))) for record in records)
    if not lengths:
        return len(records)
    fitting = sum(length <= limit for length in lengths)
    report.facts[f"{name}: tokens of a prompt"] = f"{lengths[0]:,} to {lengths[-1]:,}; {fitting} of the first {len(lengths)} rows fit"
    if not fitting:
        report.mistakes.append(
            f"{name}: none of the first {len(lengths)} rows fits into prompt.max_tokens={limit}: their prompts have {lengths[0]:,} to "
            f"{lengths[-1]:,} tokens. Set prompt.max_tokens={lengths[-1]}, or choose a shorter prompt.template."
        )
    elif fitting < len(lengths):
        report.notes.append(
            f"{name}: {len(lengths) - fitting} of the first {len(lengths)} rows are longer than prompt.max_tokens={limit} and will be set "
            f"aside; the longest has {lengths[-1]:,} tokens."
        )
    return fitting


def _check_judged_rows(file: str, format: str, config: Config, prompter: Prompter | None, report: PreflightReport) -> None:
    from rlsys.data.readers import DataError, read

    first = list(islice(read(file, format, truth=False, columns=config.data.columns), ROWS_CHECKED))
    if not first:
        raise DataError(f"{file}: no usable row; `rlsys data check {file} --format {format}` says why.")
    _check_lengths(f"--input {file}", first, config, prompter, report)


def _check_trajectories(config: Config) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rlsys.data.readers import DataError
    from rlsys.data.trajectories import LEARNED_FROM, trajectory_files

    for path in trajectory_files(config.meta_rm.data):
        try:
            missing = [name for name in LEARNED_FROM if name not in pq.read_schema(path).names]
        except pa.ArrowInvalid as error:
            raise DataError(f"cannot be read as Parquet ({error}).", file=str(path)) from error
        if missing:
            raise DataError(f"no column {', '.join(missing)}: expected a trajectory table.", file=str(path))


def _check_supervised(command: str, config: Config, prompter: Prompter) -> None:
    """A first row of what is learned from besides data.train."""
    from rlsys.data.batches import prompt_completion_rows
    from rlsys.data.instructions import instruction_rows
    from rlsys.data.readers import DataError

    if command in ("train", "sft") and config.sft.rows and config.sft.data is not None:
        if not prompt_completion_rows(config.sft.data, ROWS_CHECKED, prompter.chat):
            raise DataError(f"sft.data={config.sft.data}: it holds no rows.")
    if command in ("rft", "ladder") and config.rft.instruction_data is not None and config.rft.instruction_share:
        longest = config.prompt.max_tokens + config.rollout.max_tokens
        instruction_rows(config.rft.instruction_data, 1, prompter.chat, config.data, config.seed, longest)


if __name__ == "__main__":
    # transformers then leaves out all that needs torch, which a tokenizer does not.
    sys.modules["torch"] = None  # type: ignore[assignment]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(asdict(run_preflight(PreflightTask(**json.load(sys.stdin))))), file=out, flush=True)

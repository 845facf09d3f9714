"""Check settings, data and model of a command before it starts, and report all mistakes together, within seconds.

`python -m rlsys.preflight` reads a `PreflightTask` as JSON from stdin and writes a `PreflightReport` to stdout. It runs without torch and
Ray, as importing torch would take longer than all checks. Start at `run_preflight`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
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
from rlsys.io.run_folder import resolve_model
from rlsys.io.same_run import require_same_run
from rlsys.models.folder import check_model_folder, check_vocabulary
from rlsys.models.loading import ModelError, ensure_model, is_built_on_demand
from rlsys.monitoring.trackers import missing_libraries
from rlsys.planning.disk import parameter_count, run_disk
from rlsys.system.beside import judging_actors, place_beside
from rlsys.system.environment_errors import describe_environment_error
from rlsys.system.placement import Machine, place, place_judges, place_learners

if TYPE_CHECKING:
    from rlsys.data.records import Record
    from rlsys.prompts.rendering import Renderer

ROWS_CHECKED = 64
"""Rows to render per source: enough to detect that no row fits, few enough to take about a second."""
FEW_HELDOUT = 100
"""With fewer held-out rows the accuracy has a margin of error of about ten points or more."""
TRAINING = ("train", "sft", "rft", "ladder", "policy")
IN_RUN_DIR = (*TRAINING, "meta-rm")
"""Commands that write into run.dir; the others write `PreflightTask.files` and `PreflightTask.folder`."""


@dataclass
class PreflightTask:
    """A command and its settings."""

    command: str
    config: dict[str, Any]
    rows: tuple[str, str] | None = None
    """Path and format of a file to judge."""
    meta_rm: str | None = None
    files: tuple[str, ...] = ()
    """Files that the command will write."""
    folder: str | None = None
    """Output folder of the command, if it is not run.dir."""
    endpoint: bool = False
    """Whether an endpoint answers, so that there are neither engines nor a model here."""
    cpus: int | None = None
    """CPU cores of this machine; None if the job runs on a cluster."""
    gpus: int = 0


@dataclass
class PreflightReport:
    """Results of the checks."""

    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Remarks that are not mistakes but worth knowing before a long run."""
    facts: dict[str, str] = field(default_factory=dict)
    """What was checked, and the result, for display."""

    @contextmanager
    def collect_errors(self) -> Iterator[None]:
        """Record an error raised inside the block as a mistake, and continue."""
        try:
            yield
        except (ValueError, OSError) as error:
            message = describe_environment_error(error) or str(error)
            if message not in self.mistakes:
                self.mistakes.append(message)


def run_preflight(task: PreflightTask) -> PreflightReport:
    """Check everything about `task` that requires no engine, without leaving any files behind."""
    report, config = PreflightReport(), Config.model_validate(task.config)
    report.mistakes += find_conflicts(config, task.command)
    if task.command in IN_RUN_DIR:
        report.mistakes += missing_libraries(config.run.trackers)
    with report.collect_errors():
        _check_outputs(task, config)
    prompter = None
    if task.endpoint:
        with report.collect_errors():
            _check_template(config)
    else:
        with report.collect_errors():
            _check_placement(task, config, report)
        prompter = _check_model(task, config, report)
    if task.command == "policy":
        _check_rewards(config, report)
    if task.meta_rm is not None:
        with report.collect_errors():
            check_model_folder(ensure_model(resolve_model(task.meta_rm)[0]), None)
    if task.command in ("train", "sft", "rft", "policy") and not report.mistakes:
        _check_disk(task.command, config, report)
    if task.rows is not None:
        with report.collect_errors():
            _check_judged_rows(*task.rows, config, prompter, report)
    if task.command in TRAINING or task.command == "filter" or (task.command == "meta-rm" and config.meta_rm.objective == "bt"):
        _check_rows(task.command, config, prompter, report)
    if task.command == "rft" and config.rft.teacher.url is not None and not report.mistakes:
        _check_teacher(config, report)
    if task.command == "meta-rm" and config.meta_rm.objective == "bce":
        with report.collect_errors():
            _check_trajectories(config)
    if prompter is not None:
        with report.collect_errors():
            _check_supervised(task.command, config, prompter)
    return report


# --- folders and resources --------------------------------------------------------------------------------------------


def _check_outputs(task: PreflightTask, config: Config) -> None:
    if task.command in IN_RUN_DIR:
        require_writable(config.run.dir)
        if task.command != "ladder":
            require_same_run(config)
    if task.folder is not None:
        require_writable(Path(task.folder))
    for name in map(Path, task.files):
        if name.is_dir():
            raise ModelError(f"{name}: is a folder; give the name of a file.")
        if name.exists() and not name.is_file():
            raise ModelError(f"{name}: is not a regular file, so the command could not be resumed; give the name of a file.")
        require_writable(name.parent)


def require_writable(folder: Path) -> None:
    """Check that `folder` can be created or written, by trying it in a temporary folder: permissions alone are not conclusive.

    Raises:
        OSError: it cannot; the error names the path.
    """
    existing = folder = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    try:
        with tempfile.TemporaryDirectory(prefix=".rlsys-", dir=existing) as temporary:
            Path(temporary, *(part for part in folder.relative_to(existing).parts if part != "..")).mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # as in /proc
        raise OSError(errno.EROFS, "Nothing can be created there", str(existing)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder if error.errno == errno.ENAMETOOLONG else existing)) from error


def _check_placement(task: PreflightTask, config: Config, report: PreflightReport) -> None:
    if task.cpus is None:
        report.facts["placement"] = "depends on the cluster of the job"
        return
    cores, machines = f"{task.cpus} core(s)", [Machine("this machine", task.cpus, task.gpus)]
    if task.command == "meta-rm":
        placements = [place_learners(config, machines)]
    elif task.command == "rft":  # Either engines or learners run at a time.
        placements = [place_judges(config, machines), place_learners(config, machines)]
    else:
        placements = [place(config, machines) if task.command in TRAINING else place_judges(config, machines)]
    if task.command == "policy" and (others := judging_actors(config)):
        beside = place_beside(others, machines, placements)
        report.facts["beside the policy"] = ", ".join(f"{name} with {slot.threads} thread(s)" for name, slot in beside.slots.items())
    threads = {name: slot.threads for placed in placements for name, slot in placed.slots.items()}
    counts = {kind: max(placed.count(kind) for placed in placements) for kind in ("rollout", "learner")}
    parts = {"rollout-0": f"{counts['rollout']} engine(s)", "learner-0": f"{counts['learner']} learner rank(s)"}
    layout = ", ".join(f"{part} with {threads[name]} thread(s)" for name, part in parts.items() if name in threads)
    report.facts["placement"] = f"{layout}; {cores}" + (f", {task.gpus} GPU(s)" if task.gpus else "")
    if not task.gpus and max(placed.concurrent_threads for placed in placements) > task.cpus:
        advice = "To avoid this, lower learner.ranks, learner.cpus, rollout.actors or rollout.cpus."
        report.notes.append(f"{layout} share {cores}, which will be slow. {advice}")


def _check_disk(command: str, config: Config, report: PreflightReport) -> None:
    """Say what the checkpoints will take on disk, and whether there is room for them."""
    parameters = parameter_count(Path(resolve_model(config.model.path)[0]))
    if parameters is None:  # not built or downloaded yet
        return
    needed, existing = run_disk(parameters, config, command), config.run.dir.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    report.facts["disk"] = f"up to {needed / 1e9:,.1f} GB of checkpoints in {config.run.dir}; {free / 1e9:,.0f} GB are free there"
    if needed > free:
        report.notes.append(f"{report.facts['disk']}. checkpoint.keep=1 and checkpoint.optimizer=last take the least.")


# --- model and template -----------------------------------------------------------------------------------------------


def _check_model(task: PreflightTask, config: Config, report: PreflightReport) -> Renderer | None:
    """Return the prompter of the command, or None if the model is not available or invalid (and reported)."""
    from rlsys.policy.prompts import ConversationPrompter
    from rlsys.prompts.rendering import Prompter, template_source

    with report.collect_errors():
        base, _ = resolve_model(config.model.path)
        if is_built_on_demand(base):
            report.notes.append(f"model.path={base} does not exist yet and will be built first; prompt lengths are not checked.")
        else:
            ensure_model(base)
            tokens = config.prompt.max_tokens + max(config.rollout.max_tokens, config.eval.max_tokens or 0)
            trains = task.command in IN_RUN_DIR
            report.facts["model"] = check_model_folder(base, config.meta_rm.max_tokens if task.command == "meta-rm" else tokens, trains)
            tokenizer = load_tokenizer(base)
            if task.command == "policy":
                return ConversationPrompter.from_config(tokenizer, config.prompt)
            prompter = Prompter.from_config(tokenizer, config.prompt)
            check_vocabulary(base, prompter)
            return prompter
    with report.collect_errors():
        # Check the template even if the model is invalid.
        template_source(config.prompt.template)
    return None


def _check_template(config: Config) -> None:
    from rlsys.prompts.rendering import UserTurns

    UserTurns.for_endpoint(config.prompt)


def _check_teacher(config: Config, report: PreflightReport) -> None:
    """Connect to the teacher: it is asked only after the model itself was evaluated."""
    from rlsys.serving.endpoint import EndpointError, EndpointJudge

    try:
        with EndpointJudge(config.rft.teacher) as teacher:
            report.facts["teacher"] = f"{teacher.model} at {teacher.url}"
    except EndpointError as error:
        report.mistakes.append(f"rft.teacher: {error}")


def _check_rewards(config: Config, report: PreflightReport) -> None:
    """Check the models, the strategy and the functions that reward a policy."""
    from rlsys.policy.judge import pool_config
    from rlsys.policy.rewards import require_module
    from rlsys.prompts.rendering import Prompter

    for term in config.policy.rewards:
        with report.collect_errors():
            require_module(term.function)
    for key, model in (("judge.meta_rm", config.judge.meta_rm), ("policy.bt", config.policy.bt)):
        if model is not None:
            with report.collect_errors():
                report.facts[key] = check_model_folder(ensure_model(resolve_model(model)[0]), None)
    if config.judge.model is None:
        return
    with report.collect_errors():
        pool = pool_config(config)
        if not is_built_on_demand(pool.model.path):
            base = ensure_model(pool.model.path)
            report.facts["judge.model"] = check_model_folder(base, pool.prompt.max_tokens + pool.rollout.max_tokens)
            Prompter.from_config(load_tokenizer(base), pool.prompt)


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of a model folder or hub name.

    Raises:
        ModelError: it cannot be loaded; the message gives the reason.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # tokenizers and config.json validation raise many types of exceptions
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {model}: its tokenizer cannot be loaded ({type(error).__name__}: {reason}).") from error


# --- rows -------------------------------------------------------------------------------------------------------------


def _check_rows(command: str, config: Config, prompter: Renderer | None, report: PreflightReport) -> None:
    from rlsys.data.exclusion import excluded_ids, read_exclusion
    from rlsys.data.mixtures import open_mixture

    before = len(report.mistakes)
    for name, records in _first_records(config, "train", ROWS_CHECKED, report):
        _check_lengths(f"data.train={name}", records, config, prompter, report)
        if command in ("train", "sft") and config.sft.rows and config.sft.data is None and any(record.worked is None for record in records):
            report.mistakes.append(
                f"sft.rows={config.sft.rows}, but the rows of data.train={name} have no worked judgements to train on: set sft.data "
                'to a file of {"prompt": text, "completion": text}, or sft.rows=0 to skip the cold start.'
            )
    if config.data.exclude is not None:
        with report.collect_errors():
            if len(report.mistakes) == before:
                read_exclusion(config.data.exclude, open_mixture(config.data, "train", config.seed))
            else:
                excluded_ids(config.data.exclude)
    if command != "filter":
        requested = config.data.heldout_rows
        found = list(_first_records(config, "heldout", requested, report))
        heldout = [record for _, records in found for record in records]
        usable = [_check_lengths(f"data.heldout={name}", records, config, prompter, report) for name, records in found]
        if command == "policy" and usable and not any(record.checks for record in heldout):
            report.notes.append(
                f"data.heldout: none of the first {len(heldout)} rows has checks (docs/data.md): the policy is not evaluated."
            )
        if usable and sum(usable) < min(FEW_HELDOUT, requested):
            report.notes.append(
                f"data.heldout has {sum(usable)} usable rows of data.heldout_rows={requested}: the accuracy has a margin of error of "
                f"{98 / max(sum(usable), 1) ** 0.5:.0f} points. Add rows, a few hundred if possible."
            )


def _first_records(
    config: Config, which: Literal["train", "heldout"], count: int, report: PreflightReport
) -> Iterator[tuple[str, list[Record]]]:
    """Yield (name, first `count` usable records) of each source that can be opened."""
    from rlsys.data.mixtures import open_source_rows

    for source in config.data.sources(which):
        with report.collect_errors():
            rows = open_source_rows(source, config.data, config.seed)
            report.facts[f"data.{which}={source.path}"] = f"{len(rows):,} rows"
            yield str(source.path), list(islice(iter(rows), count))


def _check_lengths(name: str, records: list[Record], config: Config, prompter: Renderer | None, report: PreflightReport) -> int:
    """Return how many records fit into `prompt.max_tokens`; it is a mistake if none does."""
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
            f"{lengths[-1]:,} tokens. Set prompt.max_tokens={lengths[-1]}, or use a shorter prompt.template."
        )
    elif fitting < len(lengths):
        report.notes.append(
            f"{name}: {len(lengths) - fitting} of the first {len(lengths)} rows are longer than prompt.max_tokens={limit} and will be set "
            f"aside; the longest has {lengths[-1]:,} tokens."
        )
    return fitting


def _check_judged_rows(file: str, format: str, config: Config, prompter: Renderer | None, report: PreflightReport) -> None:
    from rlsys.data.readers import DataError, read

    records = list(islice(read(file, format, truth=False, columns=config.data.columns), ROWS_CHECKED))
    if not records:
        raise DataError(f"{file}: no usable row; `rlsys data check {file} --format {format}` lists the reasons.")
    _check_lengths(f"--input {file}", records, config, prompter, report)


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


def _check_supervised(command: str, config: Config, prompter: Renderer) -> None:
    """Read the first rows of training data other than data.train."""
    from rlsys.data.batches import prompt_completion_examples
    from rlsys.data.instructions import instruction_examples
    from rlsys.data.readers import DataError

    if command in ("train", "sft") and config.sft.rows and config.sft.data is not None:
        if not prompt_completion_examples(config.sft.data, ROWS_CHECKED, prompter.chat):
            raise DataError(f"sft.data={config.sft.data}: the file has no rows.")
    if command in ("rft", "ladder") and config.rft.instruction_data is not None and config.rft.instruction_share:
        longest = config.prompt.max_tokens + config.rollout.max_tokens
        instruction_examples(config.rft.instruction_data, 1, prompter.chat, config.data, config.seed, longest)


if __name__ == "__main__":
    # transformers then skips everything that depends on torch; tokenizers do not.
    sys.modules["torch"] = None  # type: ignore[assignment]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(asdict(run_preflight(PreflightTask(**json.load(sys.stdin))))), file=out, flush=True)

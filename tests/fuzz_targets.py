"""What reads files and texts that people hand over, as fuzz targets: `TARGETS` by name, each with valid inputs to begin from.

A target takes any bytes. It may read them, or refuse them with an error of the project that names the file or setting, which the command
line prints without a traceback; `refusal` checks that. tests/test_bad_input.py mutates the valid inputs with hypothesis, launch/fuzz.sh
fuzzes the targets under the guidance of coverage.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import yaml
from page_folders import evaluation, ladder, scalar_run, training_run, trajectory

from launch.commands.show import show
from launch.commands.vote import read_samples
from launch.console import PACKAGES, exit_status
from rlsys.config.files import load_config, save_config
from rlsys.config.schema import Config
from rlsys.config.sources import Data
from rlsys.data.datasets import open_rows
from rlsys.data.instructions import _conversations
from rlsys.data.readers import READERS, RecordFile, formats_of, read_all, strict_rows
from rlsys.data.readers.sources import first_rows
from rlsys.data.scalar_data import _read_table
from rlsys.data.trajectories import TRAJECTORIES
from rlsys.evaluation import heldout
from rlsys.evaluation.benchmarks import BENCHMARKS, load
from rlsys.io.files import finite_json
from rlsys.io.metrics import MetricsLog
from rlsys.io.model_form import form_of
from rlsys.io.run_folder import RunFolder, has_compatible_optimizer_state, resolve_model
from rlsys.judging.voting import STRATEGIES, Options, SampleTable, decide
from rlsys.models.folder import check_model_folder
from rlsys.reporting.page import Page, collect, outline
from rlsys.reporting.page.render import html, markdown
from rlsys.reporting.top.snapshot import take
from rlsys.reporting.view.tables import open_sources
from rlsys.reporting.view.viewer import Viewer
from rlsys.rewards.extraction import ScoreFormat
from rlsys.rewards.rescoring import read_texts, rescore
from rlsys.serving.batch_file import read_answers


@dataclass(frozen=True)
class Target:
    """Code that reads a file."""

    file: str
    """Name of the file that gets the bytes, below the folder that `read` is given."""
    seeds: tuple[bytes, ...]
    """Valid contents."""
    read: tuple[Callable[[Path], object], ...]
    """Ways of reading it: each is called with the file."""
    around: Callable[[Path], object] = lambda folder: None
    """Writes the files that belong to it into a folder."""


class Unreported(AssertionError):
    """An error that would reach a person as a traceback, or without the place of the mistake."""


def refusal(action: Callable[[], object], *places: str) -> Exception | None:
    """Return the error with which `action` refuses its input, or None if it accepts it.

    Args:
        places: names, one of which the message must contain.

    Raises:
        Unreported: the error would be a traceback, or does not say where.
    """
    try:
        action()
    except Exception as error:
        own = type(error).__module__.partition(".")[0] in PACKAGES or type(error) is ValueError or isinstance(error, OSError)
        if exit_status(error) is None or not own or not any(place in str(error) for place in places):
            raise Unreported(f"{type(error).__name__}: {error}") from error
        return error
    return None


def run(target: Target, data: bytes, folder: Path) -> list[Exception | None]:
    """Give the bytes to every reader of a target, in a folder that `target.around` has prepared; returns their refusals."""
    file = folder / target.file
    if not file.parent.is_dir():  # a damaged checkpoint was moved aside
        shutil.rmtree(folder)
        folder.mkdir()
        target.around(folder)
    file.write_bytes(data)
    return [refusal(partial(read, file), file.name, file.parent.name, folder.name) for read in target.read]


# --- rows -----------------------------------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Say a word."}]
ROWS: list[dict[str, Any]] = [
    {"id": "1", "source": "s", "context": TURNS, "responses": ["yes", "nö"], "rewards": [1.0, 0.0], "family": "words"},
    {"id": "2", "source": "s", "context": TURNS, "responses": ["a", "b"], "rewards": [0.0, 2.0], "family": None},
]
PAIRS = [{"prompt": "Say a word.", "chosen": "yes", "rejected": 'no, "never"\nagain'}, {"prompt": "Hm?", "chosen": "ja", "rejected": "je"}]
CHAT = {"messages": [*TURNS, {"role": "assistant", "content": "yes"}]}
ANSWERS = [
    {
        "custom_id": "row-1",
        "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}},
    },
    {"custom_id": "row-2", "completion": "no"},
]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_file(write: Callable[[pa.Table, Any], object], rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    """Return the bytes of a Parquet or Arrow file."""
    sink = io.BytesIO()
    write(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def as_stream(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def read_rows(format: str, path: Path) -> None:
    """Read a data file as training does: opened, streamed, by number, and suggested a format."""
    list(read_all(path, format))
    formats_of(first_rows(path))
    rows = open_rows(path, Data(format=format), 0)
    assert isinstance(rows, RecordFile)
    rows.fetch([*range(min(4, len(rows)))][::-1])


def read_strictly(path: Path) -> None:
    for number, row in strict_rows(path):
        assert number > 0 and isinstance(row, dict)


def read_instructions(path: Path) -> None:
    list(_conversations(path, Data(), 0))


def read_every_format(path: Path) -> None:
    for format in READERS:
        list(read_all(path, format))


def read_benchmarks(path: Path) -> None:
    for name in BENCHMARKS:
        refusal(partial(load, name, path), path.name)


# --- judgements -----------------------------------------------------------------------------------------------------

SAMPLE = {"order": [1, 0], "scores": [2, 9], "meta_reward": 0.5, "logprob": -3.5, "certainty": 1.5, "tokens": 12}
FAILED = SAMPLE | {"scores": None, "failure": "no_box", "truncated": True}
JUDGED = {"id": "1", "source": "s", "n": 2, "k": 2, "gold": 0, "samples": [SAMPLE | {"text": "Scores: \\boxed{2, 9}"}, FAILED]}
SET_ASIDE = {"id": "3", "source": None, "row": 3, "skipped": "malformed: no text", "set_aside": "malformed", "samples": []}
TEXTS = [
    {"text": "Scores: \\boxed{2, 9}", "rewards": [0, 1], "order": [0, 1], "finish_reason": "stop", "prompt": "A prompt <think>"},
    {"text": "<think>a</think> \\boxed{\\text{9}, 1}", "rewards": [1.5, 1.5]},
]
FORMATS = [ScoreFormat(), ScoreFormat("decimal", thought="<think>")]


def vote_on(path: Path) -> None:
    for strategy in STRATEGIES.values():
        table = SampleTable(strategy.needs)
        if refusal(partial(read_samples, path, table), path.name) is None:
            list(decide(table, strategy, Options()))


def score_texts(path: Path) -> None:
    for score_format in FORMATS:
        for text in read_texts(path):
            rescore(text, score_format)


def extract_scores(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "surrogateescape" if path.stat().st_size % 2 else "replace") if path.stat().st_size else ""
    for score_format in FORMATS:
        for n in (1, 2, 3):
            found = score_format.extract(text, n)
            assert (found.scores is None) != (found.failure is None)
            low, high = score_format.limits(n)
            assert found.scores is None or len(found.scores) == n and all(low <= score <= high for score in found.scores)


def view(path: Path) -> None:
    """Ask the page of `rlsys view` for everything that it shows."""
    run = path.parent.parent if path.parent.name == "trajectories" else path
    viewer = Viewer(open_sources([run], ["run"]))
    (shown,) = viewer.runs({})["runs"]
    for table in shown["tables"]:
        query = {"run": "0", "table": table["name"]}
        answer = viewer.groups(query)
        viewer.groups(query | {"other_run": "0", "other_table": table["name"], "filter": "changed"})
        for place in range(min(3, len(answer["groups"]))):
            json.dumps(finite_json(viewer.group(query | {"place": str(place)})), allow_nan=False)
            viewer.text(query | {"place": str(place), "number": "0"})


# --- run folders ----------------------------------------------------------------------------------------------------


def run_of(path: Path) -> Path:
    """Return the run folder that a file belongs to."""
    return next(folder for folder in path.parents if (folder / "RUN").exists())


def show_samples(path: Path) -> None:
    step = {"step": 1} if path.stem.startswith("step") else {"heldout": "rl"}
    with redirect_stdout(io.StringIO()):
        show(run_of(path), **{"step": None, "heldout": None} | step, best=2, worst=2, prompt=True, as_json=False)


def learn_from(path: Path) -> None:
    """Read critiques as `rlsys meta-rm` does, up to their tokens."""
    _read_table(path)


def make_page(path: Path) -> None:
    """Make the page of `rlsys report`, without its plots, which say nothing new and take a second each."""
    page = Page("a page", outline(collect([run_of(path)])))
    html(page, {id(plot): "" for _, plot in page.plots()}, {})
    markdown(page, {id(plot): "plot.png" for _, plot in page.plots()})


def snapshot(path: Path) -> None:
    take(run_of(path))


def resume(path: Path) -> None:
    """Open a run folder as the start of `rlsys train` does, and read everything that it resumes from."""
    run = run_of(path)
    with RunFolder(load_config(run / "config.yaml", [f"run.dir={run}"])) as opened:
        opened.cold_start_state()
        opened.best()
        found = opened.latest_state(lambda message: None)
        if found is not None:
            has_compatible_optimizer_state(found[0], opened.config, 1)
        opened.require_intact_cold_start()
        MetricsLog(run, 1, opened.config.model_copy(update={"run": opened.config.run.model_copy(update={"trackers": []})})).close()


def resolve(path: Path) -> None:
    run = run_of(path)
    for which in ("", "@best", "@step_2"):
        model, _ = resolve_model(f"{run}{which}")
        check_model_folder(model, None)


def a_run(folder: Path) -> None:
    """Write a run folder with every file that is read again."""
    (folder / "RUN").touch()
    config = load_config(None, [f"run.dir={folder}", "model.path=models/small", "run.trackers=[]"])
    training_run(folder)
    save_config(config, folder / "config.yaml")
    (folder / ".lock").touch()
    for name in ("step_000001", "heldout_rl"):
        pq.write_table(pa.Table.from_pylist(SAMPLES, TRAJECTORIES), folder / "trajectories" / f"{name}.parquet")
    for checkpoint in ("cold_start", "step_000001", "step_000002"):
        model = folder / "checkpoints" / checkpoint / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_bytes(CONFIG_JSON)
        (model / "rlsys.json").write_text(form_of(config).to_text())
        (model / "model.safetensors").write_bytes(SAFETENSORS)
        if checkpoint != "cold_start":
            (model.parent / "state.json").write_bytes(STATE)
            (model.parent / "optimizer").mkdir()
            (model.parent / "optimizer" / "learner.json").write_bytes(LEARNER)
    for name, content in RUN_FILES.items():
        (folder / name).write_bytes(content)
    (folder / "logs").mkdir()
    (folder / "logs" / "rollout-0.log").write_text("ERROR: something\n")


def encoded(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


KNOWN = {"source": "s", "weight_version": 1, "prompt_token_count": 9, "rollout_logprob": -0.5, "finish_reason": "stop"}
SAMPLES = [
    trajectory(group, "ab"[group % 2], sample == 0, None if sample < 2 else "no_box", sample=sample, **KNOWN)
    for group in range(3)
    for sample in range(3)
]
TABLE = as_file(pq.write_table, SAMPLES, TRAJECTORIES)
CONFIG_JSON = encoded({"model_type": "llama", "vocab_size": 99, "max_position_embeddings": 512})
TENSORS = encoded({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
SAFETENSORS = len(TENSORS).to_bytes(8, "little") + TENSORS + bytes(4)
STATE = encoded({"step": 2, "version": 2, "sampler": {"epoch": 0, "position": 4}, "files": {}})
LEARNER = encoded({"learner.ranks": 1, "learner.zero_stage": 2, "model.dtype": "float32", "schedule": 3})
PROGRESS = {
    "started": 1.5,
    "restarts": 1,
    "host": "here",
    "pid": 1,
    "phase": "rl",
    "doing": "step 2",
    "since": 2.5,
    "seconds": {"start": 1.0},
}
STAGE = {
    "n": 4,
    "samples": 4,
    "reward": 0.5,
    "reward_ci95": [0.0, 1.0],
    "accuracy": 0.75,
    "accuracy_ci95": None,
    "parse_failures": {"no_box": 1},
}
STAGE |= {"families": {"words": {"n": 4, "accuracy": 0.75}}}
SUMMARY = {"heldout": {"base": STAGE, "rl": STAGE}, "paired": {"rl_minus_base": {"mean": 0.1, "ci95": [0.0, 0.2]}}, "seconds": {"rl": 3.0}}
SUMMARY |= {"rows": {"train": {"tasks": {"rows": 4, "used": 4, "set_aside": {}}}}, "rl_steps": 3}
RUN_FILES = {
    "cold_start.json": encoded({"rows": 4, "files": {}}),
    "checkpoints/best.json": encoded({"checkpoint": "step_000002", "reward": 0.5}),
    "progress.json": encoded(PROGRESS | {"lines": ["a line"], "error": None}),
    "summary.json": encoded(SUMMARY),
    "actors.json": encoded({"rollout-0": {"device": "cpu", "vllm": "0.32", "threads": [0, 1]}}),
}
BY_FILE = {
    **RUN_FILES,
    "config.yaml": yaml.safe_dump({"model": {"path": "models/small"}, "rl": {"steps": 3}}).encode(),
    "metrics.jsonl": lines([{"step": step, "reward": 0.5, "kl": None, "seconds/train": 2.0} for step in (1, 2)]),
    "checkpoints/step_000002/state.json": STATE,
    "checkpoints/step_000002/optimizer/learner.json": LEARNER,
    "checkpoints/step_000002/model/config.json": CONFIG_JSON,
    "checkpoints/step_000002/model/rlsys.json": form_of(Config()).to_text().encode(),
    "checkpoints/step_000002/model/model.safetensors": SAFETENSORS,
}  # fmt: skip


def a_document(folder: Path) -> None:
    (folder / "RUN").touch()


def scalar_report() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return (scalar_run(Path(folder)) / "report.json").read_bytes()


# --- settings -------------------------------------------------------------------------------------------------------


def read_config(path: Path) -> None:
    """Load a YAML file; what it gives is saved and loaded again unchanged."""
    config = load_config(path)
    with tempfile.TemporaryDirectory() as folder:
        save_config(config, Path(folder) / "again.yaml")
        again = load_config(Path(folder) / "again.yaml")
    assert again.model_dump(mode="json") == config.model_dump(mode="json")


def read_overrides(path: Path) -> None:
    """Give each line to the config as an override."""
    given = [line for line in path.read_bytes().decode("utf-8", "replace").split("\n") if line]
    refusal(lambda: load_config(None, given), "override", "defaults")


LAUNCH = Path(__file__).resolve().parents[1] / "launch" / "configs"
CONFIGS = tuple((LAUNCH / name).read_bytes() for name in ("tiny.yaml", "own-data.yaml", "policy-judge.yaml"))
OVERRIDES = tuple(
    text.encode()
    for text in (
        "rl.steps=3\nmodel.path=models/a #3\ndata.train=[{path: a.jsonl, format: rlsys, columns: {prompt: question}}]",
        "data.responses=[2, 4]\nrun.timeouts_s={start: 9}\nrft.teacher.body={a: null}\nprompt.scores.single=[0, 1]\nrollout.vllm={a: 1}",
    )
)


# --- all of them ----------------------------------------------------------------------------------------------------


def rows_target(file: str, content: bytes, format: str = "rlsys") -> Target:
    return Target(file, (content,), (partial(read_rows, format), read_strictly))


TARGETS: dict[str, Target] = {
    "rows.jsonl": rows_target("rows.jsonl", lines(ROWS)),
    "rows.json": rows_target("rows.json", encoded({"train": ROWS, "other": 1})),
    "rows.csv": rows_target("rows.csv", as_csv(PAIRS), "trl_preference"),
    "rows.parquet": rows_target("rows.parquet", as_file(pq.write_table, ROWS)),
    "rows.arrow": rows_target("rows.arrow", as_file(pyarrow.feather.write_feather, ROWS)),
    "stream.arrow": rows_target("stream.arrow", as_file(as_stream, ROWS)),
    "rows.jsonl.gz": rows_target("rows.jsonl.gz", gzip.compress(lines(ROWS))),
    "rows": rows_target("rows", lines(ROWS)),
    "formats": Target("rows.jsonl", (lines(ROWS), lines(PAIRS), lines([CHAT])), (read_every_format,)),
    "benchmarks": Target("rows.jsonl", (lines(ROWS), lines(PAIRS)), (read_benchmarks,)),
    "instructions": Target("chats.jsonl", (lines([CHAT, {"prompt": "a", "completion": "b"}]),), (read_instructions,)),
    "answers": Target("answers.jsonl", (lines(ANSWERS),), (lambda path: read_answers(strict_rows(path), path.name),)),
    "votes": Target("votes.jsonl", (lines([JUDGED, SET_ASIDE]), lines([{"id": 1} | SAMPLE, {"id": 1} | FAILED])), (vote_on,)),
    "judged": Target("judged.jsonl", (lines([JUDGED, SET_ASIDE]),), (view,)),
    "texts": Target("texts.jsonl", (lines(TEXTS),), (score_texts,)),
    "scores": Target("text", tuple(row["text"].encode() for row in TEXTS), (extract_scores,)),
    "config": Target("config.yaml", CONFIGS, (read_config,)),
    "overrides": Target("overrides", OVERRIDES, (read_overrides,)),
    "steps": Target("trajectories/step_000001.parquet", (TABLE,), (show_samples, view, learn_from), a_run),
    "heldout": Target("trajectories/heldout_rl.parquet", (TABLE,), (show_samples, view, make_page, snapshot, heldout.read), a_run),
    **{f"run/{name}": Target(name, (content,), (resume, resolve, make_page, snapshot), a_run) for name, content in BY_FILE.items()},
    "eval.json": Target("eval.json", (encoded(evaluation()),), (make_page,), a_document),
    "ladder.json": Target("ladder.json", (encoded(ladder()),), (make_page,), a_document),
    "report.json": Target("report.json", (scalar_report(),), (make_page,), a_document),
}  # fmt: skip

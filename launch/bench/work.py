"""The workload of a benchmark: shape, prompts, cores, and how one step is timed.

Each system runs it in a process of its own (`launch.bench.ours`, `launch.bench.trl`), which reads the workload and writes its measurements
as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import UserError, print_text, to_stderr
from rlsys.io.files import atomic_output
from rlsys.system.processes import die_with_parent
from rlsys.system.timing import PhaseTimer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rlsys.config.schema import Config

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the run, for example learner.token_budget=1024.", show_default=False),
]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts per step.")]
Samples = Annotated[int, typer.Option(min=2, help="Samples per prompt.")]
PromptTokens = Annotated[int, typer.Option(min=16, help="Exact length of every prompt, in tokens.")]
OutputTokens = Annotated[int, typer.Option(min=1, help="Exact length of every output, in tokens.")]
Cores = Annotated[int, typer.Option(min=1, help="Cores shared by all processes.")]
Model = Annotated[str, typer.Option(help="Hugging Face folder or hub name.")]
Timeout = Annotated[float, typer.Option(min=1, help="Time limit of one measuring process, in seconds.")]

TRAIN_PARTS = ("reference", "forward", "backward", "optimizer")
"""Parts of the training phase that can be timed in both systems."""


@dataclass(frozen=True)
class Work:
    """GRPO steps of an exact shape; the first is a warm-up."""

    prompts: int
    samples: int
    prompt_tokens: int
    output_tokens: int
    cores: list[int]
    """Numbers of the cores that all processes of a system are pinned to."""
    repeats: int
    """Steps after the first."""
    overrides: list[str]
    """Settings of the run that differ from the defaults, `section.key=value`."""
    model: str
    trl_batch: int | None = None
    """TRL's batch size in samples; None: all samples of a step."""
    shapes: list[dict[str, int]] = field(default_factory=list)
    """With several shapes: prompts, samples and prompt_tokens of each."""

    @property
    def steps(self) -> int:
        return 1 + self.repeats

    @property
    def sequences(self) -> int:
        """Samples of one step."""
        return self.prompts * self.samples


def choose_cores(count: int) -> list[int]:
    """Return the last `count` of the cores that this process may use; the first core often serves the machine's interrupts.

    Raises:
        UserError: there are fewer.
    """
    available = sorted(os.sched_getaffinity(0))
    if count > len(available):
        raise UserError(f"--cores {count}: this process may use only {len(available)} ({', '.join(map(str, available))}).")
    return available[-count:]


def run_config(work: Work) -> Config:
    """Return the default config of a run in the shape of the work, then its overrides."""
    from rlsys.config.files import load_config

    return load_config(
        None,
        [
            f"model.path={work.model}",
            f"prompt.max_tokens={work.prompt_tokens}",
            f"rollout.max_tokens={work.output_tokens}",
            f"rl.prompts_per_step={work.prompts}",
            f"rl.group_size={work.samples}",
            *work.overrides,
        ],
    )


def prompt_texts(tokenizer: Any, first: int, count: int, tokens: int) -> list[str]:
    """Return prompts number `first` to `first + count - 1`, each of exactly `tokens` tokens (of `tokenizer(text)`, as TRL counts them).

    They differ from their first words on, so that no step benefits from the prefix cache of another.

    Raises:
        UserError: no text of that length was found.
    """
    texts = []
    for number in range(first, first + count):
        cases = (f"Case {i}: the first answer says {i * 7}, the second {i * 9}; name the rule, then judge both. " for i in range(tokens))
        text = f"{number} {''.join(cases)}"
        # One more character adds at most about one token, so some prefix near the bisected position has exactly the right count.
        near = bisect_left(range(len(text)), tokens, key=partial(_count_prefix, tokenizer, text))
        ends = range(max(1, near - 40), min(len(text), near + 40))
        found = next((text[:end] for end in ends if _count_prefix(tokenizer, text, end) == tokens), None)
        if found is None:
            raise UserError(f"--prompt-tokens {tokens}: this model's tokenizer has no text of exactly that length; try another number.")
        texts.append(found)
    return texts


def _count_prefix(tokenizer: Any, text: str, end: int) -> int:
    """Count the tokens of the first `end` characters."""
    return len(tokenizer(text[:end])["input_ids"])


@contextmanager
def local_ray(cores: int | None = None) -> Iterator[None]:
    """Start a local Ray with `cores` cores (None: all), never joining a running cluster, whose cores may be elsewhere."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        yield
    finally:
        ray.shutdown()


def one_gpu() -> dict[str, float]:
    """Return the Ray option of an actor that needs a GPU: one if this Ray has any, and nothing otherwise."""
    import ray

    return {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}


def meta_model(folder: str) -> Any:
    """Return the model on the meta device: modules and shapes without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


def measured_and_plotted(measure: Callable[[], dict[str, Any]], plot: Callable[[dict[str, Any]], Figure], path: Path) -> dict[str, Any]:
    """Run `measure`, plot its document into the PNG file `path`, and return the document.

    Raises:
        ValueError: `path` is a folder; nothing has been measured then.
    """
    with atomic_output(path) as png:
        document = measure()
        plot(document).savefig(png, format="png", dpi=120)
    print_text(to_stderr(), f"plot: {path}")
    return document


def shape_text(work: dict[str, Any]) -> str:
    """Format the shape of a document's `work` for a title: "2 x 8 samples of 337 + 96 tokens, 1 core"."""
    tokens = f"{work['prompt_tokens']} + {work['output_tokens']} tokens"
    return f"{work['prompts']} x {work['samples']} samples of {tokens}, {cores_text(work['cores'])}"


def cores_text(cores: list[int]) -> str:
    return f"{len(cores)} core{'s' if len(cores) > 1 else ''}"


class StepClock(PhaseTimer):
    """Times one step by phase; `whole` also includes time outside all phases."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Return the seconds of all phases and `whole`."""
        return {**self.seconds, "whole": time.perf_counter() - self._began}


def run_child(measure: Callable[[Work], dict[str, Any]]) -> None:
    """Run `measure` as the main function of a measuring process: `python -m MODULE WORK.json RESULT.json`."""
    # Exit normally on SIGTERM and when the parent process dies, so that engines and Ray are shut down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    die_with_parent(signal.SIGTERM)
    work = Work(**json.loads(Path(sys.argv[1]).read_text()))
    began = time.perf_counter()
    result = measure(work)
    result["process_s"] = time.perf_counter() - began
    Path(sys.argv[2]).write_text(json.dumps(result))


def write_work(work: Work, path: Path) -> None:
    path.write_text(json.dumps(asdict(work)))

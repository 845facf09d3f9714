"""The model card of a trained judge: README.md beside its weights, with its held-out results and its template."""

from __future__ import annotations

from pathlib import Path

from rlsys.documents.core import Interval
from rlsys.documents.runs import Stage
from rlsys.evaluation import heldout
from rlsys.evaluation.statistics import TOO_FEW
from rlsys.io.files import write_text_atomically
from rlsys.io.model_form import ModelForm, read_form

STAGES = {"base": "before training", "cold_start": "after the cold start", "rft": "after rejective fine-tuning", "rl": "after RL"}


def write_model_card(run: Path, folder: Path, model: Path | None = None) -> None:
    """Write README.md into `folder`, with the results of a run that are known so far. Without a form, nothing is written.

    Args:
        model: the model in the run of which `folder` is a copy; None: `folder` itself.
    """
    if (form := read_form(folder)) is not None:
        write_text_atomically(folder / "README.md", model_card(form, results_of(run, model or folder)))


def results_of(run: Path, model: Path) -> dict[str, Stage]:
    """Return the held-out results of a run that led to the model in `model`, by what they measure."""
    checkpoint = model.parent.name
    names = {"cold_start": ["base", "cold_start"], run.name: ["base", "cold_start", "rft", "rl"]}.get(checkpoint, ["base", "cold_start"])
    if checkpoint.startswith("step_"):
        newest = max((path.name for path in (run / "checkpoints").glob("step_*")), default="")
        names = [*names, checkpoint, *(["rl"] if checkpoint == newest else [])]
    tables = {name: run / "trajectories" / f"heldout_{name}.parquet" for name in names}
    found = {STAGES.get(name, f"after {name.replace('_', ' ')}"): path for name, path in tables.items() if path.is_file()}
    return {title: heldout.read(path) for title, path in found.items()}


def model_card(form: ModelForm, results: dict[str, Stage]) -> str:
    """Return the text of the card.

    Args:
        results: held-out results by what they measure, in the order of training.
    """
    low, high = form.scores.range
    parts = "criteria, an analysis," if form.principles else "an analysis"
    lengths = f"{form.max_prompt_tokens:,} tokens of prompt, {form.max_tokens:,} of judgement"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [reward-model, generative-reward-model, rlsys]",
        "---",
        "",
        "# A generative reward model",
        "",
        f"It reads a conversation and candidate responses, and writes {parts} and a score from {low} to {high} for each response, in",
        f"`\\boxed{{...}}`. Trained with rlsys {form.rlsys} from `{form.trained_from}`.",
        "",
        "```",
        "rlsys judge --model THIS_FOLDER --input rows.jsonl --format responses --k 8 --output judged.jsonl",
        "```",
        "",
        f"`rlsys.json` holds its template, its lengths ({lengths}) and its score range; rlsys reads them from there.",
        "Any other program fills in the template below, as a single user turn of the chat template, and samples several judgements at",
        f"temperature {form.sampling.temperature:g}.",
        "",
        *_results(results),
        "## Template",
        "",
        "~~~~jinja",
        form.template.rstrip("\n"),
        "~~~~",
    ]
    return "\n".join(lines) + "\n"


def _results(results: dict[str, Stage]) -> list[str]:
    if not results:
        return []
    rows = [
        f"| {title} | {stage.n:,} | {_accuracy(stage.accuracy, stage.accuracy_ci95)} | {sum(stage.parse_failures.values()):,} of "
        f"{stage.samples:,} |"
        for title, stage in results.items()
    ]
    header = ["| | rows | accuracy (95% interval) | not parsed |", "|---|---|---|---|"]
    return ["## Held-out rows of its run", "", *header, *rows, "", "A judgement that does not parse counts as wrong.", ""]


def _accuracy(value: float, interval: Interval | None) -> str:
    return f"{value:.1%} ({TOO_FEW})" if interval is None else f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"

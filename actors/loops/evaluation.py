"""Evaluates a judge on benchmarks: samples what is missing, computes all figures, writes eval.json and eval.md."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from rlsys.config.endpoint import Endpoint
from rlsys.config.schema import Config
from rlsys.documents.core import write_document
from rlsys.documents.evaluation import BenchmarkReport, EvalReport
from rlsys.evaluation import EvalPass, Grid, by_group, eval_passes, markdown_page, overview, score_benchmark, unsupported_reason
from rlsys.evaluation.benchmarks import Benchmark, Item
from rlsys.io.files import atomic_output
from rlsys.io.resumable import ResumableRows
from rlsys.judging.setup import sampling_settings
from rlsys.judging.voting import STRATEGIES, Strategy, find_strategy
from rlsys.system.terminal import Table, print_text

Files = dict[tuple[str, str], ResumableRows]
"""By benchmark and part."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a judge: the benchmarks and how they are sampled.

    Sampling starts engines only if a file in `output` is missing or incomplete; everything else is computed from the files.
    """

    config: Config
    """Settings of the engines; a benchmark has one score range, prompt.scores.range."""
    benchmarks: Mapping[str, Benchmark]
    output: Path
    ks: list[int]
    draws: int
    """Random subsets of the samples for each k."""
    temperature: float
    seed: int
    text: bool = False
    """Keep the texts of all samples."""
    swap: bool = True
    """Also ask about pairs in the swapped order."""
    endpoint: Endpoint | None = None
    """Answers instead of engines, with its model named."""

    @cached_property
    def passes(self) -> dict[str, list[EvalPass]]:
        """The passes over each benchmark, one file each."""
        return {
            name: eval_passes(benchmark, self.ks[-1], self.temperature, self.seed, self.text, self.swap)
            for name, benchmark in self.benchmarks.items()
        }

    @property
    def all_files_exist(self) -> bool:
        return all(self._path(name, part).is_file() for name, found in self.passes.items() for part in found)

    def run(
        self,
        strategies: Mapping[str, list[Strategy]],
        console: Console,
        meta_rm: str | None = None,
        again: bool = False,
        began: float | None = None,
    ) -> EvalReport:
        """Sample, score, and write eval.json and eval.md.

        Args:
            strategies: for each benchmark, those to evaluate.
            meta_rm: folder of the meta reward model that scores every sample.
            again: discard the samples in `output`.
            began: `time.monotonic()` at the start of the command; default: now.
        """
        began = time.monotonic() if began is None else began
        scored: dict[str, BenchmarkReport] = {}
        with ExitStack() as stack:
            files = self._open(meta_rm, again, stack)
            self._sample(files, meta_rm, console)
            for name, benchmark in self.benchmarks.items():
                print_text(console, f"scoring {name} …")
                rows: dict[str, Iterable[dict[str, Any]]] = {part.name: files[name, part.name].rows() for part in self.passes[name]}
                score_range = self.config.prompt.scores.range
                scored[name] = score_benchmark(benchmark, rows, strategies[name], self.ks, self.draws, self.seed, score_range)
        report = EvalReport(
            model=self.config.model.path if self.endpoint is None else f"{self.endpoint.model} at {self.endpoint.url}",
            meta_rm=meta_rm,
            k=self.ks,
            draws=self.draws,
            temperature=self.temperature,
            seed=self.seed,
            benchmarks=scored,
            seconds=time.monotonic() - began,
        )
        self._write(report)
        return report

    def _path(self, name: str, part: EvalPass) -> Path:
        return self.output / f"{name.replace(':', '_')}.{part.name}.jsonl"

    def _open(self, meta_rm: str | None, again: bool, stack: ExitStack) -> Files:
        """Open the files of all passes before the first engine starts, as any of them may hold rows of other settings."""
        settings = sampling_settings(self.config, meta_rm, self.endpoint)
        return {
            (name, part.name): stack.enter_context(ResumableRows(self._path(name, part), settings | part.settings, again))
            for name, found in self.passes.items()
            for part in found
        }

    def _sample(self, files: Files, meta_rm: str | None, console: Console) -> None:
        """Complete the files with engines that start once, if any file is incomplete."""
        if all(file.complete for file in files.values()):
            return
        # Ray and vLLM take seconds to import, and are not needed to score complete files.
        from actors.loops.judge import open_judge, write_rows

        judging = open_judge(self.config, self.endpoint, console, meta_rm)
        with judging as judge:
            for (name, part_name), file in files.items():
                if file.complete:
                    continue
                part = next(part for part in self.passes[name] if part.name == part_name)

                def rows(items: Iterable[Item], part: EvalPass = part) -> Iterator[dict[str, Any]]:
                    items = list(items)
                    for item, answer in zip(items, judge.answer(map(part.ask, items), part.temperature), strict=True):
                        yield part.row(item, answer)

                write_rows(file, len(part.items), part.items, rows, console, f"{name}: {part_name}")

    def _write(self, report: EvalReport) -> None:
        write_document(self.output / "eval.json", report, ensure_ascii=False)
        with atomic_output(self.output / "eval.md") as path:
            path.write_text(markdown_page(report, [overview(report, every=True), *by_group(report)]), encoding="utf-8")


def applicable_strategies(
    names: list[str] | None, benchmark: Benchmark, meta_rm: bool, self_certainty: bool, console: Console, logprob: bool = True
) -> list[Strategy]:
    """Return the named strategies (None: all) that are defined on the benchmark.

    Args:
        meta_rm, self_certainty, logprob: whether the samples will have them.

    Raises:
        ValueError: a named strategy needs a value that the samples will not have.
    """
    chosen = []
    for strategy in map(find_strategy, dict.fromkeys(names or list(STRATEGIES))):
        why = unsupported_reason(strategy, benchmark, meta_rm, self_certainty, logprob)
        if why is None:
            chosen.append(strategy)
        elif names and (strategy.needs or strategy.counts == "scores"):
            raise ValueError(f"--strategy {strategy.name}: {why}.")
        elif names:
            print_text(console, f"{benchmark.name}: without {strategy.name}, {why}", "yellow")
    return chosen


def print_evaluation(report: EvalReport, console: Console) -> None:
    """Print the overview, and a line per benchmark on failures, order consistency and tokens."""
    console.print(grid_table(overview(report)))
    for name, found in report.benchmarks.items():
        print_text(console, f"{name}: {', '.join(_facts(found))}")
        if found.skipped:
            more = ", …" if found.skipped > len(found.skipped_ids) else ""
            print_text(console, f"{name}: {found.skipped} prompts too long, no verdict: {', '.join(found.skipped_ids)}{more}", "yellow")


def _facts(found: BenchmarkReport) -> Iterator[str]:
    if failures := found.parse_failures:
        yield f"{failures.failed:,} of {failures.samples:,} samples not parsed"
        if failures.cut_off:
            yield f"{failures.cut_off:,} of them cut off at rollout.max_tokens"
    if found.position and found.position.other_order is not None:
        yield f"the same winner in both orders {found.position.other_order:.1%}"
    if found.tokens and found.tokens.per_sample is not None:
        yield f"{found.tokens.per_sample:,.0f} tokens per sample"


def grid_table(grid: Grid) -> Table:
    table = Table(title=grid.title)
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="right" if number else "left")
    for row in grid.rows:
        table.add_row(*row)
    return table

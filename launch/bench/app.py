"""`rlsys bench`: the speed of the system on this machine, by phase and compared with others. One subcommand per question.

Each system is measured in a process of its own, pinned to the same cores, one system after the other.
"""

from __future__ import annotations

import typer

from launch.bench.control import control
from launch.bench.data import data
from launch.bench.growth import growth
from launch.bench.intervals import intervals
from launch.bench.judge import judge
from launch.bench.learner import learner
from launch.bench.overlap import overlap
from launch.bench.reward import reward
from launch.bench.rollout import rollout
from launch.bench.serve import serve
from launch.bench.start import start
from launch.bench.step import step
from launch.bench.weights import weights
from launch.bench.wire import wire

bench_app = typer.Typer(name="bench", help="Measure speed on this machine.", no_args_is_help=True)

for command in (step, reward, control, overlap, weights, wire, learner, rollout, start, judge, serve, growth, intervals, data):
    bench_app.command()(command)

"""`rlsys bench wire`: weight updates between machines over a wire of limited bandwidth, compared with the same bytes over plain TCP."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.bench.machines import SHARED, Machines
from launch.bench.work import Model, Timeout, Work, meta_model, run_child, run_config, write_work
from launch.console import UserError, report
from launch.options import AsJson
from rlsys.models.loading import ensure_model
from rlsys.system.terminal import Table

if TYPE_CHECKING:
    from actors.cluster.calls import LearnerGroup

UNLIMITED = "unlimited"
PIECE = 1 << 20
"""Bytes that plain TCP sends at a time."""


def wire(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the run, for example weights.bucket_mib=16.", show_default=False),
    ] = None,
    rate: Annotated[
        list[str] | None, typer.Option(help="Bandwidth of every machine, as `tc` writes it. Repeatable. Default: 100mbit, 1gbit.")
    ] = None,
    model: Model = "models/smollm2-135m-instruct",
    ranks: Annotated[int, typer.Option(min=1, help="Learner ranks, each on a machine of its own.")] = 1,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage of the ranks, as learner.zero_stage.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Measured updates per bandwidth, after one warm-up update without a limit.")] = 2,
    timeout: Timeout = 800,
    as_json: AsJson = False,
) -> None:
    """Send weights from learners on some machines to an engine on another, at several bandwidths.

    The machines are namespaces of this one (launch/namespaces.sh; needs root), with a Ray cluster over them. The share of the wire compares
    with a plain TCP connection that sends the same bytes between the same two machines, right before the updates.

    Example: rlsys bench wire --rate 100mbit --rate 1gbit --ranks 2 --zero-stage 3
    """
    rates = [UNLIMITED, *(rate or ["100mbit", "1gbit"])]
    settings = [
        "rollout.kv_cache_gib=0.25",
        "rollout.cpus=1",
        f"learner.ranks={ranks}",
        "learner.cpus=1",
        f"learner.zero_stage={zero_stage}",
        # Otherwise learners and engines would share cores, and a machine.
        "rl.staleness=1",
        "weights.verify=true",
        *(overrides or []),
    ]
    ensure_model(model)
    report(as_json, lambda: _measure_apart(rates, settings, Path(model), ranks, repeats, timeout), render)


def _measure_apart(rates: list[str], settings: list[str], model: Path, ranks: int, repeats: int, timeout_s: float) -> dict[str, Any]:
    """Run `measure` as a job on machines of its own: one for the job, one for each rank, one for the engine."""
    # Not below /tmp, where every machine has its own.
    with tempfile.TemporaryDirectory(prefix="rlsys-machines-", dir="/var/tmp") as name:
        shared = Path(name)
        work = Work(1, 2, 128, 128, cores=[], repeats=repeats, overrides=settings, model=str(SHARED / model.name))
        run_config(work)
        subprocess.run(["cp", "-rL", str(model), str(shared / model.name)], check=True)
        write_work(work, shared / "work.json")
        with Machines(shared) as machines:
            for cpus in (0, *[1] * (ranks + 1)):
                machines.add(cpus)
            command = f"python -m launch.bench.wire {SHARED}/work.json {SHARED}/result.json {' '.join(rates)}"
            status, output = machines.submit(command, timeout_s)
        if status != 0:
            raise UserError(f"the job on the machines failed:\n{output[-4000:]}")
        return json.loads((shared / "result.json").read_text())


def measure(work: Work, rates: list[str]) -> dict[str, Any]:
    """Measure in a job: updates at each bandwidth, and plain TCP between the machines of learner 0 and the engine."""
    import ray
    import torch

    from actors.cluster.groups import Cluster
    from rlsys.system.devices import bucket_mib

    config = run_config(work)
    size = sum(each.numel() for each in meta_model(work.model).parameters()) * getattr(torch, config.model.dtype).itemsize
    ray.init(log_to_driver=True, logging_level="warning")
    (SHARED / "logs").mkdir()
    cluster = Cluster(config, work.model, work.prompt_tokens + work.output_tokens, SHARED / "logs")
    try:
        machines = {name: told["machine"] for name, told in cluster.start().items()}
        results = [_at_rate(rate, cluster.actors.learners, machines, work.repeats, size, number) for number, rate in enumerate(rates)]
    finally:
        cluster.close()
    return {
        "work": {
            "model": Path(work.model).name,
            "dtype": config.model.dtype,
            "ranks": config.learner.ranks,
            "zero_stage": config.learner.zero_stage,
            "bucket_mib": bucket_mib(config.weights.bucket_mib, cluster.backend),
        },
        "machines": machines,
        "bytes": size,
        "rates": results,
    }


def _at_rate(rate: str, learners: LearnerGroup, machines: dict[str, str], repeats: int, size: int, number: int) -> dict[str, Any]:
    """Limit all machines of actors to `rate`, then send the bytes by plain TCP and the weights `repeats` times."""
    import ray

    timeout_s = learners.run.timeout_s("weights")
    sender, receiver = machines["learner-0"], machines["rollout-0"]
    ray.get([_on(address, limit_sending).remote(rate) for address in set(machines.values())], timeout=timeout_s)
    sink = _on(receiver, TcpSink).remote()
    port = ray.get(sink.listen.remote(receiver), timeout=timeout_s)
    received = sink.receive.remote()
    tcp_s = ray.get(_on(sender, send_bytes).remote(receiver, port, size), timeout=timeout_s)
    assert ray.get(received, timeout=timeout_s) == size
    ray.kill(sink)
    # The first update of all is a warm-up.
    first, count = number * (repeats + 1) + 1, repeats + (number == 0)
    updates = [learners.send_weights(version) for version in range(first, first + count)][number == 0 :]
    return {"rate": rate, "tcp_seconds": tcp_s, "updates": updates, "seconds": statistics.median(one["seconds"] for one in updates)}


def _on(address: str, work: Any) -> Any:
    """Return a Ray task or actor class that runs on the machine with this address."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = next(each["NodeID"] for each in ray.nodes() if each["NodeManagerAddress"] == address)
    return ray.remote(work).options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def limit_sending(rate: str) -> None:
    """Limit what this machine sends."""
    queue = ["pfifo"] if rate == UNLIMITED else ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
    subprocess.run(["tc", "qdisc", "replace", "dev", "eth0", "root", *queue], check=True)


class TcpSink:
    """Receives the bytes of one connection."""

    def listen(self, address: str) -> int:
        self.server = socket.create_server((address, 0))
        return self.server.getsockname()[1]

    def receive(self) -> int:
        connection, _ = self.server.accept()
        with connection:
            count = 0
            while piece := connection.recv(PIECE):
                count += len(piece)
        return count


def send_bytes(address: str, port: int, size: int) -> float:
    """Send `size` bytes; returns the seconds until the other side has received them."""
    piece = bytes(PIECE)
    with socket.create_connection((address, port)) as connection:
        began = time.perf_counter()
        for start in range(0, size, PIECE):
            connection.sendall(piece[: size - start])
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # The sink closes once it has read everything.
        return time.perf_counter() - began


def render(document: dict[str, Any]) -> Table:
    """Render one row per bandwidth."""
    work, size = document["work"], document["bytes"]
    table = Table(
        title=f"One weight update of {size / 1e6:,.0f} MB ({work['dtype']}) from {work['ranks']} rank(s), ZeRO-{work['zero_stage']}, "
        "to one engine, each on a machine of its own",
        caption=f"Medians of {len(document['rates'][0]['updates'])}; buckets of {work['bucket_mib']} MiB; "
        "checksums of all tensors compared after each (not timed).",
    )
    for column in ("bandwidth", "update, s", "plain TCP, s", "update / TCP", "update, Mbit/s"):
        table.add_column(column, justify="left" if column == "bandwidth" else "right", no_wrap=True)
    for row in document["rates"]:
        ratio, speed = row["seconds"] / row["tcp_seconds"], 8 * size / row["seconds"] / 1e6
        table.add_row(row["rate"], f"{row['seconds']:.2f}", f"{row['tcp_seconds']:.2f}", f"{ratio:.2f}", f"{speed:,.0f}")
    return table


if __name__ == "__main__":
    run_child(partial(measure, rates=sys.argv[3:]))

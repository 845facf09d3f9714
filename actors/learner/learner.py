"""The learner: one DeepSpeed rank per actor, which trains on judged samples.

All ranks receive the same calls with the same full batch, take their own share of it (`rlsys.models.packing.plan_micro_batches`), and
return the same result, so rank 0's is sufficient. A call is collective: it returns once every rank has been called.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from actors.cluster import logs
from actors.cluster.heartbeats import beat_from_a_thread
from actors.cluster.reservation import location
from actors.learner import checkpoints as saving
from actors.learner import deepspeed_engine as ds
from actors.weights.transfer import DeepSpeedSource, make_trainer
from rlsys.algorithms.grpo import LossInputs, Metrics, finalise_metrics, grpo_loss, merge_metrics, sft_loss
from rlsys.config import schema as config
from rlsys.data.chain import LearnerBatch
from rlsys.io.run_folder import learner_identity
from rlsys.models.backbone import Attention, Backbone
from rlsys.models.packing import MicroBatch, plan_micro_batches
from rlsys.models.policy import Logprobs, Policy, load_causal_model
from rlsys.models.self_check import SelfCheck, checked_policy
from rlsys.system.devices import attention, releases
from rlsys.system.network import interface_of
from rlsys.system.processes import keep_freed_memory
from rlsys.system.timing import PhaseTimer

SCHEDULE = ("lr", "warmup_steps", "stage_step")
"""State of the learning-rate schedule in a checkpoint."""

Loss = Callable[[int, MicroBatch, Logprobs], tuple[Tensor, Metrics]]
"""Computes loss and metric sums of micro-batch number i."""


class LearnerActor:
    """One rank. Life cycle: construct, `address` (rank 0), `setup` (all ranks), then stages of `train_sft` and `train_grpo`.

    A step whose loss or gradient is not finite on any rank is skipped on all ranks: weights and moments stay unchanged, and the
    metrics have `skipped` = 1 and `skip_reason`.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        model_path: str,
        learner: config.Learner,
        rl: config.Rl,
        dtype: str,
        seed: int,
        log_dir: str,
        threads: int,
        timeout_s: float = 600.0,
        temperature: float = 1.0,
        longest: int = 0,
    ):
        """
        Args:
            model_path: Hugging Face folder or hub name to start from.
            dtype: "bfloat16" or "float32", of weights and activations; master weights and moments are fp32.
            threads: CPU threads of this rank.
            timeout_s: maximum wait for another rank, in seconds.
            temperature: sampling temperature, for the self-check.
            longest: maximum tokens of a row, for the self-check: some models' position encodings are correct only up to some length.
        """
        self.name = f"learner-{rank}"
        self.console = logs.redirect_output(Path(log_dir) / f"{self.name}.log")
        if ds.device_type() == "cpu":
            keep_freed_memory()
        torch.set_num_threads(threads)
        torch.manual_seed(seed + rank)
        self.rank, self.world_size = rank, world_size
        self.model_path, self.learner, self.rl = model_path, learner, rl
        self.dtype = getattr(torch, dtype)
        self.timeout_s, self.temperature, self.longest = timeout_s, temperature, longest
        self.self_check: SelfCheck | None = None
        self.store: dist.TCPStore | None = None
        self.reference: torch.nn.Module | None = None
        self.reference_is_policy = False  # until the first update
        self.clock = PhaseTimer()
        self.lr, self.warmup_steps, self.decay_steps, self.stage_step = learner.lr, learner.warmup_steps, 0, 0
        self.releases = self.released = False

    def __repr__(self) -> str:
        return self.name

    # --- life cycle ----------------------------------------------------------------------------------------------------

    def address(self) -> tuple[str, int]:
        """Rank 0 only: start listening for the other ranks; returns (host, port)."""
        import ray

        host = ray.util.get_node_ip_address()
        self.store = ds.open_store(host, self.world_size, self.timeout_s)
        return host, self.store.port

    def setup(self, host: str, port: int) -> dict[str, Any]:
        """Join the other ranks at rank 0's `address`, load and check the model, build the engine.

        Returns:
            a description of this rank; self_check: figures of `rlsys.models.self_check.SelfCheck` (None: it is off).

        Raises:
            ModelError: the model cannot be trained with these settings; the message says what works instead.
        """
        import ray

        address = ray.util.get_node_ip_address()
        if interface := interface_of(address):
            # Gloo would take the address of the host name, which may be the loopback's.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        ds.join_group(self.rank, self.world_size, host, port, self.store, self.timeout_s)
        self._build()
        return {
            "name": self.name,
            **location(),
            "device": ds.device(),
            "backend": dist.get_backend(),
            "zero_stage": self.learner.zero_stage,
            "threads": torch.get_num_threads(),
            "self_check": asdict(self.self_check) if self.self_check else None,
        }

    def _build(self) -> None:
        model = self._load(self.model_path)
        # Before anything is sharded.
        with ds.computing(model, self.learner) as gradient:
            if self.learner.self_check:
                policy, self.self_check = self._check(model, gradient)
            else:
                policy = self._wrap(model)
                if self.learner.activation_checkpointing:
                    policy.enable_activation_checkpointing()
        self.pad_token_id = policy.pad_token_id
        self.engine = ds.build_engine(policy, self.learner, self.dtype)
        self.engine.train()
        self.released = False

    @property
    def _attention(self) -> Attention:
        return attention(self.learner, ds.device_type())

    def _load(self, path: str) -> PreTrainedModel:
        return load_causal_model(path, self.dtype)

    def _wrap(self, model: PreTrainedModel) -> Backbone:
        return Policy(model, self.learner.packing, self.learner.layers, self._attention).train()

    def _check(self, model: PreTrainedModel, gradient: bool) -> tuple[Backbone, SelfCheck]:
        ours, way = self.learner, self._attention
        return checked_policy(
            model, ours.packing, ours.layers, way, self.temperature, ours.activation_checkpointing, gradient, self.longest
        )

    def start_heartbeat(self, heartbeats: Any) -> None:
        """Report this rank as alive from now on (`actors.cluster.heartbeats`)."""
        beat_from_a_thread(self.name, heartbeats)

    def shutdown(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    # --- training ------------------------------------------------------------------------------------------------

    def start_stage(self, lr: float, warmup_steps: int) -> None:
        """Begin a training stage: moments at zero, learning rate `lr` after a linear warm-up of `warmup_steps` optimizer steps."""
        self.lr, self.warmup_steps, self.decay_steps, self.stage_step = lr, warmup_steps, 0, 0
        ds.reset_moments(self.engine)

    def decay_over(self, steps: int) -> None:
        """Decay this stage's learning rate linearly to zero over `steps` optimizer steps from its beginning."""
        self.decay_steps = steps

    def snapshot_reference(self) -> None:
        """Freeze the current weights as the KL reference. No effect with beta = 0."""
        if self.rl.beta == 0:
            return
        model = self._load(self.model_path)
        with ds.computing(model, self.learner):
            policy = self._wrap(model)
        self.reference = ds.freeze(policy, self.learner, self.dtype, ds.full_weights(self.engine.module))
        self.reference_is_policy = True

    def train_grpo(self, batch: LearnerBatch, temperature: float, total_samples: int | None = None) -> dict[str, Any]:
        """GRPO on one batch: `rl.updates_per_batch` passes over the batch, one optimizer step each.

        In the first pass the old policy is the current one; later passes are clipped against the log-probabilities of the first.

        Args:
            temperature: sampling temperature of the batch.
            total_samples: number of judged samples, if the loss is a mean over more samples than there are rows (`rl.equal_groups`).

        Returns:
            metrics: those of `rlsys.algorithms.grpo.finalise_metrics`, as means over the passes, and grad_norm (before clipping), lr,
                skipped (0 or 1; if 1, with skip_reason, and loss or grad_norm may be nan), encoded_tokens (of one pass, a shared
                prompt counted once), seconds/learner_{reference,forward,backward,optimizer} of this rank;
            samples: table of group, sample, trainer_logprob and reference_logprob, means over the
                sample's tokens before the first update; reference_logprob is null with beta = 0.
        """
        if self.rl.beta > 0 and self.reference is None:
            raise RuntimeError(f"rl.beta is {self.rl.beta}: call snapshot_reference() once before train_grpo().")
        self._reclaim()
        self._start_clock("reference", "forward", "backward", "optimizer")
        share = self._share(batch, total_samples)
        old: list[Tensor] = []
        # As long as the reference is the policy itself, both have the same log-probabilities.
        reference = old if self.reference_is_policy else []
        if self.reference is not None and not self.reference_is_policy:
            with self._timed("reference"), torch.no_grad(), ds.on_device(self.reference, self.learner):
                reference = [self.reference(part, temperature=temperature).logprob for part in share]

        def loss(i: int, part: MicroBatch, answer: Logprobs) -> tuple[Tensor, Metrics]:
            first = len(old) <= i
            if first:
                old.append(answer.logprob.detach())
            return grpo_loss(
                LossInputs(
                    logprob=answer.logprob,
                    rollout_logprob=part.rollout_logprob,
                    advantage=part.advantage,
                    weight=part.weight,
                    old_logprob=None if first else old[i],
                    reference_logprob=reference[i] if reference else None,
                    entropy=answer.entropy,
                    clip=self.rl.clip,
                    beta=self.rl.beta,
                    importance_cap=self.rl.importance_cap,
                )
            )

        metrics = self._update(share, loss, self.rl.updates_per_batch, temperature=temperature, with_entropy=True)
        return {"metrics": metrics, "samples": self._samples(batch, share, old, reference)}

    def train_sft(self, batch: LearnerBatch) -> dict[str, Any]:
        """Take one supervised step on a batch, whose advantages are ignored; the loss is the mean NLL per sample.

        Returns:
            metrics as of `train_grpo`; `nll` is in nats per token.
        """
        self._start_clock("forward", "backward", "optimizer")
        return self._update(self._share(batch), lambda i, part, answer: sft_loss(answer.logprob, part.weight))

    def evaluate_logprobs(self, batch: LearnerBatch, temperature: float = 1.0) -> list[list[float]]:
        """Compute the log-probability of every completion token of every row under the current weights."""
        share = self._share(batch)
        with torch.no_grad():
            answers = [self.engine(part, temperature=temperature).logprob for part in share]
        rows: dict[int, list[float]] = {}
        for part, answer in zip(share, answers, strict=True):
            for row, value in zip(part.sample.tolist(), answer.tolist(), strict=True):
                rows.setdefault(row, []).append(value)
        everything: dict[int, list[float]] = {}
        for one in ds.from_all_ranks(rows):
            everything.update(one)
        return [everything.get(row, []) for row in range(batch.num_rows)]

    def _share(self, batch: LearnerBatch, total_samples: int | None = None) -> list[MicroBatch]:
        if batch.num_rows == 0:
            raise ValueError("the learner got an empty batch: skip the step if no group has an advantage.")
        shares = plan_micro_batches(
            batch, self.world_size, self.learner.token_budget, self.learner.packing, self.pad_token_id, total_samples
        )
        return [part.to(ds.device()) for part in shares[self.rank]]

    def _update(self, share: Sequence[MicroBatch], loss_of: Loss, passes: int = 1, **options: Any) -> dict[str, Any]:
        """Take `passes` optimizer steps over the micro-batches of this rank; stops at the first step that is skipped.

        `options`: arguments of the model besides the micro-batch.
        """
        self._reclaim()
        sums: list[Metrics] = []
        norms: list[float] = []
        skipped = None
        for _ in range(passes):
            parts = []
            for i, part in enumerate(share):
                with self._timed("forward"):
                    loss, part_metrics = loss_of(i, part, self.engine(part, **options))
                with self._timed("backward"):
                    ds.backward(self.engine, loss, last=i == len(share) - 1)
                parts.append(part_metrics)
            ranks = ds.from_all_ranks(merge_metrics(parts))
            lr = self._lr()
            sums.extend(ranks)
            with self._timed("optimizer"):
                result = self._step(lr)
            norms.append(result.grad_norm)
            skipped = _why_skipped(ranks, result)
            if skipped:
                break
            self.stage_step += 1
            self.reference_is_policy = False
        metrics: dict[str, Any] = dict(finalise_metrics(merge_metrics(sums)))
        for name in ("loss", "tokens"):
            metrics[name] /= len(norms)
        metrics["grad_norm"] = sum(norms) / len(norms)
        metrics["lr"] = lr
        metrics["encoded_tokens"] = float(sum(ds.from_all_ranks(sum(part.tokens for part in share))))
        metrics |= {f"seconds/learner_{name}": value for name, value in self.clock.seconds.items()}
        metrics["skipped"] = float(skipped is not None)
        if skipped:
            metrics["skip_reason"] = skipped
            print(f"{self.name}: step skipped: {skipped}", file=self.console)
        return metrics

    def _step(self, lr: float) -> ds.StepResult:
        return ds.step(self.engine, lr)

    def _lr(self) -> float:
        warmth = min(1.0, (self.stage_step + 1) / max(self.warmup_steps, 1))
        rest = max(0.0, 1 - self.stage_step / self.decay_steps) if self.decay_steps else 1.0
        return self.lr * min(warmth, rest)

    def _samples(self, batch: LearnerBatch, share: Sequence[MicroBatch], old: list[Tensor], reference: list[Tensor]) -> pa.Table:
        sums = torch.zeros(3, batch.num_rows, dtype=torch.float64)
        for i, part in enumerate(share):
            rows = part.sample.cpu()
            sums[0].index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
            sums[1].index_add_(0, rows, old[i].cpu().double())
            if reference:
                sums[2].index_add_(0, rows, reference[i].cpu().double())
        tokens, trainer, frozen = torch.stack(ds.from_all_ranks(sums)).sum(0)
        return pa.table(
            {
                "group": batch.rows["group"],
                "sample": batch.rows["sample"],
                "trainer_logprob": pa.array((trainer / tokens).tolist(), pa.float32()),
                "reference_logprob": pa.array((frozen / tokens).tolist() if reference else [None] * batch.num_rows, pa.float32()),
            }
        )

    def _start_clock(self, *phases: str) -> None:
        """Restart the timer; every phase is reported, also one that takes no time."""
        self.clock = PhaseTimer()
        self.clock.seconds.update(dict.fromkeys(phases, 0.0))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        with self.clock.phase(phase):
            yield
            ds.synchronize()

    # --- weights and checkpoints ---------------------------------------------------------------------------------

    def connect_rollouts(self, actors: list[Any], backend: str, bucket_mib: int, timeout_s: float) -> None:
        """Open the weight transfer to the rollout actors (`actors.weights.transfer`)."""
        self.shares_gpu = backend == "ipc"
        takes_turns = self.shares_gpu and self.rl.staleness == 0
        self.releases = releases(self.learner, takes_turns)
        self.trainer = make_trainer(backend, self.rank, DeepSpeedSource(self.engine), actors, bucket_mib, timeout_s)

    def send_weights(self, version: int, verify: bool = False) -> dict[str, Any]:
        """Send the current weights to every rollout actor as `version`; `verify` compares checksums of both sides."""
        if self.releases and not self.released:
            # Before the transfer, at whose end the engine takes back the memory of its cache.
            ds.release_states(self.engine, self.reference, self.learner)
            self.released = True
        if self.shares_gpu:
            ds.empty_cache()  # The engine wakes up and needs the memory.
        return self.trainer.send_weights(version, verify)

    def _reclaim(self) -> None:
        """Take back the states that were released while engines sampled."""
        if self.released:
            ds.reclaim_states(self.engine, self.reference, self.learner)
            self.released = False

    def save(self, folder: str, files: dict[str, str] | None = None) -> None:
        """Write `folder`/model, which transformers and vLLM can load, and `folder`/optimizer, for `load`. Released states stay released.

        Args:
            files: further text files of the model's folder, by name.
        """
        schedule = {name: getattr(self, name) for name in SCHEDULE}
        with saving.naming_a_full_disk(Path(folder)):
            saving.save_model(self.engine.module.model, self.model_path, Path(folder) / "model", files)
            saving.save_optimizer(self.engine, Path(folder) / "optimizer", self._identity() | schedule)

    def load(self, folder: str) -> None:
        """Restore the exact state of `save(folder)`.

        Raises:
            ValueError: nothing was saved there, or with a different number of ranks, ZeRO stage or dtype.
        """
        self._reclaim()
        saved = saving.load_optimizer(self.engine, Path(folder) / "optimizer", self._identity())
        for name in SCHEDULE:
            setattr(self, name, saved[name])
        self.reference_is_policy = False

    def _identity(self) -> dict[str, Any]:
        return learner_identity(self.world_size, self.learner.zero_stage, str(self.dtype).removeprefix("torch."))


def _why_skipped(ranks: Sequence[Metrics], result: ds.StepResult) -> str | None:
    bad = [rank for rank, metrics in enumerate(ranks) if not math.isfinite(metrics["loss"])]
    if bad and result.applied:
        raise RuntimeError(f"the loss of ranks {bad} was not finite, but DeepSpeed applied the step: the weights are unusable.")
    if bad:
        return f"the loss was not finite on ranks {bad}"
    return None if result.applied else f"the gradient's norm was {result.grad_norm}"

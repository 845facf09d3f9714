"""The rollout actor: one vLLM engine that samples completions and accepts new weights.

Each sample has its own seed, so it can be sampled again in isolation. A weight update waits for the running requests and holds later
ones back, so every sample comes from one weight version.

With `rollout.in_flight_updates` an update freezes running requests instead, and they continue under the new weights. Their tokens and
the log-probabilities at which those were sampled are kept; their keys and values are recomputed (see `finish_update`), so every token
is sampled from the exact distribution of one weight version. `weight_version` of such a sample is that of its oldest token.

With `rollout.sleep` an engine releases its memory while the learner trains on the same GPU. Its weights are dropped, so only a weight
update wakes it:

    awake -> sleep -> asleep -> start_update: weights allocated, empty -> update ... -> finish_update: cache allocated -> awake
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.cluster import logs
from actors.cluster.heartbeats import BEAT_S
from actors.cluster.metrics import RunMetrics
from actors.cluster.reservation import location
from actors.cpu.sampler import request_id
from actors.rollout import vllm_compat
from actors.rollout.samples import Decoder, SampleLogprobs, sample_batch
from actors.rollout.scratch import Scratch
from actors.rollout.sleep_probe import SleepProbe
from actors.weights.buckets import Segment
from rlsys.config.schema import Rollout
from rlsys.system.devices import engine_sizes

SLEEP_LEVEL = 2
"""Level 1 would copy the weights to host memory and back, only for the update to overwrite them; level 2 drops them. Both levels keep
buffers that no update sends, such as rotary tables."""

LAST_LINES = 25
"""Lines of the engine's log that an error message quotes."""


class RolloutError(RuntimeError):
    """A rollout actor cannot serve a call; the message names the actor and, if the engine failed, quotes its log.

    Args:
        recoverable: the engine failed while it worked, so that a new one may succeed.
    """

    def __init__(self, message: str, recoverable: bool = False):
        super().__init__(message)
        self.recoverable = recoverable


class RolloutActor:
    """One vLLM engine. Life cycle: construct, `ready`, then `generate` and weight updates in any order, `shutdown`.

    Between `sleep` and the next weight update, only that update and `shutdown` are possible.
    """

    def __init__(
        self,
        name: str,
        model_path: str,
        rollout: Rollout,
        dtype: str,
        max_model_len: int,
        seed: int,
        weight_backend: str,
        log_dir: str,
        threads: int | None = None,
        template_args: dict[str, Any] | None = None,
        gpus: list[str] | None = None,
        prefix_caching: bool = True,
    ):
        """
        Args:
            name: this actor's name in errors and of its log file.
            model_path: Hugging Face folder or hub name.
            dtype: "bfloat16" or "float32".
            max_model_len: maximum length of prompt plus completion, in tokens.
            seed: the engine's; each sample has its own seed.
            weight_backend: "cpu", "nccl" or "ipc", as the learner's.
            log_dir: the engine's output goes to `log_dir/NAME.log`.
            threads: number of cores, shared with no other rollout actor of this machine; None: all of them.
            template_args: arguments of the chat template, which defines the end-of-turn token.
            gpus: ids of the GPUs to use; None: those that Ray assigned.
            prefix_caching: compute what prompts have in common once; then rounding depends on which ones came before.
        """
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.location = location() | ({} if gpus is None else {"gpus": gpus})
        self.name, self.model_path, self.rollout, self.dtype = name, model_path, rollout, dtype
        self.max_model_len, self.seed, self.weight_backend = max_model_len, seed, weight_backend
        self.threads = threads or len(os.sched_getaffinity(0))
        self.template_args, self.prefix_caching = template_args, prefix_caching
        self.log = Path(log_dir) / f"{name}.log"
        logs.redirect_output(self.log)
        self._engine: Any = None
        self._version = 0
        self._request_ids = itertools.count()
        self._running: set[asyncio.Task[Any]] = set()
        self._unread: set[int] = set()  # requests whose log-probabilities are not read yet
        self._admitting = asyncio.Event()
        self._admitting.set()
        self._asleep = False
        self._probe = SleepProbe()
        self._failure, self._recoverable = "", False
        self._metrics = RunMetrics(self.log.parent.parent.name)

    def __repr__(self) -> str:
        return self.name

    # --- life cycle ----------------------------------------------------------------------------------------------------

    async def ready(self) -> dict[str, Any]:
        """Start the engine.

        Returns:
            name, its location (`actors.cluster.reservation.location`), vllm version, device, cores, threads (of each worker), kv_blocks and
            seconds to start.

        Raises:
            RolloutError: the engine did not start, or cannot report self-certainty as configured.
        """
        began = time.monotonic()
        vllm_compat.before_import(self.weight_backend)
        device = vllm_compat.device()
        # A frozen request may sample a token again when it continues, and only vLLM knows which of the two counts.
        self._workers_keep_logprobs = device == "cpu" and not self.rollout.in_flight_updates
        if self.rollout.self_certainty and not self._workers_keep_logprobs:
            found = f"device {device}, rollout.in_flight_updates={self.rollout.in_flight_updates}"
            raise RolloutError(f"{self.name}: rollout.self_certainty needs a CPU engine without in-flight updates, found {found}.")
        self._cores, self._scratch = vllm_compat.Cores(self.threads if device == "cpu" else 0), Scratch()
        try:
            with self._scratch.in_use(), vllm_compat.engine_environment(self._cores.ids, self.threads, self.rollout):
                self._engine = self._start_engine()
        except Exception as error:
            raise RolloutError(self._error_with_log("the engine did not start", error)) from error
        from transformers import AutoTokenizer
        from vllm import __version__

        if device == "cpu":
            await self._engine.collective_rpc("rlsys_take_over_sampling", args=(self._workers_keep_logprobs, self.rollout.self_certainty))
            if engine_sizes(self.rollout, device, self.max_model_len).eager:
                await self._engine.collective_rpc("rlsys_use_fused_kernels")
            # The C library keeps half the size of the weights, freed once they were packed for the kernels.
            await self._engine.collective_rpc("rlsys_return_freed_memory")
        await self._engine.update_weight_version(str(self._version))
        self._decoder = Decoder(AutoTokenizer.from_pretrained(self.model_path), self.template_args)
        return {
            "name": self.name,
            **self.location,
            "vllm": __version__,
            "device": device,
            "cores": self._cores.ids,
            "threads": await self._engine.collective_rpc("rlsys_threads"),
            "kv_blocks": self._engine.vllm_config.cache_config.num_gpu_blocks,
            "seconds": time.monotonic() - began,
        }

    def _start_engine(self) -> Any:
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=self.model_path,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            seed=self.seed,
            tensor_parallel_size=self.rollout.tensor_parallel,
            enable_prefix_caching=self.prefix_caching,
            logprobs_mode="processed_logprobs",  # after temperature and top-p: of the distribution that is sampled from
            weight_transfer_config=WeightTransferConfig(backend=self.weight_backend),
            worker_extension_cls="actors.weights.engine.WorkerExtension",
            disable_log_stats=True,
            **vllm_compat.engine_arguments(self.rollout, self.max_model_len),
        )
        vllm_compat.fork_engines()
        return AsyncLLM.from_engine_args(arguments)

    async def identity(self) -> dict[str, Any]:
        """Return name, machine (Ray's node id) and number of engine workers, which a learner needs to send weights."""
        node = ray.get_runtime_context().get_node_id()
        return {"name": self.name, "node": node, "tensor_parallel": self.rollout.tensor_parallel}

    async def start_heartbeat(self, heartbeats: Any) -> None:
        """Report this actor and its engine as alive from now on (`actors.cluster.heartbeats`)."""
        self._heart = asyncio.ensure_future(self._beat(heartbeats))

    async def _beat(self, heartbeats: Any) -> None:
        """Beat as long as the engine answers: between two of its steps, and between two buckets of new weights."""
        while not self.engine_failure():
            with suppress(Exception):  # reported by the calls that need the engine
                await self._engine.collective_rpc("rlsys_threads")
                heartbeats.beat.remote(self.name)
            await asyncio.sleep(BEAT_S)

    async def in_flight(self) -> int:
        """Return the number of unfinished samples."""
        return len(self._running)

    def engine_failure(self) -> str:
        """Return why this actor can answer nothing more, such as the death of its engine; empty if it can."""
        return self._failure or ("its engine has died" if self._engine is None or self._engine.errored else "")

    async def abort(self) -> None:
        """Cancel all samples in flight; their `generate` calls raise RolloutError."""
        for task in self._running:
            task.cancel()

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
        await self.abort()
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            self._cores.release()
            self._scratch.remove()

    # --- sampling ------------------------------------------------------------------------------------------------

    async def generate(
        self,
        prompts: pa.RecordBatch,
        temperature: float,
        top_p: float,
        max_tokens: int,
        min_tokens: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> pa.RecordBatch:
        """Generate every sample of `prompts`, all in flight at once.

        Args:
            prompts: PROMPTS; each seed (>= 0) yields one sample, which depends only on the seed, the weights and the settings.
            temperature: 0 is greedy decoding, whatever the seeds.
            top_p: 1 samples from the full distribution; below 1, `logprobs` are those of the renormalised nucleus.
            max_tokens: maximum length of a completion; prompt and completion must fit `max_model_len`.
            min_tokens: minimum length; until then the end-of-sequence token has probability zero.
            on_text: called in this process with the text of a single sample as it grows, without any special tokens.
        Returns:
            SAMPLES, in the order of prompts and seeds. `logprobs` are the engine's log_softmax(logits / temperature)
            when it sampled the token; at temperature 0, of the logits themselves. `weight_version` is that of the oldest token.
        Raises:
            RolloutError: a prompt is too long, the engine is asleep, the engine or a weight update failed, or `abort` was called.
        """
        rows = prompts.select(["group", "prompt_token_ids", "seeds"]).to_pylist()
        for row in rows:
            length = len(row["prompt_token_ids"])
            if length + max_tokens > self.max_model_len:
                raise RolloutError(
                    f"{self.name}: group {row['group']}: a prompt of {length} tokens and a completion of up to {max_tokens} do not fit "
                    f"max_model_len={self.max_model_len}. Set such rows aside (prompt.max_tokens) or lower max_tokens."
                )
        await self._admitting.wait()
        self._raise_if_failed()
        if self._asleep:
            raise RolloutError(f"{self.name}: asleep, its weights are dropped; have the learners send weights before it samples.")
        keys, tasks, numbers = [], [], []
        for row in rows:
            for sample, seed in enumerate(row["seeds"]):
                params = self._sampling_params(seed, temperature, top_p, max_tokens, min_tokens, grows=on_text is not None)
                number = next(self._request_ids)
                task = asyncio.ensure_future(self._sample(row["prompt_token_ids"], params, number, on_text))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                keys.append((row["group"], sample))
                tasks.append(task)
                numbers.append(number)
        self._unread.update(numbers)
        self._metrics.set(f"samples_in_flight/{self.name}", len(self._running))
        try:
            outputs = await asyncio.gather(*tasks)
            logprobs = await self._logprobs(numbers, outputs)
        except asyncio.CancelledError as error:
            if (caller := asyncio.current_task()) and caller.cancelling():
                raise
            self._raise_if_failed()
            raise RolloutError(f"{self.name}: samples were aborted.") from error
        except Exception as error:
            raise RolloutError(self._error_with_log("the engine failed while it sampled", error), recoverable=True) from error
        finally:
            self._unread.difference_update(numbers)
            for task in tasks:
                task.cancel()
            self._metrics.set(f"samples_in_flight/{self.name}", len(self._running))
        self._metrics.add(f"engine_tokens/{self.name}", sum(len(output.token_ids) for output in outputs))
        return sample_batch(keys, outputs, logprobs, self._decoder)

    def _sampling_params(self, seed: int, temperature: float, top_p: float, max_tokens: int, min_tokens: int, grows: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            # The engine by itself stops only at the model's eos tokens.
            stop_token_ids=None if self._decoder.end is None else [self._decoder.end],
            seed=seed if temperature > 0 else None,
            logprobs=None if self._workers_keep_logprobs else 0,  # 0: only the sampled token's
            flat_logprobs=True,
            detokenize=grows,  # else done once, at the end
            output_kind=RequestOutputKind.CUMULATIVE if grows else RequestOutputKind.FINAL_ONLY,
        )

    @ray.method(num_returns=2)
    async def sample(self, *arguments: Any) -> tuple[int, pa.RecordBatch]:
        """Call `generate`; returns the number of samples, which the caller waits for, and the samples, which stay in the object store."""
        samples = await self.generate(*arguments)
        return samples.num_rows, samples

    async def _sample(self, prompt: list[int], params: Any, number: int, on_text: Callable[[str], None] | None) -> Any:
        final, shown = None, 0
        async for output in self._engine.generate({"prompt_token_ids": prompt}, params, request_id(number, self.name)):
            final = output
            if on_text and len(text := output.outputs[0].text) > shown:
                on_text(text[shown:])
                shown = len(text)
        if final is None:
            raise RuntimeError(f"request {number}: the engine returned no output.")
        return final.outputs[0]

    async def _logprobs(self, numbers: list[int], outputs: list[Any]) -> list[SampleLogprobs]:
        """Return the log-probabilities of each output's tokens."""
        if not self._workers_keep_logprobs:
            # At each position of vLLM's flat list, the sampled token's comes first.
            return [
                SampleLogprobs([output.logprobs.logprobs[start] for start in output.logprobs.start_indices], None) for output in outputs
            ]
        # All workers return the same.
        sampled = (await self._engine.collective_rpc("rlsys_take_sampled", args=(numbers, list(self._unread - set(numbers)))))[0]
        found = []
        for number, (tokens, logprobs, certainties), output in zip(numbers, sampled, outputs, strict=True):
            # Tokens sampled after the end are not part of the sample.
            count = len(output.token_ids)
            if list(tokens[:count]) != list(output.token_ids):
                raise RuntimeError(f"request {number}: the engine returned tokens other than those sampled for it.")
            certainty = sum(certainties[:count]) / count if self.rollout.self_certainty and count else None
            found.append(SampleLogprobs(logprobs[:count], certainty))
        return found

    # --- sleep ---------------------------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """Drop weights and key-value cache and release their memory until the next weight update.

        Raises:
            RolloutError: `rollout.sleep` is off, samples or a weight update are in progress, or the engine failed.
        """
        self._raise_if_failed()
        if not self.rollout.sleep:
            raise RolloutError(f"{self.name}: it was started with rollout.sleep off and cannot sleep.")
        if self._running or not self._admitting.is_set():
            busy = f"{len(self._running)} sample(s)" if self._running else "a weight update"
            raise RolloutError(f"{self.name}: cannot sleep with {busy} in progress; wait until that is done.")
        await self._probe.remember(self.generate, self._version)
        self._asleep = True
        await self._or_mark_failed(self._engine.sleep(level=SLEEP_LEVEL), "it could not be put to sleep")

    async def _wake(self, part: str) -> None:
        """Allocate the memory for "weights" or "kv_cache" again, uninitialised."""
        if self._asleep:
            await self._or_mark_failed(self._engine.wake_up(tags=[part]), f"its {part} could not be woken")

    # --- weights (called by the learner through actors.weights.transfer) -----------------------------------------------------

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        """Initialise the engine's workers for the backend's transfers."""
        await self._weight_call("init_weight_transfer_engine", init_info=info)

    async def open_segment(self, size: int) -> str:
        """Allocate `size` bytes that this machine's engines share, for a learner on another machine; returns the path."""
        self._segment = Segment(size)
        return self._segment.path

    async def fetch(self, start: int, bucket: np.ndarray) -> None:
        """Copy a bucket (uint8) from Ray's object store to byte `start` of the segment."""
        self._segment.bytes[start : start + bucket.size].numpy()[:] = bucket

    async def start_update(self) -> None:
        """Let running samples finish (`rollout.in_flight_updates`: freeze them), hold later ones back, and prepare for weights.

        A sleeping engine allocates the memory for its weights here, and that for its cache in `finish_update`, once the transfer has
        released its own.
        """
        self._raise_if_failed()
        self._admitting.clear()
        if not self.rollout.in_flight_updates:
            while self._running:
                await asyncio.wait(self._running)
        # The engine's pause_generation() would add a sleep of 20 ms.
        pause = self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        await self._or_mark_failed(pause, "it could not be paused for a weight update")
        await self._wake("weights")
        await self._weight_call("start_weight_update")

    async def update(self, info: dict[str, Any], fetched: None = None) -> None:
        """Load one round of weights.

        Args:
            info: the backend's update info.
            fetched: result of `fetch` (backend "cpu", learner on another machine), which has to complete first.
        """
        await self._weight_call("update_weights", update_info=info)

    async def finish_update(self, version: int) -> None:
        """Activate the new weights, reset the prefix cache, and continue as `version`.

        Cached prefixes of the old weights would serve new requests, so the cache is reset, which vLLM allows only as a whole. Frozen
        requests therefore lose theirs, too, and recompute it with the new weights when they continue: one prefill of the prompt and the
        tokens so far, so that later tokens are sampled from the new weights' exact distribution.
        """
        await self._weight_call("finish_weight_update")
        await self._wake("kv_cache")
        self._asleep = False
        # Only now: until the update is done, cached keys and values are the old weights'.
        failure = "its prefix cache could not be reset after a weight update"
        reset = self._engine.reset_prefix_cache(reset_running_requests=self.rollout.in_flight_updates)
        if not await self._or_mark_failed(reset, failure):
            self._mark_failed(failure)
        else:
            self._version = version
            await self._or_mark_failed(self._engine.update_weight_version(str(version)), failure)
        await self._or_mark_failed(self._engine.resume_generation(), "it did not continue after a weight update")
        self._admitting.set()
        self._raise_if_failed()
        if difference := await self._probe.difference(self.generate, version):
            failure = f"it computes something else since it slept: {difference}. Set rollout.sleep=false for this model"
            self._mark_failed(failure, recoverable=False)
            self._raise_if_failed()

    async def last_load(self) -> list[dict[str, Any]]:
        """Return `actors.weights.engine.WorkerExtension.rlsys_last_load` of each engine worker."""
        return await self._engine.collective_rpc("rlsys_last_load")

    async def weight_version(self) -> int:
        """Return the version of the weights in use; 0 is that of `model_path`."""
        return self._version

    async def checksums(self) -> list[list[Any]]:
        """Return `actors.weights.engine.WorkerExtension.rlsys_checksums` of each engine worker."""
        return await self._engine.collective_rpc("rlsys_checksums")

    async def _weight_call(self, method: str, **arguments: Any) -> None:
        await self._or_mark_failed(self._engine.collective_rpc(method, kwargs=arguments), f"a weight update failed in {method}")

    async def _or_mark_failed(self, call: Awaitable[Any], failure: str) -> Any:
        """Return the result of `call`; a failure marks the engine as failed."""
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=BEAT_S)
                # vLLM never ends a call that was pending when its engine died.
                if not task.done() and self._engine.errored:
                    task.cancel()
                    raise RuntimeError("the engine has died")
            return task.result()
        except Exception as error:
            self._mark_failed(failure)
            raise RolloutError(self._error_with_log(failure, error), recoverable=True) from error

    def _mark_failed(self, failure: str, recoverable: bool = True) -> None:
        """Refuse all further calls: frozen samples would otherwise block forever, or continue under a mix of two weight versions.

        Args:
            recoverable: a new engine may succeed.
        """
        self._failure, self._recoverable = failure, recoverable
        for task in self._running:
            task.cancel()
        self._admitting.set()

    def _raise_if_failed(self) -> None:
        if self._failure:
            raise RolloutError(f"{self.name}: {self._failure}; start it again. See {self.log}.", self._recoverable)

    # --- errors --------------------------------------------------------------------------------------------------

    def _error_with_log(self, what: str, error: BaseException) -> str:
        """Describe an error, with the last lines of the engine's log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:] if self.log.exists() else []
        quoted = "\n".join(f"    {line}" for line in lines)
        return f"{self.name}: {what}: {type(error).__name__}: {error}\nLast lines of {self.log}:\n{quoted}"

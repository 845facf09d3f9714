"""The rollout actor: one vLLM engine that turns prompts into samples, and takes new weights.

A sample has its own seed, so it can be drawn again alone. While weights are exchanged no request runs: the engine's requests
are finished first, later ones wait, and so every sample is the work of one weight version.

With `rollout.in_flight_updates` requests are not finished but frozen, and go on under the new weights. What they have written
stays, with the log-probabilities at which it was sampled; its keys and values are computed again (`finish_update` says why),
so that every token is drawn from exactly the distribution that one version of the weights gives it. `weight_version` of such a
sample is that of its oldest token.

With `rollout.sleep` an engine gives its memory back while the learner trains on the same card. Its weights are dropped then,
so nothing but a weight update wakes it:

    awake -> sleep -> asleep -> start_update -> weights are back, empty -> update ... -> finish_update, cache is back -> awake
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.cluster import logs
from actors.cpu.sampler import request_id
from actors.rollout import vllm_compat
from actors.weights.buckets import Segment
from rlsys.config.schema import Rollout
from rlsys.data.trajectories import SAMPLES
from rlsys.prompts.chat import Chat
from rlsys.rewards.thoughts import is_mark

SLEEP_LEVEL = 2
"""vLLM's 1 would carry the weights to the host's memory and back, for the update to overwrite them; 2 drops them. Buffers that no update
sends, such as rotary tables, are carried over at both levels."""

LAST_LINES = 25
"""Lines of the engine's log that an error quotes."""


class RolloutError(RuntimeError):
    """A rollout actor cannot do what was asked; the message names it and, where the engine failed, quotes its log."""


class RolloutActor:
    """One vLLM engine. Life: construct, `ready`, then `generate` and weight updates in any order, `shutdown`.

    Between `sleep` and the next weight update nothing but that update and `shutdown` is possible.
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
    ):
        """
        Args:
            name: how errors and the log file call this actor.
            model_path: Hugging Face folder or hub name.
            dtype: "bfloat16" or "float32".
            max_model_len: longest prompt with its completion, in tokens.
            seed: the engine's own; samples are seeded one by one.
            weight_backend: "cpu", "nccl" or "ipc", the same as the learner's.
            log_dir: the engine's output goes to `log_dir/NAME.log`.
            threads: cores for the engine, its own among the rollout actors of this machine; None: all of them.
            template_args: of the chat template, which says what ends a turn.
        """
        self.name, self.model_path, self.rollout, self.dtype = name, model_path, rollout, dtype
        self.max_model_len, self.seed, self.weight_backend = max_model_len, seed, weight_backend
        self.threads = threads or len(os.sched_getaffinity(0))
        self.template_args = template_args
        self.log = Path(log_dir) / f"{name}.log"
        logs.redirect_output(self.log)
        self._engine: Any = None
        self._version = 0
        self._request_ids = itertools.count()
        self._running: set[asyncio.Task[Any]] = set()
        self._unread: set[int] = set()  # requests whose log-probabilities are still to be read
        self._admitting = asyncio.Event()
        self._admitting.set()
        self._asleep = False
        self._spoilt = ""

    def __repr__(self) -> str:
        return self.name

    # --- life ----------------------------------------------------------------------------------------------------

    async def ready(self) -> dict[str, Any]:
        """Start the engine; returns name, vllm version, device, cores, threads (of each worker), kv_blocks and seconds to start.

        Raises:
            RolloutError: the engine did not start, or cannot tell what it is asked to.
        """
        began = time.monotonic()
        vllm_compat.before_import(self.weight_backend)
        device = vllm_compat.device()
        # A frozen request may draw a token again when it goes on, and only vLLM knows then which one counts.
        self._keeps_drawn = device == "cpu" and not self.rollout.in_flight_updates
        if self.rollout.self_certainty and not self._keeps_drawn:
            found = f"device {device}, rollout.in_flight_updates={self.rollout.in_flight_updates}"
            raise RolloutError(f"{self.name}: rollout.self_certainty wants a CPU engine without in-flight updates, found {found}.")
        self._cores = vllm_compat.Cores(self.threads if device == "cpu" else 0)
        try:
            with vllm_compat.engine_environment(self._cores.ids, self.threads, self.rollout):
                self._engine = self._start_engine()
        except Exception as error:
            raise RolloutError(self._obituary("the engine did not start", error)) from error
        from transformers import AutoTokenizer
        from vllm import __version__

        if device == "cpu":
            await self._engine.collective_rpc("rlsys_take_over_sampling", args=(self._keeps_drawn, self.rollout.self_certainty))
            if self.rollout.enforce_eager:
                await self._engine.collective_rpc("rlsys_use_fused_kernels")
        await self._engine.update_weight_version(str(self._version))
        self._tokenizer = AutoTokenizer.from_pretrained(self.model_path)
        reserved = {number: str(token) for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._thoughts = {number for number, token in reserved.items() if is_mark(token)}
        self._hidden = set(reserved) - self._thoughts
        # The engine itself stops at the model's eos tokens only.
        self._end = Chat(self._tokenizer, self.template_args).end if self._tokenizer.chat_template else self._tokenizer.eos_token_id
        return {
            "name": self.name,
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
            enforce_eager=self.rollout.enforce_eager,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # after temperature and top-p, i.e. of what was really drawn from
            weight_transfer_config=WeightTransferConfig(backend=self.weight_backend),
            worker_extension_cls="actors.weights.engine.WorkerExtension",
            disable_log_stats=True,
            **vllm_compat.engine_arguments(self.rollout, self.max_model_len),
        )
        vllm_compat.fork_engines()
        return AsyncLLM.from_engine_args(arguments)

    async def identity(self) -> dict[str, Any]:
        """Name, machine (Ray's id) and number of engine workers: what a learner needs to know to send weights."""
        node = ray.get_runtime_context().get_node_id()
        return {"name": self.name, "node": node, "tensor_parallel": self.rollout.tensor_parallel}

    async def in_flight(self) -> int:
        """Samples that were asked for and are not finished."""
        return len(self._running)

    async def abort(self) -> None:
        """Drop everything in flight; the `generate` calls concerned raise RolloutError."""
        for task in self._running:
            task.cancel()

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
        await self.abort()
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            self._cores.release()

    # --- sampling ------------------------------------------------------------------------------------------------

    async def generate(
        self, requests: pa.RecordBatch, temperature: float, top_p: float, max_tokens: int, min_tokens: int = 0
    ) -> pa.RecordBatch:
        """Draw every sample of `requests`, all in flight at once.

        Args:
            requests: REQUESTS schema; each seed (>= 0) gives one sample, the same one whenever weights and settings are the same.
            temperature: 0 is greedy (seeds do not matter then).
            top_p: 1 samples from everything; below 1 `logprobs` are of the renormalised nucleus.
            max_tokens: longest completion; prompt and completion together must fit `max_model_len`.
            min_tokens: shortest completion; before it the end of sequence has no probability.
        Returns:
            SAMPLES schema, ordered by (group, sample). `logprobs` are log_softmax(logits / temperature) of the engine when it
            drew the token; at temperature 0, of the logits themselves. `weight_version` is the oldest that wrote any token.
        Raises:
            RolloutError: a prompt is too long, the engine is asleep, it failed, a weight update did, or `abort` was called.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rows = requests.to_pylist()
        for row in rows:
            length = len(row["prompt_tokens"])
            if length + max_tokens > self.max_model_len:
                raise RolloutError(
                    f"{self.name}: group {row['group']}: a prompt of {length} tokens and a completion of up to {max_tokens} do not fit "
                    f"max_model_len={self.max_model_len}. Set such rows aside (prompt.max_tokens) or lower max_tokens."
                )
        await self._admitting.wait()
        self._refuse_if_spoilt()
        if self._asleep:
            raise RolloutError(f"{self.name}: asleep, its weights are dropped; have the learners send weights before it samples.")
        keys, tasks, numbers = [], [], []
        for row in rows:
            for sample, seed in enumerate(row["seeds"]):
                params = SamplingParams(
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=max_tokens,
                    min_tokens=min_tokens,
                    stop_token_ids=None if self._end is None else [self._end],
                    seed=seed if temperature > 0 else None,
                    logprobs=None if self._keeps_drawn else 0,  # 0: the sampled token's own
                    flat_logprobs=True,
                    detokenize=False,  # done once, at the end
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                number = next(self._request_ids)
                task = asyncio.ensure_future(self._sample(row["prompt_tokens"], params, number))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                keys.append((row["group"], sample))
                tasks.append(task)
                numbers.append(number)
        self._unread.update(numbers)
        try:
            outputs = await asyncio.gather(*tasks)
            drawn = await self._drawn(numbers, outputs)
        except asyncio.CancelledError as error:
            self._refuse_if_spoilt()
            raise RolloutError(f"{self.name}: samples were aborted.") from error
        except Exception as error:
            raise RolloutError(self._obituary("the engine failed while it sampled", error)) from error
        finally:
            self._unread.difference_update(numbers)
            for task in tasks:
                task.cancel()
        return self._samples(keys, outputs, drawn)

    @ray.method(num_returns=2)
    async def sample(self, *arguments: Any) -> tuple[int, pa.RecordBatch]:
        """`generate` as two objects: the number of samples, which the caller waits for, and the samples, which stay where they are."""
        samples = await self.generate(*arguments)
        return samples.num_rows, samples

    async def _sample(self, prompt: list[int], params: Any, number: int) -> Any:
        final = None
        async for output in self._engine.generate({"prompt_token_ids": prompt}, params, request_id(number, self.name)):
            final = output
        return final.outputs[0]

    async def _drawn(self, numbers: list[int], outputs: list[Any]) -> list[tuple[list[float], float | None]]:
        """(log-probabilities of the sampled tokens, mean self-certainty or None) of each output."""
        if not self._keeps_drawn:
            # They come first at each place of vLLM's flat list.
            return [([output.logprobs.logprobs[start] for start in output.logprobs.start_indices], None) for output in outputs]
        # The same from every worker.
        drawn = (await self._engine.collective_rpc("rlsys_take_drawn", args=(numbers, list(self._unread - set(numbers)))))[0]
        found = []
        for number, (tokens, logprobs, certainties), output in zip(numbers, drawn, outputs, strict=True):
            # What was drawn after the end is not part of the sample.
            count = len(output.token_ids)
            if list(tokens[:count]) != list(output.token_ids):
                raise RuntimeError(f"request {number}: the engine returned other tokens than were drawn for it.")
            certainty = sum(certainties[:count]) / count if self.rollout.self_certainty and count else None
            found.append((logprobs[:count], certainty))
        return found

    def _samples(self, keys: list[tuple[int, int]], outputs: list[Any], drawn: list[tuple[list[float], float | None]]) -> pa.RecordBatch:
        tokens = [list(output.token_ids) for output in outputs]
        columns = {
            "group": [group for group, _ in keys],
            "sample": [sample for _, sample in keys],
            "tokens": tokens,
            "logprobs": [logprobs for logprobs, _ in drawn],
            # Of no sequences it makes one text.
            "text": self._texts(tokens) if tokens else [],
            "finish_reason": [output.finish_reason for output in outputs],
            "weight_version": [min(int(span.version) for span in output.weight_versions) for output in outputs],
            "certainty": [certainty for _, certainty in drawn],
        }
        table = pa.Table.from_pydict(columns, schema=SAMPLES).sort_by([("group", "ascending"), ("sample", "ascending")])
        return table.combine_chunks().to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], schema=SAMPLES)

    def _texts(self, tokens: list[list[int]]) -> list[str]:
        """Without special tokens, but with those that begin or end a thought; without what ended the turn, which need not be special."""
        own = [one[:-1] if one and one[-1] == self._end else one for one in tokens]
        if not self._thoughts:
            return self._tokenizer.batch_decode(own, skip_special_tokens=True)
        return self._tokenizer.batch_decode([[token for token in one if token not in self._hidden] for one in own])

    # --- sleep ---------------------------------------------------------------------------------------------------

    async def sleep(self) -> None:
        """Drop weights and key-value cache, and give their memory back until the next weight update.

        Raises:
            RolloutError: `rollout.sleep` is off, samples or a weight update are under way, or the engine failed.
        """
        self._refuse_if_spoilt()
        if not self.rollout.sleep:
            raise RolloutError(f"{self.name}: it was started with rollout.sleep off and cannot sleep.")
        if self._running or not self._admitting.is_set():
            under_way = f"{len(self._running)} sample(s)" if self._running else "a weight update"
            raise RolloutError(f"{self.name}: cannot sleep, {under_way} under way; wait for the end first.")
        self._asleep = True
        await self._or_spoil(self._engine.sleep(level=SLEEP_LEVEL), "it could not go to sleep")

    async def _wake(self, part: str) -> None:
        """Get the memory for "weights" or "kv_cache" back, empty."""
        if self._asleep:
            await self._or_spoil(self._engine.wake_up(tags=[part]), f"its {part} could not be woken")

    # --- weights (called by the learner through actors.weights.transfer) -----------------------------------------------------

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        """Prepare the engine's workers for the backend's transfers."""
        await self._weight_call("init_weight_transfer_engine", init_info=info)

    async def open_segment(self, size: int) -> str:
        """Keep `size` bytes of memory that this machine's engines share, for a learner on another one; returns its path."""
        self._segment = Segment(size)
        return self._segment.path

    async def fetch(self, start: int, bucket: np.ndarray) -> None:
        """Put a bucket (uint8) out of Ray's object store into the segment, from byte `start` on."""
        self._segment.bytes[start : start + bucket.size].numpy()[:] = bucket

    async def start_update(self) -> None:
        """Let running samples finish (`rollout.in_flight_updates`: freeze them), hold later ones back, and prepare for weights.

        An engine that is asleep gets the memory for its weights back; that for its cache, in `finish_update`, when what the transfer
        takes is free again.
        """
        self._refuse_if_spoilt()
        self._admitting.clear()
        if not self.rollout.in_flight_updates:
            while self._running:
                await asyncio.wait(self._running)
        # The engine's own pause_generation() would sleep for 20 ms afterwards.
        await self._engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)
        await self._wake("weights")
        await self._weight_call("start_weight_update")

    async def update(self, info: dict[str, Any], fetched: None = None) -> None:
        """Load one round of weights.

        Args:
            info: the backend's update info.
            fetched: backend "cpu" with a learner on another machine: answer of `fetch`, which has to be there first.
        """
        await self._weight_call("update_weights", update_info=info)

    async def finish_update(self, version: int) -> None:
        """Put the new weights in place, forget what the old ones cached, and go on as `version`.

        What the old weights cached for finished prompts would serve new requests, so it has to go, and vLLM lets none of it go
        while any of it is in use. Frozen requests therefore give up theirs, too, and have it computed again by the new weights
        when they go on: one prefill of prompt and tokens so far, for tokens drawn from what the new weights really say.
        """
        await self._weight_call("finish_weight_update")
        await self._wake("kv_cache")
        self._asleep = False
        # After the update: until here cached keys and values are the old weights'.
        failure = "its prefix cache could not be reset after a weight update"
        reset = self._engine.reset_prefix_cache(reset_running_requests=self.rollout.in_flight_updates)
        if not await self._or_spoil(reset, failure):
            self._spoil(failure)
        else:
            self._version = version
            await self._engine.update_weight_version(str(version))
        await self._engine.resume_generation()
        self._admitting.set()
        self._refuse_if_spoilt()

    async def last_load(self) -> list[dict[str, Any]]:
        """Per engine worker: what `actors.weights.engine.WorkerExtension.rlsys_last_load` says."""
        return await self._engine.collective_rpc("rlsys_last_load")

    async def weight_version(self) -> int:
        """Version of the weights in use; 0 are those of `model_path`."""
        return self._version

    async def checksums(self) -> list[list[Any]]:
        """Per engine worker: what `actors.weights.engine.WorkerExtension.rlsys_checksums` says."""
        return await self._engine.collective_rpc("rlsys_checksums")

    async def _weight_call(self, method: str, **arguments: Any) -> None:
        await self._or_spoil(self._engine.collective_rpc(method, kwargs=arguments), f"a weight update failed in {method}")

    async def _or_spoil(self, call: Awaitable[Any], failure: str) -> Any:
        """What `call` returns; an engine in which it fails is spoilt."""
        try:
            return await call
        except Exception as error:
            self._spoil(failure)
            raise RolloutError(self._obituary(failure, error)) from error

    def _spoil(self, why: str) -> None:
        """From here on every call is refused; frozen samples would wait for ever, or go on under weights of two versions."""
        self._spoilt = why
        for task in self._running:
            task.cancel()
        self._admitting.set()

    def _refuse_if_spoilt(self) -> None:
        if self._spoilt:
            raise RolloutError(f"{self.name}: {self._spoilt}; start it again. See {self.log}.")

    # --- errors --------------------------------------------------------------------------------------------------

    def _obituary(self, what: str, error: BaseException) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:] if self.log.exists() else []
        quoted = "\n".join(f"    {line}" for line in lines)
        return f"{self.name}: {what}: {type(error).__name__}: {error}\nLast lines of {self.log}:\n{quoted}"

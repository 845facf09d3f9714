"""vLLM's offline class for `rlsys bench rollout`: the same engine settings, with the engine in this process."""

from __future__ import annotations

import os
import time
from typing import Any

from actors.rollout import vllm_compat
from launch.bench.rollout import check, prompt_batches
from launch.bench.work import Work, run_child, run_config
from rlsys.config.schema import Config
from rlsys.models.loading import ensure_model


def offline_engine(config: Config, model: str, length: int) -> tuple[Any, float]:
    """Return (vLLM's `LLM` with the engine in this process, start-up seconds), for prompt and output of `length` tokens in total."""
    vllm_compat.before_import("cpu")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    from vllm import LLM

    began = time.perf_counter()
    engine = LLM(
        model=model,
        dtype=config.model.dtype,
        max_model_len=length,
        **vllm_compat.engine_arguments(config.rollout, length),
    )
    return engine, time.perf_counter() - began


def measure(work: Work) -> dict[str, Any]:
    """Measure the seconds of every batch."""
    config = run_config(work)
    model = ensure_model(config.model.path)
    batches = prompt_batches(work, model)
    engine, start_s = offline_engine(config, model, work.prompt_tokens + work.output_tokens)
    from vllm import SamplingParams, __version__

    settings = SamplingParams(
        n=work.samples,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_tokens=work.output_tokens,
        min_tokens=work.output_tokens,
    )
    seconds = []
    for prompts in batches:
        began = time.perf_counter()
        answers = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        check(work, [len(output.token_ids) for answer in answers for output in answer.outputs])
    return {"system": "bare vLLM", "seconds": seconds, "start_s": start_s, "vllm": __version__, "device": vllm_compat.device()}


if __name__ == "__main__":
    run_child(measure)

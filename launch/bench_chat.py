"""vLLM's offline `LLM.chat`, for `rlsys bench judge`: the same engine settings, with the engine in this process."""

from __future__ import annotations

import os
import time
from typing import Any

from actors import vllm_compat
from launch.bench_judge import MAX_PROMPT_TOKENS, TEMPERATURE, ask_batches, check, user_turns
from launch.bench_work import Work, run_child, run_config
from rlsys.models import ensure_model
from rlsys.prompts import Prompter


def measure(work: Work) -> dict[str, Any]:
    """Seconds of every batch."""
    vllm_compat.before_import("cpu")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    config = run_config(work)
    model = ensure_model(config.model.path)
    prompter = Prompter.of(AutoTokenizer.from_pretrained(model), config.prompt)
    began = time.perf_counter()
    length = MAX_PROMPT_TOKENS + work.output_tokens
    engine = LLM(
        model=model,
        dtype=config.model.dtype,
        max_model_len=length,
        enforce_eager=config.rollout.enforce_eager,
        **vllm_compat.engine_arguments(config.rollout, length),
    )
    start_s = time.perf_counter() - began
    seconds, prompts = [], []
    for asks in ask_batches(work, config):
        began = time.perf_counter()
        turns = user_turns(prompter, asks)
        chats = [[{"role": "user", "content": turn}] for turn, _ in turns]
        settings = [
            SamplingParams(
                n=count, temperature=TEMPERATURE, top_p=config.rollout.top_p, max_tokens=work.output_tokens, min_tokens=work.output_tokens
            )
            for _, count in turns
        ]
        answers = engine.chat(chats, settings, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        check(work, [len(output.token_ids) for answer in answers for output in answer.outputs])
        prompts.append(len(turns))
    return {"system": "LLM.chat", "seconds": seconds, "prompts": prompts, "start_s": start_s}


if __name__ == "__main__":
    run_child(measure)

"""vLLM's offline `LLM.chat` for `rlsys bench judge`: the same engine settings, with the engine in this process."""

from __future__ import annotations

import time
from typing import Any

from launch.bench.judge import MAX_PROMPT_TOKENS, TEMPERATURE, ask_batches, check, user_turns
from launch.bench.vllm import offline_engine
from launch.bench.work import Work, run_child, run_config
from rlsys.models.loading import ensure_model
from rlsys.prompts.rendering import Prompter


def measure(work: Work) -> dict[str, Any]:
    """Measure the seconds of every batch."""
    from transformers import AutoTokenizer

    config = run_config(work)
    model = ensure_model(config.model.path)
    prompter = Prompter.from_config(AutoTokenizer.from_pretrained(model), config.prompt)
    engine, start_s = offline_engine(config, model, MAX_PROMPT_TOKENS + work.output_tokens)
    from vllm import SamplingParams

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

"""vLLM's offline class for `rlsys bench start`: imports, engine, one token."""

from __future__ import annotations

from typing import Any

from launch.bench.start import PROMPT, StageTimer
from launch.bench.vllm import offline_engine
from launch.bench.work import Work, run_child, run_config
from rlsys.models.loading import ensure_model


def measure(work: Work) -> dict[str, Any]:
    """Start the engine in this process, as vLLM's examples do, and sample once."""
    stages, config = StageTimer(), run_config(work)
    import vllm.entrypoints.llm

    stages.end("imports")
    engine, _ = offline_engine(config, ensure_model(config.model.path), work.prompt_tokens + work.output_tokens)
    stages.end("engine ready")
    engine.generate([{"prompt_token_ids": PROMPT}], vllm.SamplingParams(max_tokens=work.output_tokens), use_tqdm=False)
    stages.end("first sample")
    return {"system": "bare vLLM", "ends": stages.ends}


if __name__ == "__main__":
    run_child(measure)

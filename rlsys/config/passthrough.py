"""Options passed through to DeepSpeed (`learner.deepspeed`) and to vLLM (`rollout.engine`), checked by name before anything starts.

The names are read from the sources of the installed packages, without importing them: both take seconds to import.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

ENGINE_KEYS = {
    "model": "model.path",
    "tokenizer": "model.path",
    "dtype": "model.dtype",
    "seed": "seed",
    "max_model_len": "prompt.max_tokens and rollout.max_tokens",
    "tensor_parallel_size": "rollout.tensor_parallel",
    "data_parallel_size": "rollout.actors",
    "max_num_seqs": "rollout.max_num_seqs",
    "enforce_eager": "rollout.enforce_eager",
    "gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "kv_cache_memory_bytes": "rollout.kv_cache_gib",
    "enable_sleep_mode": "rollout.sleep",
    "weight_transfer_config": "weights.backend",
}
"""vLLM's engine arguments that a key of ours sets."""
ENGINE_FIXED = {
    "distributed_executor_backend": "the executor follows from rollout.tensor_parallel and the device",
    "enable_prefix_caching": "the samples of a prompt share its cache",
    "logprobs_mode": "the learner needs log-probabilities of the distribution that is sampled from",
    "worker_extension_cls": "weights and log-probabilities are read through rlsys's own",
    "trust_remote_code": "code from a model's folder is never run",
    "disable_log_stats": "rlsys counts samples and tokens itself",
    "hf_overrides": "learner and engine must read the same config.json; edit it in the model's folder",
    "runner": "rollout engines generate text",
    "convert": "rollout engines generate text",
    "skip_tokenizer_init": "the engine needs its tokenizer's end-of-sequence tokens",
}
"""vLLM's engine arguments that cannot be changed, and why."""

LEARNER_KEYS = {
    "train_batch_size": "rl.prompts_per_step",
    "train_micro_batch_size_per_gpu": "learner.token_budget",
    "gradient_accumulation_steps": "learner.token_budget",
    "gradient_clipping": "learner.max_grad_norm",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "optimizer": "learner.lr, learner.betas and learner.weight_decay",
    "scheduler": "learner.warmup_steps and learner.lr_decay",
    "activation_checkpointing": "learner.activation_checkpointing",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.offload_optimizer": "learner.offload",
    "zero_optimization.offload_param": "learner.offload",
    "zero_optimization.cpu_offload": "learner.offload",
    "zero_optimization.cpu_offload_param": "learner.offload",
}
"""DeepSpeed's settings that a key of ours sets."""
LEARNER_FIXED = {
    "steps_per_print": "rlsys reports each step itself",
    "data_types": "gradients of micro-batches are accumulated in fp32",
    "zero_optimization.gather_16bit_weights_on_model_save": "checkpoints are written by rlsys",
    "zero_optimization.zero_quantized_weights": "the engines would sample with weights other than those trained",
    "zero_optimization.compute_grad_norm": "every step needs the norm, to skip gradients that are not finite",
}
"""DeepSpeed's settings that cannot be changed, and why."""
LEARNER_OPTIONS = (
    "zero_optimization",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "timers",
    "aio",
)
"""DeepSpeed's settings that are passed through; those of `zero_optimization` are read from its source."""


def engine_option_mistakes(options: Mapping[str, Any]) -> list[str]:
    """Return a message for each entry of `rollout.engine` that vLLM does not have, or that a key of ours sets."""
    if not options:
        return []
    names = _fields_in_source("vllm", "engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs"))
    return _mistakes("rollout.engine", "vLLM's engine arguments", options, names, ENGINE_KEYS, ENGINE_FIXED)


def deepspeed_option_mistakes(options: Mapping[str, Any]) -> list[str]:
    """Return a message for each entry of `learner.deepspeed` that is not passed through to DeepSpeed, or that a key of ours sets."""
    found = _mistakes("learner.deepspeed", "the settings passed to DeepSpeed", options, LEARNER_OPTIONS, LEARNER_KEYS, LEARNER_FIXED)
    zero = options.get("zero_optimization", {})
    where = "learner.deepspeed.zero_optimization"
    if not isinstance(zero, dict):
        return [*found, f"{where}: expected a mapping, {{key: value, ...}}, found {zero!r}."]
    if zero:
        names = _fields_in_source("deepspeed", "runtime/zero/config.py", ("DeepSpeedZeroConfig",))
        keys, fixed = (_below("zero_optimization.", table) for table in (LEARNER_KEYS, LEARNER_FIXED))
        found += _mistakes(where, "DeepSpeed's settings of ZeRO", zero, names, keys, fixed)
    return found


def _below(prefix: str, table: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): text for name, text in table.items() if name.startswith(prefix)}


def _mistakes(
    key: str, what: str, options: Mapping[str, Any], names: Collection[str], keys: Mapping[str, str], fixed: Mapping[str, str]
) -> list[str]:
    found = []
    for name in options:
        plain = name.removeprefix("stage3_")
        if name in keys:
            found.append(f"{key}.{name}: this is set by {keys[name]}; remove it here and set that.")
        elif plain in fixed:
            found.append(f"{key}.{name}: cannot be changed, as {fixed[plain]}; remove it.")
        elif names and name not in names:
            nearest = difflib.get_close_matches(name, names, n=1)
            found.append(f"{key}.{name}: not one of {what}" + (f". Did you mean {nearest[0]}?" if nearest else "; remove it."))
    return found


@cache
def _fields_in_source(package: str, file: str, classes: tuple[str, ...]) -> frozenset[str]:
    """Return the annotated fields of classes in a file of an installed package, and their aliases; empty if it is not installed here."""
    spec = PathFinder.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(ast.parse((Path(places[0]) / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    names.add(field.target.id)
                    names |= set(_aliases(field.value))
    return frozenset(name for name in names if not name.startswith("_"))


def _aliases(value: ast.expr | None) -> list[str]:
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return [str(each.value.value) for each in keywords if each.arg == "alias" and isinstance(each.value, ast.Constant)]

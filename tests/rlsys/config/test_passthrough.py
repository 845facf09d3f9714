"""Options passed through to DeepSpeed and vLLM: unknown ones, and those that other keys set, are named before anything starts."""

from __future__ import annotations

import pytest
from deepspeed.runtime import constants
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from rlsys.config import passthrough
from rlsys.config.checks import find_conflicts
from rlsys.config.files import load_config
from rlsys.config.passthrough import deepspeed_option_mistakes, engine_option_mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.engine={max_num_batchd_tokens: 8192}", "not one of vLLM's engine arguments. Did you mean max_num_batched_tokens?"),
        ("rollout.engine={max_num_seqs: 8}", "this is set by rollout.max_num_seqs; remove it here and set that."),
        ("rollout.engine={trust_remote_code: true}", "code from a model's folder is never run"),
        ("learner.deepspeed={gradient_clipping: 2}", "this is set by learner.max_grad_norm"),
        ("learner.deepspeed={tensor_parallel: {autotp_size: 2}}", "not one of the settings passed to DeepSpeed"),
        (
            "learner.deepspeed={zero_optimization: {stage: 1}}",
            "learner.deepspeed.zero_optimization.stage: this is set by learner.zero_stage",
        ),
        ("learner.deepspeed={zero_optimization: {overlap_com: true}}", "Did you mean overlap_comm?"),
        ("learner.deepspeed={zero_optimization: true}", "expected a mapping"),
        ("learner.deepspeed={zero_optimization: {stage3_gather_16bit_weights_on_model_save: true}}", "checkpoints are written by rlsys"),
    ],
)
def test_an_option_that_is_not_passed_through_is_named(override: str, message: str) -> None:
    (mistake,) = find_conflicts(load_config(None, [override]), "train")
    assert mistake.startswith(override.split("=")[0]) and message in mistake


def test_options_of_both_libraries_pass() -> None:
    options = [
        "rollout.engine={kv_cache_dtype: fp8, swap_space: 4}",
        "learner.deepspeed={zero_optimization: {stage3_max_live_parameters: 10}}",
    ]
    (mistake,) = find_conflicts(load_config(None, options), "train")
    assert "swap_space" in mistake  # vLLM had it once; its source is what counts
    assert engine_option_mistakes({"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192, "compilation_config": {"mode": 0}}) == []
    every = {name: None for name, info in DeepSpeedZeroConfig.model_fields.items()}
    ours = {"stage", "offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param"}
    allowed = set(every) - ours - {"gather_16bit_weights_on_model_save", "zero_quantized_weights", "compute_grad_norm"}
    assert deepspeed_option_mistakes({"zero_optimization": dict.fromkeys(allowed)}) == []


def test_every_listed_setting_exists_in_deepspeed() -> None:
    """Its top-level keys are constants; the rest of them are read by sections of their own."""
    known = {value for name, value in vars(constants).items() if name.isupper() and isinstance(value, str)}
    sections = {"zero_optimization", "bfloat16", "flops_profiler", "comms_logger", "timers", "aio", "activation_checkpointing"}
    listed = {*passthrough.LEARNER_OPTIONS, *passthrough.LEARNER_KEYS, *passthrough.LEARNER_FIXED}
    assert {name for name in listed if "." not in name} <= known | sections
    config = DeepSpeedConfig({"train_batch_size": 1, "zero_optimization": {"overlap_comm": True, "stage": 2}})
    assert config.zero_config.overlap_comm


def test_engine_arguments_of_ours_exist_in_vllm() -> None:
    names = passthrough._fields_in_source("vllm", "engine/arg_utils.py", ("EngineArgs", "AsyncEngineArgs"))
    assert {*passthrough.ENGINE_KEYS, *passthrough.ENGINE_FIXED} <= names

"""A zoo of tiny random causal language models, one or more per family in transformers, to measure which are computed correctly.

Members have two to four layers and a vocabulary of 211. Their weights are large enough that a mistake in any part changes log-probabilities
by far more than rounding, and no setting has a value that hides a part of the computation (a multiplier of 1, a bias of 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 211
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
"""Applied to every family whose config has a setting of this name."""

WINDOW = 8
"""Window in tokens of the members with short windows: shorter than all measured rows."""
_LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "num_key_value_heads": 4}
_GROUPS = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_chunk_size": 16}
_DELTA = {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_SHARED = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "num_key_value_heads": 4,
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
}
_MIXED = ["linear_attention", "full_attention"]
_WINDOWED = ["sliding_attention", "full_attention"]
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
}


@dataclass(frozen=True)
class Family:
    """A member of the zoo."""

    name: str
    """Common name, with what distinguishes this member."""
    model_type: str
    """Name in transformers."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Config settings besides `SMALL`."""


FAMILIES = (
    Family("Llama 2", "llama", {"num_key_value_heads": 4}),
    Family(
        "Llama 3",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    Family("Llama, biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Family("Llama, dynamic rope", "llama", {"max_position_embeddings": 32, "rope_parameters": _DYNAMIC}),
    Family("Llama, linear rope", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    Family(
        "Llama, yarn rope",
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}},
    ),
    Family(
        "Llama 4 text",
        "llama4_text",
        {
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 128,
            "floor_scale": 16,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "moe_layers": [1],
        },
    ),
    Family(
        "Llama 4 text, short chunks",
        "llama4_text",
        {
            "intermediate_size_mlp": 96,
            "attention_chunk_size": WINDOW,
            "floor_scale": 16,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "moe_layers": [1],
        },
    ),
    Family("Mistral", "mistral", {"sliding_window": None}),
    Family("Mistral, long window", "mistral", {"sliding_window": 128}),
    Family("Mistral, short window", "mistral", {"sliding_window": WINDOW}),
    Family("Mixtral", "mixtral"),
    Family("Ministral", "ministral", {"sliding_window": WINDOW, "layer_types": _WINDOWED}),
    Family("Ministral 3", "ministral3"),
    Family("Qwen2", "qwen2"),
    Family("Qwen2, short window", "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    Family("Qwen2.5", "qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    Family("Qwen2 MoE", "qwen2_moe"),
    Family("Qwen3", "qwen3"),
    Family("Qwen3 MoE", "qwen3_moe"),
    Family("Qwen3-Next", "qwen3_next", _DELTA | {"layer_types": _MIXED}),
    Family("Qwen3.5 text", "qwen3_5_text", _DELTA | {"layer_types": _MIXED}),
    Family("Gemma", "gemma"),
    Family("Gemma 2", "gemma2", {"sliding_window": 128, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0}),
    Family("Gemma 2, short window", "gemma2", {"sliding_window": WINDOW, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0}),
    Family("Gemma 3 text", "gemma3_text", {"sliding_window": 128, "layer_types": _WINDOWED}),
    Family(
        "Gemma 3 text, short window", "gemma3_text", {"sliding_window": WINDOW, "layer_types": _WINDOWED, "final_logit_softcapping": 5.0}
    ),
    Family(
        "Gemma 3n text",
        "gemma3n_text",
        {
            "sliding_window": WINDOW,
            "layer_types": _WINDOWED * 2,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "intermediate_size": [96] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
        },
    ),
    Family("VaultGemma", "vaultgemma", {"sliding_window": WINDOW}),
    Family("Phi", "phi"),
    Family("Phi-3", "phi3", {"sliding_window": None}),
    Family("Phi-3, short window", "phi3", {"sliding_window": WINDOW}),
    Family(
        "Phi-3, longrope",
        "phi3",
        {
            "rope_parameters": _LONGROPE | {"original_max_position_embeddings": 32},
            "original_max_position_embeddings": 32,
            "sliding_window": None,
        },
    ),
    Family(
        "Phi-4",
        "phi3",
        {"sliding_window": None, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}},
    ),
    Family(
        "Phi-4-mini",
        "phi3",
        {
            "sliding_window": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0] * 6,
                "long_factor": [1.0 + 0.5 * i for i in range(6)],
                "original_max_position_embeddings": 128,
            },
            "original_max_position_embeddings": 128,
        },
    ),
    Family("PhiMoE", "phimoe", {"router_jitter_noise": 0.1, "input_jitter_noise": 0.1}),
    Family("DeepSeek-V2", "deepseek_v2", _LATENT | _GROUPS | {"topk_method": "group_limited_greedy"}),
    Family("DeepSeek-V2-Lite", "deepseek_v2", _LATENT | {"q_lora_rank": None, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}),
    Family("DeepSeek-V3", "deepseek_v3", _LATENT | _GROUPS | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}}),
    Family("GLM", "glm"),
    Family("GLM-4", "glm4"),
    Family("GLM-4 MoE", "glm4_moe", {"first_k_dense_replace": 1}),
    Family("GLM-4 MoE Lite", "glm4_moe_lite", _LATENT | {"mlp_layer_types": ["dense", "sparse"]}),
    Family("OLMo", "olmo", {"clip_qkv": 1.0}),
    Family("OLMo 2", "olmo2"),
    Family("OLMo 3", "olmo3", {"sliding_window": WINDOW, "layer_types": _WINDOWED}),
    Family("OLMoE", "olmoe"),
    Family("SmolLM 2", "llama", {"tie_word_embeddings": True}),
    Family("SmolLM 3", "smollm3", {"no_rope_layers": [1, 0]}),
    Family(
        "Granite", "granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 2.0}
    ),
    Family(
        "Granite MoE",
        "granitemoe",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 2.0},
    ),
    Family("Granite MoE shared", "granitemoeshared", {"shared_intermediate_size": 32, "embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    Family(
        "Granite 4 hybrid",
        "granitemoehybrid",
        _MAMBA | {"layer_types": ["mamba", "attention"], "logits_scaling": 2.0, "shared_intermediate_size": 32},
    ),
    Family("Cohere", "cohere", {"logit_scale": 0.5, "use_qk_norm": True}),
    Family("Cohere 2", "cohere2", {"logit_scale": 0.5, "sliding_window": WINDOW, "layer_types": _WINDOWED}),
    Family("Falcon 7B", "falcon", {"multi_query": True}),
    Family("Falcon 40B", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    Family("Falcon, alibi", "falcon", {"alibi": True, "bias": True}),
    Family(
        "Falcon-H1",
        "falcon_h1",
        _MAMBA | {"mamba_d_ssm": 128, "lm_head_multiplier": 0.5, "key_multiplier": 0.5, "embedding_multiplier": 3.0},
    ),
    Family("Falcon-Mamba", "falcon_mamba"),
    Family("GPT-NeoX", "gpt_neox"),
    Family("GPT-NeoX, sequential", "gpt_neox", {"use_parallel_residual": False}),
    Family(
        "GPT-OSS",
        "gpt_oss",
        {
            "sliding_window": WINDOW,
            "layer_types": _WINDOWED,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 150000.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    Family("Seed-OSS", "seed_oss"),
    Family("GPT-2", "gpt2"),
    Family("GPT-J", "gptj", {"rotary_dim": 8}),
    Family("GPT-Neo", "gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}),
    Family("GPT-BigCode", "gpt_bigcode"),
    Family("CodeGen", "codegen", {"rotary_dim": 8}),
    Family("OPT", "opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Family("Bloom", "bloom"),
    Family("MPT", "mpt"),
    Family("XGLM", "xglm", {"ffn_dim": 96}),
    Family("BioGPT", "biogpt"),
    Family("OpenAI GPT", "openai-gpt"),
    Family("StableLM", "stablelm", {"use_qkv_bias": True}),
    Family("StableLM 2, parallel", "stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    Family("Nemotron", "nemotron"),
    Family(
        "Nemotron-H",
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    Family("Persimmon", "persimmon"),
    Family("StarCoder 2", "starcoder2", {"sliding_window": None}),
    Family("StarCoder 2, short window", "starcoder2", {"sliding_window": WINDOW}),
    Family("MiniCPM 3", "minicpm3", _LATENT | {"scale_depth": 1.4, "scale_emb": 3.0, "dim_model_base": 32}),
    Family("ERNIE 4.5", "ernie4_5"),
    Family("ERNIE 4.5 MoE", "ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1}),
    Family("Hunyuan dense", "hunyuan_v1_dense"),
    Family("Hunyuan MoE", "hunyuan_v1_moe"),
    Family("Exaone 4", "exaone4", {"sliding_window": WINDOW, "layer_types": _WINDOWED}),
    Family("Apertus", "apertus"),
    Family("Arcee", "arcee"),
    Family("Helium", "helium"),
    Family("Doge", "doge"),
    Family("DiffLlama", "diffllama"),
    Family("BitNet", "bitnet"),
    Family("NanoChat", "nanochat"),
    Family("ModernBERT decoder", "modernbert-decoder", {"local_attention": 2 * WINDOW, "layer_types": _WINDOWED}),
    Family("dots.llm1", "dots1", {"first_k_dense_replace": 1, "layer_types": ["full_attention"] * 2, "n_shared_experts": 1}),
    Family("MiniMax", "minimax", {"layer_types": _MIXED, "block_size": 16}),
    Family("MiniMax M2", "minimax_m2"),
    Family("AFMoE", "afmoe", {"sliding_window": WINDOW, "layer_types": _WINDOWED}),
    Family("FlexOLMo", "flex_olmo"),
    Family("JetMoE", "jetmoe", {"kv_channels": 16}),
    Family("Solar Open", "solar_open"),
    Family(
        "Inkling",
        "inkling_text",
        {
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 16,
            "sliding_window_size": WINDOW,
            "layer_types": ["hybrid_sliding", "hybrid"],
            "d_rel": 4,
            "rel_extent": 32,
            "logits_mup_width_multiplier": 2.0,
            "n_shared_experts": 1,
            "route_scale": 1.0,
        },
    ),
    Family(
        "LongCat-Flash",
        "longcat_flash",
        _LATENT
        | {
            "num_layers": 1,
            "head_dim": 8,
            "ffn_hidden_size": 96,
            "expert_ffn_hidden_size": 32,
            "moe_topk": 2,
            "zero_expert_num": 1,
        },
    ),
    Family(
        "Kimi Linear",
        "kimi_linear",
        _LATENT | {"q_lora_rank": None, "layer_types": _MIXED, "linear_head_dim": 16, "linear_num_heads": 4, "num_experts_per_tok": 2},
    ),
    Family("LFM2", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    Family("LFM2 MoE", "lfm2_moe", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    Family("Bamba", "bamba", _MAMBA | {"attn_layer_indices": [1]}),
    Family(
        "Jamba",
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    ),
    Family(
        "Zamba",
        "zamba",
        _SHARED | {"mamba_dt_rank": 8, "n_mamba_heads": 2, "attention_hidden_size": 128, "attention_head_dim": 32},
    ),
    Family("Zamba 2", "zamba2", _SHARED | {"n_mamba_heads": 4, "chunk_size": 16, "adapter_rank": 8, "num_mem_blocks": 1}),
    Family("Mamba", "mamba", {"state_size": 8}),
    Family("Mamba 2", "mamba2", {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1, "chunk_size": 16}),
    Family("RWKV", "rwkv", {"attention_hidden_size": 64}),
    Family(
        "RecurrentGemma",
        "recurrent_gemma",
        {"block_types": ["recurrent", "attention"], "attention_window_size": WINDOW, "lru_width": 64, "logits_soft_cap": 5.0},
    ),
    Family("xLSTM", "xlstm", {"num_heads": 4, "qk_dim_factor": 1.0}),
)
"""In the order of docs/models.md."""


def build(family: Family, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Build the family's tiny model in float32, deterministically by seed; `settings` override its config.

    Raises:
        ValueError: settings that the config does not have.
        Exception: any error from transformers.
    """
    requested = SMALL | dict(family.settings) | settings
    known = _settings_of(AutoConfig.for_model(family.model_type))
    applied = {name: value for name, value in requested.items() if name in known}
    if unknown := {*family.settings, *settings} - known:
        raise ValueError(f"{family.name}: {family.model_type} has no {', '.join(sorted(unknown))}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **applied), dtype=torch.float32)
        _enlarge(model)
    return model.eval()


def _settings_of(config: PreTrainedConfig) -> set[str]:
    return {entry.name for entry in fields(config)} | set(config.attribute_map)


@torch.no_grad()
def _enlarge(model: nn.Module) -> None:
    """Enlarge the weights: with the default initialisation, outputs depend so little on the input that mistakes go unnoticed."""
    embedding = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter is embedding:
            parameter.normal_(0, 0.1)
        elif parameter.ndim > 1:
            parameter.normal_(0, 1.2 / math.sqrt(parameter.shape[-1]))
        else:  # norms, biases, sinks
            parameter.add_(torch.randn_like(parameter) * 0.1)

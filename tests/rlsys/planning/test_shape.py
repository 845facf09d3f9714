"""Shapes read from a config.json, against the weights that transformers writes and against published sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from rlsys.models.loading import ModelError
from rlsys.models.zoo import FAMILIES, build
from rlsys.planning.shape import read_shape

SHAPES = Path(__file__).parents[3] / "launch" / "configs" / "shapes"
PUBLISHED = {
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-8B": 16_381_470_720 // 2,
    "Qwen3-32B": 65_524_246_528 // 2,
    "Qwen2.5-7B-Instruct": 15_231_233_024 // 2,
    "gemma-2-27b-it": 54_454_256_640 // 2,
    "smollm2-135m-instruct": 134_515_008,
}
"""Parameters: half of total_size in the published model.safetensors.index.json, or the count on the model's page, without copies of tied
weights."""
NAMES = ("Llama 2", "SmolLM 2", "Qwen2.5", "Qwen3", "Gemma 2", "Mixtral", "OLMo 2", "GPT-2", "Falcon 7B", "LFM2")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    shape = read_shape(SHAPES / f"{name}.json")
    assert (shape.name, shape.parameters) == (name, PUBLISHED[name])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    """Transformers writes each tied weight once."""
    (family,) = (family for family in FAMILIES if family.name == name)
    build(family).save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    counts = {key: _product(shape) for key, shape in sizes.items()}
    shape = read_shape(tmp_path / "model")
    assert shape.parameters == sum(counts.values())
    assert shape.largest >= max(counts.values())  # a mixture's experts are one weight in memory


def _product(numbers: list[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def test_a_vision_tower_counts(tmp_path: Path) -> None:
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 256,
    }
    vision = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("gemma3", text_config={**text, "intermediate_size": 96}, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        written = {key: _product(file.get_slice(key).get_shape()) for key in file.keys()}
    shape = read_shape(tmp_path / "model")
    assert any("vision" in key for key in written)
    assert shape.parameters == sum(written.values())
    assert (shape.layers, shape.hidden, shape.cached) == (2, 64, 2 * 2 * 2 * 16)


def test_what_the_cache_keeps() -> None:
    """Grouped heads, keys and values: 2 x layers x key heads x head dimension."""
    assert read_shape(SHAPES / "Qwen3-8B.json").cached == 2 * 36 * 8 * 128


def test_latent_attention_caches_one_vector(tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == "DeepSeek-V3")
    model = build(family)
    model.save_pretrained(tmp_path / "model")
    assert read_shape(tmp_path / "model").cached == model.config.num_hidden_layers * (16 + 8)


def test_layers_without_keys_are_not_cached(tmp_path: Path) -> None:
    (family,) = (family for family in FAMILIES if family.name == "LFM2")
    model = build(family)
    model.save_pretrained(tmp_path / "model")
    config = model.config
    dimension = config.hidden_size // config.num_attention_heads
    assert read_shape(tmp_path / "model").cached == 2 * config.num_key_value_heads * dimension


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "no model_type"),
        ('{"hidden_size": 4}', "no model_type"),
        ('{"model_type": "nothing"}', "transformers cannot build"),
        ('{"model_type": "t5"}', "transformers cannot build"),
        ('{"model_type": "mamba", "num_hidden_layers": 1, "hidden_size": 8}', "no decoder layers with attention"),
    ],
)
def test_other_files_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=expected):
        read_shape(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere.json: cannot be read"):
        read_shape(tmp_path / "nowhere.json")


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "tiny-random"])
def test_the_shapes_of_our_models_are_theirs(name: str) -> None:
    folder = SHAPES.parents[2] / "models" / name
    if not (folder / "config.json").exists():
        pytest.skip(f"{folder} has not been built")
    ours, theirs = read_shape(SHAPES / f"{name}.json"), read_shape(folder)
    assert ours == theirs


def test_shapes_are_configs() -> None:
    assert {path.stem for path in SHAPES.iterdir()} >= set(PUBLISHED)
    for path in SHAPES.iterdir():
        assert json.loads(path.read_text())["model_type"]

"""Unusable model folders are detected from their config and file names."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlsys.config.schema import Config
from rlsys.models.folder import DIGESTED, check_model_folder, check_vocabulary, differing_files, file_digests
from rlsys.models.loading import ModelError
from rlsys.prompts.rendering import Prompter


def copy_of(model: Path, place: Path, **settings) -> Path:
    """Copy the model with other settings in its config.json."""
    shutil.copytree(model, place)
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return place


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": ["llama"]}, "no model_type"),
        ({"model_type": "abacus", "auto_map": {"AutoModelForCausalLM": "modeling_abacus.Abacus"}}, "is never run here"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_abacus.Abacus"}}, "is never run here"),
        ({"model_type": "qwen2_vl"}, "images"),
        ({"model_type": "gpt2", "n_positions": 64, "max_position_embeddings": None}, "64 tokens (n_positions)"),
        ({"max_position_embeddings": 64, "rope_scaling": "linear"}, "64 tokens (max_position_embeddings)"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "quantized (fp8)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "quantized (compressed-tensors)"),
    ],
)
def test_untrainable_models_are_refused_by_their_config(tiny_model, tmp_path, settings, words):
    with pytest.raises(ModelError, match=re.escape(words)):
        check_model_folder(str(copy_of(tiny_model, tmp_path / "model", **settings)), 100, trains=True)


def test_irrelevant_settings_are_accepted(tiny_model, tmp_path):
    own = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    place = copy_of(tiny_model, tmp_path / "model", text_config=None, auto_map=own, rope_scaling=None)
    assert check_model_folder(str(place), 100, trains=True).endswith("(llama)")


def test_extra_tokens_of_a_tokenizer_are_refused_only_if_they_are_used(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<picture>"])
    check_vocabulary(str(tiny_model), Prompter.from_config(tokenizer, Config().prompt))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<end>")
    with pytest.raises(ModelError, match=r"token 513 \(<end>\), but there are 512 \(vocab_size\). Copy the matching tokenizer"):
        check_vocabulary(str(tiny_model), Prompter.from_config(tokenizer, Config().prompt))


def test_copies_of_a_folder_have_equal_digests_and_a_changed_cut_or_missing_file_is_named(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    for name in ("first", "last", "cut", "missing"):
        (one / name).write_bytes(bytes(3 * DIGESTED))
    shutil.copytree(one, other)
    assert len(file_digests(one)) == 4 and differing_files(file_digests(one), file_digests(other)) == []
    for name, changed in (("first", 0), ("last", -1)):
        content = bytearray(3 * DIGESTED)
        content[changed] = 1
        (other / name).write_bytes(content)
    (other / "cut").write_bytes(bytes(3 * DIGESTED - 1))
    (other / "missing").unlink()
    assert differing_files(file_digests(one), file_digests(other)) == ["cut", "first", "last", "missing"]
    assert file_digests(Path("owner/name-on-the-hub")) == {}


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/hostname"])
def test_an_index_cannot_name_files_of_another_folder(tiny_model, tmp_path, shard):
    shutil.copytree(tiny_model, tmp_path / "other")
    place = copy_of(tiny_model, tmp_path / "model")
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    with pytest.raises(ModelError, match=re.escape(f"its index lists {shard}, which is outside of the folder")):
        check_model_folder(str(place), 100, trains=True)

"""What a saved model carries besides its weights."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from actors.learner import checkpoints as saving
from actors.learner.checkpoints import add_end_of_turn, writing_ranks


@pytest.mark.parametrize(("before", "after"), [(0, [0, 2]), ([0, 1], [0, 1, 2]), (2, 2), ([2, 0], [2, 0]), (None, [2])])
def test_generation_ends_where_the_chat_template_ends_a_turn(tiny_model, before, after) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    model.generation_config = GenerationConfig(eos_token_id=before)
    add_end_of_turn(model, tokenizer)
    assert model.generation_config.eos_token_id == after


def test_a_classifier_generates_nothing(tiny_model) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    add_end_of_turn(model, AutoTokenizer.from_pretrained(tiny_model))
    assert not model.can_generate() and getattr(model, "generation_config", None) is None


def test_each_rank_writes_whole_layers_of_about_the_same_size(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 9
    model = AutoModelForCausalLM.from_config(config)
    assert set(writing_ranks(model, 8).values()) == {0}  # too small to share
    monkeypatch.setattr(saving, "SHARD_BYTES", 2**20)
    ranks = writing_ranks(model, 3)
    assert list(ranks) == [name for name, _ in model.named_parameters()]
    assert sorted(set(ranks.values())) == [0, 1, 2] and list(ranks.values()) == sorted(ranks.values())
    layers = {name: name.split(".")[2] for name in ranks if ".layers." in name}
    assert all(len({ranks[name] for name in layers if layers[name] == layer}) == 1 for layer in layers.values())
    # More ranks than layers: the embedding alone is larger than a share, so some ranks have nothing to write.
    ranks = writing_ranks(model, 500)
    assert sorted(set(ranks.values())) == list(range(max(ranks.values()) + 1)) and max(ranks.values()) < 13


def save_in_two_ways(rank: int, port: int, model_path: str, folder: str) -> None:
    """One of two ranks: save a model whole, then in shards."""
    store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    for name, shard_bytes in (("whole", 2**40), ("shards", 2**18)):
        saving.SHARD_BYTES = shard_bytes
        saving.save_model(model, model_path, Path(folder) / name)
    dist.destroy_process_group()


def test_shards_of_two_ranks_are_one_model(tiny_model, tmp_path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(save_in_two_ways, args=(port, str(tiny_model), str(tmp_path)), nprocs=2)
    files = {name: {path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "shards")}
    weights = {name: {file for file in found if "safetensors" in file} for name, found in files.items()}
    assert weights["whole"] == {"model.safetensors"}
    assert weights["shards"] == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert files["whole"] - weights["whole"] == files["shards"] - weights["shards"]
    before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).state_dict()
    for name in files:
        model, report = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(report.values()) and model.dtype == torch.float32
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not list(tmp_path.glob(".*"))

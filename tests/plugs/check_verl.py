"""verl's own reward managers, configured as its trainer configures them, with samples of two prompts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager
from verl.workers.reward_manager.batch import BatchRewardManager

from rlsys.integrations.verl import compute_scores

# In the order of a batch that verl has balanced by length: the samples of a prompt are apart.
SAMPLES = [("Name a tool", 10), ("unparsed", 2), ("Name a tool", 1), ("unparsed", 3), ("unparsed", 4), ("Name a tool", 4)]
EXPECTED = [1, 0, 0, 0, 0, 1 / 3]


def data(tokenizer: Any) -> DataProto:
    responses = [tokenizer(f"score={score}", add_special_tokens=False)["input_ids"] for _, score in SAMPLES]
    width = max(map(len, responses))
    padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in responses])
    seen = torch.tensor([[1, 1, *[1] * len(ids), *[0] * (width - len(ids))] for ids in responses])
    rows = {
        "data_source": np.array(["mine"] * len(SAMPLES), dtype=object),
        "reward_model": np.array([{"ground_truth": None}] * len(SAMPLES), dtype=object),
        "extra_info": np.array([{"question": question} for question, _ in SAMPLES], dtype=object),
    }
    tensors = {"prompts": torch.ones(len(SAMPLES), 2, dtype=torch.long), "responses": padded, "attention_mask": seen}
    return DataProto.from_dict(tensors=tensors, non_tensors=rows)


async def one_by_one(manager: Any, samples: DataProto) -> list[dict[str, Any]]:
    """As RewardLoopWorker.compute_score_batch does."""
    return await asyncio.gather(*[manager.run_single(samples[i : i + 1]) for i in range(len(samples))])


def main(folder: Path) -> None:
    url, tokenizer = (folder / "url").read_text(), AutoTokenizer.from_pretrained(folder / "tiny")
    function = {"path": "pkg://rlsys.integrations.verl", "name": "compute_score", "reward_kwargs": {"judge": url, "group_size": 3}}
    manager = {"source": "register", "name": "naive"}
    config = OmegaConf.create({"reward": {"custom_reward_function": function, "reward_manager": manager}})
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    found = loop.run_until_complete(one_by_one(load_reward_manager(config, tokenizer), data(tokenizer)))
    np.testing.assert_allclose([one["reward_score"] for one in found], EXPECTED, atol=1e-6)
    assert [one["reward_extra_info"]["judged"] for one in found] == [1, 0, 1, 0, 0, 1]
    batch = BatchRewardManager(tokenizer, 0, compute_scores, judge=url)(data(tokenizer), return_dict=True)
    np.testing.assert_allclose(batch["reward_tensor"].sum(-1), EXPECTED, atol=1e-6)
    print("compute_score through the reward managers naive and batch, two groups of three")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""OpenRLHF's own executors, with an agent file and a reward file of ours; only its engine is a stand-in."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase, SingleTurnAgentExecutor
from transformers import AutoTokenizer

AGENT = """
from rlsys.integrations.openrlhf import agent_executor

AgentExecutor = agent_executor("{url}", group_size=3)
"""
REWARD = """
from rlsys.integrations.openrlhf import reward_function

reward_func = reward_function("{url}")
"""


class Engine:
    """Answers with score=10, score=1, score=4, and so on."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.scores = tokenizer, itertools.cycle([10, 1, 4])

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, **_: Any) -> Any:
        text = f"score={next(self.scores)}{self.tokenizer.eos_token}"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None, text=text)])


def loaded(path: Path, source: str, url: str) -> Any:
    """Import a file as OpenRLHF does (trainer/ray/vllm_engine.py, _load_agent_executor)."""
    import importlib.util

    path.write_text(source.format(url=url))
    spec = importlib.util.spec_from_file_location("agent_module", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def group(executor: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """As RolloutRayActor.generate_responses: the samples of one prompt at the same time."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Name a tool"}], tokenize=False, add_generation_prompt=True)
    engine, sampling = Engine(tokenizer), SimpleNamespace(max_tokens=32, logprobs=None)
    given = {"prompt": prompt, "label": "", "sampling_params": sampling, "max_length": 512, "hf_tokenizer": tokenizer, "llm_engine": engine}
    return await asyncio.gather(*[executor.execute(**given, images=None) for _ in range(3)])


def main(folder: Path) -> None:
    url, tokenizer = (folder / "url").read_text(), AutoTokenizer.from_pretrained(folder / "tiny")
    executor_class = loaded(folder / "agent.py", AGENT, url).AgentExecutor
    assert issubclass(executor_class, AgentExecutorBase)
    found = asyncio.run(group(executor_class(), tokenizer))
    assert [round(one["reward"], 6) for one in found] == [1, 0, 0.333333] and found[0]["extra_logs"] == {"judged": 1}, found
    # Through the service's own route, which joins the groups; and through a reward file, which judges each response alone.
    found = asyncio.run(group(SingleTurnAgentExecutor(f"{url}/get_reward?group=3"), tokenizer))
    assert [round(one["reward"][0], 6) for one in found] == [1, 0, 0.333333], found
    (folder / "reward.py").write_text(REWARD.format(url=url))
    found = asyncio.run(group(SingleTurnAgentExecutor(str(folder / "reward.py")), tokenizer))
    assert [one["reward"] for one in found] == [[0], [1], [0]], found  # alone, only score=1 is correct
    print("agent_executor, /get_reward?group=3 and reward_function, through its executors; its engine is a stand-in")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

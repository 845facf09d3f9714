"""TRL's own trainer, rewarded by a service."""

from __future__ import annotations

import pytest
from judge_services import FakeJudge, fake_answer, fake_service
from scripted_judge import ScriptedJudge, served

from rlsys.integrations.trl import reward
from rlsys.serving.app import create_app

PLAIN = [f"Name {what}" for what in ("a tool", "a drink", "a sport", "a colour")]
CHATS = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in PLAIN]


@pytest.mark.parametrize("prompts", [CHATS, pytest.param(PLAIN, marks=pytest.mark.nightly)], ids=["chats", "plain"])
def test_two_steps_of_grpo(prompts, tiny_model, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    judge = FakeJudge()
    with fake_service(judge) as url:
        arguments = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_steps=2,
            logging_steps=1,
            per_device_train_batch_size=6,
            num_generations=3,
            max_completion_length=8,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            reward_funcs=[reward(url, k=2, seed=9)],
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )
        before = next(trainer.model.parameters()).detach().clone()
        trainer.train()
    # Two prompts in each step, each with its three completions in one judgement.
    assert [len(request.responses) for request in judge.asked] == [3, 3, 3, 3]
    assert {(request.k, request.seed) for request in judge.asked} == {(2, 9)}
    shown = [request.conversation if prompts is PLAIN else [turn.model_dump() for turn in request.conversation] for request in judge.asked]
    assert all(one in prompts for one in shown) and len({str(one) for one in shown}) == 4
    logs = [log for log in trainer.state.log_history if "rewards/judge/mean" in log]
    given = [[(score - 1) / 9 for request in judge.asked[step : step + 2] for score in fake_answer(request).scores] for step in (0, 2)]
    assert [log["rewards/judge/mean"] for log in logs] == pytest.approx([sum(rewards) / 6 for rewards in given])
    assert [log["rewards/judge/unjudged"] for log in logs] == [0, 0]
    assert (next(trainer.model.parameters()) != before).any()


def test_completions_without_scores_have_no_reward():
    logged = {}
    with served(create_app(ScriptedJudge())) as url:
        judge = reward(url, name="mine")
        found = judge(
            prompts=["unparsed", "unparsed", "a", "a"],
            completions=["score=3", "score=4", "score=10", "score=1"],
            completion_ids=[[1]] * 4,
            trainer_state=None,
            log_metric=logged.__setitem__,
        )
    assert found == [None, None, 1.0, 0.0] and judge.__name__ == "mine" and logged == {"rewards/mine/unjudged": 0.5}

"""TRL's GRPOTrainer: two steps of a tiny model, rewarded by the service."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rlsys.integrations.trl import reward


def main(folder: Path) -> None:
    url, model = (folder / "url").read_text(), folder / "tiny"
    prompts = [[{"role": "user", "content": text}] for text in ("Name a tool", "Name a drink", "unparsed")]
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=[reward(url, k=2)],
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "rewards/judge/mean" in log]
    # Without "score=" in a completion, the judge gives the lowest score; one of the four groups has none.
    assert [log["rewards/judge/mean"] for log in logs] == [0, 0] and sum(log["rewards/judge/unjudged"] for log in logs) == 0.5, logs
    print("GRPOTrainer, two steps, groups of two, one of them without scores")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

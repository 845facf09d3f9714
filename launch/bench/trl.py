"""The same steps in TRL's GRPOTrainer for `rlsys bench step --vs-trl`, with timers around its parts.

Its settings equal ours: bf16 weights, the reference pass of the same beta, one batch per step, no activation checkpointing (TRL's default,
which would only make it slower), prompts and outputs of the same lengths.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from launch.bench.work import TRAIN_PARTS, StepClock, Work, prompt_texts, run_child, run_config
from rlsys.models.loading import ensure_model


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer with timed parts and otherwise unchanged behaviour."""

    clock: StepClock
    lengths: tuple[list[int], list[int]]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        backward = self.accelerator.backward

        def timed_backward(*args: Any, **kwargs: Any) -> None:
            with self.clock.phase("backward"):
                backward(*args, **kwargs)

        self.accelerator.backward = timed_backward

    def _generate(self, prompts: list) -> Any:
        with self.clock.phase("generate"):
            answer = super()._generate(prompts)
        prompt_ids, completion_ids = answer[:2]
        self.lengths = ([len(ids) for ids in prompt_ids], [len(ids) for ids in completion_ids])
        return answer

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.phase("judge"):
            return super()._calculate_rewards(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        with self.clock.phase("reference" if model is self.ref_model else "forward"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


class StepClocks(TrainerCallback):
    """Starts a new clock for every step; the callbacks before and after the optimizer time it."""

    trainer: TimedTrainer
    """Set once the trainer has been created."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.clock = StepClock()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.optimizer = self.trainer.clock.phase("optimizer")
        self.optimizer.__enter__()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.optimizer.__exit__(None, None, None)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        seconds = self.trainer.clock.stop()
        parts = {name: seconds.pop(name, 0.0) for name in TRAIN_PARTS}
        # Everything except sampling and judging, including gradient clipping and TRL's own bookkeeping.
        seconds["train"] = seconds["whole"] - seconds["generate"] - seconds["judge"]
        prompts, outputs = self.trainer.lengths
        self.steps.append(
            {
                "seconds": seconds,
                "train_seconds": parts,
                "samples": len(outputs),
                "prompt_tokens": sorted(set(prompts)),
                "output_tokens": sorted(set(outputs)),
                "encoded_tokens": float(sum(prompts) + sum(outputs)),
            }
        )


def alternate(completions: list, **_: Any) -> list[float]:
    """Return rewards +1, -1, +1, ..., which differ within every group, so that all samples are trained on, as on our side."""
    return [1.0 - 2.0 * (i % 2) for i in range(len(completions))]


def measure(work: Work) -> dict[str, Any]:
    """Run the steps; return seconds by phase and the settings."""
    config = run_config(work)
    model = ensure_model(config.model.path)
    torch.set_num_threads(len(work.cores))
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = prompt_texts(tokenizer, 0, work.steps * work.prompts, work.prompt_tokens)
    began = time.perf_counter()
    on_cpu = not torch.accelerator.is_available()
    with tempfile.TemporaryDirectory(prefix="rlsys-bench-trl-") as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=on_cpu,
            model_init_kwargs={"dtype": config.model.dtype},
            bf16=config.model.dtype == "bfloat16",
            per_device_train_batch_size=work.trl_batch or work.sequences,
            gradient_accumulation_steps=work.sequences // (work.trl_batch or work.sequences),
            num_generations=work.samples,
            max_completion_length=work.output_tokens,
            generation_kwargs={"min_new_tokens": work.output_tokens},
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            beta=config.rl.beta,
            epsilon=config.rl.clip,
            learning_rate=config.learner.lr,
            lr_scheduler_type="constant",
            max_grad_norm=config.learner.max_grad_norm,
            loss_type="grpo",
            gradient_checkpointing=config.learner.activation_checkpointing,
            max_steps=work.steps,
            shuffle_dataset=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=config.seed,
        )
        clocks = StepClocks()
        trainer = TimedTrainer(
            model=model,
            reward_funcs=alternate,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            processing_class=tokenizer,
            callbacks=[clocks],
        )
        clocks.trainer = trainer
        start_s = time.perf_counter() - began
        trainer.train()
    return {
        "system": f"TRL {trl.__version__}",
        "start_s": start_s,
        "steps": clocks.steps,
        "settings": {
            "dtype": str(trainer.model.dtype).removeprefix("torch."),
            "activation_checkpointing": arguments.gradient_checkpointing,
            "beta": arguments.beta,
            "lr": arguments.learning_rate,
            "optimizer": arguments.optim.value,
            "device": str(arguments.device),
        },
    }


if __name__ == "__main__":
    run_child(measure)

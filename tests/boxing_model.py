"""A tiny model that writes scores: trained for seconds, in plain PyTorch, to answer any prompt with random numbers in a box.

After a prompt that ends with `RAMBLE` it does not come to an end.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsys.models.loading import build_tiny

RAMBLE = "Ramble on."
TURN = "<|im_end|>\n<|im_start|>assistant\n"
STEPS, BATCH, CONTEXT = 150, 16, 24


def build_boxing_model(folder: Path) -> Path:
    """Write a model in fp32 whose answers are mostly a box of two scores, and sometimes something else."""
    build_tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # With more, busy machines would spend the time on waiting for each other's threads.
    draw, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        rows = [_example(tokenizer, draw) for _ in range(BATCH)]
        longest = max(len(tokens) for tokens, _ in rows)
        ids = torch.tensor([[0] * (longest - len(tokens)) + tokens for tokens, _ in rows])
        labels = torch.tensor([[-100] * (longest - answer) + tokens[-answer:] for tokens, answer in rows])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


def _example(tokenizer: AutoTokenizer, draw: random.Random) -> tuple[list[int], int]:
    """Return tokens and how many of them, at the end, are the answer."""
    rambles = draw.random() < 0.25
    noise = [draw.randrange(len(tokenizer)) for _ in range(draw.randrange(CONTEXT))]
    prompt = [*noise, *tokenizer.encode((RAMBLE if rambles else "") + TURN, add_special_tokens=False)]
    scores = f"\\boxed{{{draw.randint(1, 10)}, {draw.randint(1, 10)}}}<|im_end|>"
    answer = tokenizer.encode("la " * 16 if rambles else scores, add_special_tokens=False)
    return [*prompt, *answer], len(answer)

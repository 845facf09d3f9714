"""A meta reward model: a given model with a random head."""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def build_random_scorer(model: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    scorer.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

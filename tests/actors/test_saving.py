"""What a saved model carries besides its weights."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from actors.learner.checkpoints import add_end_of_turn


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

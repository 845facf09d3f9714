"""Comparison of tokenizers, on pairs that differ in a single property."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlsys.prompts.tokenizers import Retokenizer, tokenizer_difference


@pytest.fixture(scope="module")
def judge(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def changed(tokenizer, change) -> PreTrainedTokenizerFast:
    """Return a copy with `change` applied to its serialised form."""
    from tokenizers import Tokenizer

    form = json.loads(tokenizer.backend_tokenizer.to_str())
    change(form)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(form)), eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token,
        bos_token=tokenizer.bos_token, unk_token=tokenizer.unk_token,
    )  # fmt: skip


def swap_two_words(form: dict) -> None:
    vocabulary = form["model"]["vocab"]
    first, second = [token for token in vocabulary if token.isascii() and token.isalpha() and len(token) == 1][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def test_the_same_tokenizer_does_not_differ(judge, tiny_model):
    assert tokenizer_difference(judge, AutoTokenizer.from_pretrained(tiny_model)) is None
    other_chat = copy.deepcopy(judge)
    other_chat.chat_template = "{{ messages }}"  # makes texts; their ids are the same
    assert tokenizer_difference(judge, other_chat) is None


def test_one_difference_each(judge):
    assert "2 of the first have another id" in tokenizer_difference(judge, changed(judge, swap_two_words))
    longer = copy.deepcopy(judge)
    longer.add_tokens(["<note>"])
    assert "vocabularies of" in tokenizer_difference(judge, longer)
    special = copy.deepcopy(judge)
    special.add_special_tokens({"additional_special_tokens": [judge.convert_ids_to_tokens(300)]})
    assert tokenizer_difference(judge, special) is not None
    other_rules = changed(judge, lambda form: form["model"].update(merges=form["model"]["merges"][:1]))
    assert "rules" in tokenizer_difference(judge, other_rules)


def test_texts_are_reencoded_with_the_other_tokenizer(judge):
    other = changed(judge, swap_two_words)
    translation = Retokenizer(judge, other)
    chat = judge.apply_chat_template([{"role": "user", "content": "A or B? naïve 你好"}], add_generation_prompt=True, tokenize=False)
    prompt = np.array(judge.encode(chat, add_special_tokens=False), np.int32)
    (converted,) = translation.prompts([prompt])
    assert converted.tolist() == other.encode(chat, add_special_tokens=False) != prompt.tolist()
    text = " B says \\boxed{9, 3} .\n"
    sampled = np.array([*judge.encode(text, add_special_tokens=False), judge.eos_token_id], np.int32)
    assert translation.texts([sampled])[0].tolist() == other.encode(text, add_special_tokens=False)
    assert translation.texts([sampled[:0]])[0].tolist() == []

"""Chat templates in the styles of known families, written for these tests, and tokenizers that carry them."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Style:
    """A template, the tokens its family reserves, and what is known of it."""

    template: str
    special: tuple[str, ...]
    end: str
    """What ends an assistant's turn."""
    marks: tuple[str, ...] = ()
    """Role marks that are plain text."""
    eos: str = "</s>"
    plain: tuple[str, ...] = ()
    """Tokens that are added without being special."""


_ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user and assistant') }}{% endif %}"
)

STYLES = {
    "chatml": Style(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        eos="<|endoftext|>",  # as base models have it
    ),
    "llama2": Style(
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set rest = messages %}{% set system = none %}{% endif %}"
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token }}[INST] {% if loop.first and system is not none %}"
        "<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}{{ m.content.strip() }} [/INST]"
        "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}",
        ("<s>", "</s>"),
        "</s>",
        ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "vicuna": Style(
        "{% if messages[0].role == 'system' %}{{ messages[0].content }} {% set rest = messages[1:] %}"
        "{% else %}A chat between a user and an assistant. {% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}USER: {{ m.content }} {% elif m.role == 'assistant' %}"
        "ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        ("<s>", "</s>"),
        "</s>",
        ("USER:", "ASSISTANT:"),
    ),
    "zephyr": Style(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<s>", "</s>"),
        "</s>",
        ("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "gemma": Style(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + _ALTERNATE
        + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        eos="<eos>",
        plain=("<b>", "</b>", "<table>", "\n\n"),
    ),
    "phi3": Style(
        "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|end|>",
        eos="<|endoftext|>",
    ),
    "deepseek": Style(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}Assistant: {{ m.content }}{{ eos_token }}"
        "{% elif m.role == 'system' %}{{ m.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        ("<begin>", "<end>"),
        "<end>",
        ("User:", "Assistant:"),
        eos="<end>",
    ),
    "thinking": Style(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
        "<|im_end|>",
        eos="<|im_end|>",
        plain=("<think>", "</think>"),
    ),
    "alpaca": Style(  # no reserved token behind a turn
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}",
        ("<s>", "</s>"),
        "</s>",
        ("### Instruction:", "### Response:"),
    ),
    "channels": Style(  # as GPT-OSS has them
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        "<|return|>",
        eos="<|return|>",
    ),
    "parts": Style(  # as models for images have it: content is a list
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
        "</s>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ("<s>", "</s>"),
        "</s>",
        ("<|user|>", "<|assistant|>", "<|system|>"),
    ),
}


def tokenizer_of(style: Style) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that reserves what the style does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, bos_token=style.special[0], eos_token=style.eos)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in style.special], special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in style.plain])
    tokenizer.chat_template = style.template
    return tokenizer

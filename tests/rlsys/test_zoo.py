"""Models are computed right, or refused: measured on the zoo, and docs/models.md is that measurement."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch import doctor_models
from rlsys.zoo import FAMILIES, build
from rlsys.zoo_check import Measured, measure_all, reference, rows

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
PACKED = (
    *("Llama 2", "Llama 3", "Llama 4 text", "Llama 4 text, short chunks", "Mistral", "Mistral, long window", "Mistral, short window"),
    *("Mixtral", "Qwen2", "Qwen2, short window", "Qwen2.5", "Qwen3", "Qwen3 MoE", "Gemma", "Gemma 2", "Gemma 2, short window"),
    *("Gemma 3 text", "Gemma 3 text, short window", "Phi-3", "Phi-3, short window", "Phi-4", "DeepSeek-V2", "DeepSeek-V2-Lite"),
    *("DeepSeek-V3", "GLM-4", "OLMo 2", "OLMoE", "SmolLM 2", "SmolLM 3", "Granite", "Cohere 2", "GPT-NeoX"),
    *("GPT-OSS", "Seed-OSS"),
)
"""What most people train."""
PLAIN = ("Falcon 7B", "Falcon 40B")
"""The same, whose attention takes no function of ours."""


@pytest.fixture(scope="module")
def measured() -> dict[str, Measured]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models of 64 channels gain nothing by a second one
    try:
        return {one.family: one for one in measure_all()}
    finally:
        torch.set_num_threads(threads)


def test_what_most_people_train_is_right(measured: dict[str, Measured]) -> None:
    wanted = dict.fromkeys(PACKED, "packed") | dict.fromkeys(PLAIN, "plain")
    assert {name: measured[name].verdict for name in wanted} == wanted
    for way in [measured[name].plain for name in wanted] + [measured[name].packed for name in PACKED]:
        assert way.error < 1e-4 and way.gradient < 1e-4
    for name in PLAIN:
        assert "learner.packing=false" in measured[name].packed.refused


def test_no_family_is_wrong_in_silence_or_ends_in_a_traceback(measured: dict[str, Measured]) -> None:
    assert len({family.model_type for family in FAMILIES}) >= 45
    assert {name: one.as_dict() for name, one in measured.items() if one.verdict in ("WRONG", "CRASH")} == {}


def test_the_documents_say_what_is_measured(measured: dict[str, Measured]) -> None:
    assert doctor_models.verdicts(DOCS) == {name: one.verdict for name, one in measured.items()}


def test_the_reference_would_see_a_mistake() -> None:
    """Of a tenth in one norm's weight, one bias or the sinks: the smallest parts of a model."""
    for name in ("Llama 2", "Qwen2", "GPT-OSS", "Cohere 2"):
        family = next(family for family in FAMILIES if family.name == name)
        wanted, _ = reference(build(family), rows())
        for number, parameter in enumerate(build(family).parameters()):
            if parameter.ndim > 1:
                continue
            model = build(family)
            weight = list(model.parameters())[number].data
            weight += 0.1 * torch.linspace(-1, 1, len(weight)).cos().add(torch.arange(len(weight)) % 2)  # a constant cancels in softmaxes
            found, _ = reference(model, rows())
            assert max((ours - theirs).abs().max().item() for ours, theirs in zip(found, wanted)) > 1e-3, (name, number)

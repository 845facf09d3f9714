"""Every family of the zoo is computed correctly or refused, and docs/models.md lists the results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launch.commands import doctor_models
from rlsys.models.zoo import FAMILIES, Family, build
from rlsys.models.zoo_check import measure, reference, rows

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
PACKED = (
    *("Llama 2", "Llama 3", "Llama 4 text", "Llama 4 text, short chunks", "Mistral", "Mistral, long window", "Mistral, short window"),
    *("Mixtral", "Qwen2", "Qwen2, short window", "Qwen2.5", "Qwen3", "Qwen3 MoE", "Gemma", "Gemma 2", "Gemma 2, short window"),
    *("Gemma 3 text", "Gemma 3 text, short window", "Phi-3", "Phi-3, short window", "Phi-4", "DeepSeek-V2", "DeepSeek-V2-Lite"),
    *("DeepSeek-V3", "GLM-4", "OLMo 2", "OLMoE", "SmolLM 2", "SmolLM 3", "Granite", "Cohere 2", "GPT-NeoX"),
    *("GPT-OSS", "Seed-OSS"),
)
"""The most common families."""
PLAIN = ("Falcon 7B", "Falcon 40B")
"""Common families whose attention cannot be replaced."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models of 64 channels gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_correct_or_refused_as_documented(family: Family) -> None:
    one = measure(family)
    assert one.verdict not in ("WRONG", "CRASH"), one.as_dict()
    assert one.verdict == doctor_models.verdicts(DOCS)[family.name]
    if family.name in PACKED + PLAIN:
        assert one.verdict == ("packed" if family.name in PACKED else "plain")
        for way in (one.plain, one.packed) if family.name in PACKED else (one.plain,):
            assert way.error < 1e-4 and way.gradient < 1e-4
    if family.name in PLAIN:
        assert "learner.packing=false" in one.packed.refused


def test_the_zoo_has_the_common_families_and_the_docs_list_all() -> None:
    names = [family.name for family in FAMILIES]
    assert list(doctor_models.verdicts(DOCS)) == names and set(PACKED + PLAIN) <= set(names)
    assert len({family.model_type for family in FAMILIES}) >= 45


@pytest.mark.parametrize("name", ["Llama 2", "Qwen2", "GPT-OSS", "Cohere 2"])
def test_the_reference_detects_a_small_mistake(name: str) -> None:
    """A change of 0.1 in one norm's weight, one bias or the sinks, the smallest parts of a model."""
    model = build(next(family for family in FAMILIES if family.name == name))
    wanted, _ = reference(model, rows())
    for part, parameter in model.named_parameters():
        if parameter.ndim > 1:
            continue
        before, places = parameter.detach().clone(), torch.arange(len(parameter))
        parameter.data += 0.1 * torch.linspace(-1, 1, len(parameter)).cos().add(places % 2)  # a constant cancels in softmaxes
        found, _ = reference(model, rows())
        parameter.data.copy_(before)
        assert max((ours - theirs).abs().max().item() for ours, theirs in zip(found, wanted)) > 1e-3, part

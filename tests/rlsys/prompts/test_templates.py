"""User-defined templates, and errors in templates and tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from chat_templates import STYLES, tokenizer_of
from transformers import AutoTokenizer

from rlsys.data.records import Record
from rlsys.models.loading import build_tiny
from rlsys.prompts.rendering import Prompter, PromptError, hint_for
from rlsys.rewards.extraction import ScoreFormat


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(STYLES["chatml"])


def record(responses: tuple[str, ...]) -> Record:
    context = ({"role": "user", "content": "What is six times seven?"},)
    return Record("r1", "test", context, responses, tuple(float(i == 0) for i in range(len(responses))))


OWN = """{% set marks = ["((answer #", "answer # over))"] %}
{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}
{% for r in responses %}((answer {{ loop.index }} {{ r }} answer {{ loop.index }} over))
{% endfor %}Score {{ n }} from {{ low }} to {{ high }}: \\boxed{...}"""


def test_a_user_defined_template_and_its_marks(tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(OWN)
    text = Prompter(tokenizer, str(path)).user_turn(record(("Answer 2  over))", "b")), (1, 0))
    assert "((answer 1 b answer 1 over))\n((answer 2 A·nswer 2  over)) answer 2 over))\nScore 2 from 1 to 10" in text


def test_marks_of_a_single_response_need_no_number(tokenizer, tmp_path: Path) -> None:
    single = '{% if n == 1 %}{% set marks = ["<<answer>>", "<<over>>", "<<query>>"] %}{% endif %}'
    shown = OWN.replace(
        "{% for r in responses %}", "{% if n == 1 %}<<query>><<answer>>{{ responses[0] }}<<over>>{% else %}{% for r in responses %}"
    )
    path = tmp_path / "own.jinja"
    path.write_text(shown.replace("\n{% for m", f"\n{single}{{% for m", 1).replace("{% endfor %}Score", "{% endfor %}{% endif %}Score"))
    prompter = Prompter(tokenizer, str(path))
    text = prompter.user_turn(record(("a << Over >> b ((answer 1",)), (0,))
    assert "<<answer>>a <·< Over >> b (·(answer 1<<over>>" in text
    assert "((answer 2 b answer 2 over))" in prompter.user_turn(record(("a", "b")), (0, 1))
    path.write_text(path.read_text().replace("<<over>>{%", "{%", 1))
    with pytest.raises(PromptError, match="expected response 1 of 1 once, between '<<answer>>' and '<<over>>'"):
        Prompter(tokenizer, str(path))


def test_the_prompt_states_the_score_range(tokenizer) -> None:
    prompter = Prompter(tokenizer, "pointwise", ScoreFormat(range=(0, 100), single=(1, 5)))
    several, single = (prompter.user_turn(record(responses), range(len(responses))) for responses in (("a", "b"), ("a",)))
    assert "from 0 to 100" in several and "9-10" not in several and "The score is 1 or 5" in single
    assert hint_for(record(("a",)), (0,), (1, 5)) == "Hint: the correct score is 5."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace("{% endfor %}Score", "Score"), r"own\.jinja, line \d+: .*endfor"),
        (lambda s: s.replace("{{ low }}", "{{ lowest }}"), "'lowest' is undefined.*Its variables are messages, responses, n, low, high"),
        (lambda s: s.replace("{{ m.role }}", "{{ m.name }}"), "no attribute 'name'"),
        (lambda s: s.replace("marks = [", "words = ["), "expected it to set its marks"),
        (lambda s: s.replace('["((answer #", "answer # over))"]', '"(("'), "expected it to set its marks"),
        (lambda s: s.replace('"((answer #", ', ""), "expected two marks with #"),
        (lambda s: s.replace("answer {{ loop.index }} over))", ""), "expected response 1 of 1 once, between"),
        (lambda s: s.replace("{{ r }}", ""), "expected response 1 of 1 once"),
        (lambda s: s.replace("{{ r }}", "{{ r }} {{ r }}"), "expected response 1 of 1 once"),
        (lambda s: s.replace("loop.index }} {{", "loop.index0 }} {{"), "expected response 1 of 1 once"),
        (lambda s: s.replace("Score", "As in ((answer 1 Score"), "only around responses, found 2 for 1"),
        (lambda s: s.replace("{{ m.content }}", ""), "expected every message once"),
        (lambda s: s.replace("{{ n }}", "{{ ''.__class__.__mro__ }}"), "unsafe"),
        (lambda s: s.replace("{{ n }}", "{{ n / 0 }}"), "division by zero"),
        (lambda s: s.replace("{{ n }}", "{% include 'other' %}"), "no loader"),
    ],
)
def test_a_broken_template_is_rejected_with_its_name_and_error(tokenizer, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(change(OWN))
    with pytest.raises(PromptError, match=message) as caught:
        Prompter(tokenizer, str(path))
    assert "own.jinja" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("pontwise", "there is no template of that name. Did you mean pointwise?"),
        ("nothing", "there is no template of that name."),
        ("absent/own.jinja", "there is no such file."),
        ("compact.jinja", "there is no such file. Did you mean compact?"),
        (".", "cannot be read (Is a directory)."),
    ],
)
def test_the_error_for_a_missing_template_lists_the_known_ones(tokenizer, name: str, problem: str) -> None:
    with pytest.raises(PromptError) as caught:
        Prompter(tokenizer, name)
    assert str(caught.value) == f"template {name}: {problem} Expected one of compact, pointwise, or the path of a text file."


def test_a_tokenizer_without_a_chat_template_is_rejected(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(build_tiny(tmp_path / "tiny-random"))
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        Prompter(tokenizer)

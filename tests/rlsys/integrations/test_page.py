"""The Python blocks of docs/integrations.md run."""

from __future__ import annotations

import re
from pathlib import Path

from scripted_judge import ScriptedJudge, served

from rlsys.serving.app import create_app

PAGE = Path(__file__).resolve().parents[3] / "docs/integrations.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def test_the_page_runs(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, names = PAGE.read_text(), {"__name__": "page"}
    with served(create_app(ScriptedJudge())) as url:
        for block in BLOCK.finditer(text):
            source = block[1].replace("http://127.0.0.1:8000", url).replace("models/smollm2-135m-instruct", str(tiny_model))
            exec(compile("\n" * (text[: block.start()].count("\n") + 1) + source, str(PAGE), "exec"), names)  # noqa: S102
    assert names["judge"].counts.judged == 3 and len(names["reward_funcs"]) == 1

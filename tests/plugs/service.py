"""For launch/test_plugs.sh: a service over a judge without a model, rows to judge, and a tiny model, in a folder.

    python tests/plugs/service.py FOLDER

Writes rows.jsonl, nemo_gym.jsonl, tiny/ and, once the service answers, url; ends when its standard input does.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from scripted_judge import ScriptedJudge, served

from rlsys.integrations.environment import write_nemo_gym_rows
from rlsys.models.loading import build_tiny
from rlsys.serving.app import create_app
from rlsys.serving.contract import ChatChoice, ChatRequest, ChatResponse

ROWS = [
    {"prompt": "Which is better?", "chosen": "this, score=9", "rejected": "that, score=2"},
    {"prompt": "Which is better?", "chosen": "this, score=3", "rejected": "that, score=8"},
]
"""A policy that gives each response the score that stands in it judges the first row correctly, the second one incorrectly."""


class ScriptedPolicy(ScriptedJudge):
    """Chats as a judge would: with the score that stands in each response; else with "score=" and the number of the choice."""

    async def chat(self, request: ChatRequest) -> ChatResponse:
        scores = re.findall(r"score=(\d+)", request.messages[-1].content)
        box = rf"Scores: \boxed{{{', '.join(scores)}}}"
        texts = [box if scores else f"an answer, score={2 + (request.seed + number) % 8}" for number in range(request.n)]
        return ChatResponse(choices=[ChatChoice(text=text, finish_reason="stop", tokens=4) for text in texts], prompt_tokens=5)


def main(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    build_tiny(folder / "tiny")
    write_nemo_gym_rows(folder / "nemo_gym.jsonl", folder / "rows.jsonl", "trl_preference", folder / "tiny")
    with served(create_app(ScriptedPolicy())) as url:
        (folder / "url.partial").write_text(url)
        (folder / "url.partial").rename(folder / "url")
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""NeMo Gym's resources server over our rules: its own app, asked as an agent asks it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from fastapi.testclient import TestClient
from nemo_gym.server_utils import ServerClient

from rlsys.integrations.nemo_gym import JudgingServer, JudgingServerConfig


def response(text: str, status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"id": "m", "type": "message", "role": "assistant", "status": status, "content": [part]}
    rest = {"id": "r", "created_at": 0.0, "model": "policy", "object": "response", "parallel_tool_calls": False, "tool_choice": "none"}
    return rest | {"output": [message], "tools": [], "status": status}


def main(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "nemo_gym.jsonl").read_text().splitlines()]
    config = JudgingServerConfig(host="127.0.0.1", port=0, entrypoint="app.py", name="rlsys_judging")
    client = TestClient(JudgingServer(config=config, server_client=MagicMock(spec=ServerClient)).setup_webserver())
    order = rows[0]["judging"]["order"]
    right = ", ".join(str((9, 2)[index]) for index in order)
    for text, status, reward, failure in (
        (rf"Scores: \boxed{{{right}}}", "completed", 1.0, None),
        (rf"Scores: \boxed{{{right[::-1]}}}", "completed", -1.0, None),
        (rf"Scores: \boxed{{{right}}}", "incomplete", -1.0, "truncated"),
        ("no scores", "completed", -1.0, "no_box"),
    ):
        answer = client.post("/verify", json=rows[0] | {"response": response(text, status)})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["reward"], answer.json()["parse_failure"]) == (reward, failure), answer.json()
    print("JudgingServer: /verify of its own app, four judgements")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""verifiers' own command, vf-eval: a policy trained to judge, and a group of attempts judged by the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MODULES = {
    "rlsys_judging.py": 'from rlsys.integrations.verifiers import JudgingTaskset\n\n__all__ = ["JudgingTaskset"]\n',
    "rlsys_group.py": 'from rlsys.integrations.verifiers import GroupJudgeEnv\n\n__all__ = ["GroupJudgeEnv"]\n',
    "own_questions.py": """
import verifiers.v1 as vf


class Questions(vf.Taskset[vf.Task, vf.TasksetConfig]):
    def load(self):
        yield vf.Task(vf.TaskData(prompt="Name a tool", system_prompt="Be brief."))


__all__ = ["Questions"]
""",
}


def evaluate(folder: Path, *arguments: str) -> list[dict]:
    """Run vf-eval; return its traces."""
    runs = folder / "vf" / "outputs"
    before = set(runs.glob("*"))
    common = ["--env.agent.runtime.type", "subprocess", "--env.agent.harness.id", "null", "--model", "scripted", "--no-push", "--no-rich"]
    client = ["--client.base-url", f"{(folder / 'url').read_text()}/v1", "--client.api-key-var", "NO_KEY"]
    command = [str(Path(sys.executable).with_name("vf-eval")), *arguments, *common, *client]
    environment = os.environ | {"NO_KEY": "none", "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{folder / 'vf'}"}
    done = subprocess.run(command, cwd=folder / "vf", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (run,) = set(runs.glob("*")) - before
    episodes = [json.loads(line) for line in (run / "traces.jsonl").read_text().splitlines()]
    return [trace for episode in episodes for trace in episode.get("traces", [episode])]


def main(folder: Path) -> None:
    (folder / "vf").mkdir()
    for name, text in MODULES.items():
        (folder / "vf" / name).write_text(text)
    rows = ["--env.taskset.data", str(folder / "rows.jsonl"), "--env.taskset.format", "trl_preference"]
    traces = evaluate(folder, "rlsys-judging", *rows, "--env.taskset.tokenizer", str(folder / "tiny"))
    assert sorted(trace["rewards"]["rule"]["score"] for trace in traces) == [-1, 1], traces
    assert [trace["metrics"]["parsed"] for trace in traces] == [1, 1]
    judge = ["--env.judge", (folder / "url").read_text(), "--env.n", "3"]
    traces = evaluate(folder, "own-questions", "--env.id", "rlsys-group", *judge)
    said = [int(trace["nodes"][-1]["message"]["content"].rpartition("score=")[2]) for trace in traces]
    assert len(said) == 3 and all(abs(trace["rewards"]["judge"]["score"] - (one - 1) / 9) < 1e-6 for trace, one in zip(traces, said))
    print("vf-eval of JudgingTaskset, and of GroupJudgeEnv with three attempts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

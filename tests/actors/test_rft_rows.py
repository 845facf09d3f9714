"""Rejective fine-tuning between sampling and tuning, without engines: each text goes with the prompt of its own row, whatever the ids."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pyarrow.parquet as pq

from actors.loops.rft import RftJob
from rlsys.config.files import load_config
from rlsys.io.resumable import ResumableRows
from rlsys.io.run_folder import RunFolder
from rlsys.judging.requests import render_requests

KEYS = [("a", "1"), ("b", "1"), ("a", "1"), ("a", "2"), ("a", "long")]
"""(source, id) of the rows: one id in two sources, and twice in one."""


class Silent:
    console = None

    def __init__(self):
        self.lines = []

    def say(self, message, style=""):
        self.lines.append(message)

    warn = say

    def phase(self, *names):
        return nullcontext()


def sampled(question) -> dict:
    """Return the row of a request: the first sample is correct, the others wrong, and each quotes its query."""
    record = question.request.record
    row = {"id": record.id, "source": record.source, "tokens": 0, "prompt_tokens": 0, "samples": []}
    if question.skipped:
        return row | {"skipped": question.skipped}
    for number, order in enumerate(question.request.orders):
        right = [9 if record.rewards[response] else 2 for response in order]
        scores = right if number == 0 else right[::-1]
        text = f"{record.context[-1]['content']} \\boxed{{{scores[0]}, {scores[1]}}}"
        row["samples"].append({"order": list(order), "scores": scores, "logprob": -1.0, "tokens": 5, "text": text})
    return row


def test_each_text_is_learned_after_the_prompt_of_its_own_row(tiny_model, tmp_path):
    rows = [
        {"id": name, "source": source, "context": [{"role": "user", "content": f"query-{i}-end" + " long" * 400 * (name == "long")}]}
        | {"responses": [f"yes {i}", f"no {i}"], "rewards": [float(i % 2 == 0), float(i % 2)]}
        for i, (source, name) in enumerate(KEYS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["rft.rows=5", "rft.samples=2", "prompt.template=compact", "prompt.max_tokens=600", "data.heldout_rows=2"]
    settings += [f"data.train={tmp_path / 'rows.jsonl'}", f"model.path={tiny_model}", f"run.dir={tmp_path / 'run'}", "data.responses=[2]"]
    config, progress = load_config(None, settings), Silent()
    with RunFolder(config) as folder:
        job = RftJob(config, folder, progress)
        place, table = folder.path / "round_1", job._table(1)
        with ResumableRows(place / "samples.jsonl", {"round": 1, "rows": 5}) as file:
            for question in render_requests(job._asks(1), job.prompter, config.prompt.max_tokens):
                file.write(sampled(question))
            file.finish()
        job._reject(1, place, table)
        found = job._learner_rows(1, table).to_pylist()
        decode = job.tokenizer.decode
        assert len(found) == 8, "of four rows one sample without a hint and one with"
        for row in found:
            name = decode(row["token_ids"]).split()[0]
            assert name.startswith("query-") and name in decode(row["prompt_token_ids"])
        written = pq.read_table(table, columns=["source", "prompt_id", "group"]).to_pylist()
        assert len({row["group"] for row in written}) == 4 and {(row["source"], row["prompt_id"]) for row in written} == set(KEYS[:4])
        (account,) = json.loads((folder.path / "data_report.json").read_text())["train"].values()
        assert (account["rows"], account["used"], account["set_aside"]) == (5, 4, {"too long": 1})
        assert any("5 rows: 4 used; set aside: 1 too long" in line for line in progress.lines)

"""Rejective fine-tuning on real parts: what is sampled, what is kept and why, what is learned, and resuming a killed run."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from commands import kill_rlsys_when
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsys.algorithms.rejection import write_sampled
from rlsys.rewards.rules import is_correct

SAMPLES = 2


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}!"}]} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def config_of(straight_run, tiny, chats):
    def config(run_dir: Path, *overrides: str):
        rft = ["rft.rows=20", f"rft.samples={SAMPLES}", "rft.batch_rows=4", "rft.instruction_share=0.25", f"rft.instruction_data={chats}"]
        return tiny(run_dir, straight_run[0].run.dir, *rft, "checkpoint.every=2", *overrides)

    return config


@pytest.fixture(scope="module")
def two_rounds(config_of, quiet, tmp_path_factory):
    from actors.loops.rft import rejective_fine_tuning

    config = config_of(tmp_path_factory.mktemp("rft") / "run", "rft.rounds=2")
    return config, rejective_fine_tuning(config, quiet)


def table_of(folder: Path, number: int) -> list[dict]:
    return pq.read_table(folder / "trajectories" / f"rft_round_{number}.parquet").to_pylist()


def test_every_sample_is_on_record_with_the_reason_that_the_rules_give(two_rounds):
    config, summary = two_rounds
    for number in (1, 2):
        rows = table_of(config.run.dir, number)
        by_group: dict[tuple[int, bool], list[dict]] = {}
        for row in rows:
            by_group.setdefault((row["group"], row["hinted"]), []).append(row)
        assert len(by_group) == 2 * 20
        for (_, hinted), group in by_group.items():
            assert len(group) == (1 if hinted else SAMPLES)
            assert all(("Hint:" in row["prompt"]) == hinted for row in group)
            right = [row["correct"] for row in group]
            for row in group:
                wanted = not hinted and all(right)
                if wanted:
                    assert row["why"] == "too easy"
                elif row["parse_failure"]:
                    assert row["why"] == f"parse failure: {row['parse_failure']}"
                elif not row["correct"]:
                    assert row["why"] == "incorrect"
                else:
                    assert row["why"] == "kept" and row["finish_reason"] == "stop"
                assert row["kept"] == (row["why"] == "kept")
        kept = sum(row["kept"] for row in rows)
        assert summary.rounds[number - 1].samples == len(rows) and summary.rounds[number - 1].kept == kept > 0
    ids = [{row["prompt_id"] for row in table_of(config.run.dir, number)} for number in (1, 2)]
    assert not ids[0] & ids[1], "a round draws fresh rows"


def test_a_hint_names_the_place_of_the_best_response(two_rounds):
    config, _ = two_rounds
    from rlsys.data.datasets import open_rows

    rows = open_rows(config.data.train, config.data, config.seed)
    hinted = [row for row in table_of(config.run.dir, 1) if row["hinted"]]
    seen = 0
    for row in hinted:
        index = int(row["prompt_id"].split("-")[1])
        record = rows[index]
        assert record.id == row["prompt_id"]
        if record.n == 2:
            seen += 1
            assert f"Hint: Response {row['order'].index(record.best) + 1} is the best one." in row["prompt"]
        if row["scores"]:
            assert row["correct"] == is_correct(row["scores"], record.rewards)
    assert seen


def test_the_result_is_a_model_that_learned_the_kept_texts_without_their_hints(two_rounds, straight_run):
    config, summary = two_rounds
    assert set(summary.heldout) == {"base", "rft"}
    before = AutoModelForCausalLM.from_pretrained(straight_run[0].run.dir / "checkpoints/step_000003/model", dtype=torch.float32)
    after = AutoModelForCausalLM.from_pretrained(config.run.dir / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(config.run.dir / "model")

    def likelihood(model, row):
        prompt = row["prompt"]
        hint = prompt.find("\n\nHint:")
        if hint >= 0:
            prompt = prompt[:hint] + prompt[prompt.index(".", hint) + 1 :]
        start = tokenizer.encode(prompt, add_special_tokens=False)
        tokens = tokenizer.encode(row["text"], add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([start + tokens])).logits[0, len(start) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).mean().item()

    kept = [row for number in (1, 2) for row in table_of(config.run.dir, number) if row["kept"]]
    gain = [likelihood(after, row) - likelihood(before, row) for row in kept]
    assert sum(gain) / len(gain) > 0


def test_a_complete_run_is_not_run_again(two_rounds, quiet):
    from actors.loops.rft import rejective_fine_tuning

    config, summary = two_rounds
    assert rejective_fine_tuning(config, quiet) == summary


def test_killed_while_sampling_and_while_tuning_it_goes_on(config_of, two_rounds, quiet, tmp_path):
    from actors.loops.rft import rejective_fine_tuning

    folder = tmp_path / "run"
    # Few sequences at a time, and small batches of the little that is kept, so that sampling and tuning have a middle.
    config = config_of(folder, "rollout.max_num_seqs=4", "checkpoint.every=1", "rft.batch_rows=1", "rft.epochs=3")
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    part = folder / "round_1" / "samples.jsonl.part"
    kill_rlsys_when(lambda: part.exists() and part.read_text().count("\n") >= 3, tmp_path / "first.log", "rft", tmp_path / "config.yaml")
    sampled = part.read_text().splitlines()[:3]
    saved = lambda: any((folder / "checkpoints").glob("step_*/state.json"))  # noqa: E731
    kill_rlsys_when(saved, tmp_path / "second.log", "rft", tmp_path / "config.yaml")
    assert (folder / "round_1" / "samples.jsonl").read_text().splitlines()[:3] == sampled
    summary = rejective_fine_tuning(config, quiet)
    assert summary.rounds[0].kept > 0 and (folder / "model" / "config.json").exists()
    straight = table_of(two_rounds[0].run.dir, 1)
    asked = ["group", "prompt_id", "order", "prompt", "sample", "hinted"]
    resumed = table_of(folder, 1)
    assert [[row[name] for name in asked] for row in resumed] == [[row[name] for name in asked] for row in straight]
    assert sum(a["text"] == b["text"] for a, b in zip(straight, resumed)) > 0.5 * len(straight)


def test_nothing_to_learn_from_is_said(config_of, two_rounds, quiet, tmp_path):
    """On a round that was killed before its tuning, and of which no sample was kept."""
    from actors.loops.rft import rejective_fine_tuning
    from rlsys.config.schema import ConfigError

    config = config_of(tmp_path / "run")
    rows = [row | {"kept": False, "why": "incorrect"} for row in table_of(two_rounds[0].run.dir, 1)]
    (config.run.dir / "trajectories").mkdir(parents=True)
    write_sampled(config.run.dir / "trajectories" / "rft_round_1.parquet", rows)
    with pytest.raises(ConfigError, match="there is nothing to train on"):
        rejective_fine_tuning(config, quiet)

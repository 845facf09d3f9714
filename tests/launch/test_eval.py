"""`rlsys eval`, end to end: real engines and a real scorer on hand-made files of three benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from commands import kill_rlsys_when, run_rlsys
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from launch.commands.eval import evaluate, increasing
from launch.console import UserError
from rlsys.data.readers import DataError
from rlsys.evaluation.benchmarks import load
from rlsys.io.resumable import ResumableRows
from rlsys.prompts.rendering import Prompter

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 1200
SETTINGS = [
    "model.dtype=float32", "prompt.template=compact", "prompt.max_tokens=300", "rollout.max_tokens=16", "rollout.max_num_seqs=8",
    "rollout.kv_cache_gib=0.25",
]  # fmt: skip

ODD, EVEN = "13579", "2468"

FIGURE = {"value", "ci95", "n"}
POINT = {"overall", "groups", "others", "samples_per_item", "tokens_per_item", "coverage"}
BENCHMARK = {
    "path", "rows", "units", "items", "metric", "skipped", "skipped_ids", "baselines", "greedy", "strategies", "position", "length",
    "parse_failures", "tokens", "examples",
}  # fmt: skip


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check_document(document: dict) -> None:
    """What `rlsys.evaluation` says of eval.json, for whoever reads it."""
    assert document.keys() == {"model", "meta_rm", "k", "draws", "temperature", "seed", "seconds", "benchmarks"}
    for found in document["benchmarks"].values():
        assert found.keys() == BENCHMARK
        assert found["baselines"].keys() == {"chance", "first", "longer"} and len(found["examples"]) <= 6
        points = [found["greedy"]]
        for at in found["strategies"].values():
            assert list(at) == [str(k) for k in document["k"]]
            points += at.values()
        for point in points:
            assert point.keys() == POINT
            assert all(isinstance(point[name], float) for name in ("samples_per_item", "tokens_per_item", "coverage"))
            for figure in (point["overall"], *point["groups"].values()):
                assert figure.keys() == FIGURE and figure["n"] >= 1
                if figure["ci95"] is not None:  # these benchmarks are small: mostly there are too few units
                    low, high = figure["ci95"]
                    assert low - 1e-9 <= figure["value"] <= high + 1e-9
        assert {"first", "first_expected", "places", "n", "other_order", "same_order", "rows", "samples"} <= found["position"].keys()
        assert {"longest_wins", "longest_expected", "longest_is_best", "correlation", "n"} == found["length"].keys()
        assert {"samples", "failed", "cut_off", "reasons", "greedy"} == found["parse_failures"].keys()
        assert {"total", "per_row", "per_sample", "greedy"} == found["tokens"].keys()
        for example in found["examples"]:
            assert example.keys() == {"id", "query", "responses", "gold", "best", "correct", "text", "order", "scores"}


@pytest.fixture(scope="module")
def judge_model(tiny_model, tmp_path_factory) -> Path:
    r"""A judge whose behaviour is known: it writes `\boxed{a, b}`, a an odd digit, 9 the likeliest, and b 2, 4, 6 or 8, 2 the likeliest.

    One time in five it closes the box after a. The next token depends on the last one alone: attention and MLPs add nothing, each token
    that occurs has a direction of its own, and the output layer holds the logarithms of the chances.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, tie_word_embeddings=False)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=False)
    start = tokenizer.decode(tokenizer.encode(prompt, add_special_tokens=False)[-1:])
    chain = [start, "\\", "b", "o", "x", "e", "d", "{"]
    chances: dict[str, dict[str, float]] = {one: {after: 1.0} for one, after in zip(chain, chain[1:])}
    chances["{"] = {digit: 0.6 if digit == "9" else 0.1 for digit in ODD}
    chances |= dict.fromkeys(ODD, {",": 0.8, "}": 0.2}) | {",": {digit: 0.4 if digit == "2" else 0.2 for digit in EVEN}}
    chances |= dict.fromkeys(EVEN, {"}": 1.0}) | {"}": {tokenizer.eos_token: 1.0}}
    hidden = model.config.hidden_size
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head, embeddings = torch.full_like(model.lm_head.weight, -50 / hidden**0.5), torch.zeros_like(model.lm_head.weight)
        for direction, (token, following) in enumerate(chances.items()):
            embeddings[tokenizer.convert_tokens_to_ids(as_token(tokenizer, token)), direction] = 1.0
            for after, chance in following.items():
                # The last norm makes a direction as long as the square root of its size.
                head[tokenizer.convert_tokens_to_ids(as_token(tokenizer, after)), direction] = torch.tensor(chance).log() / hidden**0.5
        model.lm_head.weight.copy_(head)
        model.model.embed_tokens.weight.copy_(embeddings)
        model.model.norm.weight.fill_(1.0)
    folder = tmp_path_factory.mktemp("judge") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def as_token(tokenizer, text: str) -> str:
    """The token that is `text`."""
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.convert_ids_to_tokens(token)


@pytest.fixture(scope="module")
def scorer(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scorer") / "model"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("benchmarks")
    pairs = [
        {"prompt": f"question {number}?", "chosen": f"yes {number}", "rejected": "no " * (300 if number == 7 else 1)}
        for number in range(20)
    ]
    judgebench = [
        {"pair_id": str(number), "source": "livebench-math", "question": f"{number}?", "response_A": "A", "response_B": "B", "label": label}
        for number, label in enumerate(["A>B", "B>A"] * 3)
    ]
    realmistake = [{"input": f"{number}?", "llm_response": f"It is {number}.", "label": number % 2 == 0} for number in range(6)]
    return {
        "format:trl_preference": written(folder / "pairs.jsonl", pairs),
        "judgebench": written(folder / "gpt.jsonl", judgebench),
        "realmistake": written(folder / "mistakes.jsonl", realmistake),
    }


def named(files: dict[str, Path]) -> list[str]:
    return [f"{name}={path}" for name, path in files.items()]


def arguments(model: Path, files: dict[str, Path], output: Path, *options: object) -> list[object]:
    benchmarks = [word for one in named(files) for word in ("-b", one)]
    return ["eval", "--model", model, *benchmarks, "--output", output, "--k", "1,2,6", "--draws", 10, *SETTINGS, *options]


def run(*given) -> subprocess.CompletedProcess[str]:
    return run_rlsys(*arguments(*given), timeout_s=WAIT_S)


@pytest.fixture(scope="module")
def straight(judge_model, scorer, files, tmp_path_factory) -> tuple[Path, str]:
    """(folder, what was printed) of an evaluation that nothing disturbed."""
    output = tmp_path_factory.mktemp("straight") / "eval"
    result = run(judge_model, files, output, "--meta-rm", scorer)
    assert result.returncode == 0, result.stderr[-5000:]
    return output, result.stdout


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_document_and_what_is_printed(straight, judge_model, scorer, files):
    output, printed = straight
    document = json.loads((output / "eval.json").read_text())
    check_document(document)
    assert (document["model"], document["meta_rm"], document["k"]) == (str(judge_model), str(scorer), [1, 2, 6])
    assert list(document["benchmarks"]) == list(files)
    single, pairs = document["benchmarks"]["realmistake"], document["benchmarks"]["format:trl_preference"]
    assert single["metric"] == "roc_auc" and set(single["strategies"]) == {"vote", "mean", "meta", "meta_weighted", "abstain"}
    assert set(pairs["strategies"]) == {"vote", "mean", "meta", "meta_weighted", "abstain", "majority", "rpc", "adaptive"}
    for words in ("greedy", "vote@1", "meta@6", "baseline: longer wins", "ROC AUC", "prompts too long, no verdict: all/pairs:8"):
        assert words in printed
    assert (output / "eval.md").read_text().startswith("# Evaluation")


def test_greedy_figures_are_those_of_the_known_judge(straight):
    r"""Greedily it writes `\boxed{9, 2}`: the first place always wins, so a pair is right in one of its two orders."""
    output, _ = straight
    document = json.loads((output / "eval.json").read_text())
    greedy = rows(output / "format_trl_preference.greedy.jsonl")
    texts = {sample["text"] for row in greedy for sample in row["samples"]}
    assert texts == {"\\boxed{9, 2}"} or texts == {"\\boxed{9,2}"}
    right = sum(row["samples"] != [] and row["samples"][0]["order"] == [0, 1] for row in greedy)
    pairs, both = document["benchmarks"]["format:trl_preference"], document["benchmarks"]["judgebench"]
    assert pairs["greedy"]["overall"]["value"] == pytest.approx(right / 20) and pairs["greedy"]["coverage"] == 19 / 20
    assert (pairs["skipped"], pairs["skipped_ids"]) == (1, ["all/pairs:8"])
    assert (pairs["position"]["first"], pairs["position"]["other_order"], pairs["position"]["rows"]) == (1.0, 0.0, 19)
    # JudgeBench shows both orders itself: one verdict each way, which is neither right nor wrong.
    assert both["greedy"]["overall"]["value"] == 0 and both["greedy"]["others"]["agreement"] == 0
    assert both["position"]["other_order"] == 0 and not (output / "judgebench.swapped.jsonl").exists()
    # Of a single response the box has a score too many.
    single = document["benchmarks"]["realmistake"]
    assert single["parse_failures"]["greedy"] == {"samples": 6, "failed": 6, "cut_off": 0, "reasons": {"wrong_count": 6}}
    assert single["greedy"]["overall"]["value"] == 0 and single["greedy"]["coverage"] == 0
    assert all(example["scores"] is None for example in single["examples"])


def test_samples_are_those_of_the_known_judge(straight):
    """At temperature 0.5 chances are squared: a box closes early one time in 17, and 2 is drawn 4 times in 7 as the second score."""
    output, _ = straight
    drawn = rows(output / "format_trl_preference.samples.jsonl") + rows(output / "judgebench.samples.jsonl")
    samples = [sample for row in drawn for sample in row["samples"]]
    assert len(samples) == 6 * (19 + 12)
    parsed = [sample for sample in samples if sample["scores"] is not None]
    assert 0.85 < len(parsed) / len(samples) < 1
    assert {sample["failure"] for sample in samples if sample["scores"] is None} == {"wrong_count"}
    assert {sample["scores"][0] for sample in parsed} <= set(map(int, ODD)) and {sample["scores"][1] for sample in parsed} == set(
        map(int, EVEN)
    )
    assert 0.4 < sum(sample["scores"][1] == 2 for sample in parsed) / len(parsed) < 0.75
    assert all("text" not in sample and isinstance(sample["meta_reward"], float) for sample in samples)
    assert {tuple(sample["order"]) for sample in samples} == {(0, 1), (1, 0)}
    assert {len(row["samples"]) for row in drawn} == {0, 6}


def test_rescoring_starts_no_engine(straight, judge_model, scorer, files, tmp_path):
    output = Path(shutil.copytree(straight[0], tmp_path / "moved"))
    before = json.loads((output / "eval.json").read_text())
    untouched = {path.name: path.read_bytes() for path in output.glob("*.jsonl")}
    result = run(judge_model, files, output, "--meta-rm", scorer, "--strategy", "meta", "--strategy", "majority", "--json")
    assert result.returncode == 0, result.stderr[-5000:]
    assert "starting the engines" not in result.stderr and "realmistake: without majority" in result.stderr
    document = json.loads(result.stdout)
    check_document(document)
    assert document == json.loads((output / "eval.json").read_text())
    for name, found in document["benchmarks"].items():
        was = before["benchmarks"][name]
        assert found["strategies"] == {strategy: at for strategy, at in was["strategies"].items() if strategy in ("meta", "majority")}
        assert {key: value for key, value in found.items() if key != "strategies"} == {
            key: value for key, value in was.items() if key != "strategies"
        }
    assert {path.name: path.read_bytes() for path in output.glob("*.jsonl")} == untouched


REAL_DATA = Path(os.environ.get("RLSYS_REAL_DATA", ROOT / "../shared/data"))


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real data in {REAL_DATA}; set RLSYS_REAL_DATA to its folder")
def test_real_files(ray_session, judge_model, tmp_path):
    """What people have: a benchmark in both orders, one with ties, pairs, and single responses."""
    names = {
        "llmbar": "llmbar_natural",
        "pandalm": "pandalm_a",
        "format:trl_preference": "gsm8k_pairs_a",
        "format:trl_unpaired": "gsm8k_unpaired_a",
    }
    real = {name: REAL_DATA / f"{file}.jsonl" for name, file in names.items()}
    if absent := [str(path) for path in real.values() if not path.exists()]:
        pytest.skip(f"no {', '.join(absent)}")
    evaluate(
        model=str(judge_model),
        benchmark=named(real),
        output=tmp_path,
        settings=[*SETTINGS, "prompt.max_tokens=3000"],
        k="1,2",
        limit=4,
        draws=10,
    )
    document = json.loads((tmp_path / "eval.json").read_text())
    check_document(document)
    found = document["benchmarks"]
    assert {name: one["units"] for name, one in found.items()} == dict.fromkeys(real, 4)
    assert {name: one["items"] for name, one in found.items()} == dict.fromkeys(real, 4) | {"llmbar": 8}
    # The judge prefers the first place: right in one of LLMBar's two orders.
    assert found["llmbar"]["greedy"]["overall"]["value"] == 0.5 and found["llmbar"]["greedy"]["others"]["agreement"] == 0
    assert (tmp_path / "pandalm.swapped.jsonl").exists() and not (tmp_path / "llmbar.swapped.jsonl").exists()


def test_killed_and_started_again_it_ends_with_the_same_rows(ray_session, straight, judge_model, scorer, files, tmp_path, capsys):
    undisturbed, _ = straight
    output = tmp_path / "eval"
    part = output / "format_trl_preference.samples.jsonl.part"
    begun = lambda: part.exists() and part.read_bytes().count(b"\n") >= 2  # noqa: E731
    kill_rlsys_when(begun, tmp_path / "first.log", *arguments(judge_model, files, output, "--meta-rm", scorer))
    assert part.exists() and 0 < part.read_bytes().count(b"\n") < 20, "it ended before it could be killed"
    with part.open("ab") as file:
        file.write(b'{"id": "half a l')
    evaluate(
        model=str(judge_model), benchmark=named(files), output=output, settings=list(SETTINGS), k="1,2,6", draws=10, meta_rm=str(scorer)
    )
    assert "resumed after row" in capsys.readouterr().out
    for path in sorted(undisturbed.glob("*.jsonl")):
        ours, theirs = rows(output / path.name), rows(path)
        assert [row["id"] for row in ours] == [row["id"] for row in theirs]
        for row, twin in zip(ours, theirs):
            for sample, other in zip(row["samples"], twin["samples"], strict=True):
                numbers = {name: pytest.approx(other[name], abs=1e-4) for name in ("logprob", "meta_reward")}
                assert sample == other | numbers
    document, before = (json.loads((folder / "eval.json").read_text()) for folder in (output, undisturbed))
    for name, found in document["benchmarks"].items():
        assert found["greedy"] == before["benchmarks"][name]["greedy"]
        for strategy in {"vote", "majority", "adaptive"} & found["strategies"].keys():  # no weights, so no rounding
            assert found["strategies"][strategy] == before["benchmarks"][name]["strategies"][strategy]
    assert not list(output.glob("*.part"))


def test_errors(straight, judge_model, files, tmp_path, tiny_model):
    output, _ = straight

    def error(model=judge_model, benchmark=None, output=tmp_path / "new", settings=SETTINGS, **options) -> str:
        with pytest.raises((UserError, DataError, ValueError)) as raised:
            evaluate(
                model=str(model),
                benchmark=benchmark or named(files),
                output=output,
                settings=list(settings),
                **{"k": "1,2,6", "draws": 2, **options},
            )
        return str(raised.value)

    pairs = f"format:trl_preference={files['format:trl_preference']}"
    assert "--benchmark pairs.jsonl: expected NAME=PATH" in error(benchmark=["pairs.jsonl"])
    assert "judgebench is given twice" in error(benchmark=[f"judgebench={files['judgebench']}"] * 2)
    assert "Did you mean judgebench?" in error(benchmark=[f"judgebnch={files['judgebench']}"])
    assert "absent.jsonl" in error(benchmark=["judgebench=absent.jsonl"])
    assert "usable as judgebench" in error(benchmark=[f"judgebench={files['realmistake']}"])
    assert "--k 1,4,2: expected increasing integers from 1" in error(k="1,4,2")
    assert "--strategy meta: it needs the meta reward" in error(strategy=["meta"])
    assert "--strategy borda: it needs each sample's self-certainty" in error(strategy=["borda"])
    assert "median: no such strategy" in error(strategy=["median"])
    realmistake = [f"realmistake={files['realmistake']}"]
    assert "none of them applies to any of the benchmarks" in error(strategy=["majority"], benchmark=realmistake)
    assert "unknown key" in error(settings=["prompt.length=3"])
    message = error(model=tiny_model, output=output, benchmark=[pairs])
    assert "holds rows of other settings" in message and f"model: '{judge_model}' before, '{tiny_model}' now" in message
    assert "k: 6 before, 4 now" in error(output=output, k="1,4", benchmark=[pairs])
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_a_folder_in_use_is_left_alone(judge_model, files, tmp_path):
    with ResumableRows(tmp_path / "judgebench.samples.jsonl", {}) as other:
        other.write({"id": "theirs"})
        with pytest.raises(DataError, match="another process is writing it"):
            evaluate(
                model=str(judge_model), benchmark=[f"judgebench={files['judgebench']}"], output=tmp_path, settings=list(SETTINGS), k="1"
            )
        assert list(other.rows()) == [{"id": "theirs"}]


@pytest.mark.parametrize("text", ["", "a", "0,1", "2,2", "1,,2", "1.5", "-1", "1,2,"])
def test_k_is_increasing(text):
    with pytest.raises(UserError, match="expected increasing integers"):
        increasing(text)


def test_k_as_numbers():
    assert increasing("1, 2,32") == [1, 2, 32]


def test_the_judge_says_what_its_table_says(judge_model, files):
    """The fixture's own check: greedy transformers on a real prompt."""
    tokenizer = AutoTokenizer.from_pretrained(judge_model)
    model = AutoModelForCausalLM.from_pretrained(judge_model, dtype=torch.float32)
    item = load("judgebench", files["judgebench"]).items[0]
    prompt = torch.tensor([Prompter(tokenizer, "compact").tokens(item.record, item.order)])
    said = model.generate(prompt, do_sample=False, max_new_tokens=16)[0, prompt.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == "\\boxed{9,2}"

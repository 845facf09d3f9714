"""Loading: the default model is converted once and works; the tiny one is built; folders appear atomically."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsys.models.loading import ModelError, build_tiny, ensure_model
from rlsys.models.policy import load_causal_model
from rlsys.models.scalar import load_classifier

ROOT = Path(__file__).parents[3]
EVERY_BYTE = "".join(map(chr, range(256))) + "naïve 日本語 😀 \\boxed{9, 2}"


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "smollm2-135m-instruct"
    assert ensure_model(path) == str(path)
    return path


def test_the_default_model_answers_in_english_after_conversion(default: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(default), AutoModelForCausalLM.from_pretrained(default)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == "The capital of France is Paris."
    assert output[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_default_model_is_stored_once_in_bf16_with_its_embedding_tied(default: Path) -> None:
    with safe_open(default / "model.safetensors", "pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}
    assert {tensor.get_dtype() for tensor in tensors.values()} == {"BF16"}
    assert "model.embed_tokens.weight" in tensors and "lm_head.weight" not in tensors
    model = AutoModelForCausalLM.from_pretrained(default)
    assert model.dtype == torch.bfloat16 and sum(p.numel() for p in model.parameters()) == 134_515_008  # the model card's 135M
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_default_tokenizer_has_its_chat_template(default: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default)
    assert tokenizer.decode(tokenizer.encode(EVERY_BYTE[32:127])) == EVERY_BYTE[32:127]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert {path.name for path in default.iterdir()} >= {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}


def test_a_converted_model_is_not_converted_again(default: Path) -> None:
    before = (default / "model.safetensors").stat().st_mtime_ns
    assert ensure_model(str(default)) == str(default)
    assert (default / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in default.parent.iterdir()] == [default.name], "nothing is left beside it"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_tiny_model_has_about_a_million_weights_and_encodes_every_text(tmp_path: Path, architecture: str) -> None:
    path = build_tiny(tmp_path / "tiny-random", architecture)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.config.model_type == architecture
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size == 512, "every id that can be sampled can be decoded"
    assert tokenizer.decode(tokenizer.encode(EVERY_BYTE)) == EVERY_BYTE
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "So?"}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    blocks = ("user\nHi", "assistant\nHo", "user\nSo?")
    expected = "".join(f"<|im_start|>{block}<|im_end|>\n" for block in blocks) + "<|im_start|>assistant\n"
    assert text == expected
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert tokens.count(tokenizer.eos_token_id) == 3 and model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    logits = model(torch.tensor([tokens])).logits
    assert logits.shape == (1, len(tokens), 512) and logits.isfinite().all()


def test_the_tiny_model_depends_on_its_seed_alone_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    one, same, other = (build_tiny(tmp_path / name, seed=seed) / "model.safetensors" for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "c" / "tokenizer.json").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_may_build_the_same_model_concurrently(tmp_path: Path) -> None:
    code = "import sys; from rlsys.models.loading import ensure_model; print(ensure_model(sys.argv[1]))"
    path = tmp_path / "new" / "tiny-random"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert output.splitlines()[-1] == str(path)
    assert [child.name for child in path.parent.iterdir()] == ["tiny-random"]
    AutoModelForCausalLM.from_pretrained(path)


def test_a_second_build_keeps_the_existing_model(tmp_path: Path) -> None:
    path = build_tiny(tmp_path / "m", seed=1)
    before = (path / "model.safetensors").read_bytes()
    assert build_tiny(path, seed=2) == path
    assert (path / "model.safetensors").read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["m"]


def test_model_folders_are_returned_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert ensure_model("mine") == "mine"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A local hub that has the model owner/there, and denies access to owner/closed."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            known = {"/owner/there/resolve/main/config.json": 200, "/owner/closed/resolve/main/config.json": 401}
            self.send_response(known.get(self.path, 404))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield
        server.shutdown()


def test_a_name_that_the_hub_has_is_returned_as_it_is(hub: None) -> None:
    assert ensure_model("owner/there") == "owner/there"


@pytest.mark.parametrize(("name", "why"), [("owner/closed", "hf auth login"), ("owner/absent", "answered 404"), ("runs/nope", "no such")])
def test_other_names_are_refused_with_a_reason(hub: None, name: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        ensure_model(name)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="127.0.0.1:9 cannot be reached"):
        ensure_model("owner/there")


def test_paths_that_cannot_be_models_are_refused_with_their_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="empty: this folder holds no config.json"):
        ensure_model(tmp_path / "empty")
    with pytest.raises(ModelError, match="file: this is a file"):
        ensure_model(tmp_path / "file")
    for path in (str(tmp_path / "gone"), "./gone", "../gone", "~/gone", "runs/gone/checkpoint"):
        with pytest.raises(ModelError, match="gone.*no such folder"):
            ensure_model(path)
    with pytest.raises(ModelError, match="architecture 'gpt'"):
        build_tiny(tmp_path / "x", "gpt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match="full: cannot be written there"):
        build_tiny(tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


def settings(**changed: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changed))

    return change


def second_output_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("load", [load_causal_model, load_classifier])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settings(vocab_size=600), r"model.embed_tokens.weight has shape \(512, 256\) in its files, and \(600, 256\) by its config.json"),
        (settings(pad_token_id=5000), "cannot load it .*padding_idx"),
        (settings(rope_parameters={"rope_type": "abacus", "factor": 2.0}), "cannot load it .*abacus"),
        (settings(rope_parameters="linear"), "cannot load it .*rope_parameters"),
        (settings(model_type="abacus", auto_map={"AutoConfig": "a.A", "AutoModelForCausalLM": "a.B"}), "cannot load it .*custom code"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"git-lfs"), "cannot load it .*header"),
    ],
)
def test_a_malformed_folder_gives_one_sentence(
    tmp_path: Path, load: Callable[..., object], change: Callable[[Path], None], words: str
) -> None:
    change(build_tiny(tmp_path / "tiny"))
    with pytest.raises(ModelError, match=f"(?i)model {tmp_path}/tiny: .*{words}"):
        load(tmp_path / "tiny", torch.float32)


def test_an_untied_output_layer_configured_as_tied_is_refused(tmp_path: Path) -> None:
    """Transformers would keep the two separate; the engine would not."""
    second_output_layer(build_tiny(tmp_path / "tiny"))
    with pytest.raises(ModelError, match="lm_head.weight and the embedding, which differ"):
        load_causal_model(tmp_path / "tiny", torch.float32)
    settings(tie_word_embeddings=False)(tmp_path / "tiny")
    assert load_causal_model(tmp_path / "tiny", torch.float32).lm_head.weight.std() > 0

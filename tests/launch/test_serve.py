"""`rlsys serve` before an engine starts: mistakes, the token, and the lines to copy."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from commands import quickstarts_lines, rlsys_here
from rich.console import Console

from launch.commands.serve import introduce
from rlsys.serving.contract import ScoreRequest
from rlsys.serving.service import ServiceArguments


def test_a_service_that_others_can_reach_needs_a_token(tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv("RLSYS_TOKEN", raising=False)
    refused = rlsys_here("serve", "--model", tiny_model, "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2 and "--token-file" in refused.stderr
    (tmp_path / "token").write_text("\n")
    refused = rlsys_here("serve", "--model", tiny_model, "--token-file", tmp_path / "token")
    assert refused.returncode == 2 and "expected a token" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--strategy", "meta"], "--meta-rm"),
        (["--strategy", "borda"], "rollout.self_certainty=true"),
        (["--k", "65"], "max_k=64"),
        (["--min-replicas", "3", "--max-replicas", "2"], "--max-replicas"),
        (["prompt.templat=x"], "templat"),
        (["--token-file", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_found_before_anything_starts(tiny_model, arguments, words):
    refused = rlsys_here("serve", "--model", tiny_model, "--port", "0", *arguments)
    assert refused.returncode == 2 and words in refused.stderr, refused.stderr


def test_the_quickstarts_last_lines_name_a_command_and_a_request_that_are_accepted(tiny_model):
    serve_words, curl_words = quickstarts_lines(tiny_model)
    assert serve_words[:2] == [".venv/bin/rlsys", "serve"] and curl_words[:2] == ["curl", "http://127.0.0.1:8000/v1/score"]
    checked = rlsys_here(*serve_words[1:], "--check")
    assert checked.returncode == 0, checked.stderr
    assert len(ScoreRequest.model_validate_json(curl_words[curl_words.index("-d") + 1]).responses) == 2


@pytest.mark.parametrize("token_file", [None, Path("a token")])
def test_the_printed_line_sends_the_token_without_showing_it(token_file, tmp_path, monkeypatch):
    """Run by a shell, with a program called curl that prints its arguments."""
    secret = "s3cret-of-the-test"
    (tmp_path / "a token").write_text(secret)
    (tmp_path / "curl").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "curl").chmod(0o755)
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    introduce("http://127.0.0.1:8000", ServiceArguments(model="m", token_file=token_file), secret, console)
    printed = console.file.getvalue()
    assert secret not in printed
    (line,) = (line for line in printed.splitlines() if "/v1/score" in line)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RLSYS_TOKEN": secret if token_file is None else "another"}
    shown = subprocess.run(line, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout.splitlines()
    assert shown[0] == "http://127.0.0.1:8000/v1/score" and f"Authorization: Bearer {secret}" in shown
    assert json.loads(shown[shown.index("-d") + 1])["responses"]

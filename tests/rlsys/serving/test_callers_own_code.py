"""The requests as the callers' own code makes them, and their reading of the answers.

Their packages are heavy, or need another Python: only the files that make requests are loaded, from downloaded packages in the folder
RLSYS_CALLERS; docs/serving.md says how to fill it. Without it these tests are skipped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_judge import ScriptedJudge, served

from rlsys.serving.app import create_app

FOLDER = Path(os.environ.get("RLSYS_CALLERS", "/nowhere"))


@pytest.fixture
def judge() -> ScriptedJudge:
    return ScriptedJudge()


@pytest.fixture
def address(judge: ScriptedJudge) -> Iterator[str]:
    with served(create_app(judge)) as address:
        yield address


def source(wheel: str, file: str) -> str:
    """Return the text of the file in the package that ends in `file`."""
    path = next(iter(sorted(FOLDER.glob(wheel))), None)
    if path is None:
        pytest.skip(f"RLSYS_CALLERS holds no {wheel}")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(file))
        return archive.read(name).decode()


def loaded(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **stubs: dict[str, Any]) -> types.ModuleType:
    """Import a file's text, with modules of these names (dots as __) and contents in place of the ones that it imports."""
    for stub, contents in stubs.items():
        module = types.ModuleType(stub.replace("__", "."))
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_openrlhf(judge, address, tmp_path, monkeypatch):
    agent = loaded(
        "openrlhf_agent",
        source("openrlhf-*.whl", "openrlhf/utils/agent.py"),
        tmp_path,
        monkeypatch,
        openrlhf={},
        openrlhf__utils={},
        openrlhf__utils__logging_utils={"init_logger": logging.getLogger},
    )
    executor = agent.SingleTurnAgentExecutor(f"{address}/get_reward?group=2&k=4")

    async def ask() -> list[Any]:
        calls = [executor._fetch_rewards_via_http([f"Which? {text}"], ["Which? "], ["label"]) for text in ("judo score=2", "saw score=9")]
        return await asyncio.wait_for(asyncio.gather(*calls), 60)

    (first,), (second,) = asyncio.run(ask())
    assert [first["rewards"], second["rewards"]] == [[pytest.approx(1 / 9)], [pytest.approx(8 / 9)]]
    assert first["scores"] == first["rewards"] and first["extra_logs"] == {"judge_score": [2], "judge_parsed": [1]}
    assert [request.responses for request in judge.requests] == [["judo score=2", "saw score=9"]] and judge.requests[0].k == 4


def test_slime(judge, address, tmp_path, monkeypatch):
    path = FOLDER / "slime_rm_hub.py"
    if not path.exists():
        pytest.skip("RLSYS_CALLERS holds no slime_rm_hub.py")
    text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("from ."))
    misc, types_of_slime = {"load_function": None}, {"Sample": SimpleNamespace}
    hub = loaded(
        "slime_hub", text, tmp_path, monkeypatch, slime={}, slime__utils={}, slime__utils__misc=misc, slime__utils__types=types_of_slime
    )
    arguments = SimpleNamespace(rm_url=f"{address}/slime?group=2", rm_type="remote_rm", custom_rm_path=None)
    common = {"prompt": "Which?", "label": "x", "custom_rm_path": None, "metadata": {}}
    samples = [SimpleNamespace(response=text, **common) for text in ("judo score=2<|im_end|>", "saw score=9<|im_end|>")]

    async def ask() -> list[float]:
        try:
            return await asyncio.wait_for(hub.batched_async_rm(arguments, samples), 60)
        finally:
            await hub._get_shared_session().close()

    assert asyncio.run(ask()) == [pytest.approx(1 / 9), pytest.approx(8 / 9)]
    assert [request.responses for request in judge.requests] == [["judo score=2", "saw score=9"]]


def test_nemo_gym(judge, address, tmp_path, monkeypatch):
    import aiohttp

    class Client:
        """Posts as NeMo Gym's ServerClient does, which looks up the server's address by its name."""

        async def post(self, server_name: str, url_path: str, json: Any) -> aiohttp.ClientResponse:
            return await session.post(f"{address}{url_path}", json=json)

    async def raise_for_status(response: aiohttp.ClientResponse) -> None:
        response.raise_for_status()

    strategies = loaded(
        "genrm_strategies",
        source("nemo_gym-*.whl", "genrm_compare/comparison_strategies.py"),
        tmp_path,
        monkeypatch,
        nemo_gym={},
        nemo_gym__server_utils={"ServerClient": Client, "raise_for_status": raise_for_status},
    )
    objects = [
        {"output": [{"type": "message", "content": [{"type": "output_text", "text": text}]}]} for text in ("judo score=2", "saw score=9")
    ]

    async def ask() -> tuple[list[float], dict[str, float]]:
        nonlocal session
        strategy = strategies.GenRMStrategy(strategies.GenRMStrategyConfig())
        async with aiohttp.ClientSession() as session:
            return await strategy.compare([{"role": "user", "content": "Which?"}], objects, Client(), principle="Be concise.")

    session: Any = None
    rewards, metrics = asyncio.run(ask())
    assert rewards == [pytest.approx(1 / 9), pytest.approx(8 / 9)] and metrics["judge_parsed"] == 1
    assert judge.requests[0].principles == "Be concise."


def test_cohere(judge, address):
    cohere = pytest.importorskip("cohere", reason="the package cohere is not installed")
    for client in (cohere.ClientV2("key", base_url=address), cohere.Client("key", base_url=address)):
        asked = {"model": "scripted", "query": "Which?", "documents": ["judo score=2", "saw score=9", "beige score=3"], "top_n": 2}
        found = client.rerank(**asked)
        assert [(one.index, one.relevance_score) for one in found.results] == [(1, pytest.approx(8 / 9)), (2, pytest.approx(2 / 9))]
        with pytest.raises(cohere.NotFoundError, match="scripted"):
            client.rerank(**{**asked, "model": "other"})

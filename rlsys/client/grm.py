"""`GRM`: score responses with a generative reward model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, Self, TypedDict, Unpack, overload

from pydantic import ValidationError

from rlsys.client.background import BackgroundLoop
from rlsys.client.remote import RemoteJudge
from rlsys.client.verdicts import Verdict
from rlsys.serving.contract import Message, ScoreRequest, ScoreResponse, ServingError

Conversation = str | Sequence[Mapping[str, str] | Message]
"""The user's query, or messages {role, content} of which the last one is the query or a tool result."""
Row = Mapping[str, Any] | ScoreRequest
"""A dict with the arguments of `GRM.score`, or a `ScoreRequest`."""

LOCAL_JUDGES = "rlsys.judges"
"""Entry point group of the judges that can run in this process; `rlsys` itself knows no engines."""


class Options(TypedDict, total=False):
    """Further arguments of `GRM.score`."""

    critiques: bool
    """Return the text of every sample."""
    principles: str | None
    """Judge by these, instead of those that the judge would write."""
    seed: int
    """Seed of response orders, samples and tie-breaking (default 0). The same request with the same seed has the same answer."""
    temperature: float | None
    """Of the samples; None: the judge's default."""
    max_tokens: int | None
    """Generated tokens per sample; None: the judge's limit."""
    id: str | None
    """Enters the seeds; None: derived from the content."""


class Scorer(Protocol):
    """A judge that `GRM` asks, in its own event loop."""

    async def score(self, request: ScoreRequest) -> ScoreResponse: ...

    async def close(self) -> None: ...


class GRM:
    """A generative reward model: `GRM("runs/quickstart")` starts its engines in this process's Ray, `GRM.connect(url)` asks a service.

    Every method may be called from any thread, and the asynchronous ones from any event loop. Close it, or use it in a `with` block.

    Args:
        model: run folder, model folder or hub name, as in `rlsys judge`.
        settings: overrides of its settings, for example ["rollout.actors=2", "prompt.max_tokens=4096"].
        meta_rm: meta reward model that scores every sample (strategies `meta` and `meta_weighted`).
        concurrency: requests in progress at a time; further ones wait here.

    Raises:
        RuntimeError: this installation has no engines.
    """

    def __init__(self, model: str | Path, *, settings: Sequence[str] = (), meta_rm: str | Path | None = None, concurrency: int = 64):
        found = {entry.name: entry for entry in entry_points(group=LOCAL_JUDGES)}
        if "local" not in found:
            raise RuntimeError(f"GRM({str(model)!r}): no engines are installed here. Run launch/setup.sh, or use GRM.connect(url).")
        self._begin(found["local"].load()(str(model), list(settings), None if meta_rm is None else str(meta_rm)), concurrency)

    @classmethod
    def connect(cls, url: str, *, token: str | None = None, timeout_s: float = 600.0, concurrency: int = 64) -> Self:
        """Return a client of `rlsys serve`.

        Nothing is sent yet. A request that the service is too busy or not ready for (HTTP 429, 502, 503) is sent again, after the time
        that the service names. The same request always has the same answer, so that repeating one is safe.

        Args:
            url: the service's address, for example http://127.0.0.1:8000.
            token: its bearer token; None: the environment variable RLSYS_TOKEN, if it is set.
            timeout_s: seconds that a request may take, with all its tries and the waits between them.
            concurrency: requests in progress at a time; further ones wait here.
        """
        return cls.over(RemoteJudge(url, token, timeout_s), concurrency=concurrency)

    @classmethod
    def over(cls, scorer: Scorer, *, concurrency: int = 64) -> Self:
        """Return a client of a judge of your own."""
        grm = cls.__new__(cls)
        grm._begin(scorer, concurrency)
        return grm

    def _begin(self, scorer: Scorer, concurrency: int) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency}: expected at least 1.")
        self._scorer, self._places = scorer, asyncio.Semaphore(concurrency)
        self._background = BackgroundLoop("rlsys-grm")

    def score(
        self, conversation: Conversation, responses: Sequence[str], k: int = 8, strategy: str = "vote", **options: Unpack[Options]
    ) -> Verdict:
        """Score responses to a conversation, all in one judgement, by k samples.

        Args:
            k: samples, each with the responses in a new order.
            strategy: how the samples are aggregated (docs/voting.md).
            options: see `Options`.

        Raises:
            ValueError: an argument is invalid.
            ServingError: the judge refused the request, did not answer in time, or cannot be reached; the message says what to do.
        """
        return self._background.run(self._score(_request({**_named(conversation, responses, k, strategy), **options})))

    async def ascore(
        self, conversation: Conversation, responses: Sequence[str], k: int = 8, strategy: str = "vote", **options: Unpack[Options]
    ) -> Verdict:
        """Like `score`. If it is cancelled, so are its samples."""
        return await self._background.arun(self._score(_request({**_named(conversation, responses, k, strategy), **options})))

    @overload
    def score_many(self, rows: Iterable[Row], k: int = 8, strategy: str = "vote", **options: Unpack[Options]) -> list[Verdict]: ...
    @overload
    def score_many(
        self, rows: Iterable[Row], k: int = 8, strategy: str = "vote", *, return_exceptions: bool, **options: Unpack[Options]
    ) -> list[Verdict | ServingError]: ...
    def score_many(
        self,
        rows: Iterable[Row],
        k: int = 8,
        strategy: str = "vote",
        *,
        return_exceptions: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Score many rows at once; returns the verdicts in the order of `rows`.

        Args:
            rows: dicts with the arguments of `score`; what a row does not have is taken from the other arguments here.
            return_exceptions: put a row's ServingError into its place, instead of raising the first one and cancelling the others.

        Raises:
            ValueError: a row is invalid; the message names it, and nothing was sent.
            ServingError: as in `score`; the message names the row.
        """
        return self._background.run(self._score_many(_requests(rows, {"k": k, "strategy": strategy, **options}), return_exceptions))

    @overload
    async def ascore_many(self, rows: Iterable[Row], k: int = 8, strategy: str = "vote", **options: Unpack[Options]) -> list[Verdict]: ...
    @overload
    async def ascore_many(
        self, rows: Iterable[Row], k: int = 8, strategy: str = "vote", *, return_exceptions: bool, **options: Unpack[Options]
    ) -> list[Verdict | ServingError]: ...
    async def ascore_many(
        self,
        rows: Iterable[Row],
        k: int = 8,
        strategy: str = "vote",
        *,
        return_exceptions: bool = False,
        **options: Unpack[Options],
    ) -> Any:
        """Like `score_many`."""
        requests = _requests(rows, {"k": k, "strategy": strategy, **options})
        return await self._background.arun(self._score_many(requests, return_exceptions))

    def close(self) -> None:
        """Cancel what is in progress, and release connections or engines."""
        self._background.close(self._scorer.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        return f"GRM({self._scorer!r}{', closed' if self._background.closed else ''})"

    async def _score(self, request: ScoreRequest) -> Verdict:
        async with self._places:
            return Verdict.of(await self._scorer.score(request), request.responses)

    async def _score_many(self, requests: list[ScoreRequest], return_exceptions: bool) -> list[Verdict | ServingError]:
        tasks = [asyncio.ensure_future(self._score_row(number, request, return_exceptions)) for number, request in enumerate(requests)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _score_row(self, number: int, request: ScoreRequest, return_exceptions: bool) -> Verdict | ServingError:
        try:
            return await self._score(request)
        except ServingError as error:
            named = ServingError(f"row {number}: {error}", error.status, error.retry_after_s)
            if return_exceptions:
                return named
            raise named from error


def _named(conversation: Conversation, responses: Sequence[str], k: int, strategy: str) -> dict[str, Any]:
    return {"conversation": conversation, "responses": responses, "k": k, "strategy": strategy}


def _requests(rows: Iterable[Row], defaults: Mapping[str, Any]) -> list[ScoreRequest]:
    return [
        row if isinstance(row, ScoreRequest) else _request({**defaults, **_mapping(row, number)}, f"row {number}: ")
        for number, row in enumerate(rows)
    ]


def _mapping(row: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"row {number}: expected a dict with conversation and responses, found {type(row).__name__}.")
    return row


def _request(fields: Mapping[str, Any], where: str = "") -> ScoreRequest:
    try:
        return ScoreRequest.model_validate(fields)
    except ValidationError as error:
        # Of the forms that a value may have, the one that it comes closest to.
        problem = max(error.errors(include_url=False), key=lambda problem: len(problem["loc"]))
        field = ".".join(map(str, problem["loc"]))
        known = f" The fields are {', '.join(ScoreRequest.model_fields)}." if problem["type"] == "extra_forbidden" else ""
        raise ValueError(f"{where}{field}: {problem['msg']}.{known}") from error

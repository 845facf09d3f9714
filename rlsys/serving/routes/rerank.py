"""POST /score as vLLM has it, and /rerank, /v1/rerank, /v2/rerank as vLLM, Jina and Cohere have it.

vLLM's older path /v1/score is this service's own route, told apart by its keys: it takes `conversation` and `responses`.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlsys.serving.contract import ServingError
from rlsys.serving.guard import Guard
from rlsys.serving.rewards import RewardOptions, Rewards, judge_groups
from rlsys.serving.streams import answer

_PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
_IGNORED = {"user", "request_id", "priority", "rank_fields"}
"""Keys that do not change the scores of texts."""
_UNBOUNDED: dict[str, tuple[Any, ...]] = {"max_tokens_per_doc": (0,), "max_tokens_per_query": (0,), "truncate_prompt_tokens": (-1,)}
"""Limits of length, and their values for none. Texts are never cut: what is too long for the judge is refused."""


class _Judged(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    model: str | None = None
    """The judge's name, or none."""
    instruction: str | None = None
    """Principles to judge by, instead of those that the judge would write."""

    @model_validator(mode="after")
    def _refuse_unknown_keys(self) -> _Judged:
        for key, value in (self.model_extra or {}).items():
            if value is not None and key not in _IGNORED and value not in _UNBOUNDED.get(key, ()):
                raise ValueError(f"{key[:60]}: not supported here; leave it out.")
        return self


class Document(BaseModel):
    """A text to score."""

    model_config = ConfigDict(extra="forbid")

    text: str


Text = str | Document


class PairsRequest(_Judged):
    """One query and its documents, or as many queries as documents, under one of the four pairs of names that vLLM knows."""

    text_1: Text | list[Text] | None = None
    text_2: Text | list[Text] | None = None
    queries: Text | list[Text] | None = None
    documents: Text | list[Text] | None = None
    items: Text | list[Text] | None = None
    data_1: Text | list[Text] | None = None
    data_2: Text | list[Text] | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Return (query, document) pairs."""
        given = {name for pair in _PAIRS for name in pair if getattr(self, name) is not None}
        names = next((pair for pair in _PAIRS if set(pair) == given), None)
        if names is None:
            known = ", ".join(f"{one} and {two}" for one, two in _PAIRS)
            raise ServingError(f"expected one of the pairs {known}; found {' and '.join(sorted(given)) or 'none'}.")
        queries, documents = (_texts(getattr(self, name)) for name in names)
        if len(queries) == 1:
            queries *= len(documents)
        if not documents or len(queries) != len(documents):
            raise ServingError(f"{names[0]}: expected one, or as many as {names[1]} ({len(documents)}, at least 1); found {len(queries)}.")
        return list(zip(queries, documents))


class RerankRequest(_Judged):
    """A query, and documents to put in order."""

    query: Text
    documents: list[Text] = Field(min_length=1)
    top_n: Annotated[int, Field(ge=0)] | None = None
    """Return this many of the best. 0 or left out: all."""
    return_documents: bool = True
    """Return the documents' texts."""


class PairScore(BaseModel):
    index: int
    object: str = "score"
    score: float


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class PairsResponse(BaseModel):
    """Scores in the order of the documents."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[PairScore]
    usage: Usage


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: Document | None = None


class RerankResponse(BaseModel):
    """Documents, the best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage


def router(judge: Guard) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["Scores and reranking"])

    @routes.post("/score", summary="Scores as from vLLM")
    async def score(request: Request, body: PairsRequest, options: Annotated[RewardOptions, Query()]) -> PairsResponse:
        """Return a score in [0, 1] for each document as an answer to its query; documents of equal queries are judged together."""
        _check_model(judge, body)
        values, judged = await answer(request, _score_pairs(judge, body, options))
        data = [PairScore(index=index, score=value) for index, value in enumerate(values)]
        return PairsResponse(id=_new_id("score"), created=int(time.time()), model=judge.model, data=data, usage=_usage(judged))

    async def rerank(request: Request, body: RerankRequest, options: Annotated[RewardOptions, Query()]) -> RerankResponse:
        """Return the documents by their score in [0, 1] as answers to the query, the best first; ties in the order of the request."""
        _check_model(judge, body)
        texts = _texts(body.documents)
        work = judge_groups(judge, [(_texts(body.query)[0], texts)], options, body.instruction)
        (rewards,) = await answer(request, work)
        order = sorted(range(len(texts)), key=lambda index: -rewards.values[index])[: body.top_n or None]
        results = [
            RerankResult(
                index=index,
                relevance_score=rewards.values[index],
                document=Document(text=texts[index]) if body.return_documents else None,
            )
            for index in order
        ]
        return RerankResponse(id=_new_id("rerank"), model=judge.model, results=results, usage=_usage([rewards]))

    for path, summary in (("/rerank", "vLLM and Jina"), ("/v1/rerank", "vLLM, Jina and Cohere"), ("/v2/rerank", "vLLM and Cohere")):
        routes.post(path, summary=f"Reranking as from {summary}", response_model_exclude_none=True)(rerank)
    return routes


async def _score_pairs(judge: Guard, body: PairsRequest, options: RewardOptions) -> tuple[list[float], list[Rewards]]:
    members: dict[str, list[int]] = {}
    pairs = body.pairs()
    for index, (query, _) in enumerate(pairs):
        members.setdefault(query, []).append(index)
    groups = [(query, [pairs[index][1] for index in own]) for query, own in members.items()]
    judged = await judge_groups(judge, groups, options, body.instruction)
    values = {index: value for own, rewards in zip(members.values(), judged) for index, value in zip(own, rewards.values)}
    return [values[index] for index in range(len(pairs))], judged


def _texts(value: Text | list[Text]) -> list[str]:
    return [one.text if isinstance(one, Document) else one for one in (value if isinstance(value, list) else [value])]


def _check_model(judge: Guard, body: _Judged) -> None:
    if body.model is not None and body.model != judge.model:
        raise ServingError(f"model: this service has {judge.model!r} only, found {body.model[:200]!r}.", 404)


def _usage(judged: list[Rewards]) -> Usage:
    prompt = sum(one.prompt_tokens for one in judged)
    return Usage(prompt_tokens=prompt, total_tokens=prompt + sum(one.generated_tokens for one in judged))


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"

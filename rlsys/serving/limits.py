"""The limits of a service, and the errors that name them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from rlsys.serving.contract import ChatRequest, ScoreRequest, ServingError

MIB = 1 << 20


def _limit(default: int, what: str) -> int:
    return field(default=default, metadata={"what": what})


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. `rlsys serve` has an option for each, --max-... with dashes: `max_body_mib` is --max-body-mib.

    The length of prompts is limited by prompt.max_tokens of the model's config, which the engine checks.
    """

    max_body_mib: int = _limit(4, "MiB of a request's body, and of a line of a batch")
    max_batch_mib: int = _limit(64, "MiB of a batch's body")
    max_responses: int = _limit(32, "responses of a request")
    max_k: int = _limit(64, "samples of a request")
    max_seconds: int = _limit(600, "seconds that a request may take")
    max_pending: int = _limit(256, "requests in progress; further ones are refused. Batches have half as many lines in progress")
    max_batches: int = _limit(8, "batches in progress; further ones are refused")

    def __post_init__(self) -> None:
        for one in fields(self):
            if not isinstance(value := getattr(self, one.name), int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{one.name} = {value!r}: expected an integer of at least 1, the {one.metadata['what']}.")

    @property
    def max_gathering(self) -> int:
        """Responses that may wait for the rest of their groups, each in a request of its own (`rlsys.serving.gathering`)."""
        return self.max_pending * self.max_responses

    def exceeded(self, found: str, name: str, status: int = 422, retry_after_s: float | None = None) -> ServingError:
        """Return the error for exceeding the limit `name`."""
        option = f"--{name.replace('_', '-')}"
        return ServingError(f"{found}: the limit is {getattr(self, name)} ({option} of `rlsys serve`).", status, retry_after_s)

    def check_score(self, request: ScoreRequest) -> None:
        """Raise ServingError if the request asks for too much."""
        if len(request.responses) > self.max_responses:
            raise self.exceeded(f"responses: {len(request.responses)}", "max_responses")
        if request.k is not None and request.k > self.max_k:
            raise self.exceeded(f"k: {request.k}", "max_k")

    def check_chat(self, request: ChatRequest) -> None:
        """Raise ServingError if the request asks for too much."""
        if request.n > self.max_k:
            raise self.exceeded(f"n: {request.n}", "max_k")

    def check_line(self, line: bytes) -> None:
        """Raise ServingError if a line of a batch is too long."""
        if len(line) > self.max_body_mib * MIB:
            raise self.exceeded(f"the line has {len(line) / MIB:.1f} MiB", "max_body_mib", 413)

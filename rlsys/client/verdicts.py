"""What `GRM` returns: a judge's answer with the responses that it is about, readable in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlsys.serving.contract import SampleResult, ScoreResponse
from rlsys.system.printable import printable

SHOWN = 300
"""Characters of a response that the table of a notebook shows."""


class Verdict(ScoreResponse):
    """The vote over all samples."""

    responses: list[str]

    @classmethod
    def of(cls, answer: ScoreResponse, responses: Sequence[str]) -> Verdict:
        """Return the verdict for an answer about `responses`."""
        return cls.model_validate(answer.model_dump() | {"responses": list(responses)})

    @property
    def best_response(self) -> str | None:
        """Text of the best response; None if nothing parsed or the strategy abstained."""
        return None if self.best is None else self.responses[self.best]

    def __repr__(self) -> str:
        scores = "None" if self.scores is None else "[" + ", ".join(f"{score:.4g}" for score in self.scores) + "]"
        return f"Verdict(best={self.best}, scores={scores}, {', '.join(self._notes())})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row per response, a column per sample; texts, if there are any, folded below."""
        samples = "".join(f"<th>sample {number}</th>" for number in range(1, len(self.samples) + 1))
        head = f"<tr><th></th><th style='text-align:left'>response</th><th>score</th>{samples}</tr>"
        rows = "".join(self._html_row(index) for index in range(len(self.responses)))
        caption = escape(", ".join([*self._notes(), f"{self.strategy} by {printable(self.model)}"]))
        texts = "".join(_html_text(number, sample) for number, sample in enumerate(self.samples, 1) if sample.text is not None)
        return f"<table><caption>{caption}</caption>{head}{rows}</table>{texts}"

    def _notes(self) -> list[str]:
        marks = [mark for mark, set_ in (("tied", self.tied), ("abstained", self.abstained)) if set_]
        return [f"{self.parsed} of {len(self.samples)} samples parsed", *marks]

    def _html_row(self, index: int) -> str:
        text = self.responses[index]
        shown = escape(printable(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"))
        score = "" if self.scores is None else f"{self.scores[index]:.4g}"
        own = "".join(f"<td>{'–' if sample.scores is None else f'{sample.scores[index]:g}'}</td>" for sample in self.samples)
        mark = "★" if index == self.best else ""
        return f"<tr><td>{mark}{index}</td><td style='text-align:left'>{shown}</td><td><b>{score}</b></td>{own}</tr>"


def _html_text(number: int, sample: SampleResult) -> str:
    failure = "" if sample.parse_failure is None else f": {escape(sample.parse_failure)}"
    return f"<details><summary>sample {number}{failure}</summary><pre>{escape(printable(sample.text or ''))}</pre></details>"

"""Turn sources into the sections of a page, in order; empty sections are left out."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.reporting.page import biases, calibration, critiques, evaluations, headline, judging, ladder, runs
from rlsys.reporting.page.collect import Evaluation, Ladder, ScalarRun, Source, TrainingRun
from rlsys.reporting.page.content import Section


def outline(sources: Sequence[Source]) -> list[Section]:
    """Return all sections; each compares the sources of one kind."""
    ladders = [one for one in sources if isinstance(one, Ladder)]
    judged = [one for one in sources if isinstance(one, Evaluation)]
    scalars = [one for one in sources if isinstance(one, ScalarRun)]
    trained = [one for one in sources if isinstance(one, TrainingRun)]
    sections = [
        headline.section(sources),
        ladder.section(ladders),
        evaluations.by_strategy(judged),
        evaluations.by_k(judged),
        evaluations.by_tokens(judged),
        runs.training(trained),
        runs.policies(trained),
        judging.section(trained),
        critiques.side_by_side(trained),
        runs.families(trained, judged),
        biases.section(judged),
        runs.sampling(trained),
        runs.parse_failures(trained, judged),
        calibration.section(scalars),
        runs.seconds([*trained, *scalars]),
        critiques.section(trained, judged),
    ]
    return [section for section in sections if not section.empty]

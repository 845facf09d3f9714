"""The report page of runs, evaluations, scalar reward models and ladders. Modules, in reading order:

collect     folders -> validated sources (`rlsys.documents`: the contents of eval.json, ladder.json, ...)
outline     sources -> sections of tables, plots and critiques (content: their types), by subject: ladder, evaluations, biases, runs,
            calibration, critiques
plots       the data of each plot (drawing: its style; SVG for the page, PNG next to it)
render      sections -> HTML, Markdown, JSON

All formats are rendered from the same sections, so their figures agree.
"""

from __future__ import annotations

from rlsys.reporting.page.collect import collect
from rlsys.reporting.page.outline import outline
from rlsys.reporting.page.render import Page, write_page

__all__ = ["Page", "collect", "outline", "write_page"]

"""The page that shows what runs, evaluations, scalar reward models and ladders came to. Read it in this order:

collect     folders -> sources, checked (schema: what eval.json and ladder.json hold)
outline     sources -> sections of tables, plots and critiques (content: what these are), by subject: ladder, evaluations, biases, runs,
            calibration, critiques
plots       what each plot shows (drawing: how it looks; SVG for the page, PNG beside it)
render      sections -> HTML, Markdown, JSON

What a section shows is said once, and every form is made from it: the figures are the same everywhere.
"""

from __future__ import annotations

from rlsys.reporting.page.collect import collect
from rlsys.reporting.page.outline import outline
from rlsys.reporting.page.render import Page, write_page

__all__ = ["Page", "collect", "outline", "write_page"]

"""What every command shares: how it speaks to a person, how it prints JSON, and how it says that something is wrong."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from rlsys.io.files import finite_json
from rlsys.system import terminal as screen
from rlsys.system.environment_errors import describe_environment_error

print_text, to_stdout, to_stderr = screen.print_text, screen.stdout, screen.stderr

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rlsys", "actors", "launch")


class UserError(ValueError):
    """Something that the person at the keyboard can put right; the message says where it is and what to do."""


def exit_status(error: BaseException) -> int | None:
    """The status to exit with when `error` can be shown as it is, without a traceback; None: it is a bug, raise it.

    2: a ValueError raised in the project's own files, which say what the person can put right, and what the world did (OSError, a hub out
    of reach). 1: any other exception class of the project's own (an actor that died, with its last words). None: everything out of a
    library, which nobody foresaw.
    `RLSYS_TRACEBACK=1` keeps every traceback.
    """
    if os.environ.get("RLSYS_TRACEBACK"):
        return None
    if isinstance(error, ValueError):
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        raised_in = Path(frame.tb_frame.f_code.co_filename).resolve() if frame else Path()
        return 2 if any(raised_in.is_relative_to(ROOT / package) for package in PACKAGES) else None
    if describe_environment_error(error) is not None:
        return 2
    return 1 if type(error).__module__.partition(".")[0] in PACKAGES else None


@contextmanager
def only_json(active: bool) -> Iterator[Callable[[Any], None]]:
    """Yields the function that prints the command's one JSON document.

    While `active`, everything else that reaches stdout goes to stderr, libraries' and child processes' output included
    (the file descriptor itself is turned round), so that stdout holds the document and nothing else.
    """
    if not active:
        yield lambda document: None
        return
    documents: list[Any] = []
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield documents.append
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        for document in documents:
            text = json.dumps(finite_json(document), ensure_ascii=False, indent=2, allow_nan=False)
            try:
                text.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:
                text = json.dumps(finite_json(document), indent=2, allow_nan=False)
            print(text, flush=True)


def report(as_json: bool, measure: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    """Measure, and print the document: as JSON and nothing else, or rendered for a person."""
    with only_json(as_json) as write_json:
        document = measure()
        write_json(document)
        if not as_json:
            to_stdout().print(render(document))

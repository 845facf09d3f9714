"""Shared by all commands: console output, JSON output and errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import RenderableType

from rlsys.io.files import atomic_output, finite_json
from rlsys.system import terminal as screen
from rlsys.system.environment_errors import describe_environment_error
from rlsys.system.stopping import Stopped

print_text, to_stdout, to_stderr = screen.print_text, screen.stdout, screen.stderr

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rlsys", "actors", "launch")


class UserError(ValueError):
    """An error that the user can fix; the message says where it is and what to do."""


class Detached(SystemExit):
    """Ends a command after Ctrl-C that has already said what becomes of its work."""


def exit_status(error: BaseException) -> int | None:
    """Return the exit status for an error that is printed without a traceback, or None for a bug, which should be raised.

    75 or 130: the run was asked to stop. 2: a ValueError raised in the project's own files, or an error of the environment (OSError, an
    unreachable hub). 1: any other exception class of the project (an actor that died). None: any other exception raised in a library.
    With `RLSYS_TRACEBACK=1` every error keeps its traceback.
    """
    if os.environ.get("RLSYS_TRACEBACK"):
        return None
    if isinstance(error, Stopped):
        return error.status
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
    """Yield the function that prints the command's JSON document when the block ends.

    While `active`, everything else written to stdout goes to stderr, including the output of libraries and child processes (the file
    descriptor is redirected), so that stdout holds nothing but the document.
    """
    if not active:
        yield lambda document: None
        return
    documents: list[Any] = []
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield documents.append
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)
        for document in documents:
            text = json.dumps(finite_json(document), ensure_ascii=False, indent=2, allow_nan=False)
            try:
                text.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:
                text = json.dumps(finite_json(document), indent=2, allow_nan=False)
            print(text, flush=True)


def report(as_json: bool, measure: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    """Run `measure` and print its document, as JSON or rendered."""
    with only_json(as_json) as write_json:
        document = measure()
        write_json(document)
        if not as_json:
            to_stdout().print(render(document))


@contextmanager
def row_output(output: Path | None, as_json: bool) -> Iterator[TextIO | None]:
    """Yield the file that takes the command's JSONL rows: `output`, else stdout, or None if `--json` prints them in its document."""
    if output is None:
        yield None if as_json else sys.stdout
        return
    with atomic_output(output) as path, path.open("w", encoding="utf-8") as file:
        yield file

"""Entry point of `rlsys`. Imports happen inside `main`, as they take a second in which Ctrl-C must work too."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command; exit with 2 and one message for an error that the user can fix, 1 for a failed job, 130 after Ctrl-C."""
    _open_streams()
    try:
        from launch.app import app

        app()
    except (KeyboardInterrupt, SystemExit) as end:
        from launch.console import Detached

        if not isinstance(end, Detached) and (isinstance(end, KeyboardInterrupt) or end.code == 130):
            print("interrupted; completed work is kept, and the same command resumes from there", file=sys.stderr)
            sys.exit(130)
        raise
    except BrokenPipeError:
        # The reader of our output, such as `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from launch.console import exit_status, print_text, to_stderr
        from rlsys.system.environment_errors import describe_environment_error

        status = exit_status(error)
        if status is None:
            raise
        print_text(to_stderr(), f"error: {describe_environment_error(error) or error}", "red")
        sys.exit(status)


def _open_streams() -> None:
    """Open stdin, stdout and stderr if closed, so that no other file gets their descriptors, and let them encode any character."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()

"""Entry point of `rlsys`. It imports the rest inside of what watches for Ctrl-C, as that takes a second."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Exit status 2 and one message for what the user can put right, 1 for a job that failed, 130 after Ctrl-C."""
    _open_streams()
    try:
        from launch.app import app

        app()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, KeyboardInterrupt) or end.code == 130:
            print("interrupted; what was complete is kept, and the same command goes on from there", file=sys.stderr)
            sys.exit(130)
        raise
    except BrokenPipeError:
        # Whoever read our output has seen enough.
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
    """See that stdin, stdout and stderr are open, so that no file of ours gets the number of one, and take any character."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()

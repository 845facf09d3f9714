"""`rlsys view`: a local page of judgements, while they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import UserError, print_text, to_stdout


def view(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run or `rlsys eval` folders, or files (.parquet, .jsonl) of judgements."),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to bind. The default can be reached from this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8420,
) -> None:
    """Serve a page that shows the judgements of runs, finished or not: every sample with its scores, critique and advantage.

    Filters find confident mistakes, parse failures, texts that were cut off, and the largest change between two tables; two steps or
    runs can be compared on the same rows. The page follows a run as it writes. Ctrl-C stops it.

    Example: rlsys view runs/quickstart; on a cluster: ssh -L 8420:localhost:8420 HEAD, and `rlsys view` there
    """
    from rlsys.reporting.page.collect import unique_names
    from rlsys.reporting.view.server import serve
    from rlsys.reporting.view.tables import open_sources
    from rlsys.reporting.view.viewer import Viewer
    from rlsys.system.local_http import is_loopback

    viewer = Viewer(open_sources(paths, unique_names(paths)))
    try:
        server = serve(viewer, host, port)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: cannot be bound ({error}); choose another --port, or 0 for a free one.") from error
    console = to_stdout()
    with server:
        place = f"[{host}]" if ":" in host else host
        print_text(console, f"http://{place}:{server.server_address[1]}/ (Ctrl-C stops it)")
        if not is_loopback(host):
            print_text(console, "Everyone who can reach this address can read these runs; the page asks for no password.", "yellow")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print_text(console, "stopped")

"""The terminal view of a run, with textual. Texts of runs are never parsed as markup."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.css.query import NoMatches
from textual.widgets import DataTable, Footer, Sparkline, Static

from rlsys.reporting.top.snapshot import Actor, Heldout, Snapshot
from rlsys.system.printable import printable

Row = list[str]
STEPS = ("step", "reward", "accuracy", "KL", "entropy", "unequal", "not parsed", "lag", "tokens/s", "seconds")
COLOURS = {"complete": "green", "running": "cyan", "failed": "bold red", "killed": "bold red"}
BAR = 20
"""Characters of the longest bar of a phase."""


class Top(App[None]):
    """Shows snapshots of a run, a new one every few seconds.

    Args:
        look: takes a snapshot; a ValueError that it raises is shown in place of the run's state, and the next one is waited for.
        every_s: seconds between two snapshots.
    """

    TITLE = "rlsys top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "Quit"), ("r", "look", "Look now")]
    CSS = """
    #head { height: auto; padding: 0 1; }
    .row { height: auto; }
    .half { width: 1fr; height: auto; padding: 0 1; }
    .title { color: $text-muted; padding: 1 0 0 0; }
    DataTable { height: auto; max-height: 16; width: 100%; }
    Sparkline { height: 2; }
    """

    def __init__(self, look: Callable[[], Snapshot], every_s: float = 2.0):
        super().__init__()
        self._look, self._every_s, self._now = look, every_s, asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        with VerticalScroll():
            with Vertical(classes="half"):
                yield Static("Last steps", classes="title")
                yield _table("steps", STEPS)
            with Horizontal(classes="row"):
                with Vertical(classes="half"):
                    yield Static("Reward", classes="title")
                    yield Sparkline([], id="reward")
                    yield Static("Generated tokens/s", classes="title")
                    yield Sparkline([], id="throughput")
                with Vertical(classes="half"):
                    yield Static("Seconds of the last step", classes="title")
                    yield Static(id="phases", markup=False)
            with Horizontal(classes="row"):
                with Vertical(classes="half"):
                    yield Static("Held-out", classes="title")
                    yield _table("heldout", ("stage", "rows", "reward", "accuracy", "not parsed"))
                with Vertical(classes="half"):
                    yield Static("Actors", classes="title")
                    yield _table("actors", ("actor", "state", "calls", "log", "about"))
            with Vertical(classes="half"):
                yield Static("Last errors", classes="title")
                yield Static(id="errors", markup=False)
                yield Static("Last lines", classes="title")
                yield Static(id="lines", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.run_worker(self._follow())

    def action_look(self) -> None:
        self._now.set()

    async def _follow(self) -> None:
        """Show one snapshot after the other, taken in a thread, as a cluster may take seconds to answer."""
        # A snapshot may arrive when the screen has been taken down.
        with suppress(NoMatches):
            while True:
                try:
                    self.show(await asyncio.to_thread(self._look))
                except ValueError as error:
                    self._static("#head", Text(printable(str(error)), "bold red"))
                self._now.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._now.wait(), self._every_s)

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot."""
        self._static("#head", head(snapshot))
        self._rows("#steps", [_step(row) for row in reversed(snapshot.metrics)])
        self.query_one("#reward", Sparkline).data = snapshot.series("reward")
        self.query_one("#throughput", Sparkline).data = snapshot.series("generated_tokens_per_s")
        self._static("#phases", Text(bars(snapshot.phases)))
        self._rows("#heldout", [_heldout(result) for result in snapshot.heldout])
        self._rows("#actors", [_actor(actor) for actor in snapshot.actors])
        self._static("#errors", Text("\n".join(snapshot.errors) or "none", "red" if snapshot.errors else "dim"))
        self._static("#lines", Text("\n".join(snapshot.lines) or "none", "dim"))

    def _static(self, selector: str, text: Text) -> None:
        self.query_one(selector, Static).update(text)

    def _rows(self, selector: str, rows: Sequence[Row]) -> None:
        table = self.query_one(selector, DataTable)
        scrolled = table.scroll_offset
        table.clear()
        # Strings would be parsed as markup.
        table.add_rows([[Text(cell) for cell in row] for row in rows])
        table.scroll_to(*scrolled, animate=False)


def _table(name: str, columns: Sequence[str]) -> DataTable[Text]:
    table: DataTable[Text] = DataTable(id=name, cursor_type="none")
    table.add_columns(*columns)
    return table


# --- texts ----------------------------------------------------------------------------------------------------------


def head(snapshot: Snapshot) -> Text:
    """Return the first lines: name, model, state, step, and what the run is doing since when."""
    parts: list[str | tuple[str, str]] = [
        (snapshot.name, "bold"),
        f"  {snapshot.model}\n",
        (snapshot.state, COLOURS.get(snapshot.state, "yellow")),
    ]
    if snapshot.metrics:
        parts.append(f"  step {snapshot.step}" + (f" of {snapshot.steps}" if snapshot.is_rl else ""))
    if snapshot.restarts:
        parts.append(f"  restarts: {snapshot.restarts}")
    since = "" if snapshot.elapsed_s is None else duration(snapshot.elapsed_s)
    if snapshot.state == "running":
        parts.append(f"  {snapshot.doing}, for {since}")
    elif since:
        parts.append(f"  ended {since} ago" if snapshot.state != "killed" else f"  while {snapshot.doing}, begun {since} ago")
    seconds = snapshot.series("seconds/step")[-5:]
    if snapshot.state == "running" and snapshot.is_rl and seconds:
        parts.append(f"  ETA {duration((snapshot.steps - snapshot.step) * sum(seconds) / len(seconds))}")
    return Text.assemble(*parts)


def duration(seconds: float) -> str:
    """Return seconds as "12 s", "3:07" or "1:02:03"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def bars(seconds: dict[str, float]) -> str:
    """Return one line with a bar for each phase."""
    longest = max(seconds.values(), default=0.0)
    if longest <= 0:
        return "none yet"
    return "\n".join(f"{name.replace('_', ' '):18} {value:8.1f} {'█' * round(BAR * value / longest)}" for name, value in seconds.items())


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _step(row: dict[str, object]) -> Row:
    version, oldest = row.get("weight_version"), row.get("oldest_version")
    # The weights sent after the step are one version newer than those that it trained.
    lag = str(int(version) - 1 - int(oldest)) if isinstance(version, int) and isinstance(oldest, int) else ""
    groups = f"{_number(row.get('groups_unequal'), '.0f')}/{_number(row.get('groups'), '.0f')}" if "groups" in row else ""
    return [
        str(row["step"]),
        _number(row.get("reward"), "+.3f"),
        _number(row.get("accuracy"), ".1%"),
        _number(row.get("kl"), ".4f"),
        _number(row.get("entropy"), ".2f"),
        groups,
        _number(row.get("parse_failure_share"), ".1%"),
        lag,
        _number(row.get("generated_tokens_per_s"), ",.0f"),
        _number(row.get("seconds/step"), ".1f"),
    ]


def _heldout(result: Heldout) -> Row:
    return [result.stage, f"{result.rows:,}", f"{result.reward:+.3f}", f"{result.accuracy:.1%}", f"{result.failed:,}"]


def _actor(actor: Actor) -> Row:
    quiet = "" if actor.quiet_s is None else f"{duration(actor.quiet_s)} ago"
    return [actor.name, actor.state, actor.calls, quiet, actor.about]

"""What a person sees while pairs are judged."""

import time
from types import TracebackType
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from klqlit.judges.records import VALUES, Outcome


@final
class JudgingProgress:
    """A bar over all questions, with side A's running win rate beside it.

    Where the output is no terminal it prints one line now and then instead.

    Args:
        total: questions to judge, those that are known already included.
        shown: False for no output at all.
        interval: seconds between two lines where the output is no terminal.
    """

    def __init__(self, total: int, *, shown: bool, interval: float = 15.0) -> None:
        self.total = total
        self.interval = interval
        self._console = Console(quiet=not shown)
        self._judged = self._unreadable = self._failed = 0
        self._values: list[float] = []
        self._bar: Progress | None = None
        self._printed = time.monotonic()

    def add(self, outcomes: list[Outcome | None]) -> None:
        """A judgment, as side A's outcome in each pair that asked for it; None where it cannot be read."""
        self._judged += 1
        self._unreadable += None in outcomes
        self._values += [VALUES[outcome] for outcome in outcomes if outcome is not None]
        self._show()

    def fail(self, count: int) -> None:
        """Questions that got no answer."""
        self._failed += count
        self._show()

    def __enter__(self) -> "JudgingProgress":
        if self._console.is_terminal and not self._console.quiet:
            self._bar = Progress(
                TextColumn("[bold]judging"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("<"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
                console=self._console,
            )
            self._bar.add_task("judging", total=self.total, state="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print_line()

    @property
    def state(self) -> str:
        """Win rate, and what went wrong, in words."""
        parts = [f"A wins {100 * sum(self._values) / len(self._values):.1f} %"] if self._values else []
        parts += [f"{self._unreadable} unreadable"] if self._unreadable else []
        parts += [f"{self._failed} failed"] if self._failed else []
        return ", ".join(parts)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._judged, state=self.state)
        elif time.monotonic() - self._printed >= self.interval:
            self._print_line()

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        self._console.print(f"judged {self._judged}/{self.total}  {self.state}", highlight=False, soft_wrap=True)

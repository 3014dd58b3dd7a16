"""Callbacks that show what the training loop tells."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from loractr.training.events import Event, StageResult, StageStarted, Stepped, Validated


class ProgressBar:
    """Stage, epoch, rows/s, loss, last validation and time left, on standard error.

    A context manager that is also a callback. On something that is no terminal it prints one line
    per validation instead of a bar.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.validation = ""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case StageStarted():
                self._say(
                    f"stage {event.stage}: {event.rows:,} rows, {event.trainable:,} trained"
                    f" parameters, {event.optimizer}"
                )
                self._forget()
                self.validation = ""
                self.task = self.progress.add_task(event.stage, total=None, numbers="")
            case Stepped():
                if self.task is not None:
                    numbers = (
                        f"epoch {event.epoch:.2f}/{event.epochs:g},"
                        f" {event.rows_per_second:,.0f} rows/s, loss {event.loss:.4f}"
                    )
                    self.progress.update(
                        self.task,
                        completed=event.epoch,
                        total=event.epochs,
                        numbers=f"{numbers}{self.validation}",
                    )
            case Validated():
                value = "undefined" if event.value is None else f"{abs(event.value):.5f}"
                self.validation = f", {event.metric} {value}{' (best)' if event.best else ''}"
                where = f" [{event.domain}]" if event.domain else ""
                loss = "" if event.loss is None else f", loss {event.loss:.4f}"
                self._say(f"{event.stage}{where} epoch {event.epoch:.2f}{loss}{self.validation}")
            case StageResult():
                self._forget()

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)

    def _forget(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

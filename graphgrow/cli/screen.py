"""Where commands print: results on stdout, progress and what libraries say on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WIDE = 1000  # columns where no terminal tells: one row stays one line


class Screen:
    """One command's output: JSON, or text for people, or nothing with `quiet`."""

    def __init__(self, as_json: bool, quiet: bool) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out, self.err = _console(sys.stdout), _console(sys.stderr)

    def show(self, *parts: RenderableType) -> None:
        """Print for people."""
        if self.as_json or self.quiet:
            return
        with self.out.capture() as drawn:
            for part in parts:
                self.out.print(part)
        self.out.file.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))
        self.out.file.flush()

    def emit(self, value: dict[str, Any]) -> None:
        """Print the one JSON document, where it is asked for."""
        if self.as_json:
            self.out.file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
            self.out.file.flush()

    @contextmanager
    def working(self, text: str) -> Generator[None]:
        """Show on a terminal what is being done, and for how long."""
        if self.quiet or not self.err.is_terminal:
            yield
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        bar = Progress(SpinnerColumn("line"), TextColumn("{task.description}", markup=False), TimeElapsedColumn(),
                       console=self.err, transient=True, redirect_stdout=False, redirect_stderr=False)  # fmt: skip
        with bar:
            bar.add_task(text, total=None)
            yield

    @contextmanager
    def counting(self, text: str, total: int) -> Generator[Callable[[int], None]]:
        """Show on a terminal how many of so many bytes are done; gives what to tell further ones."""
        if self.quiet or not self.err.is_terminal:
            yield lambda count: None
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
                       TimeRemainingColumn(), console=self.err, transient=True, redirect_stdout=False,
                       redirect_stderr=False)  # fmt: skip
        with bar:
            task = bar.add_task(text, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def steps(self, text: str, total: int) -> Generator[Callable[[], None]]:
        """Show on a terminal how many of so many steps are done; gives what to call after each."""
        if self.quiet or not self.err.is_terminal:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                       TimeRemainingColumn(), console=self.err, transient=True, redirect_stdout=False,
                       redirect_stderr=False)  # fmt: skip
        with bar:
            task = bar.add_task(text, total=total)
            yield lambda: bar.advance(task)


def _console(file: Any) -> Console:
    from rich.console import Console

    class Plain(Console):
        """Brackets in names are brackets; a closed pipe is the door's business."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    width = None if file.isatty() or os.environ.get("COLUMNS") else _WIDE
    return Plain(file=file, width=width, markup=False, highlight=False, emoji=False)


@contextmanager
def screen(as_json: bool = False, quiet: bool = False) -> Generator[Screen]:
    """The screen of one command. What libraries and models themselves print goes to stderr, or nowhere if `quiet`."""
    found = Screen(as_json, quiet)
    with _other_output(quiet) as other, redirect_stdout(other), warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield found


@contextmanager
def _other_output(quiet: bool) -> Generator[TextIO]:
    """Where what is not ours goes. Loggers write to stderr as they were set up, and warn of nothing if `quiet`."""
    if not quiet:
        yield sys.stderr
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with Path(os.devnull).open("w") as nowhere:
            yield nowhere
    finally:
        logging.disable(before)

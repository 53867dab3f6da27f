"""How long an evaluation will take, told once after its first replies."""

import time
from collections.abc import Callable

FIRST = 32
"""Replies before the estimate, about a batch."""


class Pace:
    """Counts replies, each with its part of the work, and tells once how long the rest of `work` will take.

    The work of a request is the number of its examples and its query: a reply after eight shots takes about nine times
    one after none.
    """

    def __init__(self, work: float, *, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.left, self.tell, self.clock = work, tell, clock
        self.replies, self.finished = 0, 0.0
        self.start: float | None = None

    def skip(self, work: float) -> None:
        """Take out work that needs no reply any more."""
        self.left -= work

    def begin(self) -> None:
        """Start the clock, unless it runs."""
        if self.start is None:
            self.start = self.clock()

    def reply(self, work: float) -> None:
        """Count a reply."""
        self.replies, self.finished, self.left = self.replies + 1, self.finished + work, self.left - work
        if self.replies == FIRST and self.start is not None and self.left > 0:
            seconds = self.clock() - self.start
            rest = shown(seconds * self.left / self.finished)
            self.tell(f"{FIRST} replies in {shown(seconds)}: about {rest} for the rest")


def shown(seconds: float) -> str:
    """A duration for people to read."""
    if seconds < 90:
        return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"

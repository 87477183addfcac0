"""Virtual time: delays and schedules of a model are exact, and take no time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Clock"]


class Clock:
    """Milliseconds since the stack was made; only models and whoever drives them move it.

    Attributes:
        now: Milliseconds, from 0 on.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0

    def advance(self, milliseconds: int) -> None:
        """Let time pass.

        Raises:
            ValueError: Time does not go back.
        """
        if milliseconds < 0:
            message = f"time cannot pass backwards ({milliseconds} ms)"
            raise ValueError(message)
        self.now += milliseconds

    def together(self, requests: Iterable[Callable[[], None]]) -> None:
        """Do requests that are under way at once: each begins now, the slowest says when all are done.

        Raises:
            OSError: The last failure; all were tried.
        """
        failed: OSError | None = None
        begun = ended = self.now
        for request in requests:
            self.now = begun
            try:
                request()
            except OSError as error:
                failed = error
            ended = max(ended, self.now)
        self.now = ended
        if failed is not None:
            raise failed

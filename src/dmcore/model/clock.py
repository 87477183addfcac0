"""Virtual time: delays and schedules of a model are exact, and take no time."""

from __future__ import annotations

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

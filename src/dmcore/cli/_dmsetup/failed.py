"""The one error of dmsetup's verbs."""

from __future__ import annotations

__all__ = ["Failed"]


class Failed(Exception):
    """A verb failed; its reasons are for stderr, worded as dmsetup words them.

    Args:
        lines: The reasons.

    Attributes:
        lines: The same.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    def __str__(self) -> str:
        return "\n".join(self.lines)

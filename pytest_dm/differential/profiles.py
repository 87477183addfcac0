"""How many examples a differential run tries, and where failing ones are kept.

Profiles: `dev` 20, `ci` 200, `campaign` 20,000 examples; `--dm-profile` takes one of them or a number.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dm import backend

if TYPE_CHECKING:
    from hypothesis import settings
    from hypothesis.database import ExampleDatabase

__all__ = ["FOLDER", "GUEST_FOLDER", "SHRINK_SECONDS", "ShrinkLimit", "database", "make_settings"]

SHRINK_SECONDS = 15.0
"""How long hypothesis may look for a smaller example after the first Divergence of a test."""

FOLDER = Path(".hypothesis") / "examples"
"""Where failing examples are kept, from the project's root: hypothesis' own place."""
GUEST_FOLDER = "examples"
"""Folder of a guest's exchange from which the host takes them at the end of the session."""


def database(root: Path) -> ExampleDatabase:
    """Return the example database of a project; a guest, whose file system is thrown away, hands new ones to its host."""
    from hypothesis.database import (
        DirectoryBasedExampleDatabase,
        MultiplexedDatabase,
        ReadOnlyDatabase,
    )

    kept = DirectoryBasedExampleDatabase(root / FOLDER)
    exchange = os.environ.get("PYTEST_DM_EXCHANGE")
    if not (backend.in_guest() and exchange):
        return kept
    return MultiplexedDatabase(
        DirectoryBasedExampleDatabase(Path(exchange) / GUEST_FOLDER), ReadOnlyDatabase(kept)
    )


def make_settings(examples: int, root: Path) -> settings:
    """Return hypothesis' settings for differential runs.

    No deadline, since a kernel is at work; no phase of explanations, which traces every line after the first failure and
    makes shrinking many times slower.
    """
    from hypothesis import HealthCheck, Phase, settings

    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    checks += [HealthCheck.large_base_example, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples,
        deadline=None,
        database=database(root),
        suppress_health_check=checks,
        phases=[phase for phase in Phase if phase is not Phase.explain],
    )


class ShrinkLimit:
    """Lets hypothesis look for a smaller example for `SHRINK_SECONDS` only, while it is set; by itself it takes minutes.

    Hypothesis has no setting for that, but a constant of its engine, which it reads as it begins to shrink.
    """

    _NAME = "MAX_SHRINKING_SECONDS"

    def __init__(self) -> None:
        self._before: float | None = None

    def set(self) -> None:
        """Set it, before shrinking begins."""
        from hypothesis.internal.conjecture import engine

        found = getattr(engine, self._NAME, None)
        if self._before is None and found is not None:
            self._before = found
            setattr(engine, self._NAME, min(found, SHRINK_SECONDS))

    def reset(self) -> None:
        """Let hypothesis have its own limit again."""
        from hypothesis.internal.conjecture import engine

        if self._before is not None:
            setattr(engine, self._NAME, self._before)
            self._before = None

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

__all__ = ["FOLDER", "GUEST_FOLDER", "database", "make_settings"]

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
    """Return hypothesis' settings for differential runs: no deadline, since a kernel is at work."""
    from hypothesis import HealthCheck, settings

    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    checks += [HealthCheck.large_base_example, HealthCheck.function_scoped_fixture]
    return settings(
        max_examples=examples, deadline=None, database=database(root), suppress_health_check=checks
    )

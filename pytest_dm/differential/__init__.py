"""Differential testing: one script on a kernel and on the models of its targets, and every difference told.

`pytest_dm.fixtures.dm_pair` is the way in; nothing here is imported before a test asks for it.
"""

from __future__ import annotations

__all__: list[str] = []

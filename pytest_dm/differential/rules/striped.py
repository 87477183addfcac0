"""striped: as its own strategy draws it."""

from __future__ import annotations

from pytest_dm.differential.rule import Rule

__all__ = ["RULE"]

RULE = Rule()

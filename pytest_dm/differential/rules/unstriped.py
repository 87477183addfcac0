"""unstriped: as its own strategy draws it, chunks behind the end of the device included."""

from __future__ import annotations

from pytest_dm.differential.rule import Rule

__all__ = ["RULE"]

RULE = Rule()

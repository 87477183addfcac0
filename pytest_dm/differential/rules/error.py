"""error: with a device that it ignores or without, where the kernel knows both."""

from __future__ import annotations

from pytest_dm.differential.rule import Rule

__all__ = ["RULE"]

RULE = Rule()

"""One file per target: how its lines are drawn for a differential run. Found by scanning; `NAME.py` defines `RULE`."""

from __future__ import annotations

__all__: list[str] = []

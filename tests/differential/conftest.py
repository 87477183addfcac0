"""The lab of the tests of targets, for tests that want more than `dm_pair`."""

from __future__ import annotations

from lab import _lab, lab  # noqa: F401

"""Tests' devices without a kernel: models behind the same handles."""

__all__: list[str] = []

"""Crash exploration from a test: record what a workload writes, mount the states a power cut could leave, check each."""

__all__: list[str] = []

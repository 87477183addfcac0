"""Crash exploration: what a power cut could have left on a disk, from a log of what was written.

The way of a log: `log` (a recorded log and what the device held before) -> `epochs` (at each instant: what must be
there, what may be) -> `states` (which of that is there; each has an id) -> `materialise` (an image of it) -> `checkers`
(file system, then the user's oracle) -> `explore` (all of them, over the cores) -> `minimise`, `words` (the smallest
proof, said in words).
"""

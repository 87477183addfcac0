"""Recordings kept on disk: what a failing check leaves, to be explored again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dmcore.errors import DmError
from pytest_dm.crash.recording import Recording, copy_used

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["keep", "load"]

_DESCRIPTION = "recording.json"


def keep(recording: Recording, folder: Path, states: Sequence[str] = ()) -> None:
    """Write base image, log and times of a recording into a folder, with a description beside them.

    Args:
        recording: The recording.
        folder: Made if it is not there; what an earlier run left there is replaced.
        states: Ids of the states that failed, for people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, source, length in (
        ("base.img", recording.base, recording.size),
        ("log", recording.log, recording.log_bytes),
    ):
        target = folder / name
        with target.open("wb") as file:
            file.truncate(max(length, source.stat().st_size) if name == "base.img" else source.stat().st_size)
        copy_used(source, target)
        os.truncate(target, length)
    if recording.times is not None:
        shutil.copyfile(recording.times, folder / "times")
    words: dict[str, Any] = {
        field.name: getattr(recording, field.name)
        for field in fields(recording)
        if field.name not in ("base", "log", "final", "times")
    }
    words["failing_states"] = list(states)
    (folder / _DESCRIPTION).write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Recording:
    """Return a recording that was kept.

    Raises:
        DmError: There is none.
    """
    try:
        words = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"no kept recording in {folder}: {error}"
        raise DmError(message) from error
    words.pop("failing_states", None)
    times = folder / "times"
    try:
        return Recording(
            base=folder / "base.img", log=folder / "log", final=folder / "base.img",
            times=times if times.exists() else None, **words,
        )  # fmt: skip
    except TypeError as error:
        message = f"{folder / _DESCRIPTION} is of another version: {error}"
        raise DmError(message) from error

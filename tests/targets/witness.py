"""Note what the tests get from the kernel: which targets it loads, which statuses it reports, which messages it takes.

`forms` says what there is to see of a target; `tests/tools/support_table.py` makes the table of what was seen.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import typing
from collections.abc import Iterator
from typing import Self

import dmcore.kernel.device as device_module
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.model.target import ModelTarget
from dmcore.target import Message, NoStatus, Status, Target

PROPERTY = "dm_seen"
"""JUnit property of a test: words `loads:TARGET`, `status:TARGET:FORM`, `message:CLASS`, `models:TARGET`."""


def messages(kind: type[Target]) -> tuple[str, ...]:
    """Return the names of a target's typed messages."""
    module = sys.modules[kind.__module__]
    found = (getattr(module, name) for name in module.__all__)
    return tuple(sorted(one.__name__ for one in found if isinstance(one, type) and issubclass(one, Message)))


def _parts(hint: object) -> Iterator[type]:
    """Yield the classes that a type hint is made of."""
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    for part in typing.get_args(hint):
        yield from _parts(part)


def _hints(owner: object) -> dict[str, object]:
    return typing.get_type_hints(owner, vars(sys.modules[owner.__module__]) | {"Status": Status})


def _forms_of(kind: type, seen: set[type]) -> Iterator[str]:
    """Yield what a status can say: its class, members of enumerations, what may be true, and what may be None and is not."""
    if kind in seen:
        return
    seen.add(kind)
    if issubclass(kind, enum.Enum):
        yield from (f"{kind.__name__}.{member.name}" for member in kind)
    elif dataclasses.is_dataclass(kind):
        if issubclass(kind, Status) and kind is not NoStatus:
            yield kind.__name__
        hints = _hints(kind)
        for field in dataclasses.fields(kind):
            parts = list(_parts(hints[field.name]))
            if bool in parts or (
                type(None) in parts and not any(issubclass(part, enum.Enum) for part in parts)
            ):
                yield f"{kind.__name__}.{field.name}"
            for part in parts:
                yield from _forms_of(part, seen)


def forms(kind: type[Target]) -> tuple[str, ...]:
    """Return every form that a target's status can have, sorted; none for one without anything to report."""
    hint = _hints(kind.parse_status)["return"]
    classes = list(_parts(hint)) if isinstance(hint, types.UnionType) else [hint]
    found: set[str] = set()
    seen: set[type] = set()
    for one in classes:
        assert isinstance(one, type)
        found.update(_forms_of(one, seen))
    return tuple(sorted(found))


def shown(value: object) -> Iterator[str]:
    """Yield the forms that one status shows."""
    if isinstance(value, enum.Enum):
        yield f"{type(value).__name__}.{value.name}"
    elif isinstance(value, tuple):
        for item in value:
            yield from shown(item)
    elif dataclasses.is_dataclass(value):
        if isinstance(value, Status) and not isinstance(value, NoStatus):
            yield type(value).__name__
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if content is not None and content is not False:
                yield f"{type(value).__name__}.{field.name}"
            yield from shown(content)


class Witness:
    """While it is entered, all that `Control` and `Device` get from the kernel is noted, and which models are made; `take` gives it."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def take(self) -> str:
        """Return what was seen since the last call, as words."""
        words, self._seen = self._seen, set()
        return " ".join(sorted(words))

    def __enter__(self) -> Self:
        self._kept = Control.load, device_module._statuses, Device.send, ModelTarget.__init__
        load, statuses, send, model = self._kept
        seen = self

        def noted_load(control, selector, lines, **words):
            answer = load(control, selector, lines, **words)
            seen._seen.update(f"loads:{line.type}" for line in lines)
            return answer

        def noted_statuses(lines, found):
            answer = statuses(lines, found)
            for line, status in zip(lines, answer, strict=True):
                seen._seen.update(f"status:{line.type}:{form}" for form in shown(status))
            return answer

        def noted_send(device, message, sector=0):
            answer = send(device, message, sector)
            seen._seen.add(f"message:{type(message).__name__}")
            return answer

        def noted_model(made, target, context):
            model(made, target, context)
            seen._seen.add(f"models:{target.kernel_type}")

        ModelTarget.__init__ = noted_model  # type: ignore[method-assign]
        Control.load = noted_load  # type: ignore[method-assign]
        device_module._statuses = noted_statuses
        Device.send = noted_send  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Control.load, device_module._statuses, Device.send, ModelTarget.__init__ = self._kept  # type: ignore[method-assign]

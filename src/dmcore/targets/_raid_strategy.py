"""Hypothesis strategy for raid sets that run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dmcore.targets._raid_types import Raid10Format, RaidType, Sync

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Space
    from dmcore.targets.raid import Raid, RaidDevice

__all__ = ["sets"]

_LEAST = {0: 2, 1: 2, 4: 3, 5: 3, 6: 4, 10: 2}
_MOST = 6
_CHUNKS = (8, 16, 32, 128)
_INT_MAX = 2**31 - 1


def _shapes(length: int, devices: int) -> list[tuple[RaidType, int, int, int]]:
    """Return kind, number of devices, chunk and copies of all sets that the length fits."""
    found: list[tuple[RaidType, int, int, int]] = []
    for kind in RaidType:
        if kind.level == 1:
            found += [(kind, count, 0, 1) for count in range(2, min(devices, _MOST) + 1)]
            continue
        for count in range(_LEAST[kind.level], min(devices // (2 if kind.level == 10 else 1), _MOST) + 1):
            for copies in range(2, count + 1) if kind.level == 10 else (1,):
                part, odd = divmod(length * copies, count - kind.parity)
                found += [(kind, count, chunk, copies) for chunk in _CHUNKS if not odd and part % chunk == 0]
    return found


def sets(
    make: type[Raid], device: Callable[[Ref | None, Ref | None], RaidDevice], space: Space
) -> SearchStrategy[Raid]:
    """Return the strategy behind `Raid.strategy`."""
    from hypothesis import strategies as st

    fit = [ref for ref, size in space.refs.items() if size >= space.length]
    shapes = _shapes(space.length, len(fit))

    @st.composite
    def values(draw: st.DrawFn) -> Raid:
        kind, count, chunk, copies = draw(st.sampled_from(shapes))
        refs = draw(st.permutations(fit))
        fields: dict[str, Any] = {}
        with_meta = kind.level == 10 or (len(refs) >= 2 * count and draw(st.booleans()))
        data: list[Ref | None] = list(refs[:count])
        metas: list[Ref | None] = list(refs[count : 2 * count]) if with_meta else [None] * count
        if kind.level:
            _add_common(draw, fields, chunk, space.length)
            fields["sync"] = _sync(draw, kind)
            if kind.level != 10 and fields["sync"] is None:
                index = draw(st.none() | st.integers(0, count - 1))
                if index is not None and not with_meta and draw(st.booleans()):
                    data[index] = None
                elif index is not None and kind.level == 1:
                    fields["rebuild"] = (index,)
        if kind.level == 1:
            mostly = st.sets(st.integers(0, count - 1), max_size=count - 1)
            fields["write_mostly"] = tuple(sorted(draw(mostly)))
            fields["max_write_behind"] = draw(st.sampled_from([None, 0]))  # halved whenever it is printed
        if kind.parity:
            fields["stripe_cache"] = draw(st.none() | st.integers(17, 512))
        if kind.level == 10:
            fields["raid10_copies"] = copies
            fields["raid10_format"] = draw(st.none() | st.sampled_from(Raid10Format))
        return make(kind=kind, chunk=chunk, devices=tuple(map(device, data, metas)), **fields)

    return values() if shapes else st.nothing()


def _sync(draw: st.DrawFn, kind: RaidType) -> Sync | None:
    """Draw what to believe: a new raid10 set takes no `sync`, level 6 no `nosync`."""
    from hypothesis import strategies as st

    known = {6: [Sync.SYNC], 10: [Sync.NOSYNC]}.get(kind.level, list(Sync))
    return draw(st.none() | st.sampled_from(known))


def _add_common(draw: st.DrawFn, fields: dict[str, Any], chunk: int, length: int) -> None:
    from hypothesis import strategies as st

    fields["daemon_sleep"] = draw(st.none() | st.integers(1, _INT_MAX))
    rates = sorted(draw(st.lists(st.integers(0, _INT_MAX), min_size=2, max_size=2)))
    fields["min_recovery_rate"], fields["max_recovery_rate"] = (
        rate if draw(st.booleans()) else None for rate in rates
    )
    regions = [1 << bit for bit in range(21) if chunk <= 1 << bit <= length]
    fields["region_size"] = draw(st.none() | st.sampled_from(regions)) if regions else None

"""An independent look at metadata: every block is referred to as often as the space map says."""

from __future__ import annotations

from collections import Counter

from dmcore.formats.persistent_data import Reader, SpaceMapRoot


def references(reader: Reader, roots: list[tuple[int, int, object]], counts: Counter[int]) -> None:
    """Count references of btrees: `(root, value size, below)`, `below` gives the blocks or trees that a value refers to."""
    todo = list(roots)
    while todo:
        root, size, below = todo.pop()
        counts[root] += 1
        if counts[root] > 1:
            continue
        node = reader.node(root, size)
        if not node.leaf:
            todo += [(child, size, below) for child in node.children]
        elif below is not None:
            todo += below(node, counts) or []


def array_blocks(node, counts: Counter[int]) -> None:
    counts.update(node.children)


def audit(
    disk, space_map: SpaceMapRoot, roots: list[tuple[int, int, object]], *, more: tuple[int, ...] = ()
) -> None:
    """Compare all counts of the space map with what refers to each block."""
    reader = Reader(disk)
    found = reader.counts(space_map)
    counts: Counter[int] = Counter([0, space_map.bitmaps, *(block for block, _, _ in found.index), *more])
    references(reader, [(space_map.counts, 4, None), *roots], counts)
    stored = {
        number: found.large[number] if small == 3 else small
        for number, small in enumerate(found.small)
        if small
    }
    assert stored == dict(counts)

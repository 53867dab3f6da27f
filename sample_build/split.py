"""What is held out: whole groups of pictures and pages that show or say the same, never a part of one.

Two items are of one group when they share a key (the same stored bytes, the same caption in any language, the
same emoji in another skin tone) or hold pictures that look alike; and so on from item to item. So no picture and no
caption of a test store can stand in a training store.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mm1.prepare.dedup import LOOK_ALIKE_BITS


@dataclass(frozen=True, slots=True)
class Item:
    """Something to be held out whole: its name, the keys it shares with its likes, its pictures' fingerprints."""

    id: str
    keys: frozenset[str]
    prints: frozenset[int]


def groups(items: Sequence[Item]) -> list[list[int]]:
    """Positions of the items of each group, groups in the order of their first item."""
    parent = list(range(len(items)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    owner: dict[str | int, int] = {}
    for position, item in enumerate(items):
        keys: set[str | int] = {*item.keys, *item.prints}
        for key in keys:
            join(position, owner.setdefault(key, position))
    prints = sorted({print_ for item in items for print_ in item.prints})
    for one, other in look_alikes(prints, prints):
        join(owner[one], owner[other])
    members: dict[int, list[int]] = {}
    for position in range(len(items)):
        members.setdefault(root(position), []).append(position)
    return list(members.values())


def look_alikes(these: Iterable[int], those: Iterable[int]) -> list[tuple[int, int]]:
    """The pairs (one of these, one of those) within `LOOK_ALIKE_BITS` bits of each other."""
    left = np.array(sorted(set(these)), dtype=np.uint64)
    right = np.array(sorted(set(those)), dtype=np.uint64)
    pairs = []
    for one in left:
        near = right[np.bitwise_count(right ^ one) <= LOOK_ALIKE_BITS]
        pairs += [(int(one), int(other)) for other in near]
    return pairs


def held_out(
    items: Sequence[Item], whole: Iterable[Sequence[int]], *, wanted: int, largest: int, seed: int
) -> frozenset[str]:
    """Ids of at least `wanted` items (fewer only when there are no more), out of the groups `whole`.

    Groups are taken in the order of a seeded hash of their first id. Groups of more than `largest` items are never
    held out: one of them would be the whole test.
    """
    ranked = sorted(
        (hashlib.sha256(f"{seed}/{items[group[0]].id}".encode()).digest(), group)
        for group in whole
        if len(group) <= largest
    )
    taken: list[str] = []
    for _, group in ranked:
        if len(taken) >= wanted:
            break
        taken += [items[position].id for position in group]
    return frozenset(taken)

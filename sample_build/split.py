"""Splits off the test set: pictures and pages that show or say the same are held out as whole groups.

Two items belong to one group if they share a key (the same stored bytes, the same caption in any language, the same
emoji in another skin tone) or have pictures that look alike, directly or through other items. So no picture and no
caption of a test store is in a training store.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mm1.prepare.dedup import LOOK_ALIKE_BITS


@dataclass(frozen=True, slots=True)
class Item:
    """A picture or a page: its name, the keys that it may share with others, the fingerprints of its pictures."""

    id: str
    keys: frozenset[str]
    fingerprints: frozenset[int]


def find_groups(items: Sequence[Item]) -> list[list[int]]:
    """The positions of the items of each group; groups are in the order of their first item."""
    parent = list(range(len(items)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def unite(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    owner: dict[str | int, int] = {}
    for position, item in enumerate(items):
        keys: set[str | int] = {*item.keys, *item.fingerprints}
        for key in keys:
            unite(position, owner.setdefault(key, position))
    fingerprints = sorted({fingerprint for item in items for fingerprint in item.fingerprints})
    for one, other in look_alikes(fingerprints, fingerprints):
        unite(owner[one], owner[other])
    members: dict[int, list[int]] = {}
    for position in range(len(items)):
        members.setdefault(root(position), []).append(position)
    return list(members.values())


def look_alikes(left: Iterable[int], right: Iterable[int]) -> list[tuple[int, int]]:
    """The pairs of fingerprints (one of each argument) that differ in at most `LOOK_ALIKE_BITS` bits."""
    others = np.array(sorted(set(right)), dtype=np.uint64)
    pairs = []
    for one in np.array(sorted(set(left)), dtype=np.uint64):
        near = others[np.bitwise_count(others ^ one) <= LOOK_ALIKE_BITS]
        pairs += [(int(one), int(other)) for other in near]
    return pairs


def held_out(
    items: Sequence[Item], groups: Iterable[Sequence[int]], *, at_least: int, largest: int, seed: int
) -> frozenset[str]:
    """The ids of at least `at_least` items, in whole groups (fewer items only if there are no more).

    Groups are held out in the order of a seeded hash of their first id. Groups of more than `largest` items never are:
    one of them would fill the test set.
    """
    ranked = sorted(
        (hashlib.sha256(f"{seed}/{items[group[0]].id}".encode()).digest(), group)
        for group in groups
        if len(group) <= largest
    )
    ids: list[str] = []
    for _, group in ranked:
        if len(ids) >= at_least:
            break
        ids += [items[position].id for position in group]
    return frozenset(ids)

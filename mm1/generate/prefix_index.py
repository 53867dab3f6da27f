"""Which rows of a cache begin alike: hashes of blocks of positions, each chained to those before it.

After vLLM's automatic prefix caching (https://docs.vllm.ai). There a match is a number of blocks; here blocks only find
the rows, whose contents are then compared position by position.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

MIN_SHARED = 16
"""Positions of a block: from so many in common, copying their keys and values, or waiting for them, is worthwhile."""


def block_keys(content: np.ndarray, *, salt: int = 0, known: Sequence[bytes] = ()) -> list[bytes]:
    """A key for each whole block of a content; `known` are those of its first blocks.

    A key is the hash of the block and of the key before it, the first one's of the salt. So equal keys stand for equal
    beginnings, and contents of different salts have no key in common.
    """
    keys, data = list(known), np.ascontiguousarray(content, np.int64).tobytes()
    size = 8 * MIN_SHARED
    for start in range(len(keys) * size, len(data) - size + 1, size):
        before = keys[-1] if keys else salt.to_bytes(8)
        keys.append(hashlib.blake2b(before + data[start : start + size], digest_size=16).digest())
    return keys


def whole_blocks(positions: int) -> int:
    """How many whole blocks so many positions have."""
    return positions // MIN_SHARED


class PrefixIndex:
    """The rows that hold each block: finding those that share the most takes as long for many rows as for one."""

    def __init__(self, rows: int):
        self._keys: list[list[bytes]] = [[] for _ in range(rows)]
        self._rows: dict[bytes, set[int]] = {}

    def keys(self, row: int) -> Sequence[bytes]:
        """The keys of the row's blocks."""
        return self._keys[row]

    def put(self, row: int, keys: Sequence[bytes]) -> None:
        """Let the row hold these blocks and no others."""
        for key in self._keys[row]:
            holders = self._rows[key]
            holders.discard(row)
            if not holders:
                del self._rows[key]
        self._keys[row] = list(keys)
        for key in keys:
            self._rows.setdefault(key, set()).add(row)

    def cut(self, row: int, positions: int) -> None:
        """Let the row hold only what lies in its first `positions`."""
        if whole_blocks(positions) < len(self._keys[row]):
            self.put(row, self._keys[row][: whole_blocks(positions)])

    def swap(self, row: int, other: int) -> None:
        """Exchange what two rows hold."""
        keys, others = self._keys[row], self._keys[other]
        self.put(row, others)
        self.put(other, keys)

    def rows(self, keys: Sequence[bytes]) -> list[int]:
        """The rows that share the most first blocks with these keys; none if no row shares one."""
        shared, beyond = 0, len(keys) + 1
        while beyond - shared > 1:
            middle = (shared + beyond) // 2
            if keys[middle - 1] in self._rows:
                shared = middle
            else:
                beyond = middle
        return sorted(self._rows[keys[shared - 1]]) if shared else []

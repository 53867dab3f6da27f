"""Merges the shards into stores: copies of earlier documents and repeated pictures are removed."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mm1.data.store import Store, write_store
from mm1.document import Document, Image
from mm1.prepare.card import PrepareResult
from mm1.prepare.dedup import find_copies, first_64_bits, load_hashes, repeated_images
from mm1.prepare.images import sha256

_DOCUMENTS_IN_MEMORY = 16


def merge(shards: Sequence[Path], to: Path, *, max_image_repeats: int, failed: dict[str, str]) -> PrepareResult:
    """What was kept and dropped; the folder `to` then holds the stores `images` and `text`, each if it has documents.

    Raises:
        ValueError: no document is left.
    """
    drops = sum((Counter(json.loads((shard / "drops.json").read_text())) for shard in shards), Counter[str]())
    read = {"documents": drops.pop("read", 0), "pictures": drops.pop("pictures read", 0)}
    hashes = load_hashes(shards, to / "minhash")
    if not len(hashes.exact):
        raise ValueError(f"no document is left; left out: {_listed(drops)}; failed: {_listed(failed)}")
    copies = find_copies(hashes)
    drops["copy of an earlier document"] += len(copies.exact)
    drops["near copy of an earlier document"] += len(copies.near)
    repeated = repeated_images(hashes, max_image_repeats) if max_image_repeats else np.zeros(0, np.uint64)
    removed = np.isin(hashes.images, repeated)
    drops[f"picture in more than {max_image_repeats} documents"] += int(removed.sum())
    documents = len(hashes.exact)
    owner = np.repeat(np.arange(documents), hashes.image_counts)
    images_left = np.bincount(owner[~removed], minlength=documents)
    kept = np.ones(documents, bool)
    kept[copies.exact] = kept[copies.near] = False
    stores = {}
    for name, mask in (("images", kept & (images_left > 0)), ("text", kept & (images_left == 0))):
        if mask.any():
            stores[name] = write_store(_masked(shards, mask, frozenset(repeated.tolist())), to / f"{name}.lance")
    (to / "minhash").unlink()
    return PrepareResult(stores, dict(sorted((+drops).items())), failed, read)


def _listed(entries: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in sorted(entries.items())) or "nothing"


def _masked(shards: Sequence[Path], mask: np.ndarray, repeated: frozenset[int]) -> Iterator[Document]:
    """The documents of all shards that the mask keeps, in order, without the repeated pictures."""
    start = 0
    for shard in shards:
        store = Store(shard / "documents.lance")
        positions = np.flatnonzero(mask[start : start + len(store)])
        start += len(store)
        for at in range(0, len(positions), _DOCUMENTS_IN_MEMORY):
            for document in store.take(positions[at : at + _DOCUMENTS_IN_MEMORY].tolist()):
                yield _without_images(document, repeated) if repeated else document


def _without_images(document: Document, repeated: frozenset[int]) -> Document:
    pieces = (p for p in document.pieces if not (isinstance(p, Image) and first_64_bits(sha256(p.data)) in repeated))
    return replace(document, pieces=tuple(pieces))

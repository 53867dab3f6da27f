"""What the parts give together: copies of earlier documents and pictures that repeat are gone."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mm1.data.store import Store, write_store
from mm1.document import Document, Image
from mm1.prepare.card import Prepared
from mm1.prepare.dedup import copies, joined, number, repeated_pictures
from mm1.prepare.images import sha256

_AT_ONCE = 16  # documents in memory at a time


def join(parts: Sequence[Path], to: Path, *, max_image_repeats: int, failed: dict[str, str]) -> Prepared:
    """What lies in the folder `to` afterwards: the stores `images` and `text`, each where it has documents.

    Raises:
        ValueError: no document is left.
    """
    drops = sum((Counter(json.loads((part / "drops.json").read_text())) for part in parts), Counter[str]())
    before = {"documents": drops.pop("read", 0), "pictures": drops.pop("pictures read", 0)}
    prints = joined(parts, to / "words")
    if not len(prints.exact):
        raise ValueError(f"no document is left; left out: {_listed(drops)}; failed: {_listed(failed)}")
    found = copies(prints)
    drops["copy of an earlier document"] += len(found.exact)
    drops["near copy of an earlier document"] += len(found.near)
    gone = repeated_pictures(prints, max_image_repeats) if max_image_repeats else np.zeros(0, np.uint64)
    hidden = np.isin(prints.bytes, gone)
    drops[f"picture in more than {max_image_repeats} documents"] += int(hidden.sum())
    owner = np.repeat(np.arange(len(prints.pictures)), prints.pictures)
    shown = np.bincount(owner[~hidden], minlength=len(prints.pictures))
    kept = np.ones(len(prints.exact), bool)
    kept[found.exact] = kept[found.near] = False
    stores = {}
    for name, mask in (("images", kept & (shown > 0)), ("text", kept & (shown == 0))):
        if mask.any():
            stores[name] = write_store(_taken(parts, mask, frozenset(gone.tolist())), to / f"{name}.lance")
    (to / "words").unlink()
    return Prepared(stores, dict(sorted((+drops).items())), failed, before)


def _listed(found: dict[str, int] | dict[str, str] | Counter[str]) -> str:
    return ", ".join(f"{name}: {said}" for name, said in sorted(found.items())) or "nothing"


def _taken(parts: Sequence[Path], mask: np.ndarray, gone: frozenset[int]) -> Iterator[Document]:
    """The documents of all parts that the mask keeps, in order, without the pictures that go."""
    start = 0
    for part in parts:
        store = Store(part / "documents.lance")
        wanted = np.flatnonzero(mask[start : start + len(store)])
        start += len(store)
        for at in range(0, len(wanted), _AT_ONCE):
            for document in store.take(wanted[at : at + _AT_ONCE].tolist()):
                yield _without(document, gone) if gone else document


def _without(document: Document, gone: frozenset[int]) -> Document:
    pieces = (p for p in document.pieces if not (isinstance(p, Image) and number(sha256(p.data)) in gone))
    return replace(document, pieces=tuple(pieces))

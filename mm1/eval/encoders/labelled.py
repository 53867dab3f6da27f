"""Pictures with a category, to learn from and to be asked about: the sample's, or an ImageNet-like folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mm1.data.store import open_store
from mm1.document import Image

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"}
HELD_OUT = ("val", "validation", "test")
"""Folders of the pictures that are asked about; the first one that is there."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures by position, read when they are used, and the category of each as an index."""

    sources: Sequence[Path | Image]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, numbers: Sequence[int]) -> list[Image]:
        """The pictures of these positions."""
        sources = [self.sources[number] for number in numbers]
        return [Image(source.read_bytes()) if isinstance(source, Path) else source for source in sources]

    def drawn(self, limit: int, *, seed: int) -> "Pictures":
        """At most `limit` of them, drawn by the seed."""
        if len(self) <= limit:
            return self
        numbers = np.sort(np.random.default_rng((seed, 1)).permutation(len(self))[:limit])
        return Pictures([self.sources[number] for number in numbers], self.labels[numbers])


@dataclass(frozen=True, slots=True)
class Labelled:
    """Pictures to learn categories from, others to be asked about, and the names of the categories."""

    train: Pictures
    held_out: Pictures
    names: list[str]
    origin: str

    def limited(self, limit: int, *, seed: int) -> "Labelled":
        """The same with at most `limit` pictures to be asked about."""
        return replace(self, held_out=self.held_out.drawn(limit, seed=seed))

    @property
    def majority(self) -> float:
        """How often the most frequent category of `train` is right, in percent."""
        most = np.bincount(self.train.labels, minlength=len(self.names)).argmax()
        return 100 * float((self.held_out.labels == most).mean())


def read_labelled(data: str) -> Labelled:
    """The categories of the folder `data`, with `train/CATEGORY/*` and `val/CATEGORY/*`; empty: those of the sample.

    Raises:
        ValueError: the folder has no such pictures, or a category to be asked about that is not learned.
    """
    if not data:
        stores = (_of_store(f"sample:captions-{part}") for part in ("train", "test"))
        return _labelled(*stores, origin="the sample's captions")
    folder = Path(data)
    held_out = next((folder / name for name in HELD_OUT if (folder / name).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        raise ValueError(
            f"{data} is no folder of categories: expected train/CATEGORY/PICTURE and val/CATEGORY/PICTURE in it"
        )
    return _labelled(list(_of_folder(folder / "train")), list(_of_folder(held_out)), origin=data)


def _labelled(
    train: list[tuple[str, Path | Image]], held_out: list[tuple[str, Path | Image]], *, origin: str
) -> Labelled:
    names = sorted({name for name, _ in train})
    if unknown := sorted({name for name, _ in held_out} - set(names)):
        raise ValueError(f"{origin} asks about the category {unknown[0]!r}, of which train has no picture")
    if not held_out or len(names) < 2:
        raise ValueError(f"{origin} has {len(names)} categories and {len(held_out)} pictures to be asked about")
    index = {name: number for number, name in enumerate(names)}

    def pictures(part: list[tuple[str, Path | Image]]) -> Pictures:
        return Pictures([source for _, source in part], np.array([index[name] for name, _ in part]))

    return Labelled(pictures(train), pictures(held_out), names, origin)


def _of_store(store: str) -> list[tuple[str, Path | Image]]:
    """Each document's picture with its group. What stands after a slash is a part of a group."""
    documents = open_store(store).scan()
    return [(document.metadata["group"].partition("/")[0], document.images[0]) for document in documents]


def _of_folder(folder: Path) -> Iterator[tuple[str, Path | Image]]:
    for path in sorted(folder.glob("*/**/*")):
        if path.suffix.lower() in ENDINGS:
            yield path.relative_to(folder).parts[0], path

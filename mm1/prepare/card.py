"""The card of prepared stores: what is in them, what was left out and why, and twenty documents to look at."""

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
from mm1.prepare.filters.text_filters import language_of

_SHOWN = 20
_MEASURED = 400  # documents that are looked at closely
_FEWEST_WORDS = 10  # of a text whose language can be told
_LONGEST_SHOWN = 3000  # characters of a text piece on the page


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came out: documents by store, what was left out by reason, the parts that failed and why, the input."""

    stores: dict[str, int]
    drops: dict[str, int]
    failed: dict[str, str]
    before: dict[str, int]


def write_card(folder: Path, prepared: Prepared, *, title: str) -> dict:
    """The card, which lies in the folder beside its stores afterwards: card.json and card.html."""
    said = card_of(folder, prepared)
    (folder / "card.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "card.html").write_text(page_of(folder, said, title=title), encoding="utf-8")
    return said


def card_of(folder: Path, prepared: Prepared) -> dict:
    """What the stores of a folder hold, and what was left out.

    Counts are read back from the stores, so that they say what is there. A text is counted whole; pictures are opened,
    and languages told where documents don't say theirs, in 400 documents of a store, drawn by a fixed seed.
    """
    stores = {name: _store_card(Store(folder / f"{name}.lance")) for name in prepared.stores}
    return {
        "stores": stores,
        "read": prepared.before,
        "kept": {
            "documents": sum(store["documents"] for store in stores.values()),
            "pictures": sum(store["images"] for store in stores.values()),
        },
        "dropped": prepared.drops,
        "failed": prepared.failed,
    }


def page_of(folder: Path, card: dict, *, title: str) -> str:
    """The card as an HTML page, with twenty documents of the folder's stores drawn by a fixed seed."""
    environment = Environment(
        loader=PackageLoader("mm1.prepare", "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    documents = _drawn([Store(folder / f"{name}.lance") for name in card["stores"]])
    return environment.get_template("card.html").render(title=title, card=card, documents=documents)


def _store_card(store: Store) -> dict:
    words, images = array("q"), array("q")  # eight bytes a document, whatever the store's size
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
        "words_a_document": _spread(words),
        "images_a_document": {str(count): found for count, found in sorted(Counter(images).items())},
        **_looked_at(store),
        "licences": dict(licences.most_common(50)),
        "sources": dict(sources.most_common(50)),
    }


def _spread(values: Iterable[int]) -> dict[str, int]:
    """The smallest, the tenths that tell, and the largest; empty without values."""
    ordered = sorted(values)
    if not ordered:
        return {}
    places = {"least": 0.0, "tenth": 0.1, "median": 0.5, "nine tenths": 0.9, "most": 1.0}
    return {name: ordered[round(place * (len(ordered) - 1))] for name, place in places.items()}


def _positions(store: Store, count: int) -> list[int]:
    return sorted(random.Random(f"card {len(store)}").sample(range(len(store)), min(count, len(store))))


def _looked_at(store: Store) -> dict:
    """Pictures' sizes and languages, of some documents drawn by a fixed seed."""
    sides, languages = [], Counter[str]()
    for position in _positions(store, _MEASURED):
        document = store.take([position])[0]
        for image in document.images:
            with PIL.Image.open(io.BytesIO(image.data)) as picture:
                sides.append(max(picture.size))
        languages[document.metadata.get("language") or _language(document.text)] += 1
    return {"pixels_of_the_longer_side": _spread(sides), "languages_drawn": dict(languages.most_common())}


def _language(text: str) -> str:
    return language_of(text) if len(text.split()) >= _FEWEST_WORDS else "too short to tell"


def _drawn(stores: list[Store]) -> list[dict]:
    """Twenty documents of all stores for the page, as many of each as there are in it by chance."""
    whole = sum(map(len, stores))
    drawn = sorted(random.Random(f"card {whole}").sample(range(whole), min(_SHOWN, whole)))
    starts = list(accumulate(map(len, stores), initial=0))
    shown = []
    for place_of_all in drawn:
        at = bisect_right(starts, place_of_all) - 1
        store, position = stores[at], place_of_all - starts[at]
        document = store.take([position])[0]
        items = [asdict(item) for item in page_items(document)]
        for item in items:
            if item["kind"] == "token" and len(item["text"]) > _LONGEST_SHOWN:
                item["text"] = item["text"][:_LONGEST_SHOWN] + " …"
        facts = {"store": Path(store.path).name, "row": str(position), **document.metadata}
        shown.append({"id": document.id, "facts": facts, "items": items})
    return shown

"""Captioned pictures: 3-D emoji with their labels, clip art with its cleaned titles.

Each source has one style. Emoji keep the label of Emojibase ("woman farmer: medium skin tone"); clip art has its title
in lower case, without file extensions, counters and names of authors ("fall coloured leaf").
"""

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mm1.document import Document
from mm1.prepare.images import PictureError, encode_webp, open_picture
from sample_build.pictures import Picture, crop, render_svg, square
from sample_build.sources import EMOJIBASE, FLUENT, OPENCLIPART, WORD_LIST

SIDE = 128
"""Pixels of a captioned picture, width and height."""

QUALITY = 65
"""WebP quality: the lowest at which the drawn faces of emoji stay clean (1.3 kB a picture)."""

LANGUAGES = ("fr", "de", "es", "it", "pt", "nl", "pl", "sv", "da")
"""Languages of gallery labels besides English."""

_TITLE_WORDS = 8
_DESCRIPTION_WORDS = range(3, 13)
_TITLE_REPEATS = 10
_COLLECTION = re.compile(r"^(clipart by|aiga[_ ]symbol)", re.IGNORECASE)
_EXTENSION = re.compile(r"\.(svg|png|jpe?g|wmf|eps|ai)$", re.IGNORECASE)
_COUNTER = re.compile(
    r"#\d+$|\s\d+(?=\s(?:filled )?pattern$)|(?<=[a-z])\d+$|\b0\d+\b|\s[-#]?\s*\d+$|\b(?:no|nr|v|ver)\.?\s*\d+$"
)
_NOT_A_CAPTION = re.compile(
    r"@|http|www\.|inkscape|sodipodi|svg|eps|convert|vectori[sz]|clip ?art|\bopen ?source|illustrator|gimp|license"
    r"|public domain|submission|sibmission|\bicons?\b|theme|collection|\bpart of\b|created|drawn|made|untitled"
    r"|enjoy|panic|have you|what's up|\br1[56]\b|[;:]\)|this is|image|picture|\bnice\b",
    re.IGNORECASE,
)


_UNFIT = re.compile(r"\b(sexy|stripper|nude|naked|babe|erotic|pantyhose|lingerie|dead|nazi|swastika|confederate)\b")


def emoji_pictures(cache: Path, drops: Counter[str]) -> Iterator[Picture]:
    """Every 3-D emoji that has a label, in all skin tones, in the order of the Unicode charts."""
    data = EMOJIBASE.folder(cache) / "package"
    files = {hexcode(path.stem): path for path in (FLUENT.folder(cache) / "package" / "assets").glob("*.webp")}
    names = json.loads((data / "meta/groups.json").read_text(encoding="utf-8"))["subgroups"]
    labels = {language: _labels(data / language / "data.json") for language in LANGUAGES}
    labelled = set()
    for base in json.loads((data / "en/data.json").read_text(encoding="utf-8")):
        for emoji in [base, *base.get("skins", [])]:
            code = hexcode(emoji["hexcode"])
            labelled.add(code)
            if code not in files or "subgroup" not in emoji:
                drops["fluent-emoji-3d: label without a picture"] += 1
                continue
            try:
                picture = square(crop(open_picture(files[code].read_bytes())), side=SIDE)
            except PictureError as error:
                drops[f"fluent-emoji-3d: {error}"] += 1
                continue
            yield Picture(
                id=f"fluent-emoji-3d/{code}",
                source=FLUENT,
                data=encode_webp(picture, quality=QUALITY),
                caption=emoji["label"].strip(),
                group=names[str(emoji["subgroup"])],
                family=f"emoji/{hexcode(base['hexcode'])}",
                tags=tuple(base.get("tags", ())),
                labels={name: table[code] for name, table in labels.items() if code in table},
            )
    drops["fluent-emoji-3d: picture without a label"] += len(files.keys() - labelled)


def english_words(cache: Path, documents: Iterable[Document]) -> frozenset[str]:
    """The words that count as English: those of a word list, and those (mostly names) that 3 of the documents use."""
    path = WORD_LIST.folder(cache) / "usr/share/dict/american-english"
    listed = words_of(path.read_text(encoding="utf-8"))
    users = Counter(word for document in documents for word in set(words_of(document.text)))
    return frozenset(listed) | {word for word, count in users.items() if count >= 3}


def clip_art_pictures(cache: Path, drops: Counter[str], *, english: frozenset[str]) -> Iterator[Picture]:
    """The drawings of the Open Clip Art Library whose title says in English words what is drawn."""
    root = OPENCLIPART.folder(cache) / "usr/share/openclipart/svg"
    files = sorted(path for path in root.rglob("*.svg") if not path.is_symlink())
    described = {path: _described(path.read_bytes()) for path in files}
    repeats = Counter(title for title, _, _, _ in described.values())
    for path, (title, description, tags, creator) in described.items():
        try:
            caption = _clip_art_caption(path.stem, title, description, repeats=repeats, english=english)
            if path.stat().st_size > 4_000_000:
                raise PictureError("drawing of more than 4 MB")
            if "/flags/" in path.as_posix() and "flag" not in words_of(caption):
                caption = f"flag: {caption}"  # as Emojibase writes it
            picture = square(crop(render_svg(path.read_bytes(), side=2 * SIDE)), side=SIDE)
        except PictureError as error:
            drops[f"openclipart: {error}"] += 1
            continue
        name = path.relative_to(root)
        yield Picture(
            id=f"openclipart/{name.with_suffix('')}",
            source=OPENCLIPART,
            data=encode_webp(picture, quality=QUALITY),
            caption=caption,
            group="/".join(name.parts[:-1][:2]),
            family=f"openclipart/{name}",
            tags=tags,
            creator=creator,
        )


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without digits and punctuation."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold())


def _clip_art_caption(
    stem: str, title: str, description: str, *, repeats: Counter[str], english: frozenset[str]
) -> str:
    if _COLLECTION.match(title):  # the title names the collection, the file name says what is drawn
        title = re.sub(r"^aiga[_ ]", "", stem)
    elif not title:
        raise PictureError("empty caption")
    elif repeats[title] > _TITLE_REPEATS:
        raise PictureError("title of a whole collection")
    caption = _clean(title)
    words = words_of(caption)
    if not words or _NOT_A_CAPTION.search(title) or max(map(len, words)) < 3:
        raise PictureError("title that describes nothing")
    if _UNFIT.search(f"{caption} {description.casefold()}"):
        raise PictureError("title that is not fit for everybody")
    if len(words) > _TITLE_WORDS:
        raise PictureError("title of more than 8 words")
    if not english.issuperset(words):
        raise PictureError("title with words not known as English")
    detail = _clean(description).rstrip(".")
    detail_words = words_of(detail)
    fits = len(detail_words) in _DESCRIPTION_WORDS and english.issuperset(detail_words)
    if fits and not _NOT_A_CAPTION.search(description) and set(words) < set(detail_words):
        return detail  # it has all words of the title, and more
    return caption


def _clean(text: str) -> str:
    """The text in one line, in lower case, without extension, counters, underscores and stray punctuation."""
    text = _EXTENSION.sub("", " ".join(html.unescape(text).replace('"', "").split()))
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", text).replace("_", " ").casefold()
    if " " not in text:
        text = text.replace("-", " ")
    for _ in range(2):
        text = _COUNTER.sub("", " ".join(text.split())).strip(" -_.,;:#'\"")
    return re.sub(r"\s+([,.;:!?])", r"\1", text)


def _described(svg: bytes) -> tuple[str, str, tuple[str, ...], str]:
    """Title, description, keywords and author of a drawing, from its RDF block; empty if it has none."""
    from lxml import etree

    parser = etree.XMLParser(recover=True, huge_tree=True, resolve_entities=False, no_network=True)
    try:
        tree = etree.fromstring(svg, parser)
    except etree.XMLSyntaxError:
        tree = None
    work = None if tree is None else next(tree.iter("{*}Work"), None)
    if work is None:
        return "", "", (), ""

    def text(path: str) -> str:
        element = work.find(path)
        return "" if element is None else " ".join(" ".join(element.itertext()).split())

    tags = tuple(tag for item in work.iter("{*}li") if (tag := (item.text or "").strip()) not in ("", "hash"))
    creator = re.sub(r"\S*@\S*", "", text("{*}creator")).strip(" ,;-()")  # a name gives credit, an address does not
    return text("{*}title"), text("{*}description"), tags, creator


def _labels(path: Path) -> dict[str, str]:
    """The labels of one language by code points, skin tones included."""
    labels = {}
    for base in json.loads(path.read_text(encoding="utf-8")):
        for emoji in [base, *base.get("skins", [])]:
            labels[hexcode(emoji["hexcode"])] = emoji["label"].strip()
    return labels


def hexcode(code: str) -> str:
    """The code points in the form that both packages share: lower case, without the variation selector."""
    return code.lower().replace("-fe0f", "")

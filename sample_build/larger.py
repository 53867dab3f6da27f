"""The sources of the larger set only: captioned pictures and a long text that are built but not shipped."""

import html
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mm1.document import Document, Text
from mm1.prepare.images import PictureError, encode_webp, open_picture
from sample_build.captions import LANGUAGES, QUALITY, SIDE, hexcode
from sample_build.pictures import Picture, crop, render_svg, square
from sample_build.sources import BIBLE, FRITZING, OPENMOJI, TUXPAINT, WESNOTH

_SENTENCE_WORDS = 30
_UNIT = re.compile(r"\[unit_type\](.*?)\[/unit_type\]", re.DOTALL)


def larger_pictures(cache: Path, drops: Counter[str]) -> Iterator[Picture]:
    """The captioned pictures of OpenMoji, Tux Paint, Fritzing and Wesnoth."""
    yield from openmoji_pictures(cache, drops)
    yield from tuxpaint_pictures(cache, drops)
    yield from fritzing_pictures(cache, drops)
    yield from wesnoth_pictures(cache, drops)


def openmoji_pictures(cache: Path, drops: Counter[str]) -> Iterator[Picture]:
    """Flat emoji with their annotation, in one family with the 3-D emoji of the same code point."""
    package = OPENMOJI.folder(cache) / "package"
    for emoji in json.loads((package / "data/openmoji.json").read_text(encoding="utf-8")):
        path = package / "color/svg" / f"{emoji['hexcode']}.svg"
        try:
            if not emoji["annotation"] or not path.is_file():
                raise PictureError("annotation without a picture, or none")
            data = _encoded(render_svg(path.read_bytes(), side=2 * SIDE))
        except PictureError as error:
            drops[f"{OPENMOJI.name}: {error}"] += 1
            continue
        yield Picture(
            id=f"openmoji/{hexcode(emoji['hexcode'])}",
            source=OPENMOJI,
            data=data,
            caption=emoji["annotation"].strip(),
            group=emoji["subgroups"],
            family=f"emoji/{hexcode(emoji['skintone_base_hexcode'] or emoji['hexcode'])}",
            tags=tuple(tag.strip() for tag in emoji["tags"].split(",") if tag.strip()),
            creator=emoji["openmoji_author"],
        )


def tuxpaint_pictures(cache: Path, drops: Counter[str]) -> Iterator[Picture]:
    """Stamps (photo cut-outs and drawings) with the English line of their description, and its translations."""
    root = TUXPAINT.folder(cache) / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.txt")):
        name = path.relative_to(root).with_suffix("").as_posix()
        files = [path.with_suffix(ending) for ending in (".png", ".svg") if path.with_suffix(ending).is_file()]
        if not files or re.search(r"_(mirror|flip)", name):
            drops[f"{TUXPAINT.name}: mirrored twin, or text without a picture"] += 1
            continue
        first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        translations = dict(line.split(".utf8=", 1) for line in others if ".utf8=" in line)
        try:
            if not first.strip():
                raise PictureError("empty caption")
            raw = files[0].read_bytes()
            image = open_picture(raw) if files[0].suffix == ".png" else render_svg(raw, side=2 * SIDE)
            data = _encoded(image)
        except PictureError as error:
            drops[f"{TUXPAINT.name}: {error}"] += 1
            continue
        yield Picture(
            id=f"tuxpaint-stamps/{name}",
            source=TUXPAINT,
            data=data,
            caption=" ".join(first.split()),
            group="/".join(name.split("/")[:2][:-1]) or name.split("/")[0],
            family=f"tuxpaint-stamps/{name}",
            labels={
                code: " ".join(translations[code].split()) for code in LANGUAGES if translations.get(code, "").strip()
            },
        )


def fritzing_pictures(cache: Path, drops: Counter[str]) -> Iterator[Picture]:
    """Electronic parts as they look on a breadboard, with title and first sentence of their description."""
    from lxml import etree

    root = FRITZING.folder(cache) / "usr/share/fritzing/parts"
    for path in sorted([*root.glob("core/*.fzp"), *root.glob("contrib/*.fzp")]):
        try:
            part = etree.fromstring(path.read_bytes(), etree.XMLParser(recover=True, resolve_entities=False))
            view = None if part is None else part.find("views/breadboardView/layers")
            drawing = root / "svg" / path.parent.name / ("" if view is None else view.get("image", ""))
            if part is None or not drawing.is_file():
                raise PictureError("part without a breadboard drawing")
            title = " ".join((part.findtext("title") or "").split())
            caption = _described(title, _plain(part.findtext("description") or ""))
            data = _encoded(render_svg(drawing.read_bytes(), side=2 * SIDE, lettering=False))
        except PictureError as error:
            drops[f"{FRITZING.name}: {error}"] += 1
            continue
        tags = tuple(tag.text.strip() for tag in part.iterfind("tags/tag") if tag.text and tag.text.strip())
        yield Picture(
            id=f"fritzing-parts/{path.parent.name}/{path.stem}",
            source=FRITZING,
            data=data,
            caption=caption,
            group=tags[0].casefold() if tags else "part",
            family=f"fritzing-parts/{title.casefold()}",
            tags=tags,
        )


def wesnoth_pictures(cache: Path, drops: Counter[str]) -> Iterator[Picture]:
    """Units of the game, as sprite and as portrait, with name and first sentence of their description."""
    core = WESNOTH.folder(cache) / "usr/share/games/wesnoth/1.16/data/core"
    for path in sorted((core / "units").rglob("*.cfg")):
        for block in _UNIT.findall(path.read_text(encoding="utf-8", errors="replace")):
            name = _value(block, "name")
            for key in ("image", "profile"):
                try:
                    path_in_images = _value(block, key).split("~")[0]
                    file = core / "images" / path_in_images
                    if not path_in_images or not file.is_file():
                        raise PictureError("unit without this picture")
                    caption = _described(name, " ".join(_value(block, "description").split()))
                    data = _encoded(open_picture(file.read_bytes()))
                except PictureError as error:
                    drops[f"{WESNOTH.name}: {error}"] += 1
                    continue
                yield Picture(
                    id=f"wesnoth/{path.stem}/{name}/{key}",
                    source=WESNOTH,
                    data=data,
                    caption=caption,
                    group=path.parent.name,
                    family=f"wesnoth/{name}",
                )


def bible_books(cache: Path, drops: Counter[str]) -> Iterator[Document]:
    """One document per book of the World English Bible, one paragraph per line, without notes.

    The book is a zText module of SWORD: an index of (offset, size, unpacked size) of zlib blocks, one block per book.
    """
    folder = BIBLE.folder(cache) / "usr/share/sword/modules/texts/ztext/engWEB2015eb"
    for testament in ("ot", "nt"):
        index = (folder / f"{testament}.bzs").read_bytes()
        blocks = (folder / f"{testament}.bzz").read_bytes()
        for number, (start, size, _) in enumerate(struct.iter_unpack("<III", index)):
            text = _verses(zlib.decompress(blocks[start : start + size]).decode("utf-8", "replace"))
            if len(text.split()) < 100:
                drops[f"{BIBLE.name}: block without a book"] += 1
                continue
            yield Document(
                (Text(text + "\n"),),
                id=f"{BIBLE.name}/{testament}/{number}",
                source=BIBLE.name,
                metadata=BIBLE.metadata(group=testament),
            )


def _verses(osis: str) -> str:
    osis = re.sub(r"<note\b.*?</note>|<title\b.*?</title>", " ", osis, flags=re.DOTALL)
    osis = re.sub(r"<(?:div|lb|lg)\b[^>]*>", "\n", osis)
    lines = (" ".join(line.split()) for line in html.unescape(re.sub(r"<[^>]+>", "", osis)).split("\n"))
    return "\n".join(line for line in lines if line)


def _encoded(image) -> bytes:
    return encode_webp(square(crop(image), side=SIDE), quality=QUALITY)


def _described(title: str, description: str) -> str:
    """`title: first sentence of the description`; a description that is missing or too long is refused."""
    sentence = re.split(r"(?<=[.!?])\s", description.strip(), maxsplit=1)[0]
    if not title:
        raise PictureError("empty caption")
    if not 3 <= len(sentence.split()) <= _SENTENCE_WORDS:
        raise PictureError("description of fewer than 3 or more than 30 words in its first sentence")
    return sentence if sentence.casefold().startswith(title.casefold()) else f"{title}: {sentence}"


def _plain(markup: str) -> str:
    """The text of a description, which may be HTML."""
    markup = re.sub(r"<(style|head)\b.*?</\1>", " ", markup, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def _value(block: str, key: str) -> str:
    """The first value of a key of Wesnoth's markup language: bare, quoted or marked for translation."""
    match = re.search(rf'^\s*{key}\s*=\s*(?:_\s*)?(?:"((?:[^"]|"")*)"|([^\n#]*))', block, re.MULTILINE)
    return "" if match is None else (match[1] if match[1] is not None else match[2]).replace('""', '"').strip()

"""Gallery pages: several pictures, each followed by its label; all lines of a page have one style.

The style of a page (wording, language, with or without tags) is known only from the lines before. Such pages teach a
model to continue as the page began, which is what few-shot prompting needs.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.text_hashes import normalize_text
from sample_build.pictures import Picture
from sample_build.sources import Source

_FEWEST, _MOST = 6, 12  # pictures of a page
_ASSORTED = "assorted"  # instead of the source, in the name of a page that shows several


@dataclass(frozen=True, slots=True)
class Style:
    """The form of a page's lines: `{label}` in `language`, `{LABEL}` in capitals, `{tags}`, and `{number}` from 1."""

    line: str
    language: str = "en"


PLAIN = Style(" A photo of {label}\n")
"""The line of the paper's few-shot captioning prompt, with the label of the caption stores; most pages have it."""

STYLES = (
    Style("{label}\n"),
    Style(" {label}.\n"),
    Style(" Picture: {label}.\n"),
    Style(" Caption: {label}\n"),
    Style(" What is this? {label}.\n"),
    Style(" This shows {label}.\n"),
    Style(" {LABEL}\n"),
    Style(" {number}. {label}\n"),
    Style(' "{label}"\n'),
    Style(" -> {label};\n"),
    Style(" {label} (tags: {tags})\n"),
    Style(" tags: {tags}\n"),
    Style(" Un dessin : {label}\n", "fr"),
    Style(" {label}\n", "fr"),
    Style(" Ein Bild: {label}\n", "de"),
    Style(" {label}\n", "de"),
    Style(" Un dibujo: {label}\n", "es"),
    Style(" {label}\n", "es"),
    Style(" Un disegno: {label}\n", "it"),
    Style(" {label}\n", "it"),
    Style(" Um desenho: {label}\n", "pt"),
    Style(" {label}\n", "pt"),
    Style(" Een tekening: {label}\n", "nl"),
    Style(" Rysunek: {label}\n", "pl"),
    Style(" En bild: {label}\n", "sv"),
    Style(" Et billede: {label}\n", "da"),
)


def galleries(pictures: Sequence[Picture], pages: int, *, seed: int, avoid: frozenset[str]) -> Iterator[Document]:
    """Gallery pages; page n is a pure function of (pictures, seed, n).

    Six pages of eight have the paper's line and mix pictures of all kinds and sources, as the shots of a prompt do: a
    model that saw each source by itself only scored lower with every shot. One page of eight mixes the pictures of one
    source, in any style. One page of eight shows one pool (a folder or subgroup, or several of one theme); the pools
    take turns, so that small ones count as much as large ones. On those the labels before tell much of the next label,
    and a model trained on such pages only would read the labels and ignore the picture.

    avoid   normalized texts about held-out pictures (see `normalize_text`): such a tag is left out
    """
    pools = _pools(pictures)
    names = sorted(pools)
    by_source: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_source.setdefault(picture.source.name, []).append(picture)
    random.Random(f"{seed}/order").shuffle(names)
    for number in range(pages if names else 0):
        draw = random.Random(f"{seed}/{number}")
        if number % 8 == 0:
            name = names[number // 8 % len(names)]
            pool = draw.sample(pools[name], len(pools[name]))
        else:
            name = draw.choice(sorted(by_source)) if number % 8 == 1 else _ASSORTED
            candidates = pictures if name == _ASSORTED else by_source[name]
            pool = draw.sample(candidates, min(len(candidates), 64))
        style = PLAIN if number % 8 > 1 else _fitting_style(pool, draw)
        count = draw.randint(_FEWEST, _MOST)
        selected = _distinct(pool, style, count=count, avoid=avoid)
        if len(selected) < _FEWEST:  # too few of them have tags
            style = PLAIN
            selected = _distinct(pool, style, count=count, avoid=avoid)
        pieces: list[Piece] = []
        for position, (picture, line) in enumerate(selected, start=1):
            pieces += [Image(picture.data), Text(line.replace("{number}", str(position)))]
        yield Document(
            tuple(pieces),
            id=f"gallery/{number}/{name}",
            source=f"{name.partition('/')[0]}-galleries",
            metadata=credits_of([picture for picture, _ in selected])
            | {"group": name, "style": style.line.strip("\n"), "language": style.language},
        )


def credits_of(pictures: Sequence[Picture]) -> dict[str, str]:
    """Licence, attribution and package of a document with these pictures: each source once, with all its authors."""
    creators: dict[Source, set[str]] = {}
    for picture in pictures:
        creators.setdefault(picture.source, set()).add(picture.creator)
    sources = []
    for source in sorted(creators, key=lambda source: source.name):
        names = ", ".join(sorted(creators[source] - {""}))
        sources.append(source.metadata(attribution=f"{source.attribution}: {names}" if names else source.attribution))
    separators = {"licence": " AND ", "attribution": "; ", "package": "; "}
    joined = {key: mark.join(dict.fromkeys(source[key] for source in sources)) for key, mark in separators.items()}
    return sources[0] | joined


def theme(picture: Picture) -> str:
    """The theme of the picture: the top folder of clip art, the first word of an emoji's subgroup."""
    return f"{picture.source.name}/" + picture.group.split("/")[0].split("-")[0]


def _pools(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    pools: dict[str, list[Picture]] = {}
    for picture in pictures:
        for name in {f"{picture.source.name}/{picture.group}", theme(picture)}:
            pools.setdefault(name, []).append(picture)
    return {name: pool for name, pool in pools.items() if len({picture.caption for picture in pool}) >= _FEWEST}


def _fitting_style(pool: list[Picture], draw: random.Random) -> Style:
    """A style for which every picture of the pool has the label and the tags."""
    fitting = [
        style
        for style in STYLES
        if (style.language == "en" or all(style.language in picture.labels for picture in pool))
        and ("{tags}" not in style.line or all(len(picture.tags) > 1 for picture in pool))
    ]
    return draw.choice(fitting)


def _distinct(pool: list[Picture], style: Style, *, count: int, avoid: frozenset[str]) -> list[tuple[Picture, str]]:
    """The first `count` pictures whose lines differ, each with its line."""
    selected: dict[str, tuple[Picture, str]] = {}
    for picture in pool:
        label = picture.caption if style.language == "en" else picture.labels[style.language]
        tags = [tag for tag in picture.tags if normalize_text(tag) not in avoid][:4]
        if "{tags}" in style.line and not tags:
            continue
        line = style.line.replace("{label}", label).replace("{LABEL}", label.upper())
        line = line.replace("{tags}", ", ".join(tags))
        selected.setdefault(line, (picture, line))
        if len(selected) == count:
            break
    return list(selected.values())

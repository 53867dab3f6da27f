"""A web page of any site -> its main content: text, and the addresses of its images, in reading order.

The content is what the page itself marks as such (`main`, `role=main`, `article`), or else its body. Navigation is
removed from it by tag and role, by class and id, and by the share of a block's text that is links (Kohlschuetter et al.
2010, https://dl.acm.org/doi/10.1145/1718487.1718542); so are links to the previous and next page, and the last lines
that speak of the page itself. Only a tag removes a block that holds a large part of the text: a wrapper may have any
class. docs/pages.md compares this with three libraries.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from urllib.parse import urljoin

from mm1.document import Text
from mm1.prepare.html.encoding import decode_page
from mm1.prepare.html.image_address import (
    complete_pictures,
    hoist_unscripted_images,
    image_address,
    show_embedded_pictures,
)
from mm1.prepare.html.walk import Element, Piece, parse, walk

_NEVER_CONTENT = frozenset(
    (
        *("script", "style", "nav", "footer", "button", "noscript", "svg", "math", "iframe", "object", "select"),
        *("input", "textarea", "template", "head", "dialog"),
    )
)
_BLOCKS = frozenset(
    (
        *("div", "section", "article", "header", "aside", "form", "ul", "ol", "dl", "li", "p", "address", "label"),
        *("table", "tbody", "tr", "td", "th", "hr"),
    )
)
_NAVIGATION_ROLES = frozenset(
    ("navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar", "dialog", "doc-toc")
)
_CONTROL_CLASS = re.compile(  # at any element, inside the content too
    r"headerlink|viewcode-(link|back)|linenos?|copy-?(button|btn)|permalink|anchor-link|mw-editsection|sr-only"
    r"|visually-hidden|screen-reader-text|ttc|dyn(header|content)"
)
_NAVIGATION_WORD = re.compile(  # between the hyphens of a class or id
    r"[a-z]*nav|navbar|navigation|nav(header|footer|path)|menu(bar)?|breadcrumbs?|sidebar|footer|toc(tree|frame|title|\d)?"
    r"|pagination|pager|cookies?|newsletter|advert(isement)?s?"
)
_NAVIGATION_NAME = re.compile(  # a whole class or id; the last ones are those that Doxygen and Sphinx-Gallery write
    r"(site|page|main|global|top|bottom|left|right)?[-_]?"
    r"(header|side-bar|banner|ads?|share|social|related|comments|skip-link|prev-next(-area|-bottom)?|contents?-list"
    r"|search-?box|languages)"
    r"|titlearea|sphx-glr-(download\S*|footer\S*|signature|timing)"
)
_NOTE_NAME = re.compile(r".*(footnote|admonition|callout|note|citation|topic).*")  # an aside that is content
_LINK_LISTS = frozenset(("ul", "ol", "dl", "div", "table", "p", "section"))
_FEWEST_LINKS, _LINK_SHARE = 4, 0.75
_SENTENCE_LENGTH = 40  # characters without a link in them: menus have no such text
_PAGER_WORDS = frozenset(
    (
        *("prev", "previous", "next", "up", "back", "top", "home", "first", "last", "index", "contents"),
        *("tutorial", "chapter", "page", "section", "article", "post", "lesson", "part"),
    )
)
_LONGEST_PAGER = 300  # characters
_LONGEST_NAME = 200  # characters of a class or id
_ABOUT_THE_PAGE = re.compile(
    r"(©|\(c\) |copyright (©|\(c\)|by\b|\d{4})|all rights reserved|powered by|generated (on|by|at)|page last"
    r"|created (using|with)|built with|last (updated|modified|edited|changed)|valid x?html).{0,300}"
    r"|.{0,300} trademarks? of .{0,300}",
    re.IGNORECASE,
)
_EMBEDDED = re.compile(
    r"(?<=[\"'])data:image/[\w.+-]{1,40};base64,[a-z0-9+/=\s%]{256,}"
    r"|data:image/[\w.+-]{1,40};base64,[a-z0-9+/=%]{256,}",
    re.IGNORECASE,
)
_CONTROL_CHARACTERS = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # a text has none
_LARGE_SHARE = 0.4  # of the text outside links
_DEEPEST = 200  # levels: nobody writes more, but hostile pages do
_LARGEST, _MOST_ELEMENTS = 16 * 2**20, 500_000  # characters, elements: twice those of the largest page of the manuals
_MAIN_IDS = ("content", "main", "main-content", "maincontent")


class PageError(ValueError):
    """A page that is not read; the message is the reason, in a few words, under which it is counted."""


@dataclass(slots=True)
class _Weight:
    """What an element holds: characters outside and inside links, links, images, headings, the title (h1).

    `longest` is the longest text outside links that no element interrupts. `tag` is kept since lxml gives it slowly.
    """

    tag: str
    prose: int = 0
    linked: int = 0
    links: int = 0
    images: int = 0
    longest: int = 0
    has_heading: bool = False
    has_title: bool = False

    def add(self, inner: "_Weight") -> None:
        """Adds the weight of a child."""
        self.prose += inner.prose
        self.linked += inner.linked
        self.links += inner.links
        self.images += inner.images
        self.longest = max(self.longest, inner.longest)
        self.has_heading = self.has_heading or inner.has_heading
        self.has_title = self.has_title or inner.has_title


Weights = dict[Element, _Weight]
"""The weight of every element that may be content, inner elements first. Missing: what never is, by tag or depth."""


def main_content(page: bytes, base: str, *, charset: str = "") -> list[Piece]:
    """The page's main content in reading order; empty if there is none, or nothing that can be parsed.

    `base` is the page's own address, to which the addresses of its images are relative unless the page says otherwise.
    `charset` is what the HTTP header says of its encoding.

    Raises:
        PageError: more bytes or elements than any page has that a person reads.
    """
    text, embedded = _without_embedded(decode_page(page, charset=charset))
    head = text[:4096]
    if len(_CONTROL_CHARACTERS.findall(head)) > 8 + len(head) // 50:
        raise PageError("page that is binary, no text")
    if len(text) > _LARGEST:
        raise PageError(f"page of more than {_LARGEST >> 20} MB")
    root = parse(text)
    body = None if root is None else root.find("body")
    if root is None or body is None:
        return []
    for tag in body.iter("amp-img", "image"):
        tag.tag = "img"
    complete_pictures(body)
    show_embedded_pictures(body)
    hoist_unscripted_images(body)
    if sum(1 for _ in islice(body.iter(), _MOST_ELEMENTS + 1)) > _MOST_ELEMENTS:
        raise PageError(f"page of more than {_MOST_ELEMENTS:,} elements")
    weights: Weights = {}
    _weigh(body, weights, depth=0, linked=False)
    main = _main_element(body, weights)
    weight = weights[main]
    if weight.prose + weight.linked < 40 and not weight.images:
        return []
    title = " ".join((root.findtext(".//title") or "").split())
    navigation = _Navigation(weights, weight.prose, title)
    base = _base(root, base)
    pieces = walk(main, skips=navigation.contains, image_of=lambda image: image_address(image, base))
    return [_with_embedded(piece, embedded) for piece in _without_last_lines(pieces)]


def _base(root: Element, address: str) -> str:
    """The address to which those of a page are relative."""
    base = next((element.get("href") for element in root.iter("base") if element.get("href")), "")
    try:
        return urljoin(address, base.strip())
    except ValueError:
        return address


def _without_embedded(page: str) -> tuple[str, list[str]]:
    """The page with a short mark for each long picture that it holds itself, and their `data:` addresses.

    A notebook holds megabytes of them, and libxml2 bounds an attribute.
    """
    embedded: list[str] = []
    if "data:image/" not in page:
        return page, embedded

    def shorten(match: re.Match[str]) -> str:
        embedded.append(match[0])
        return f"data:image/x-mm1,{len(embedded) - 1}"

    return _EMBEDDED.sub(shorten, page), embedded


def _with_embedded(piece: Piece, embedded: list[str]) -> Piece:
    """The piece with its `data:` addresses written out again."""
    if isinstance(piece, Text) or not embedded:
        return piece
    urls = []
    for url in (piece.url, *piece.others):
        mark = re.fullmatch(r"data:image/x-mm1,(\d{1,9})", url)
        urls.append(embedded[int(mark[1])] if mark and int(mark[1]) < len(embedded) else url)
    return replace(piece, url=urls[0], others=tuple(urls[1:]))


def _weigh(element: Element, weights: Weights, *, depth: int, linked: bool) -> _Weight:
    """The weight of the element, which is put into `weights` along with those of its descendants."""
    text, tag = element.text or "", element.tag
    weight = _Weight(tag)
    size = longest = len(text.strip())
    if tag == "a" and element.get("href") and not text.startswith("http"):  # an address that is spelt out is content
        linked, weight.links = True, 1
    weight.images = int(tag == "img")
    weight.has_title, weight.has_heading = tag == "h1", tag in ("h1", "h2", "h3")
    for child in element:
        if isinstance(child.tag, str) and child.tag not in _NEVER_CONTENT and depth < _DEEPEST:
            weight.add(_weigh(child, weights, depth=depth + 1, linked=linked))
        tail = len((child.tail or "").strip())
        size += tail
        longest = max(longest, tail)
    if linked:
        weight.linked += size
    else:
        weight.prose += size
        weight.longest = max(weight.longest, longest)
    weights[element] = weight
    return weight


def _main_element(body: Element, weights: Weights) -> Element:
    """The element that the page marks as its content if it holds a third of the text, else the body."""
    by_role, by_tag, articles, by_id = [], [], [], []
    for element, weight in weights.items():
        if weight.tag != "main" and weight.tag not in _BLOCKS:
            continue
        if element.get("role") == "main":
            by_role.append(element)
        elif weight.tag == "main":
            by_tag.append(element)
        elif weight.tag == "article":
            articles.append(element)
        elif element.get("id") in _MAIN_IDS and (weight.has_title or not weights[body].has_title):
            by_id.append(element)  # an id does not promise that the title is inside
    if len(articles) > 1:
        articles = []  # a list of articles: none of them is the content
    marked = (elements[0] for elements in (by_role, by_tag, articles, by_id) if elements)
    return next((one for one in marked if 3 * weights[one].prose >= weights[body].prose), body)


@dataclass(frozen=True, slots=True)
class _Navigation:
    """Tells navigation from content, by the weights of all elements, the prose of the content and the page's title."""

    weights: Weights
    prose: int
    title: str

    def contains(self, element: Element) -> bool:
        """Whether the element is navigation, or never content at all."""
        weight = self.weights.get(element)
        if weight is None:
            return True
        get = element.get
        classes = (get("class") or "").lower().split()
        if get("hidden") is not None or get("aria-hidden") == "true" or any(map(_CONTROL_CLASS.fullmatch, classes)):
            return True
        if weight.tag not in _BLOCKS:
            return False
        large = weight.prose > _LARGE_SHARE * self.prose
        if not large and (get("role") in _NAVIGATION_ROLES or self._is_named(element, classes)):
            return True
        return (weight.tag in _LINK_LISTS and _is_link_list(weight)) or self._is_pager(element)

    def _is_named(self, element: Element, classes: list[str]) -> bool:
        """Whether the block's tag, classes or id say that it is not content."""
        if element.tag == "form":
            return True
        if element.tag == "aside":
            return not any(map(_NOTE_NAME.fullmatch, [*classes, element.get("role") or ""]))
        names = list(classes)
        if element.tag != "section" and "section" not in classes:  # the id of a section is made of its heading
            names.append((element.get("id") or "").lower())
        hits = [name for name in names if len(name) <= _LONGEST_NAME and _names_navigation(name)]
        if not hits:
            return False
        if all("header" in hit for hit in hits):  # the header of an article holds its title
            text = self._text(element)
            is_title = 2 * len(text) > len(self.title) and text in self.title
            return not (self.weights[element].has_heading or is_title)
        return True

    def _is_pager(self, element: Element) -> bool:
        """Whether a short block only links to other pages, with words such as `next` alone beside its links."""
        weight = self.weights[element]
        if not 0 < weight.links <= 4 or weight.prose + weight.linked > _LONGEST_PAGER:
            return False
        if weight.images or weight.prose > 60:
            return False
        words = set(re.findall(r"\w+", self._text(element, links=False).lower()))
        words = words or set(re.findall(r"\w+", self._text(element).lower()))
        return words <= _PAGER_WORDS and not words.isdisjoint(("prev", "previous", "next", "up", "back"))

    def _text(self, element: Element, *, links: bool = True) -> str:
        """The text of the element in one line, without the text of `a` elements where `links` is false."""
        return " ".join("".join(self._strings(element, links=links)).split())

    def _strings(self, element: Element, *, links: bool) -> Iterator[str]:
        if links or element.tag != "a":
            yield element.text or ""
            for child in element:
                if child in self.weights:
                    yield from self._strings(child, links=links)
                yield child.tail or ""


@lru_cache(maxsize=4096)
def _names_navigation(name: str) -> bool:
    """Whether a class or an id says that a block is navigation. The pages of a site have the same few names."""
    words = name.replace("_", "-").split("-")
    return _NAVIGATION_NAME.fullmatch(name) is not None or any(map(_NAVIGATION_WORD.fullmatch, words))


def _is_link_list(weight: _Weight) -> bool:
    """Whether a block is little but links: a menu, a table of contents."""
    if weight.links < _FEWEST_LINKS or weight.images or weight.has_title or weight.longest >= _SENTENCE_LENGTH:
        return False
    return weight.linked > _LINK_SHARE * (weight.linked + weight.prose)


def _without_last_lines(pieces: list[Piece]) -> list[Piece]:
    """The pieces without the last lines that speak of the page: who made it, when, with what."""
    while pieces and isinstance(last := pieces[-1], Text):
        pieces.pop()
        lines = last.text.rstrip().split("\n")
        while lines and (not lines[-1].strip() or _ABOUT_THE_PAGE.fullmatch(lines[-1].strip())):
            lines.pop()
        if lines:
            return [*pieces, Text("\n".join(lines) + "\n")]
    return pieces

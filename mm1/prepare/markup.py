"""A web page of any site -> its main content: text, and the addresses of its images, in reading order.

The content is what the page itself marks as such (`main`, `role=main`, `article`), else its body; then navigation goes:
by tag and role, by class, and by the share of a block's text that is links (Kohlschuetter et al. 2010,
https://dl.acm.org/doi/10.1145/1718487.1718542). docs/prepare.md compares this with three extraction libraries.
"""

import re
from dataclasses import dataclass
from urllib.parse import urljoin

from mm1.document import Text
from mm1.prepare.pages import Page

_MAIN = ("//*[@role='main']", "//main", "//article[not(//article[2])]", "//*[@id='content']", "//body")
_SKIPPED_TAGS = re.compile(
    r"script|style|nav|footer|aside|button|noscript|form|svg|math|iframe|object|select|input|template|head|dialog"
)
_SKIPPED_ROLES = re.compile(r"navigation|banner|contentinfo|search|complementary|menu|menubar|dialog|doc-toc")
_SKIPPED_WORDS = re.compile(
    r"(site|page|main|global|top|bottom|left|right)?[-_]?"
    r"(nav(bar|igation|header|footer|_table|-links)?|menu(bar)?|breadcrumbs?|sidebar|footer|header(link|-nav)?|toc(tree-wrapper)?"
    r"|pagination|pager|cookies?|banner|advert(isement)?s?|ads?|share|social|related|comments?|newsletter|skip-link"
    r"|prev-next(-area|-bottom)?|contents?-list|copybutton|viewcode-link|linenos|tocframe|searchbox|dynheader|dyncontent|ttc)"
)
_LINKED = ("ul", "ol", "dl", "div", "table", "p", "section")
_FEWEST_LINKS, _LINK_SHARE = 4, 0.75
_DEEPEST = 200  # levels: nobody writes more, machines that break parsers do


@dataclass(frozen=True, slots=True)
class Address:
    """An image of a page, by its whole address, with what the page says it shows."""

    url: str
    said: str


def read_markup(content: bytes, base: str) -> list[Text | Address]:
    """The page's main content in reading order; empty where there is none, or nothing that can be parsed.

    `base` is the page's own address, to which those of its images are relative.
    """
    from lxml import etree, html

    try:
        parser = html.HTMLParser(remove_comments=True, remove_pis=True, encoding=_encoding(content), huge_tree=False)
    except LookupError:  # an encoding that libxml2 does not know
        parser = html.HTMLParser(remove_comments=True, remove_pis=True, encoding="utf-8", huge_tree=False)
    try:
        tree = html.document_fromstring(content, parser=parser)
    except (etree.LxmlError, ValueError, AssertionError):
        return []
    found = next((hits[0] for path in _MAIN if (hits := tree.xpath(path)) and _has_text(hits[0])), None)
    if found is None:
        return []
    page, depth = Page(), 0
    walker = etree.iterwalk(found, events=("start", "end"))
    for event, element in walker:
        tag = element.tag if isinstance(element.tag, str) else "script"
        depth += 1 if event == "start" else -1
        if event == "end":
            page.close(_layout(tag, element))
            if element is not found:
                page.text(element.tail or "")
        elif element is not found and (depth > _DEEPEST or _is_navigation(tag, element)):
            walker.skip_subtree()
        elif tag == "img":
            address = _address(element, base)
            if address is not None:
                page.image(address)  # type: ignore[arg-type]
        else:
            page.open(_layout(tag, element))
            page.text(element.text or "")
    return page.pieces()  # type: ignore[return-value]


def _encoding(content: bytes) -> str:
    """What the page says its encoding is, else UTF-8."""
    from lxml import etree

    said = re.search(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([A-Za-z0-9_-]{2,30})", content[:4096])
    return said[1].decode("ascii") if said else "utf-8"


def _has_text(element) -> bool:
    return len(" ".join(element.itertext()).split()) >= 10 or element.find(".//img") is not None


def _is_navigation(tag: str, element) -> bool:
    if _SKIPPED_TAGS.fullmatch(tag) or _SKIPPED_ROLES.fullmatch(element.get("role", "")):
        return True
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    names = [*element.get("class", "").split(), element.get("id", "")]
    if any(_SKIPPED_WORDS.fullmatch(name.lower()) for name in names) and tag not in ("body", "main", "article"):
        return tag not in ("h1", "h2", "h3", "img")
    return tag in _LINKED and _is_links(element)


def _is_links(element) -> bool:
    """Whether a block is little but links: a menu, a table of contents."""
    links = [" ".join("".join(link.itertext()).split()) for link in element.iter("a") if link.get("href")]
    if len(links) < _FEWEST_LINKS or next(element.iter("img"), None) is not None:
        return False
    whole = len(" ".join("".join(element.itertext()).split()))
    return sum(map(len, links)) > _LINK_SHARE * whole


def _layout(tag: str, element) -> str:
    """The tag whose layout the element has: Doxygen writes its listings as <div class="line">."""
    classes = element.get("class", "").split() if tag == "div" else []
    return "pre" if "fragment" in classes else "br" if "line" in classes else tag


def _address(element, base: str) -> Address | None:
    """The image's address, lazily loaded or not; images written into the page itself are icons."""
    for name in ("data-src", "data-original", "src"):
        said = element.get(name, "").strip()
        if said and not said.startswith("data:"):
            try:
                return Address(urljoin(base, said), " ".join(element.get("alt", "").split()))
            except ValueError:  # an address such as http://[x
                return None
    return None

"""The main content of a web page of any site; 50 labelled pages of real manuals measure it."""

import io
import os
from pathlib import Path

import PIL.Image
import pytest

from benchmarks.extractors import folder_of, labels, ours, page_of, score
from mm1.document import Text
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.main_content import PageError, main_content
from sample_build.packages import PackageError
from tests import reading

CACHE = Path(os.environ.get("MM1_PACKAGES", ".cache/packages"))
PROSE = "The house of the painter stood on a hill that looked over the town and its many gardens."
MORE = "It was built of grey stone, and the windows were small, so that the rooms stayed cool all summer."
LINKS = "".join(f"<li><a href='{n}.html'>Chapter {n}</a></li>" for n in range(5))


def read(body: str, *, title: str = "") -> str:
    """The text that is read from a page, with the addresses of its images in brackets."""
    page = f"<html><head><title>{title}</title></head><body>{body}</body></html>"
    pieces = main_content(page.encode(), "https://e.org/a/b.html")
    return "".join((piece.text.strip() if isinstance(piece, Text) else f"[{piece.url}]") + "\n" for piece in pieces)


@pytest.mark.parametrize(
    "around",
    [
        "<nav><p>Elsewhere</p></nav>{}",
        "<div class='navheader'><p>Elsewhere</p></div>{}",
        "<div class='site-footer'>Elsewhere</div>{}",
        "<ul class='docnav'><li>Elsewhere</li></ul>{}",
        "<div id='sidebar'>Elsewhere</div>{}",
        "<div role='search'>Elsewhere</div>{}",
        "<aside>Elsewhere</aside>{}",
        "<form>Elsewhere</form>{}",
        "<div hidden>Elsewhere</div>{}",
        "<div class='header'>Elsewhere</div>{}",
        "{}<p><b>Previous:</b> <a href='1'>Elsewhere</a> <b>Next:</b> <a href='2'>Elsewhere</a></p>",
        "{}<p>© 2003-2023 <a href='/'>Elsewhere</a> All rights reserved</p>",
        "{}<p>Last modified on Friday, Elsewhere</p>",
        "{}<p>Elsewhere and its logo are trademarks of Elsewhere</p>",
        "<p>Elsewhere</p><main>{}</main><p>Elsewhere</p>",
        "<p>Elsewhere</p><div role='main'>{}</div>",
        "<p>Elsewhere</p><article>{}</article>",
    ],
)
def test_navigation_around_the_content_is_removed(around):
    assert read(around.format(f"<p>{PROSE}</p><p>{MORE}</p>")) == f"{PROSE}\n\n{MORE}\n"


@pytest.mark.parametrize(
    "content",
    [
        "<aside class='footnote'>Here</aside>",
        "<aside role='note'>Here</aside>",
        "<div class='header'><h1>Here</h1></div>",
        "<pre><span class='comment'>Here</span></pre>",
        "<section id='related'><h2>Here</h2></section>",
        "<p>Copyright (c) of the house: Here</p>" + f"<p>{MORE}</p>",
        "<p>Copyright in a house is a matter of dispute: Here</p>",
        "<p>Go back to the next chapter <a href='1'>Here</a></p>",
        "<ul>" + f"<li><a href='1'>{PROSE}</a></li>" * 5 + f"<li>Here: {MORE}</li></ul>",
        "<ul>" + "".join(f"<li><a href='{n}'>http://e.org/{n}</a></li>" for n in range(5)) + "<li>Here</li></ul>",
    ],
)
def test_content_that_looks_like_navigation_stays(content):
    assert "Here" in read(f"<div><p>{PROSE}</p>{content}</div>")


@pytest.mark.parametrize(
    "wrapper", ["<div class='has-sidebar'>{}</div>", "<form>{}</form>", "<div id='menu' role='banner'>{}</div>"]
)
def test_a_wrapper_of_the_content_stays_whatever_its_class(wrapper):
    assert read(wrapper.format(f"<p>{PROSE}</p><p>{MORE}</p>")) == f"{PROSE}\n\n{MORE}\n"


def test_a_main_element_with_little_text_is_not_taken_for_the_content():
    assert PROSE in read(f"<main>{MORE[:20]}</main><div><p>{PROSE}</p><p>{MORE}</p></div>")


def test_a_title_above_the_element_called_content_stays():
    page = f"<div id='header'><h1>The house</h1>%s</div><div id='content'><p>{PROSE}</p><p>{MORE}</p></div>"
    for contents in ("", f"<div id='toc'><div id='toctitle'>Contents</div><ul>{LINKS}</ul></div>"):
        assert read(page % contents) == f"The house\n\n{PROSE}\n\n{MORE}\n"


def test_of_several_articles_none_is_the_content_alone():
    assert read(f"<article><p>{PROSE}</p></article><article><p>{MORE}</p></article>") == f"{PROSE}\n\n{MORE}\n"


def test_lists_of_links_are_removed_and_paragraphs_with_links_stay():
    assert read(f"<p>{PROSE}</p><ul>{LINKS}</ul>") == f"{PROSE}\n"
    linked = " ".join(f"<a href='{n}'>{word}</a>" if n % 3 else word for n, word in enumerate(PROSE.split()))
    assert read(f"<p>{linked}</p>") == f"{PROSE}\n"


def test_a_title_in_the_header_of_the_page_stays():
    head = "<div class='header'><div class='title'>The house</div></div>"
    assert read(f"{head}<p>{PROSE}</p>", title="Site: The house") == f"The house\n\n{PROSE}\n"


def test_images_are_in_reading_order_with_their_full_addresses():
    body = f"<img src='1.png'><p>{PROSE}<img src='/i/2.png'>{MORE}</p><img data-src='../3.png' src='wait.gif'>"
    images = ["https://e.org/a/1.png", "https://e.org/i/2.png", "https://e.org/3.png"]
    assert read(body) == f"[{images[0]}]\n{PROSE}\n[{images[1]}]\n{MORE}\n[{images[2]}]\n"


@pytest.mark.parametrize(
    ("body", "inline"),
    [
        (f"<p>Click <span><img src='1.png'></span> here. {PROSE}</p>", [True]),
        (f"<p>Click <img src='1.png'> <img src='2.png'> here. {PROSE}</p>", [True, True]),
        (f"<p>{PROSE}</p><img src='1.png'><p>{MORE}</p>", [False]),
        (f"<p>{PROSE} <img src='1.png'></p><p>{MORE}</p>", [False]),
        (f"<p>{PROSE}</p><p><img src='1.png'> {MORE}</p>", [False]),
    ],
)
def test_images_inside_a_line_are_marked_inline(body, inline):
    pieces = main_content(f"<body>{body}</body>".encode(), "https://e.org/")
    assert [piece.inline for piece in pieces if isinstance(piece, ImageAddress)] == inline


def test_a_line_continues_after_an_icon_that_was_left_out(tmp_path):
    (tmp_path / "small.png").write_bytes(drawn(22))
    (tmp_path / "plot.png").write_bytes(drawn(100))
    body = f"<p>Click <img src='small.png'> here.</p><p>{PROSE}</p><img src='plot.png'><p>{MORE}</p>"
    (tmp_path / "a.html").write_text(f"<html><body>{body}<img src='small.png'><p>The end.</p></body></html>")
    (document,), ledger = reading.read(tmp_path, "html")
    pieces = [piece.text.strip() if isinstance(piece, Text) else len(piece.data) for piece in document.pieces]
    assert pieces == [f"Click here.\n\n{PROSE}", len(drawn(100)), f"{MORE}\n\nThe end."]
    assert reading.drops(ledger)["image without a side of 64 pixels, an icon"] == 2


def drawn(side: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (side, side), "red").save(file, "PNG")
    return file.getvalue()


def test_lists_tables_and_listings_keep_their_layout():
    body = f"<p>{PROSE}</p><ul><li><p>One</p></li><li>Two<br>lines</li></ul><table><tr><th>a</th><td>b  c</td></tr>"
    body += "<tr><td>d</td></tr></table><pre>if x:\n &nbsp;  y  \n\n\n\nz</pre><p>End&nbsp;of\nall.</p>"
    assert read(body).split("\n", 2)[2] == "- One\n\n- Two\nlines\n\na | b c\nd\n\nif x:\n    y\n\nz\n\nEnd of all.\n"


def test_a_page_of_too_many_bytes_is_refused():
    with pytest.raises(PageError, match="more than 16 MB"):
        main_content(b" " * (16 * 2**20 + 1), "https://e.org/")


def test_a_page_of_too_many_elements_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("mm1.prepare.html.main_content._MOST_ELEMENTS", 100)
    (tmp_path / "a.html").write_text(f"<p>{PROSE}</p>" + "<br>" * 100)
    (tmp_path / "b.html").write_text(f"<p>{PROSE}</p>" + "<br>" * 90)
    (document,), ledger = reading.read(tmp_path, "html")
    assert document.id == "b.html"
    assert reading.drops(ledger) == {"page of more than 100 elements": 1}


def test_time_is_not_quadratic_in_spaces_and_elements():
    assert read(f"<p>{PROSE}</p><pre>a{' ' * 300_000}b</pre>").endswith("b\n")
    assert read(f"<p>{PROSE}" + "<i>x </i>" * 100_000 + "</p>").startswith(PROSE)


def test_the_encoding_that_a_page_declares_is_used():
    page = f"<html><head><meta charset='iso-8859-1'></head><body><p>{PROSE} Ein Hügel.</p></body></html>"
    (piece,) = main_content(page.encode("iso-8859-1"), "https://e.org/")
    assert not isinstance(piece, ImageAddress)
    assert piece.text.endswith("Hügel.\n")


@pytest.mark.parametrize("manual", sorted({label.manual for label in labels()}))
def test_labelled_pages_lose_their_navigation_and_nothing_else(manual):
    """Fetches the smallest of the manuals; the others are read only if they are in the cache."""
    try:
        root = folder_of(manual, CACHE, fetch=manual == "gimp-help")
    except PackageError as error:
        pytest.skip(f"the package cannot be fetched here: {error}")
    selected = [label for label in labels() if label.manual == manual]
    scores = {label.page: score(label, ours(page_of(label, root))) for label in selected}
    assert not {page: one.lost for page, one in scores.items() if one.lost}
    assert not {page: one.lost_images for page, one in scores.items() if one.lost_images}
    assert not {page: one.misplaced for page, one in scores.items() if one.misplaced}
    assert sum(not one.left for one in scores.values()) >= 0.95 * len(scores)

# ruff: noqa: RUF001  # texts of many languages
"""Web pages as browsers read them: encodings, lazy pictures, pictures in the page, and WARC files of real crawlers."""

import base64
import gzip
import http.client
import http.server
import io
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Canvas
from warcio.capture_http import capture_http
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from mm1.document import Image
from mm1.prepare.html.encoding import decode_page
from mm1.prepare.html.image_address import absolute_address, srcset_addresses
from mm1.prepare.html.main_content import main_content
from mm1.prepare.readers.warc_records import url_key
from tests.reading import drops, read

WORDS = "The river flows to the west through eleven villages and gives its name to the whole county around it. "


def page(body: str, *, head: str = "") -> str:
    main = f"<main><h1>A page</h1>{body}</main>"
    return f"<!DOCTYPE html><html><head>{head}<title>A page</title></head><body>{main}</body></html>"


def photo(number: int) -> bytes:
    """A picture that is no icon."""
    file = io.BytesIO()
    shades = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    Canvas.fromarray(shades).resize((96, 72)).save(file, "PNG")
    return file.getvalue()


TEXTS = {
    "gb2312": ("gbk", "镕与喆都不在旧的字符集里，但网页常常这样写。"),
    "shift_jis": ("cp932", "髙橋さんは①番目の駅で降りました。"),
    "iso-8859-1": ("cp1252", "“Les élèves” – préparent la fête à 5 €."),
    "ascii": ("cp1252", "“Les élèves” – préparent la fête à 5 €."),
    "euc-kr": ("cp949", "똠방각하와 펲시맨이 만났다."),
    "windows-1251": ("cp1251", "Река течёт на запад через одиннадцать деревень."),
    "iso-8859-9": ("cp1254", "Irmak batıya doğru akar – on bir köyden geçer."),
    "x-mac-cyrillic": ("mac-cyrillic", "Река течёт на запад."),
    "tis-620": ("cp874", "แม่น้ำไหลไปทางตะวันตก…"),
    "utf8": ("utf-8", "Řeka teče na západ přes jedenáct vesnic."),
}


@pytest.mark.parametrize("label", TEXTS)
def test_a_label_stands_for_what_browsers_read_by_it(label):
    codec, text = TEXTS[label]
    for head in (f'<meta charset="{label}">', f"<META http-equiv=Content-Type content='text/html; charset={label}'>"):
        assert text in decode_page(page(f"<p>{text}</p>", head=head).encode(codec))
    assert text in decode_page(page(f"<p>{text}</p>").encode(codec), charset=label)
    assert text in decode_page(f'<?xml version="1.0" encoding="{label}"?>{page(text)}'.encode(codec))


def test_a_byte_order_mark_is_believed_before_header_and_page():
    text = "Les élèves préparent la fête"
    source = page(f"<p>{text}</p>", head='<meta charset="iso-8859-1">')
    for codec in ("utf-8-sig", "utf-16"):
        assert decode_page(source.encode(codec), charset="windows-1251") == source
    assert decode_page(b"\xfe\xff" + source.encode("utf-16-be")) == source


def test_labels_that_are_no_browsers_are_passed_over():
    text = "Ünïcödé"
    for label in ("rot13", "hex", "utf-7", "nonsense", "utf-16"):
        assert text in decode_page(page(text, head=f"<meta charset={label}>").encode())
    commented = "<!-- <meta charset=koi8-r> --><meta charset=utf-8>"
    assert text in decode_page(page(text, head=commented).encode())


def test_an_undeclared_page_is_read_in_the_encoding_it_looks_like():
    text = "Река течёт на запад через одиннадцать деревень и даёт своё имя всему краю. " * 5
    assert text in decode_page(page(text).encode("cp1251"))
    assert "caf\ufffd" in decode_page(page("caf").encode().replace(b"caf", b"caf\xe9") + b"\x80", charset="utf-8")


def test_a_page_with_bytes_of_no_encoding_is_read_and_counted(tmp_path):
    source = page(f"<p>{WORDS}</p>", head="<meta charset=utf-8>").encode()
    (tmp_path / "a.html").write_bytes(source.replace(b"villages", b"vill\xe9ges"))
    (tmp_path / "b.html").write_bytes(source)
    documents, ledger = read(tmp_path)
    assert len(documents) == 2
    assert drops(ledger) == {"page with bytes that its encoding doesn't have, read as U+FFFD": 1}


def site(folder: Path, body: str, *, head: str = "", pictures: int = 9) -> Path:
    (folder / "img").mkdir(parents=True)
    for number in range(pictures):
        (folder / "img" / f"{number}.png").write_bytes(photo(number))
    (folder / "index.html").write_text(page(f"<p>{WORDS}</p>{body}<p>{WORDS[::-1]}</p>", head=head))
    return folder


def test_what_stands_after_an_embed_is_kept(tmp_path):
    site(tmp_path, f'<p>{WORDS}<embed src="img/1.png" type="image/png">{WORDS}</p><p>Its end.</p>')
    documents, _ = read(tmp_path)
    plain = documents[0].text
    assert plain.count(WORDS.strip()) == 3
    assert "Its end." in plain
    assert len(documents[0].images) == 1


BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
LAZY = {
    "data-src": f'<img src="{BLANK}" data-src="img/1.png">',
    "data-lazy-src": f'<img src="{BLANK}" data-lazy-src="img/1.png"><noscript><img src="img/1.png"></noscript>',
    "data-original": '<img src="img/blank.gif" data-original="img/1.png">',
    "another name": f'<img src="{BLANK}" data-flickity-lazyload="img/1.png">',
    "data-srcset": f'<img src="{BLANK}" data-srcset="img/gone.png 2000w, img/1.png 600w">',
    "srcset": '<img srcset="img/0.png 1x,img/1.png 2x">',
    "srcset and src": '<img src="img/gone.png" srcset="img/1.png 480w, img/gone.png 800w">',
    "picture": '<picture><source type="image/avif" srcset="img/gone.avif"><source srcset="img/1.png"><img></picture>',
    "picture without img": '<picture><source data-srcset="img/1.png 2x, img/0.png"></picture>',
    "odd names": f'<img src="{BLANK}" data-thumb="img/0.png" lazy-file="img/1.png" alt="img/2.png">',
    "picture with img": '<picture><source srcset="img/gone.webp"><img src="img/1.png"></picture>',
    "object": '<object data="img/1.png" type="image/png">a red thing</object>',
    "object without a type": '<object data="img/1.png"></object>',
    "embed": '<embed src="img/1.png">',
    "noscript": '<noscript><img src="img/1.png"></noscript>',
    "noscript beside": '<img class="lazy"><noscript><img src="img/1.png"></noscript>',
    "amp": '<amp-img src="img/1.png" width=96 height=96></amp-img>',
    "no address": '<img data-id="12.5" data-title="Fig. 1/2" src="img/1.png">',
}


@pytest.mark.parametrize("form", LAZY)
def test_a_picture_is_found_once_however_late_the_page_loads_it(tmp_path, form):
    (document,), ledger = read(site(tmp_path, LAZY[form]))
    assert [image.data for image in document.images] == [photo(1)]
    assert ledger.pictures.read == 1


def test_addresses_are_relative_to_the_base_of_the_page(tmp_path):
    (document,), _ = read(site(tmp_path, '<img src="1.png">', head='<base href="img/">'))
    assert [image.data for image in document.images] == [photo(1)]


def test_pictures_in_the_page_are_read_and_broken_ones_counted(tmp_path):
    encoded = base64.b64encode(photo(1)).decode()
    wrapped = "\n".join(encoded[at : at + 76] for at in range(0, len(encoded), 76))
    large = base64.b64encode(photo(2) + bytes(12 * 2**20)).decode()  # longer than an attribute of libxml2 may be
    sources = [f"data:image/png;base64,{encoded}", f"data:image/png;base64,{large}", BLANK, "data:image/png;base64,%%%"]
    body = "".join(f'<p>{WORDS}</p><img alt="a plot" src="{source}">' for source in sources)
    (document,), ledger = read(site(tmp_path, body + f"<img src=data:image/png;base64,{encoded} alt=x>"))
    assert [image.data[:2000] for image in document.images] == [photo(1)[:2000], photo(2)[:2000], photo(1)[:2000]]
    assert drops(ledger) == {
        "image without a side of 64 pixels, an icon": 1,
        "image in the page that cannot be read (data:)": 1,
    }
    (document,), _ = read(site(tmp_path / "wrapped", f'<img src="data:image/png;base64,{wrapped}">'))
    assert [image.data for image in document.images] == [photo(1)]


def test_sizes_of_a_srcset_are_ordered_however_hostile_it_is():
    assert srcset_addresses("a.jpg 480w, b.jpg 800w,c.jpg 640w") == ["b.jpg", "c.jpg", "a.jpg"]
    assert srcset_addresses("a,b.jpg, c.jpg 2x,") == ["c.jpg", "a,b.jpg"]
    assert len(srcset_addresses(" ," * 10**6 + "a " * 10**6)) < 10**5


def test_pictures_of_a_mirrored_site_are_found_as_wget_names_them(tmp_path):
    folder = tmp_path / "crawl" / "www.e.org"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a b.png", "c.png?size=large", "d.png"]):
        (folder / name).write_bytes(photo(number))
    links = ["/a%20b.png", "../c.png?size=large", "http://www.e.org/d.png", "//cdn.org/x.png"]
    body = f"<p>{WORDS}</p>" + "".join(f'<img src="{link}"><p>{WORDS}</p>' for link in links)
    (folder / "sub" / "index.html").write_text(page(body))
    for root in (tmp_path / "crawl", folder):
        (document,), ledger = read(root)
        assert [image.data for image in document.images] == [photo(0), photo(1), photo(2)]
        assert drops(ledger).total() == 1


class Site(http.server.BaseHTTPRequestHandler):
    """Four pages with a picture each, answered in the ways of HTTP/1.1."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.strip("/") or "0.html"
        if name.endswith(".png"):
            self.answer(photo(int(name.removeprefix("pic%20")[0])), "image/png")
        elif name == "moved.jpg":
            self.send_response(302)
            self.send_header("Location", "/pic%203.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name[0] in "0123":
            number = int(name[0])
            source = "moved.jpg" if number == 3 else f"pic {number}.png"
            links = f"<p>{WORDS}<a href='{number + 1}.html'>the page after this one</a> says more.</p>"
            body = page(f"<p>Číslo {number}. {WORDS}</p><img src='{source}'>{links}").encode("iso-8859-2")
            self.answer(body, "text/html; charset=iso-8859-2", number)
        else:
            self.send_error(404)

    def answer(self, body: bytes, kind: str, form: int = 0) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if form in (1, 3) and "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send_header("Content-Encoding", "gzip")
            body = gzip.compress(body)
        if form < 2:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, len(body), 100):
            chunk = body[at : at + 100]
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_) -> None: ...


@pytest.fixture(scope="module")
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def check_crawl(path: Path, server: str) -> None:
    documents, ledger = read(path)
    assert [document.id for document in documents] == [f"{server}/{number}.html" for number in range(4)]
    assert all(f"Číslo {number}" in document.text for number, document in enumerate(documents))
    assert [[image.data for image in document.images] for document in documents] == [[photo(n)] for n in range(4)]
    assert not ledger.unexpected()


@pytest.mark.skipif(shutil.which("wget") is None, reason="needs wget")
@pytest.mark.parametrize("option", ["--compression=none", "--no-warc-compression", "--compression=gzip"])
def test_a_crawl_of_wget_is_read_whole(tmp_path, server, option):
    command = [
        "wget",
        "-q",
        "-r",
        "-p",
        "-l",
        "5",
        "--warc-file",
        tmp_path / "crawl",
        "-P",
        tmp_path / "mirror",
        option,
    ]
    subprocess.run([*command, f"{server}/0.html"], check=False)
    (warc,) = tmp_path.glob("crawl.warc*")
    check_crawl(warc, server)


def test_a_capture_of_warcio_is_read_whole(tmp_path, server):
    with capture_http(str(tmp_path / "crawl.warc.gz")):
        for number in range(4):
            pictures = ["moved.jpg", "pic%203.png"] if number == 3 else [f"pic%20{number}.png"]
            for name in (f"{number}.html", *pictures):
                connection = http.client.HTTPConnection(server.removeprefix("http://"))
                connection.request("GET", f"/{name}", headers={"Accept-Encoding": "gzip"})
                connection.getresponse().read()
                connection.close()
    check_crawl(tmp_path / "crawl.warc.gz", server)


def response(writer: WARCWriter, body: bytes, *, url: str = "http://e.org/", status: str = "200 OK", **headers) -> None:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    http_headers = StatusAndHeaders(status, named, protocol="HTTP/1.1")
    record = writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=http_headers)
    writer.write_record(record)


def test_a_picture_that_was_the_same_as_before_is_found(tmp_path):
    """wget --warc-dedup, and crawlers that know a picture by its digest, write a `revisit` without a body."""
    with (tmp_path / "x.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        response(writer, photo(1), url="http://e.org/1.png", Content_Type="image/png")
        with gzip.open(tmp_path / "x.warc.gz") as written:
            record_id = re.search(rb"WARC-Record-ID: (\S+)", written.read())[1].decode()  # type: ignore[index]
        again = writer.create_revisit_record(
            "http://e.org/2.png", "sha1:X", "http://e.org/1.png", "2026-01-01T00:00:00Z"
        )
        writer.write_record(again)
        again = writer.create_revisit_record("http://e.org/3.png", "sha1:X", "", "2026-01-01T00:00:00Z")
        again.rec_headers.remove_header("WARC-Refers-To-Target-URI")
        again.rec_headers.replace_header("WARC-Refers-To", record_id)
        writer.write_record(again)
        body = "".join(f"<p>{WORDS}</p><img src='/{n}.png'>" for n in (1, 2, 3))
        response(writer, page(body).encode(), **HTML)
    (document,), ledger = read(tmp_path / "x.warc.gz")
    assert [image.data for image in document.images] == [photo(1)] * 3
    assert drops(ledger) == {"response that repeats another one (revisit)": 2}


BODY = page(f"<p>{WORDS}</p>").encode()
HTML = {"Content_Type": "text/html"}
ENCODED = {
    "br": lambda body: __import__("brotli").compress(body),
    "zstd": zstandard.compress,
    "deflate": __import__("zlib").compress,
    "gzip": gzip.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", ENCODED)
def test_compressed_responses_are_read_also_if_a_tool_has_decompressed_them_before(tmp_path, coding):
    with (tmp_path / "x.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        response(writer, ENCODED[coding](BODY), **HTML, Content_Encoding=coding)
        response(writer, BODY, url="http://e.org/joined", **HTML, Transfer_Encoding="chunked")
        response(writer, gzip.compress(BODY)[:-20], url="http://e.org/torn", **HTML, Content_Encoding="gzip")
        response(writer, b"ff\r\nshort", url="http://e.org/cut", **HTML, Transfer_Encoding="chunked")
        response(writer, BODY, url="http://e.org/odd", **HTML, Content_Encoding="compress")
        response(writer, b"gone", url="http://e.org/gone", status="404 Not Found", **HTML)
        response(writer, b"{}", url="http://e.org/x.json", Content_Type="application/json")
    documents, ledger = read(tmp_path / "x.warc.gz")
    assert [document.id for document in documents] == ["http://e.org/", "http://e.org/joined"]
    assert drops(ledger) == {
        "response whose compression is broken": 1,
        "response whose chunks are broken": 1,
        "response in a compression that is not read": 1,
        "response with the status 404": 1,
        "response that is neither a page nor a picture": 1,
    }


def test_addresses_that_differ_in_spelling_alone_are_the_same():
    same = ["http://E.org/a%20b.png", "https://e.org:443/a b.png#top", "http://e.org:80/a%20b.png"]
    assert len(set(map(url_key, same))) == 1
    assert url_key("http://e.org/a?x=1") != url_key("http://e.org/a?x=2")
    assert url_key("http://[x") == "http://[x"


def test_a_page_of_many_hidden_pictures_is_read_in_time():
    hidden = "".join(f"<noscript><img src='{n}.png'></noscript><img data-src='{n}.png'>" for n in range(5000))
    pieces = main_content(page(f"<p>{WORDS}</p>{hidden}").encode(), "https://e.org/")
    assert sum(not isinstance(piece, Image) and hasattr(piece, "url") for piece in pieces) == 5000


PARTS = st.sampled_from(
    ["a", "b.png", "..", ".", "", "/", "//", "?q=1", "#x", ";p", "%20", " ", "x:y", "ä", ".h", "~u"]
)
BASES = st.sampled_from(
    ["http://h", "http://h/", "https://h:8/d/", Path("/d/e.html").as_uri(), "ftp://h/d/", "data:,x", "d/e"]
)


@given(
    base=BASES, folders=st.lists(PARTS, max_size=4), names=st.lists(PARTS, min_size=1, max_size=4), joint=st.booleans()
)
def test_plain_addresses_are_joined_as_urljoin_does(base: str, folders: list[str], names: list[str], joint: bool):
    slash = "/" if joint else ""
    page, address = base + slash.join(folders), slash.join(names)
    assert absolute_address(page, address) == urljoin(page, address)

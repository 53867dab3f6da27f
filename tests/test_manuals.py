"""A real manual, read as a folder of pages of an unknown site. Skipped where its package has not been fetched."""

import os
from collections import Counter
from pathlib import Path

import pytest

from mm1.document import Text
from mm1.prepare.copies import prints_of, repeated_pictures
from mm1.prepare.readers import KINDS, parts_of
from mm1.prepare.screen import Bounds, screened
from mm1.prepare.sources import GIMP

CACHE = Path(os.environ.get("MM1_PACKAGES", ".cache/packages"))
MANUAL = CACHE / "unpacked" / GIMP.package.folder / "usr/share/gimp/2.0/help/en"


@pytest.mark.skipif(not MANUAL.is_dir(), reason=f"no {MANUAL}; `mm1 prepare sample --large` fetches it")
def test_the_gimp_manual_keeps_its_pages_and_pictures():
    drops: Counter[str] = Counter()
    bounds = Bounds(smallest=40, aspect=1000, a_page=1000)
    pages = [page for part in parts_of(MANUAL, "html") for page in KINDS["html"](part, drops)]
    pages = [screened(page, bounds, drops) for page in pages]
    prints = prints_of(pages)
    logos = repeated_pictures(prints, len(pages) // 5)
    starts = prints.first
    shown = [
        sum(int(data) not in logos for data in prints.bytes[starts[at] : starts[at + 1]]) for at in range(len(pages))
    ]
    assert 472 * 0.97 <= sum(count > 0 for count in shown) <= 472 * 1.03
    assert 1998 * 0.97 <= sum(shown) <= 1998 * 1.03
    first = {page.document.id: page.document for page in pages}["gimp-concepts-layers.html"]
    assert isinstance(first.pieces[0], Text)

"""A real manual, read as a folder of pages of an unknown site. Skipped, with the reason, where it cannot be fetched."""

import io
import os
from collections import Counter
from pathlib import Path

import PIL.Image
import pytest

from mm1.document import Document
from mm1.prepare.readers.kinds import KINDS, parts_of
from sample_build.packages import PackageError
from sample_build.sources import GIMP

CACHE = Path(os.environ.get("MM1_PACKAGES", ".cache/packages"))


@pytest.fixture(scope="module")
def manual() -> list[Document]:
    """The pages of the GIMP manual, its pictures undecoded."""
    try:
        root = GIMP.folder(CACHE) / "usr/share/gimp/2.0/help/en"
    except PackageError as error:
        pytest.skip(f"the package is not to be had here: {error}")
    drops: Counter[str] = Counter()
    return [page for part in parts_of(root, "html") for page in KINDS["html"](part, drops)]


def shown(page: Document) -> int:
    """The pictures that stay with `min_side=40`."""
    return sum(min(PIL.Image.open(io.BytesIO(image.data)).size) >= 40 for image in page.images)


def test_the_gimp_manual_keeps_its_pages_and_pictures(manual):
    pictures = [shown(page) for page in manual]
    assert 472 * 0.97 <= sum(count > 0 for count in pictures) <= 472 * 1.03
    assert 1998 * 0.97 <= sum(pictures) <= 1998 * 1.03

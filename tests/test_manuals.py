"""A real manual, read as a folder of pages of an unknown site. Skipped, with the reason, if it cannot be fetched."""

import io
import os
from pathlib import Path

import PIL.Image
import pytest

from mm1.document import Document
from mm1.prepare.ledger import Ledger
from mm1.prepare.readers.kinds import READERS, list_shards
from sample_build.packages import PackageError
from sample_build.sources import GIMP

CACHE = Path(os.environ.get("MM1_PACKAGES", ".cache/packages"))


@pytest.fixture(scope="module")
def manual() -> list[Document]:
    """The pages of the GIMP manual, its pictures undecoded."""
    try:
        root = GIMP.folder(CACHE) / "usr/share/gimp/2.0/help/en"
    except PackageError as error:
        pytest.skip(f"the package cannot be fetched here: {error}")
    return [page for shard in list_shards(root, "html") for page in READERS["html"](shard, Ledger())]


def pictures_kept(page: Document) -> int:
    """The number of pictures that stay with `min_side=40`."""
    return sum(min(PIL.Image.open(io.BytesIO(image.data)).size) >= 40 for image in page.images if image.data)


def test_the_gimp_manual_keeps_its_pages_and_pictures(manual):
    pictures = [pictures_kept(page) for page in manual]
    assert 472 * 0.97 <= sum(count > 0 for count in pictures) <= 472 * 1.03
    assert 1998 * 0.97 <= sum(pictures) <= 1998 * 1.03

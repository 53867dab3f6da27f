"""What counts as a copy of an earlier document: its words, in any script; its operators; what its pictures show."""

import json
from pathlib import Path

import pytest

from benchmarks import second_look
from mm1.prepare.dedup import CopyRules
from mm1.prepare.pipeline import prepare
from mm1.prepare.request import parse_request
from mm1.prepare.text_hashes import operators_hash, units

CHINESE = "北方海角的灯塔建于一八五七年由两位来自群岛的兄弟修建战前曾两次被烧毁后来人们在原址上重建了一座更高的石塔"
JAPANESE = "北の岬の灯台は一八五七年に島から来た二人の兄弟によって建てられ戦争の前に二度焼け落ちたが後に建て直された"
THAI = "ประภาคารที่แหลมเหนือสร้างขึ้นโดยพี่น้องสองคนจากหมู่เกาะและถูกเผาสองครั้งก่อนสงครามต่อมาผู้คนสร้างหอคอยหินที่สูงกว่าขึ้นใหม่"
ENGLISH = "The lighthouse at the northern cape was built by two brothers from the islands and burnt down before the war"
SCRIPTS = {"Chinese": CHINESE, "Japanese": JAPANESE, "Thai": THAI, "English": ENGLISH + " and was built again. "}


def kept(folder: Path, texts: list[str], *fields: str) -> tuple[int, dict[str, int]]:
    """How many of the texts are kept, and what was left out."""
    folder.mkdir(exist_ok=True)
    (folder / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    result = prepare(parse_request([str(folder / "x.jsonl"), *fields]), folder / "out")
    return result.ledger.records.kept, dict(result.ledger.records.dropped)


@pytest.mark.parametrize("script", SCRIPTS)
def test_near_copies_are_found_in_scripts_without_spaces(tmp_path, script):
    text = SCRIPTS[script]
    half = len(text) // 2
    another = " ".join(reversed(text.split())) if script == "English" else text[::-1]
    long = [text * 5, text * 4 + text[:half], another * 5]
    assert kept(tmp_path, long) == (2, {"near copy of an earlier document": 1})


@pytest.mark.parametrize("script", ["Chinese", "Japanese", "Thai"])
def test_evaluation_sets_are_kept_out_in_scripts_without_spaces(tmp_path, script):
    text = SCRIPTS[script]
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": text[5:40]}))
    prepare(parse_request([str(tmp_path / "eval.jsonl")]), tmp_path / "eval")
    store = f"decontaminate={tmp_path}/eval/text.lance"
    count, dropped = kept(tmp_path / "in", [f"Exercise: {text} Go on.", text[::-1]], store)
    assert count == 1
    assert list(dropped) == ["contaminated: shares 20 characters with an evaluation set"]


def test_words_of_scripts_with_spaces_stay_whole():
    assert units("Grüße, 세계! well-known 2024") == ["grüsse", "세계", "wellknown", "2024"]
    assert units("mm1は速い。") == ["mm1", "は", "速", "い"]


def test_code_that_differs_by_an_operator_is_no_copy(tmp_path):
    code = "def area(width, height):\n    total = width {} height\n    return total if total > 0 else None\n"
    texts = [code.format(sign) for sign in "+-*/"] + [code.format("+").replace("    ", "  ")]
    assert kept(tmp_path / "code", texts) == (4, {"copy of an earlier document": 1})
    formulas = ["2 + 3 = 5", "2 - 3 = 5", "a < b", "a > b"]
    assert kept(tmp_path / "formulas", formulas)[0] == 4


def test_prose_that_differs_in_punctuation_is_a_copy(tmp_path):
    assert operators_hash("A well-known man, and his wife - both 80 years old - went home; nobody saw them go.") == 0
    texts = [f"{ENGLISH}.", f"{ENGLISH.upper()} - !"]
    assert kept(tmp_path, texts) == (1, {"near copy of an earlier document": 1})


def test_the_user_says_which_copies_go(tmp_path):
    texts = [f"{ENGLISH}.", f"{ENGLISH}.", f"{ENGLISH} - !"]
    assert kept(tmp_path / "none", texts, "copies=none") == (3, {})
    assert kept(tmp_path / "exact", texts, "copies=exact") == (2, {"copy of an earlier document": 1})
    assert kept(tmp_path / "near", texts)[0] == 1
    words = ENGLISH.split()
    close = [f"{ENGLISH} {ENGLISH}", f"{ENGLISH} {' '.join([*words[:-1], 'storm'])}"]
    assert kept(tmp_path / "close", close)[0] == 1
    assert kept(tmp_path / "strict", close, "copy_similarity=1")[0] == 2


@pytest.mark.parametrize("name", second_look.PICTURES_OF_TEXT)
def test_different_pictures_of_text_are_no_copies(name):
    pairs = list(second_look.different_pairs(second_look.PICTURES_OF_TEXT[name], 18, seed=1000))
    assert not any(second_look.are_copies(*pair, CopyRules()) for pair in pairs)


@pytest.mark.parametrize("name", second_look.VARIANTS)
def test_variants_of_photographs_are_copies(name):
    pairs = list(second_look.variant_pairs(name, 20, seed=1000))
    assert sum(second_look.are_copies(*pair, CopyRules()) for pair in pairs) >= 19


@pytest.mark.parametrize("name", second_look.PICTURES_OF_TEXT)
def test_pictures_like_those_of_an_evaluation_set_are_kept_and_variants_of_them_not(tmp_path, name):
    """Forms of one template, four in the evaluation set; of two of these the training set has other encodings."""
    chance = second_look.random.Random(0)
    forms = [second_look.PICTURES_OF_TEXT[name](seed, 1) for seed in range(12)]
    for folder in ("test", "train"):
        (tmp_path / folder).mkdir()
    for number, form in enumerate(forms):
        path = tmp_path / ("test" if number < 4 else "train") / f"{number:02}.png"
        path.write_bytes(second_look.encoded(form))
        path.with_suffix(".txt").write_text(f"What is number {number}?")
    for number, variant in enumerate((second_look.compressed, second_look.resized)):
        path = tmp_path / "train" / f"variant-{number}.jpg"
        path.write_bytes(variant(forms[number], chance))
        path.with_suffix(".txt").write_text(f"What is variant {number}?")
    prepare(parse_request([str(tmp_path / "test")]), tmp_path / "evaluation")
    request = parse_request([str(tmp_path / "train"), f"decontaminate={tmp_path}/evaluation/images.lance"])
    dropped = prepare(request, tmp_path / "out").ledger.records.dropped
    assert dropped == {"contaminated: shows a picture of an evaluation set": 2}


def test_copies_are_found_among_many_pictures_with_the_same_words(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    chance = second_look.random.Random(0)
    for number in range(30):
        (folder / f"{number:02}.jpg").write_bytes(second_look.encoded(second_look.photo(number), "JPEG", quality=92))
    for number, change in zip((3, 17, 8), second_look.VARIANTS.values(), strict=True):
        (folder / f"copy-{number:02}.jpg").write_bytes(change(second_look.photo(number), chance))
    for path in sorted(folder.iterdir()):
        path.with_suffix(".txt").write_text("What is this?")
    result = prepare(parse_request([str(folder)]), tmp_path / "out")
    assert result.ledger.records.kept == 30
    assert result.ledger.records.dropped == {"near copy of an earlier document": 3}
    assert result.ledger.pictures.kept == 30

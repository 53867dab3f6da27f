"""The published text filters: each threshold is that of its paper."""

import pytest

from mm1.prepare.filters.text_filters import c4, detect_language, fineweb, gopher, repetition

WORDS = ["the", "painter", "and", "a", "house", "that", "have", "windows", "of", "grey", "stone", "with", "light"]

BULLET = "- the painter and the house"


def words(count: int, *, of: list[str] = WORDS) -> list[str]:
    return [of[at % len(of)] for at in range(count)]


def numbered(count: int, *, prefix: str = "word") -> list[str]:
    """So many words, all different."""
    return [f"{prefix}{at}x" for at in range(count)]


def changed(text: list[str], count: int, to: str) -> str:
    """The text with its last `count` words replaced."""
    return " ".join(text[: len(text) - count] + [to] * count)


@pytest.mark.parametrize(
    ("passes", "fails", "reason"),
    [
        (" ".join(words(50)), " ".join(words(49)), "50 words"),
        (" ".join(words(100_000)), " ".join(words(100_001)), "100,000"),
        (changed(words(100), 10, "x#"), changed(words(100), 11, "x#"), "symbol"),
        (changed(words(100), 10, "x...x"), changed(words(100), 11, "x...x"), "symbol"),
        (changed(words(100), 20, "1000"), changed(words(100), 21, "1000"), "letter"),
        (f"{BULLET}\n" * 9 + BULLET[2:], f"{BULLET}\n" * 10, "bullets"),
        (" ".join(["the", "of", *numbered(60)]), " ".join(["the", *numbered(60)]), "stop words"),
        (" ".join(["the", "and", *["abc"] * 60]), " ".join(["the", "and", *["ab"] * 60]), "mean length"),
    ],
)
def test_gopher_has_the_thresholds_of_its_paper(passes, fails, reason):
    assert gopher(passes) is None
    assert reason in (gopher(fails) or "")


def with_copies(size: int, *, of: int) -> str:
    """`of` words of one length, all different except two n-grams of `size` words that occur twice each."""
    ngrams = [[f"r{run}w{at:02}" for at in range(size)] for run in (1, 2)]
    rest = [f"x{at:04}" for at in range(of - 4 * size)]
    return " ".join([*ngrams[0], *rest[::2], *ngrams[1], *ngrams[0], *rest[1::2], *ngrams[1]])


@pytest.mark.parametrize(("size", "most"), [(5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10)])
def test_ngrams_may_repeat_up_to_the_share_of_table_a1(size, most):
    fewest = -(-200 * size // most)  # words of the shortest text that passes with the two copies
    assert repetition(with_copies(size, of=fewest)) is None
    assert f"runs of {size} words" in (repetition(with_copies(size, of=fewest - 1)) or "")


@pytest.mark.parametrize(("size", "most"), [(2, 20), (3, 18), (4, 16)])
def test_the_most_frequent_ngram_may_have_the_share_of_table_a1(size, most):
    def text(of: int) -> str:
        ngram, rest = [f"run{at}" for at in range(size)], [f"{at:04}" for at in range(of - 4 * size)]
        return " ".join(word for at in range(4) for word in (*ngram, *rest[at::4]))

    fewest = -(-400 * size // most)
    assert repetition(text(fewest)) is None
    assert f"one run of {size} words" in (repetition(text(fewest - 1)) or "")


def lines(different: int, copies: int) -> str:
    """Lines of one word and one length, the first `copies` of them twice in a row: no n-gram of words repeats."""
    return "\n".join(f"{at:04}".ljust(40, "-") for at in range(different) for _ in range(2 if at < copies else 1))


def test_copied_lines_may_make_up_a_fifth_of_the_characters():
    assert repetition(lines(80, 20)) is None  # line ends are characters too
    assert "copied lines" in (repetition(lines(79, 21)) or "")
    assert "30 % of lines" in (repetition(lines(69, 31)) or "")


SENTENCE = "The house stood on a hill."


@pytest.mark.parametrize(
    "line",
    ["A line without its end that is long", "Too short here.", "Please enable JavaScript in your browser now.",
     "By reading this you accept the cookie policy of the house.", "It goes on and on and..."],
)  # fmt: skip
def test_c4_counts_sentences_only_in_lines_it_would_keep(line):
    assert c4("\n".join([SENTENCE] * 3)) is None
    assert "3 sentences" in (c4("\n".join([SENTENCE, SENTENCE, line, line])) or "")


def test_c4_leaves_out_code_and_placeholders():
    assert "curly" in (c4(" ".join([SENTENCE] * 5 + ["f() { }"])) or "")
    assert "lorem" in (c4(" ".join([SENTENCE] * 5 + ["Lorem Ipsum"])) or "")


def different(count: int, *, end: str, length: int = 40) -> list[str]:
    return [f"{at:04} ".ljust(length - 1, "a") + end for at in range(count)]


def test_fineweb_has_the_thresholds_of_its_paper():
    ends, none = different(13, end="."), different(87, end="a", length=41)
    assert fineweb("\n".join(ends + none)) is None
    assert "punctuation" in (fineweb("\n".join(ends[:12] + none + ["0000b".ljust(40, "b")])) or "")
    short, long = different(66, end=".", length=29), different(34, end=".")
    assert fineweb("\n".join(short + long)) is None
    assert "30 characters" in (fineweb("\n".join([*short, "a short line.", *long[:33]])) or "")
    assert fineweb("\n".join(different(91, end=".") + different(1, end=".") * 9)) is None
    assert "copied lines" in (fineweb("\n".join(different(90, end=".") + different(1, end=".") * 10)) or "")


def test_languages_are_detected():
    assert detect_language("The house of the painter stood on a hill that looked over the town and its park.") == "en"
    assert detect_language("Das Haus des Malers stand auf einem Hügel, von dem aus man die Stadt sehen konnte.") == "de"

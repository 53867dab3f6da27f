"""Filters of web texts: the published ones of Gopher, C4 and FineWeb, one function each.

Each returns the reason why the text is left out, in a few words, or None. They were made for prose of the web: manuals
and captions fail some of them, so only those that the user names are applied. Words are separated by white space, as in
the Gopher paper; where a paper and its code differ, we follow the paper and name the difference.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

Filter = Literal["gopher", "repetition", "c4", "fineweb"]

_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_ENDS = (".", "!", "?", '"', "'", "\u201d", "\u2019")
_C4_ENDS = (".", "?", "!", '"', "\u201d")
_SENTENCES = re.compile(r"[.!?]['\")\u201d]?(?:\s|$)")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def gopher(text: str) -> str | None:
    """Gopher's quality filters (https://arxiv.org/abs/2112.11446, appendix A.1.1, "Quality Filtering")."""
    words, lines = text.split(), [line for line in text.splitlines() if line.strip()]
    if not 50 <= len(words) <= 100_000:
        return "gopher: fewer than 50 words or more than 100,000"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        return "gopher: mean length of words outside 3 to 10"
    ellipses = text.count("...") + text.count("\u2026")
    if text.count("#") > 0.1 * len(words) or ellipses > 0.1 * len(words):
        return "gopher: more than a symbol to 10 words"
    if sum(line.lstrip().startswith(("-", "*", "\u2022")) for line in lines) > 0.9 * len(lines):
        return "gopher: more than 90 % of lines are bullets"
    if sum(line.rstrip().endswith(("...", "\u2026")) for line in lines) > 0.3 * len(lines):
        return "gopher: more than 30 % of lines end in an ellipsis"
    if sum(any(map(str.isalpha, word)) for word in words) < 0.8 * len(words):
        return "gopher: fewer than 80 % of words have a letter"
    if len(_STOP_WORDS & {word.lower() for word in words}) < 2:
        return "gopher: fewer than 2 stop words"
    return None


def repetition(text: str) -> str | None:
    """Gopher's repetition filters (https://arxiv.org/abs/2112.11446, appendix A.1.1, table A1).

    As in https://github.com/huggingface/datatrove/blob/main/src/datatrove/pipeline/filters/gopher_repetition_filter.py
    the first of several copies does not count as a copy.
    """
    for unit, pattern in (("lines", r"\n+"), ("paragraphs", r"\n{2,}")):
        blocks = [block for block in re.split(pattern, text.strip()) if block.strip()]
        copies = [block for block, count in Counter(blocks).items() for _ in range(count - 1)]
        if len(copies) > 0.30 * len(blocks):
            return f"repetition: more than 30 % of {unit} are copies"
        if sum(map(len, copies)) > 0.20 * len(text):
            return f"repetition: more than 20 % of characters are in copied {unit}"
    words = text.split()
    for size, most in _TOP_NGRAMS.items():
        ngrams = Counter(zip(*(words[at:] for at in range(size)), strict=False))
        ngram, count = max(ngrams.items(), key=lambda item: (item[1], len("".join(item[0]))), default=((), 0))
        if count > 1 and count * len("".join(ngram)) > most * sum(map(len, words)):
            return f"repetition: one run of {size} words makes up more than {most:.0%}"
    for size, most in _REPEATED_NGRAMS.items():
        if _repeated_characters(words, size) > most * sum(map(len, words)):
            return f"repetition: runs of {size} words that repeat make up more than {most:.0%}"
    return None


def _repeated_characters(words: Sequence[str], size: int) -> int:
    """Characters in n-grams of `size` words that occur earlier in the text, none counted twice."""
    seen: set[tuple[str, ...]] = set()
    characters, at = 0, 0
    while at + size <= len(words):
        ngram = tuple(words[at : at + size])
        if ngram in seen:
            characters += sum(map(len, ngram))
            at += size
        else:
            seen.add(ngram)
            at += 1
    return characters


def c4(text: str) -> str | None:
    """C4's rules on whole pages (https://arxiv.org/abs/1910.10683, section 2.2), without its list of words.

    Sentences are counted in the lines that C4 keeps; the numbers and phrases are those of its code,
    https://github.com/tensorflow/datasets/blob/master/tensorflow_datasets/text/c4_utils.py. The other lines stay in
    the text, since there are pictures between them.
    """
    if "lorem ipsum" in text.lower():
        return "c4: lorem ipsum"
    if "{" in text:
        return "c4: a curly bracket, which is code"
    if sum(len(_SENTENCES.findall(line)) for line in map(str.strip, text.splitlines()) if _c4_keeps(line)) < 3:
        return "c4: fewer than 3 sentences in whole lines"
    return None


def _c4_keeps(line: str) -> bool:
    """Whether a line ends like a sentence, has 5 words or more, and is no notice about JavaScript or cookies."""
    if not line.endswith(_C4_ENDS) or line.endswith("...") or len(line.split()) < 5:
        return False
    lowered = line.lower()
    return "javascript" not in lowered and not any(phrase in lowered for phrase in _POLICIES)


def fineweb(text: str) -> str | None:
    """FineWeb's own filters (https://arxiv.org/abs/2406.17557, section 3.6).

    The code that made the data set also drops pages with 0.3 line ends to a word, and sets 0.01 where the section
    says 0.1 of characters in copied lines:
    https://github.com/huggingface/datatrove/blob/main/src/datatrove/pipeline/filters/fineweb_quality_filter.py
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "fineweb: no line"
    if sum(line.endswith(_ENDS) for line in lines) <= 0.12 * len(lines):
        return "fineweb: at most 12 % of lines end in punctuation"
    if sum(len(line) < 30 for line in lines) >= 0.67 * len(lines):
        return "fineweb: at least 67 % of lines are shorter than 30 characters"
    copies = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    if copies >= 0.1 * sum(map(len, lines)):
        return "fineweb: at least 10 % of characters are in copied lines"
    return None


FILTERS: dict[str, Callable[[str], str | None]] = {
    "gopher": gopher,
    "repetition": repetition,
    "c4": c4,
    "fineweb": fineweb,
}


def detect_language(text: str) -> str:
    """The language of a text, as its two-letter code; `unknown` if it is too short or unlike any."""
    from resiliparse.parse.lang import detect_fast

    code, distance = detect_fast(text[:20_000])
    return code if distance <= 1200 else "unknown"  # its documentation: above this "usually false results"

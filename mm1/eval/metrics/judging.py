"""What a judge's reply says: read strictly, or not at all.

A number counts only in the form that was asked for, with the words that judges put around it; what follows may explain
it. So "10" is no share of 1, and "Answer 1: 8 Answer 2: 7" are 8 and 7.
"""

import re

_NUMBER = r"(?<![\d.])(\d+(?:\.\d+)?|\.\d+)(?![\d]|\.\d)"
_NAME = r"(?:(?:the\s+)?(?:answer|assistant|response|model)\s*\(?{}\)?\s*(?:is|gets|:|=|-)*\s*)?"
_PAIR = re.compile(
    rf"""(?:(?:scores?|ratings?)\s*[:=]\s*)?
        {_NAME.format(r"(?:1|one|A)")}{_NUMBER}(?:\s*(?:/|out\s+of)\s*10)?(?:\s*points?)?
        (?:\s*[,;|]?\s*(?:and\s+)?|\s)\s*
        {_NAME.format(r"(?:2|two|B)")}{_NUMBER}(?:\s*(?:/|out\s+of)\s*10)?(?:\s*points?)?
        (?=[\s.,;:]|$)(?!\s*[,;/]?\s*\d)""",
    re.IGNORECASE | re.VERBOSE,
)
_OF_TEN = re.compile(rf"(?<![\d./]){_NUMBER}\s*(?:/|out\s+of)\s*10(?![\d.]*\d)")
_SHARE = re.compile(
    rf"(?:(?:the\s+)?(?:correctness\s+)?(?:score|rating|correctness)\s*(?:is|:|=)*\s*)?{_NUMBER}"
    r"(?:\s*(?:/|out\s+of)\s*(10|1)(?:\.0)?(?![\d.]*\d))?(?=[\s.,;:]|$)"
    r"(?!\s*(?:[,/-]|or\b|to\b)\s*[.\d])(?![ \t]+[.\d])",
    re.IGNORECASE,
)


def two_scores(reply: str) -> tuple[float, float]:
    """The scores of two answers, each 0 to 10, at the beginning of the reply.

    Raises:
        ValueError: there are not exactly two, or one is out of range.
    """
    text = re.sub(r"[*`_#]+", "", reply).strip()
    match = _PAIR.match(text)
    pair = [float(number) for number in match.groups()] if match else []
    if not pair:
        pair = [float(number) for number in _OF_TEN.findall(text.partition("\n")[0])]
    if len(pair) != 2 or not all(0 <= number <= 10 for number in pair):
        raise ValueError(f"two numbers from 1 to 10 are expected on the first line; found {reply[:80]!r}")
    return pair[0], pair[1]


def share(reply: str) -> float:
    """The share that a reply begins with, 0 to 1; "8/10" is 0.8.

    Raises:
        ValueError: it begins with no number, or with one above 1.
    """
    match = _SHARE.match(re.sub(r"[*`_#]+", "", reply).strip())
    value = float(match[1]) / float(match[2] or 1) if match else -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"a number from 0.0 to 1.0 is expected; found {reply[:80]!r}")
    return value

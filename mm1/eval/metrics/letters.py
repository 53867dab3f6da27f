"""Which choice a model's text names. Nothing is guessed: a text that names none, or several, is read as none.

The rules are tried in the order of `letter_of`, from the plainest sign to the weakest. `tests/test_letters.py` has the
table of forms that they are measured on.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from mm1.eval.metrics import letters_cjk as cjk
from mm1.eval.metrics.short_answers import LETTERS

_MARKUP = re.compile(
    r"\*+|`+|(?<!\w)_+|_+(?!\w)|^[ \t]*(?:#+|>|[-•])[ \t]+"
    r"|\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|bf|rm)\b|[$]|\\[()\[\]]",
    re.MULTILINE,
)
_INSIDE = re.compile(r"(?<=\w)\*\*(?=\w)")
"""Where emphasis begins or ends within a word, so that words don't grow together: "is**B**"."""

_NEXT = re.compile(r"\n[ \t]*(?:Question|User|Human)[ \t]*[:\uff1a]")
"""Where a model asks itself the next question."""

_PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u3002": ".", "\u2013": "-", "\u2014": "-"}
)
_ENCLOSED = re.compile(
    r"<answer>((?:(?!<answer>).)*?)</answer>|\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}", re.IGNORECASE | re.DOTALL
)
_CONCLUSION = re.compile(
    r"""\b(?:answer|ans|option|choice|letter|conclusion|selection)\b["'\])]*
        (?:\s+(?:to|for|here|in|that)\b[^.\n:]{0,60}?)?
        \s*(?:\b(?:is|was)\b(?:\s+(?:therefore|thus|then|clearly|likely|probably|most\ likely))?\s*[:=]?
            |\b(?:would|should|must|could|might|will|has\ to|seems\ to|appears\ to|is\ likely\ to)\s+be\b
            |[:=→]|-+>?(?=\s)|\.(?=\s*\(?[A-Za-z]\b)|\n)\s*
        |"""
    + cjk.CONCLUSION,
    re.IGNORECASE | re.VERBOSE,
)
_RIGHT = r"(?:correct|right|true|best|accurate|answer|appropriate|(?:the\s+)?one|match|choice|option)"
_FILL = r"(?:(?:the|my|clearly|most|definitely|probably|likely|indeed|also|only|single|a|very)\s+)*"
_BE = r"(?:is|was|(?:would|should|must)\s+be|(?:seems|appears)(?:\s+to\s+be)?|looks|fits|matches)"
_WRONG = r"(?:not|wrong|incorrect|false|isn't|cannot|can't|doesn't|ruled\s+out|out\b)"
_DOUBT = r"(?<!\bno\s)(?<!\ba\s)(?<!\bany\s)(?<!\blittle\s)(?<!\bwithout\s)(?<!\bbeyond\s)(?<!\bnot\s)(?<!n't\s)\bdoubt"
_NOT = (
    r"(?:\bnot|\bcannot|n't|\bnever|\bneither|\bnor|\brather\s+than|\binstead\s+of|\bexcept|\bwithout|\bunlikely"
    rf"|{_DOUBT})\s+(?:(?:the|be|an?|that|think|believe|say|it|it's|it\s+is|to|answer\s+is)\s+)*"
)
_NO_CONCLUSION = re.compile(
    rf"(?:(?:\bnot|n't|\bnever)\s+(?:think|believe|say|sure|certain)|{_DOUBT})"
    r"[\s,]+(?:that\s+)?(?:the\s+)?(?:\w+\s+)?$",
    re.IGNORECASE,
)
"""What stands before "answer is" where nothing is concluded."""

_SUPPOSED = re.compile(
    r"""\b(?:if|whether|unless|suppos(?:e|ing)|assum(?:e|ing))\b
        (?!\s+(?:you|we|one)\s+(?:look|zoom|examine|observe|count)\b|\s+(?:I|you)\s+(?:have|had)\s+to\b)
        (?:(?!\b(?:then|but|therefore|thus|hence|since|because|so(?=\s+(?:(?:the|my|our|i|we|it|it's|this|option)\b|$)))\b)
            [^.!?,;:\n])*$""",
    re.IGNORECASE | re.VERBOSE,
)
"""A condition that isn't over yet. "If you look at it" and "if I had to guess" are none."""

_BEFORE_LETTER = """
actually also alternative and answer as be because been believe best but chart choice choices choose chose
conclude correct diagram doubt even figure final get gives go going graph guess hence image is it item just letter
like maybe me mean means no not number ok okay only option options or panel perhaps photo pick picked picture
rather right said say select selected sequence since so statement sure take than that then therefore think this
thought thus to was with yes
"""
"""Words before a letter that names a choice. After any other, such as "angle" or "vitamin", it is part of a name."""

_NAMED = r"(?:(?:option|choice|answer|letter|选项|答案|选)\s*)?"
_CHOOSE = (
    r"\b(?:choose|chose|pick|picked|select|selected|go(?:ing)?\s+with|went\s+with|say|guess|think|believe|is|it's"
    r"|(?:vote|voted|opt|opted|go|settle|settled)\s+(?:for|on)|so|thus|hence|therefore|actually|rather)\b"
    r"[\s,:]*(?:that\s+|it\s+is\s+|it's\s+)?"
)
_AFTER_A = r"(?:because|since|as|for|due|which|where|is|was|fits|matches|seems|looks|shows|describes|would|best)\b"
_LAST_WORDS = 5
_WEAK_TEXTS = frozenset({"no", "none", "a", "i", "all", "both", "one", "it", "is", "the"})
"""Choices that are common words: their text counts only where the answer begins with it."""


def letter_of(written: str, choices: Sequence[str]) -> str:
    """The letter of the choice that the text `written` names, or "" if it names none, or several.

    Tried in this order: the letter or the text of a choice alone; what stands in <answer> or in a box; what follows the
    last "the answer is"; "B is correct"; a letter that the text begins with; "I choose B"; the only letter, or the only
    choice's text, that occurs. "A" before a word is an article, and what is denied doesn't count. Where the model asks
    itself a question, what stands before it is read first, and the whole text if that names none.
    """
    stripped = tuple(choice.strip() for choice in choices)
    texts = dict.fromkeys((_NEXT.split(written.strip())[0], written))
    return next((letter for text in texts if (letter := _Reading(_plain(text), stripped).letter())), "")


@lru_cache(maxsize=4096)
def _plain(written: str) -> str:
    """The text without markup, with plain quotes and brackets."""
    text = _INSIDE.sub(" ", unicodedata.normalize("NFKC", written).translate(_PLAIN)).strip()
    return cjk.spaced(_MARKUP.sub("", text)).strip()


@dataclass(frozen=True)
class _Reading:
    """A text without markup, and the choices that it may name."""

    text: str
    choices: tuple[str, ...]

    def letter(self) -> str:
        for rule in (self._alone, self._enclosed, self._concluded, self._called_right, self._opening, self._chosen):
            if letter := rule():
                return letter
        return self._mentioned()

    @cached_property
    def letters(self) -> str:
        return LETTERS[: len(self.choices)]

    @cached_property
    def _capital(self) -> str:
        """A pattern of one capital letter of a choice, as a word, in brackets or not."""
        return rf"[\"'(\[{{<]{{0,2}}(?<![\w/-])([{self.letters}])(?![\w'-])[\"')\]}}>]{{0,2}}"

    def _alone(self) -> str:
        """The whole text is a letter, or the text of choices that are equal."""
        bare = re.sub(rf"^(?i:{_NAMED})\W*", "", self.text).strip(" \t\n.,:;!?\"'()[]{}<>\u3001")
        if len(bare) == 1 and bare.upper() in self.letters:
            return bare.upper()
        same = [number for number, choice in enumerate(self.choices) if _same(self.text, choice)]
        exact = [number for number in same if self.choices[number] in (self.text, self.text.rstrip("."))]
        same = exact or same
        return self.letters[same[0]] if len({self.choices[number] for number in same}) == 1 else ""

    def _enclosed(self) -> str:
        closed = max(self.text.lower().rfind("</answer>") + len("</answer>"), self.text.rfind("}") + 1)
        inside = [first or second for first, second in _ENCLOSED.findall(self.text[:closed])]
        return (
            _Reading(_plain(re.sub(r"^\{(.*)\}$", r"\1", inside[-1].strip())), self.choices).letter() if inside else ""
        )

    def _concluded(self) -> str:
        """What stands after the last "answer is", "answer:" and the like that a choice follows."""
        matches = _CONCLUSION.finditer(self.text)
        ends = [match.end() for match in matches if self._is_concluded(match.start())]
        return next((letter for end in reversed(ends) if (letter := self._head(self.text[end:]))), "")

    def _is_concluded(self, start: int) -> bool:
        """Whether a conclusion at `start` is neither denied, doubted nor supposed."""
        before = self.text[max(0, start - 40) : start]
        return not _NO_CONCLUSION.search(before) and not self._is_supposed(start) and cjk.is_concluded(before)

    def _is_supposed(self, start: int) -> bool:
        """Whether what stands at `start` of the text is part of a condition."""
        return _SUPPOSED.search(self.text[max(0, start - 80) : start]) is not None

    def _is_joined(self, start: int) -> bool:
        """Whether another letter is joined to the one at `start` of the text: "A or B"."""
        joined = rf"(?:\s*(?:[,;/&]|,?\s*\b(?:and|or|nor)\b)|{cjk.JOINED})\s*"
        before = self.text[max(0, start - 12) : start]
        return re.search(rf"(?<!\w)[{self.letters}][\"')\]]{{0,2}}{joined}\Z", before) is not None

    def _head(self, tail: str) -> str:
        """The choice that `tail` begins with."""
        tail = re.sub(rf"^(?i:{_NAMED})[:\s]*", "", tail.lstrip(" :=\n\"'"))
        starts = [
            (len(text), letter) for letter, text in zip(self.letters, self.choices, strict=False) if _begins(tail, text)
        ]
        longest = max(starts, default=(0, ""))
        if longest[0] > 1:
            return longest[1]
        match = re.match(
            rf"[\"'(\[{{<]{{0,2}}([{self.letters}{self.letters.lower()}])(?![\w-]|'\w)(.*)", tail, re.DOTALL
        )
        if match is None or self._goes_on(match[1], match[2]):
            return ""
        letter, rest = match[1], match[2]
        if re.match(cjk.NOT_RIGHT, rest):
            return ""
        is_word = rest[:1] == " " and re.match(rf"\s*(?![{cjk.CJK}])\w", rest) and not re.match(rf"\s*{_AFTER_A}", rest)
        if letter.islower() or letter in "AI":
            return "" if is_word else letter.upper()
        return letter

    def _goes_on(self, letter: str, rest: str) -> bool:
        """Whether other letters, not its text, follow a letter: "A or B", "A; B", "A B"."""
        if _begins(rest.lstrip(")]: ."), self.choices[self.letters.index(letter.upper())]):
            return False
        others = f"[{self.letters.replace(letter.upper(), '')}]"
        joined = rf"(?:[,;/&+=<>]|,?\s*\b(?:and|or)\b|{cjk.JOINED})\s*\(?{others}(?!\w)(?!\s+(?:is|was)\b)"
        beside = rf"\s*\(?{others}\)?\s*(?:[.,;]|$)"
        return re.match(rf"[)\]]?\s*(?:{joined}|{beside})", rest) is not None

    def _called_right(self) -> str:
        """The only choice that is called right: "B is correct"."""
        called = rf"{self._capital}(?:[.:]?\s+{_BE}\s+{_FILL}{_RIGHT}|{cjk.RIGHT})"
        matches = re.finditer(called, self.text)
        named = (one for one in matches if self._may_name(one.start(), self.text) and not self._is_joined(one.start()))
        return self._only({one[1] for one in named})

    def _opening(self) -> str:
        """A letter that the text begins with, unless the text lists several choices."""
        listed = set(re.findall(rf"(?<!\w)\(?([{self.letters}])[).:?]\s+\w", self.text))
        match = re.match(
            rf"[\"'(\[]{{0,2}}([{self.letters}{self.letters.lower()}])([\"')\]]{{0,2}})(.*)", self.text, re.DOTALL
        )
        if match is None or len(listed) > 1:
            return ""
        letter, closed, rest = match[1], match[2], match[3]
        if self._goes_on(letter, rest) or re.match(rf"\s*{_BE}\b|\s*{_WRONG}|{cjk.NOT_RIGHT}", rest):
            return ""
        if answer := re.fullmatch(rf"\s*:\s*\(?([{self.letters}])\)?\W*", rest):
            return answer[1]  # "A: B" answers "Q: ..."
        ends = re.match(r"\s*(?:[.):,;!?\n→=]|-+\s|$)", rest) is not None
        if letter.islower():
            return letter.upper() if ends and (closed or not rest.lstrip().startswith(",")) else ""
        if ends or closed or re.match(rf"\s+{_AFTER_A}", rest):
            return letter
        follows = self.choices[self.letters.index(letter)]
        return letter if follows and _begins(rest.strip(" ("), follows) else ""

    def _chosen(self) -> str:
        """The only choice after "I choose", "it is", "so"."""
        matches = re.finditer(rf"(?i:{_CHOOSE}{_NAMED}){self._capital}(?=(.{{0,20}}))", self.text)
        letters = {
            one[1]
            for one in matches
            if not (one[1] in "AI" and _is_article(one[2]))
            and not self._goes_on(one[1], one[2])
            and not self._is_supposed(one.start(1))
        }
        return self._only(letters - self._denied())

    def _mentioned(self) -> str:
        """The only letter that occurs, or else the only choice whose text does; none if both occur and differ.

        A letter in the name of something else or in a condition counts against the text of another choice.
        """
        one = rf"\(?[{self.letters}]\)?"
        several = rf"(?<!\w){one}(?:(?:\s*(?:,|/|&|\bor\b|\band\b|{cjk.JOINED}))+\s*{one})+(?!\w)"
        masked = re.sub(several, lambda match: " " * len(match[0]), self._masked)
        matches = [
            match
            for match in re.finditer(rf"{self._capital}(?=(.{{0,20}}))", masked)
            if match[1] not in "AI" or match[0][-1:] in ")]" or not _is_article(match[2])
        ]
        last = [match for match in matches if _is_last(match, masked)]
        named = {match[1] for match in last if self._may_name(match.start(), masked)} - self._denied()
        by_text = self._texts()
        if named:
            letter = self._only(named)
            return letter if not by_text or {letter} == by_text else ""
        passed_over = [*last, *(match for match in matches if self._is_supposed(match.start()))]
        return self._only(by_text) if {match[1] for match in passed_over} - self._denied() <= by_text else ""

    def _may_name(self, start: int, text: str) -> bool:
        """Whether a letter at `start` may name a choice: it is no part of a longer name, nor of a condition."""
        word = re.search(r"([\w']+)[ \t]*\Z", text[max(0, start - 30) : start])
        if self._is_supposed(start):
            return False
        if word is None or word[1] in self.letters or word[1].lower() in _BEFORE_LETTER.split():
            return True
        return word[1].endswith("ly") or "'" in word[1] or cjk.may_name(word[1])

    def _denied(self) -> set[str]:
        """The letters of which the text says that they are not right."""
        before = re.findall(rf"(?i:{_NOT}{_NAMED}){self._capital}", self.text)
        after = re.findall(
            rf"{self._capital}(?:\s+(?:{_BE}|are|does|do)?\s*{_FILL}{_WRONG}|{cjk.NOT_RIGHT})", self.text
        )
        return {*before, *after, *re.findall(rf"{cjk.NOT}{self._capital}", self.text)}

    @cached_property
    def _masked(self) -> str:
        """The text with the choices that occur in it blanked out, the longest first."""
        text = self.text
        for choice in sorted((choice for choice in self.choices if len(choice) > 1), key=len, reverse=True):
            text = _word(choice).sub(lambda match: " " * len(match[0]), text)
        return text

    def _texts(self) -> set[str]:
        """The letters of the choices whose text occurs, not denied and not inside of a longer choice's text."""
        text, matches = self.text, set()
        numbered = sorted(zip(self.letters, self.choices, strict=False), key=lambda pair: -len(pair[1]))
        for letter, choice in numbered:
            if not choice or (len(choice) == 1 and not choice.isdigit()):
                continue
            for match in _word(choice).finditer(text):
                before = text[: match.start()]
                if choice.lower() in _WEAK_TEXTS and before.strip():
                    continue
                if not re.search(rf"(?i:{_NOT})$", before[-40:]):
                    matches.add(letter)
            text = _word(choice).sub(lambda match: " " * len(match[0]), text)
        return matches

    def _only(self, matches: set[str]) -> str:
        return next(iter(matches)) if len(matches) == 1 else ""


def _is_article(rest: str) -> bool:
    """Whether a capital A is an article, by what follows."""
    return re.match(rf"\s+(?![A-Z]\b)(?![{cjk.CJK}])\w", rest) is not None and re.match(rf"\s+{_AFTER_A}", rest) is None


def _is_last(letter: re.Match[str], text: str) -> bool:
    """Whether a letter is in brackets or near the end of `text`: there VLMEvalKit's `can_infer_option` takes it."""
    return letter[0][-1:] in ")]" or len(text[letter.end(1) :].split(None, _LAST_WORDS)) < _LAST_WORDS


def _same(text: str, choice: str) -> bool:
    bare = (one.strip(" \t\n\"'").rstrip(".").strip() for one in (text, _plain(choice)))
    ours, theirs = (_spaced(one).casefold() for one in bare)
    return bool(theirs) and ours == theirs


def _begins(text: str, choice: str) -> bool:
    return bool(choice) and _word(choice).match(text.lstrip(" \"'(")) is not None


def _spaced(text: str) -> str:
    """`text` with single spaces between words and numbers and none beside other marks, as in 2\\sqrt{3} and 3cm."""
    return re.sub(r"(?<!\w) +| +(?!\w)|(?<=\d) +(?=[^\W\d])", "", " ".join(text.split()))


_ATOM = re.compile(r"(?:(?<![\w)\]}])[-+])?(?:\.?\d+(?:[.,:/-]\d+)*|\\?[^\W\d]+)|[^\w\s]")
"""A number or word with the sign before it, or a mark. Nothing may stand between its characters: "8 - 3" has no -3."""


@lru_cache(maxsize=4096)
def _word(choice: str) -> re.Pattern[str]:
    """A pattern of the text of a choice, whole words and whole numbers, however it is spaced."""
    plain = " ".join((_plain(choice).rstrip(".") or choice).split())
    pattern, end = "", 0
    for atom in _ATOM.finditer(plain):
        if end:
            pattern += r"\s+" if " " in _spaced(plain[end - 1 : atom.start() + 1]) else r"\s*"
        pattern, end = pattern + re.escape(atom[0]), atom.end()
    return re.compile(rf"(?<![\w.])(?<!\d,)(?<!(?<!\d)-(?=\d)){pattern}(?!\w|[.,]\d|%)", re.IGNORECASE)

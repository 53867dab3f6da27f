"""Penn Treebank tokens of captions, as the official caption scorers make them, without Java.

The official scorers (https://github.com/salaniz/pycocoevalcap) run Stanford's PTBTokenizer 3.4.1 with `-preserveLines
-lowerCase` and drop a list of punctuation tokens. The rules below follow its published conventions
(https://nlp.stanford.edu/software/tokenizer.html) as far as captions need them.
"""

import re

_DROPPED = frozenset("'`.?!,:;-\"")
"""The official list without doubled quotes and dashes, which are replaced earlier. It also names -LRB- and the like in
capitals, but tokens are already lower-case by then: brackets stay in the tokens of every published score."""

_SMALL_ABBREVIATIONS = (
    "adj|adm|adv|al|ala|alex|apr|ariz|assn|atty|aug|ave|bldg|blvd|brig|bros|calif|capt|cf|cmdr|co|col|colo|conn"
    "|corp|cos|ct|dak|dec|dept|dr|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|insp|jan|jos|jr|jul|jun"
    "|kan|kans|ky|lt|ltd|maj|mar|md|mfg|mich|minn|mme|mo|mon|mont|mr|mrs|ms|mt|neb|nev|nov|oct|okla|penn|pfc|ph"
    "|plc|pres|prof|rd|rep|rev|rt|sen|sens|sep|sept|sgt|sq|sr|st|ste|supt|sys|tel|tenn|thu|thurs|tue|tues|univ"
    "|va|vs|vt|wed|wis|wisc|wm|wyo"
)
_CAPITALISED = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # in lower case they are words
_BEFORE_NUMBERS = "art|ca|fig|figs|no|nos|op|pp|prop"
_SENTENCE_STARTS = (  # a single letter before one of these ends a sentence: "plan b. The dog"
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now"
    "|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While"
    "|Yet|You"
)

_RULES = {  # the first rule that matches wins; `(?!\w)` is the end of a word
    "tag": r"""</?[A-Za-z][\w:-]*(?:\s+[\w:-]+=(?:"[^"]*"|'[^']*'|\w+))*\s*/?>|<[!?][A-Za-z-][^<>]*>""",
    "url": r"""https?://[^\s<>"|(){}]*[^\s<>"|(){}.,;:!?'-]
        |(?:[^\W_]+(?:-[^\W_]+)*\.)+(?:com|net|org|edu)(?![\w.])(?:/[^\s<>"|()]*[^\s<>"|().,;:!?'-])?""",
    "email": r"<[\w.+-]+@[\w.-]+>|[^\W_][\w.%+-]*@(?:[\w-]+\.)*[\w-]+",
    "handle": r"[@\#][A-Za-z_]\w*",
    "smiley": r"[<>]?[:;=][o'-]?[()DPdpO@|\\{}\[](?!\w)|\^_\^",
    "abbreviation": rf"""(?<!\w)(?:(?i:{_SMALL_ABBREVIATIONS})|{_CAPITALISED})\.(?![\w.])
        |(?<!\w)(?i:{_BEFORE_NUMBERS})\.(?=\s?\d)""",
    "acronym": rf"""(?:[A-Za-z]\.)+(?:[A-Za-z]\.?)?-[^\W_]+|(?:[A-Za-z]\.){{2,}}s?(?!\w)|Ph\.D\.(?!\w)
        |[A-Za-z]\.(?![\w.]|\s*$|\s+(?:{_SENTENCE_STARTS})\s)""",
    "assimilation": r"""(?i:can(?=not(?!\w))|(?:gon|wan)(?=na(?!\w))|got(?=ta(?!\w))|(?:lem|gim)(?=me(?!\w))
        |'t(?=(?:is|was)(?!\w)))""",
    "clitic": r"(?i:n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w))",
    "apostrophe": r"""(?i:(?:[dol]|trompe-l)'(?!(?:ll|re|ve)(?!\w))[^\W\d_][^\W_]+|'n'|ol'(?!\w)
        |y'(?=all(?!\w))
        |(?:e'er|ma'am|c'mon|ne'er|'(?:n|em|til|cause|\d0s|\d\d(?=\s|$)))(?!\w))
        |[^\W\d_]+[aeiouy]'[aeiou][^\W_]*""",
    "negated": r"[^\W_]+?(?=(?i:n't)(?!\w))",
    "number": r"[-+]?\d*(?:[.,:]\d+)+(?:-[^\W\d_][^\W_]*)*|[-+]\d+|\d+/\d+(?:/\d+)?(?!\w)",
    "company": r"[A-Z]+(?:&[A-Z]+)+|[cC]\+\+|[cCfF]\#|US\$",
    "underscored": r"[^\W_]+(?:_+[^\W_]+)+",
    "word": r"[^\W_]+(?:[-/][^\W_]+|[.!?](?=[^\W\d_])[^\W_]+)*",
    "repeated": r"\*+|_+|@+|\#+|<<|>>|[!?]+",
    "other": r"[^\s\x00-\x1f\x7f-\x9f\u200b-\u200f\U00010000-\U0010ffff]",  # these are "untokenizable"
}
_TOKEN = re.compile("|".join(f"(?P<{name}>{rule})" for name, rule in _RULES.items()), re.VERBOSE)

_PLAIN = str.maketrans(
    {"\u201c": '"', "\u201d": '"', "«": '"', "»": '"', "\u2013": " ", "\u2014": " "}
    | {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "€": "$", "£": " # ", "¢": " cents"}
)
_DOTS = re.compile(r"\.{3}(?!\.)")  # the last three: in "u.s...." the first dot belongs to the acronym
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'"})
_ENTITIES = {"&amp;": "&", "&quot;": '"', "&lt;": "<", "&gt;": ">", "&nbsp;": " "}
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})


def tokens(caption: str) -> list[str]:
    """The tokens of `caption`: lower-case, without punctuation.

    One known difference: the official tokenizer reads a file of captions and looks past the end of a line. Whether
    "a plan b." keeps the period of its last word depends there on the first word of the next caption. Here the next
    caption is assumed to begin with "A", as most do.

    Source: the tokenization of the COCO caption evaluation (https://arxiv.org/abs/1504.00325).
    """
    for entity, letter in _ENTITIES.items():
        caption = caption.replace(entity, letter)
    plain = _DOTS.sub(" ", caption.translate(_PLAIN).replace("--", " "))
    written = []
    for match in _TOKEN.finditer(plain.translate(_STRAIGHT)):
        # o'clock keeps its original apostrophe; n't, 's and the like do not
        keeps = match.lastgroup == "apostrophe"
        written.append(plain[match.start() : match.end()] if keeps else match.group())
    return [_normalized(token) for token in written if token not in _DROPPED]


def _normalized(token: str) -> str:
    """`token` as the Penn Treebank writes it: lower-case, brackets by name (but not inside an address)."""
    is_bracket = len(token) <= 4 and not token.isalnum()
    return token.lower().translate(_BRACKETS) if is_bracket else token.lower()

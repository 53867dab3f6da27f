"""How texts in Chinese, Japanese and Korean name the letter of a choice, which stands between words without spaces."""

import re

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
"""Kana, Chinese characters and Hangul, for a class of characters."""

_EDGE = re.compile(rf"(?<=[{CJK}])(?=[A-Za-z])|(?<=[A-Za-z])(?=[{CJK}])")
_OPTION = re.compile(r"(?<![A-Za-z])([A-Z])[)\]]? ?(?:选项|选|项)(?![择])")

_LETTER = r"(?=[(\[\"' ]*[A-Za-z](?![A-Za-z]))"
_BE = "(?:是|为|选|:)"  # is, is, choose
_PERHAPS = "(?:应该|应当|应|就|显然|可能|必须)?"  # should, may, must
CONCLUSION = (
    rf"(?:(?:答案|选项|选择|结论){_PERHAPS}{_BE}\s*:?"  # answer, option, choice
    rf"|答案\s*{_LETTER}"
    rf"|选(?:择|了|定)?(?:答案|选项)?{_BE}?\s*{_LETTER}"  # choose
    rf"|(?:认为|觉得|猜|估计|应该|应当){_PERHAPS}{_BE}?\s*{_LETTER}"
    r"|(?:答え|正解)\s*(?:は|:)"  # answer, in Japanese
    r"|정답\s*(?:은|:))\s*"  # and in Korean
)
"""What stands before the letter or the text of the choice that is concluded."""

_NO_CONCLUSION = re.compile(r"(?:不|别|没|未|勿|非|排除|如果|若|假如|是否|要是)[^\s,.;:!?]{0,4}$")
_ASKED = r"\s*(?:吗|么|嘛|\?|与否)"
_NOT_RIGHT_JAPANESE = (
    r"\s*(?:は|が|も)?\s*(?:"
    r"(?:正解|正しい答え|答え|正しいの)?(?:では|じゃ|で)(?:な[いくかし]|あり(?:ませ|得|え)|ございませ)"  # is not
    r"|間違|まちが|誤|違|ちが|不正解|正しく(?:な|あり)|(?:です|でしょう|だろう)か)"  # is wrong; is it?
)
_NOT_RIGHT_KOREAN = (
    r"\s*번?\s*[은는이가도]?\s*(?:"
    r"(?:(?:정답|답|옳은 것|맞는 것)\s*[은는이가도]?\s*)?아[니닌닙닐님]"  # is not
    r"|틀|잘못|오답|말고|[가-힣]{1,3}지 않|(?:정답)?(?:입니까|인가요|일까요))"  # is wrong, does not; is it?
)
NOT_RIGHT = (
    r"(?:\s*(?:是|为|就)?\s*(?:不|错|假|吗|非)"
    rf"|\s*(?:是|为)?\s*(?:正确|对|答案|正解)(?:的|答案|选项)*{_ASKED}|{_NOT_RIGHT_JAPANESE}|{_NOT_RIGHT_KOREAN})"
)
"""What follows a letter that isn't the answer: not, wrong, false, or a question."""

RIGHT = rf"\s*(?:是|为|最)*\s*(?:正确|对的|答案|符合|合适|正解)(?!(?:的|答案|选项)*{_ASKED}|では|じゃ)"
"""What follows a letter that is called right."""

_BEFORE_LETTER = (
    "选项",
    "答案",
    "选",
    "是",
    "只有",
    "所以",
    "因此",
    "故",
    "ではなく",
    "でなく",
    "じゃなく",
    "아니라",
    "아닌",
)
"""The ends of what stands before a letter that names a choice: option, answer, is, only, so, not A but."""

NOT = r"(?:不是|不选|不能选|排除|而非|除了)\s*"
"""What stands before a letter that is denied."""

JOINED = r"\s*(?:和|与|或者|或|及|以及|\u3001|还是|か|と|や|も|または|와|과|도|또는|혹은)"
"""Words that join two letters: and, or."""


def spaced(text: str) -> str:
    """`text` with a space between a character of these scripts and a Latin letter, and letters without "option"."""
    return _OPTION.sub(r"\1 ", _EDGE.sub(" ", text))


def may_name(before: str) -> bool:
    """Whether a letter after `before` may name a choice."""
    return before.endswith(_BEFORE_LETTER) and is_concluded(before)


def is_concluded(before: str) -> bool:
    """Whether `before`, what stands before a `CONCLUSION`, neither denies it nor supposes it."""
    return _NO_CONCLUSION.search(before) is None

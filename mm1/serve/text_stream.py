"""The text of an answer while its tokens come in, up to a stop string."""

from collections.abc import Sequence

from mm1.data.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"
"""What a tokenizer writes for the first bytes of a character whose last bytes are missing."""


class TextStream:
    """Collects the tokens of one answer; `taken` gives the text that is certain and was not given before.

    Text is certain when its characters are whole and cannot become a part of a stop string. `push` is called for each
    token and `taken` after each step, by one thread.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._tokens: list[int] = []
        self._known, self._read = (
            0,
            0,
        )  # tokens from `_known` on are decoded together, those before `_read` are in `_text`
        self._text, self._given, self._stopped = "", 0, False

    def push(self, tokens: list[int]) -> bool:
        """Add the last of an answer's tokens; whether the text now holds a stop string."""
        self._tokens.append(tokens[-1])
        before, after = self._decoded()
        if not after.endswith(INCOMPLETE) and len(after) > len(before):
            self._known, self._read = self._read, len(self._tokens)
            self._add(after[len(before) :])
        elif self._stops:  # a stop string may precede a character that is not whole yet
            self._find_stop(self._text + after[len(before) :].rstrip(INCOMPLETE))
        return self._stopped

    def taken(self, *, end: bool = False) -> str:
        """The certain text that was not given before; with `end`, all of it."""
        if end and not self._stopped:
            before, after = self._decoded()
            self._add(after[len(before) :])
            self._known = self._read = len(self._tokens)
        certain = len(self._text) if end or self._stopped else len(self._text) - self._held_back()
        text, self._given = self._text[self._given : certain], max(self._given, certain)
        return text

    def _decoded(self) -> tuple[str, str]:
        """The text of the tokens from `_known` on without those that are new, and with them."""
        before = self._tokenizer.decode(self._tokens[self._known : self._read])
        return before, self._tokenizer.decode(self._tokens[self._known :])

    def _add(self, text: str) -> None:
        self._text += text
        if self._stops:
            self._find_stop(self._text)

    def _find_stop(self, text: str) -> None:
        """Cut the text before the first stop string in it."""
        start = max(0, self._given - self._longest)
        at = min((at for stop in self._stops if (at := text.find(stop, start)) >= 0), default=-1)
        if at >= 0:
            self._text, self._stopped = text[:at], True

    def _held_back(self) -> int:
        """How many last characters may be the beginning of a stop string."""
        end = self._text[self._given :]
        lengths = (
            length
            for stop in self._stops
            for length in range(min(len(stop) - 1, len(end)), 0, -1)
            if end.endswith(stop[:length])
        )
        return max(lengths, default=0)

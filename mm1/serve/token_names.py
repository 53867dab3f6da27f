"""What each token of a vocabulary is as bytes and as text."""

from functools import cached_property

from llguidance import LLTokenizer

from mm1.data.tokenizer import Tokenizer


class TokenNames:
    """The bytes and texts of one tokenizer's tokens, and the tokenizer in llguidance's form."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int):
        """`vocabulary` is the number of logits of the model."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary

    @cached_property
    def guidance(self) -> LLTokenizer:
        """The tokenizer for grammars."""
        ends = sorted(self._tokenizer.ends)
        return LLTokenizer(str(self._tokenizer.path), n_vocab=self._vocabulary, eos_token=ends)

    def bytes(self, token: int) -> bytes:
        """What the token adds to a text."""
        return self.guidance.decode_bytes([token])

    def characters(self, token: int) -> int:
        """How many characters of a text begin in the token: none in a special one, which stands in no text."""
        if token in self._tokenizer.special:
            return 0
        return sum(byte & 0xC0 != 0x80 for byte in self.bytes(token))  # all but those that continue a character

    def text(self, token: int) -> str:
        """The token's text; a part of a character is written as `bytes:\\xf0`, as OpenAI does it."""
        data = self.bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

"""Answers of a given form: JSON, JSON of a schema, one of some texts, a regular expression, a grammar (llguidance)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from mm1.serve.errors import invalid
from mm1.serve.protocol import SamplingRequest

COMPACT: Any = {"whitespace_flexible": False}
"""JSON without free white space, of which a small model may write without end."""


class Grammar:
    """A constraint of the engine for one answer: it follows the tokens as they are written."""

    def __init__(self, matcher: LLMatcher, vocabulary: int):
        self._matcher, self._vocabulary, self._read = matcher, vocabulary, 0

    def allowed(self, written: Sequence[int], stops: frozenset[int]) -> torch.Tensor:
        """Which tokens [V] may follow; a stop token only where the text is complete."""
        self._follow(written)
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed_V = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(bool))
        if not bool(allowed_V.any()):
            allowed_V[list(stops)] = True  # nothing goes on: end, whatever the grammar says
        return allowed_V

    def ended(self, written: Sequence[int]) -> bool:
        """Whether the text is complete and nothing can follow."""
        self._follow(written)
        return bool(self._matcher.is_stopped() or self._matcher.is_error())

    def _follow(self, written: Sequence[int]) -> None:
        new = list(written[self._read :])
        self._read = len(written)
        if new and not self._matcher.is_stopped():
            self._matcher.consume_tokens(new)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The form of an answer in llguidance's language, what it was made of, and in which field of the request."""

    grammar: str
    what: str
    param: str


def grammar_of(request: SamplingRequest) -> AnswerForm | None:
    """The form that the request's answers must have; None if they have none.

    Raises:
        ApiError: there is more than one, or one without its schema.
    """
    form, outputs = request.response_format, request.structured_outputs
    forms: list[AnswerForm] = []
    if form is not None and form.type == "json_object":
        forms.append(_schema({"type": "object"}, "response_format"))
    if form is not None and form.type == "json_schema":
        if form.json_schema is None:
            raise invalid("response_format of type json_schema needs a json_schema", "response_format.json_schema")
        forms.append(_schema(form.json_schema.schema_, "response_format.json_schema.schema"))
    if outputs is not None:
        param = "structured_outputs"
        if outputs.choice is not None:
            if not all(outputs.choice):
                raise invalid("a choice is empty", f"{param}.choice")
            lark = f"start: {' | '.join(map(_literal, outputs.choice))}"
            forms.append(AnswerForm(LLMatcher.grammar_from_lark(lark), "list of choices", f"{param}.choice"))
        if outputs.json_ is not None:
            forms.append(_schema(outputs.json_, f"{param}.json"))
        if outputs.json_object:
            forms.append(_schema({"type": "object"}, param))
        if outputs.regex is not None:
            regex = LLMatcher.grammar_from_regex(outputs.regex)
            forms.append(AnswerForm(regex, "regular expression", f"{param}.regex"))
        if outputs.grammar is not None:
            lark = LLMatcher.grammar_from_lark(outputs.grammar)
            forms.append(AnswerForm(lark, "grammar (Lark)", f"{param}.grammar"))
    if len(forms) > 1:
        raise invalid("an answer can have one form; send either response_format or one of structured_outputs")
    return forms[0] if forms else None


def constraint(form: AnswerForm, tokenizer: LLTokenizer) -> Grammar:
    """The constraint of one answer.

    Raises:
        ApiError: the form cannot be followed.
    """
    matcher = LLMatcher(tokenizer, form.grammar, log_level=0)
    if matcher.is_error():
        message = f"the {form.what} in {form.param} is not valid, or uses what this server does not know"
        raise invalid(message, form.param, code="invalid_schema")
    return Grammar(matcher, tokenizer.vocab_size)


def _schema(schema: dict[str, Any] | str | bool, param: str) -> AnswerForm:
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        if isinstance(schema, dict):  # what the client says of the library's own options is not heard
            schema = {key: value for key, value in schema.items() if key != "x-guidance"}
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=COMPACT)
    except (ValueError, TypeError, RecursionError):
        raise invalid(f"the schema in {param} is no JSON schema", param, code="invalid_schema") from None
    return AnswerForm(grammar, "JSON schema", param)


def _literal(text: str) -> str:
    return json.dumps(text)

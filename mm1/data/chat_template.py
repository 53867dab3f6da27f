"""The chat template of a published model: it writes a conversation as the text that the model was trained on.

It is Jinja, rendered as `transformers` renders it (https://huggingface.co/docs/transformers/chat_templating_writing).
"""

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Turns = list[dict[str, Any]]

_ABSENT = {"tools": None, "documents": None}
"""What `transformers` gives a template that is asked without tools: some test `tools is not none`."""


class _Generation(Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training: its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012, as in its base class

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders conversations: each turn has a `role` and a `content`, a list of pictures and texts.

    Raises:
        ValueError: the source is not a template.
    """

    def __init__(self, source: str):
        # templates come from the hub: code of others, which the sandbox keeps away from everything else
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template cannot be read: {error}") from None
        self.source = source
        self._takes_pieces = self._reads_pieces()

    def __call__(self, turns: Turns, *, continued: bool = True) -> str:
        """The conversation as one text; with `continued`, the beginning of the assistant's next answer follows.

        Raises:
            ValueError: the template refuses the conversation, for example two turns of one role, or takes no pictures.
        """
        if not self._takes_pieces:
            turns = [{"role": turn["role"], "content": _only_text(turn["content"])} for turn in turns]
        try:
            return self._template.render(messages=turns, add_generation_prompt=continued, **_ABSENT)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the model's chat template cannot write this conversation: {error}") from None

    def _reads_pieces(self) -> bool:
        """Whether a turn's content may be a list of pieces, as templates of vision models take; else it is one text."""
        turns = [{"role": "user", "content": [{"type": "text", "text": "a probe"}]}]
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **_ABSENT)
        except (jinja2.TemplateError, TypeError):
            return False
        return "a probe" in text and "'type'" not in text


def _only_text(pieces: list[dict[str, str]]) -> str:
    if any(piece["type"] != "text" for piece in pieces):
        raise ValueError("this model's chat template takes no pictures; ask without --image")
    return "".join(piece["text"] for piece in pieces)


def _refuse(why: str) -> NoReturn:
    raise jinja2.TemplateError(why)

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

TRAINED_ON = datetime(2024, 7, 26)
"""The date in trained conversations of templates that write today's: Llama 3.1's own, where there is no clock."""


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
        environment.globals |= {"raise_exception": _refuse}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template cannot be read: {error}") from None
        self.source = source
        self.takes_pictures = self._reads_pieces()
        self.takes_system = self._writes_system()

    def __call__(self, turns: Turns, *, continued: bool = True) -> str:
        """The conversation as one text; with `continued`, the beginning of the assistant's next answer follows.

        Raises:
            ValueError: the template refuses the conversation, for example two turns of one role, or takes no pictures.
        """
        return self._written(turns, continued=continued, today=datetime.now())

    def answered(self, turns: Turns) -> tuple[str, list[tuple[int, int]]]:
        """A whole conversation as one text, and where in it each of the assistant's answers is: with what ends it,
        without the line after that.

        The same on every day, as the order of a run must be: a template that writes the date writes `TRAINED_ON`.

        Raises:
            ValueError: as above, or earlier turns change when a later one is added.
        """
        text, extents = self._written(turns, continued=False, today=TRAINED_ON), []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before = self._written(turns[:number], continued=True, today=TRAINED_ON)
            after = self._written(turns[: number + 1], continued=False, today=TRAINED_ON).rstrip("\n")
            if not (after.startswith(before) and text.startswith(after)):
                raise ValueError(
                    f"the model's chat template writes turn {number + 1} of {len(turns)} in another way when later "
                    "turns follow, so it can't be told what is trained; set data.tokenizer to a folder without "
                    "chat_template.jinja, which trains mm1's own format"
                )
            extents.append((len(before), len(after)))
        return text, extents

    def _written(self, turns: Turns, *, continued: bool, today: datetime) -> str:
        if not self.takes_pictures:
            turns = [{"role": turn["role"], "content": _only_text(turn["content"])} for turn in turns]
        settings = {"add_generation_prompt": continued, "strftime_now": today.strftime} | _ABSENT
        try:
            return self._template.render(messages=turns, **settings)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the model's chat template cannot write this conversation: {error}") from None

    def _reads_pieces(self) -> bool:
        """Whether a turn's content may be a list of pieces, as templates of vision models take; else it is one text."""
        turns = [{"role": "user", "content": [{"type": "text", "text": "a probe"}]}]
        try:
            settings = {"add_generation_prompt": True, "strftime_now": TRAINED_ON.strftime} | _ABSENT
            text = self._template.render(messages=turns, **settings)
        except (jinja2.TemplateError, TypeError):
            return False
        return "a probe" in text and "'type'" not in text

    def _writes_system(self) -> bool:
        """Whether a conversation may begin with a turn of the system: some templates refuse it, others leave it out."""
        turns = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("system", "a probe"), ("user", "a question"))
        ]
        try:
            return "a probe" in self._written(turns, continued=True, today=TRAINED_ON)
        except ValueError:
            return False


def _only_text(pieces: list[dict[str, str]]) -> str:
    if any(piece["type"] != "text" for piece in pieces):
        raise ValueError("this model's chat template takes no pictures; ask without --image")
    return "".join(piece["text"] for piece in pieces)


def _refuse(why: str) -> NoReturn:
    raise jinja2.TemplateError(why)

"""Another model as the judge of open answers. Its replies are kept, so that it is asked once."""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1.eval.fewshot import Example, ExtractRule, Judged, JudgeRule
from mm1.eval.http_model import HttpModel
from mm1.eval.metrics.answer_parsing import after_thoughts

OWN_PROMPT = "mm1's"
"""The name of the question to the judge that stands in the task's file."""

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """The question to a judge as a file has it, with {question}, {answer}, {reference} and names of metadata."""

    text: str
    name: str

    @classmethod
    def read(cls, path: Path) -> "JudgePrompt":
        """The prompt in a file; its name has a hash of its text.

        Raises:
            ValueError: there is no such file, or the answer isn't shown in it.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--judge-prompt {path} can't be read: {error}") from error
        if "{answer}" not in text:
            raise ValueError(
                f"--judge-prompt {path} shows the judge no answer: write {{answer}} where it is to stand, and "
                "{question} and {reference} where those are"
            )
        return cls(text, f"{path.name}, {hashlib.sha256(text.encode()).hexdigest()[:8]}")

    def fill(self, query: Example, answer: str) -> str:
        """The question about one answer. Other braces stay as they are."""
        values = {**query.metadata, "question": query.question, "answer": answer, "reference": query.answers[0]}
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), self.text)


class Judge:
    """Scores answers with the model of a server; `folder/judge.jsonl` keeps its replies under the judge's name.

    `prompt` is asked instead of the task's own question.
    """

    def __init__(self, model: HttpModel, folder: Path, *, prompt: JudgePrompt | None = None):
        self.model, self.name, self.prompt = model, model.name, prompt
        self._path = folder / "judge.jsonl"
        self._replies: dict[str, str] = {}
        self._bytes_read = 0

    @property
    def prompt_name(self) -> str:
        """The name of the question that it is asked."""
        return OWN_PROMPT if self.prompt is None else self.prompt.name

    def score(self, rule: JudgeRule, query: Example, *, answer: str) -> Judged:
        """The score of `answer`; nan if no score can be read from the reply, and none from a second one.

        An empty answer gets 0 without a request, unless the rule asks always.
        """
        if not answer.strip() and not rule.asks_always:
            return Judged(0.0)
        return self._read(self._question(rule, query, answer), rule.parse) or Judged(math.nan)

    def extract(self, rule: ExtractRule, query: Example, *, written: str) -> str:
        """The answer that the text `written` gives; "" if the judge finds none, or can't be read twice."""
        if not written.strip() or not rule.needed(query, written):
            return written
        return self._read(self._question(rule, query, written), rule.parse) or ""

    def _question(self, rule: JudgeRule | ExtractRule, query: Example, answer: str) -> str:
        return rule.ask(query, answer) if self.prompt is None else self.prompt.fill(query, answer)

    def _read(self, question: str, parse: Any) -> Any:
        """What `parse` reads from the reply, or from a second one after the judge is told why; None from neither."""
        conversation = [{"role": "user", "content": question}]
        reply = self._reply(conversation)
        try:
            return parse(after_thoughts(reply))
        except ValueError as error:
            told = f"This can't be read: {error}. Reply again, in that form alone."
        second = [*conversation, {"role": "assistant", "content": reply}, {"role": "user", "content": told}]
        try:
            return parse(after_thoughts(self._reply(second)))
        except ValueError:
            return None

    def _reply(self, conversation: list[dict[str, Any]]) -> str:
        key = hashlib.sha256(json.dumps(conversation).encode()).hexdigest()[:16]
        if key not in self._replies:
            self._read_new_replies()
        if key not in self._replies:
            self._replies[key] = self.model.chat(conversation, max_tokens=MAX_TOKENS)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"judge": self.name, "asked": key, "said": self._replies[key]}) + "\n")
        return self._replies[key]

    def _read_new_replies(self) -> None:
        """Read what the file has got since the last time: the judges of other ranks write to it, too."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._bytes_read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # another rank may be writing the last line
        self._bytes_read += len(whole)
        records = [json.loads(line) for line in whole.splitlines()]
        self._replies |= {record["asked"]: record["said"] for record in records if record["judge"] == self.name}

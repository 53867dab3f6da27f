"""Answers of a given form, and what is told of each token; lm-eval's own client reads it."""

import json
import random
import re
from typing import Any

import jsonschema
import openai
import pytest
import torch
from serving import said, shown
from test_serve import SHOTS, chat_run, chatting, continuing, plain_run, streamed  # noqa: F401  (fixtures)

from mm1.document import Document, Text
from mm1.generate.writer import Writer


def ask(server, **more):
    messages = [{"role": "user", "content": [shown(1), said("What?")]}]
    return server.client.chat.completions.create(model="tiny", messages=messages, **more)


def schema(chance: random.Random, depth: int = 2) -> dict[str, Any]:
    """A random schema whose texts have an end."""
    kind = chance.choice(("string", "enum", "integer", "number", "boolean", "null", "const", "pattern", "any"))
    if depth and chance.random() < 0.6:
        kind = chance.choice(("object", "array"))
    if kind == "object":
        names = chance.sample(("name", "colour", "size", "parts", "is_round", 'ü "x"'), chance.randint(1, 4))
        properties = {name: schema(chance, depth - 1) for name in names}
        required = [name for name in names if chance.random() < 0.7]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = chance.randint(0, 2)
        return {"type": "array", "items": schema(chance, depth - 1), "minItems": least, "maxItems": least + 2}
    return {
        "string": {"type": "string", "minLength": chance.randint(0, 2), "maxLength": chance.randint(2, 9)},
        "enum": {"enum": ["red", "green", 3, None, True]},
        "integer": {"type": "integer", "minimum": -chance.randint(0, 99), "maximum": chance.randint(1, 999)},
        "number": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25},
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "const": {"const": {"a": [1, "b"]}},
        "pattern": {"type": "string", "pattern": "^[a-z]{1,5}-[0-9]{2}$"},
        "any": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 4}]},
    }[kind]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in (1, 2, 3))])
def test_answers_fit_random_schemas(chatting, part):  # noqa: F811
    for number in range(25):
        wanted = schema(random.Random(f"schema {part} {number}"))
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": True}}
        sampled = {"temperature": 1, "seed": number} if number % 2 else {"temperature": 0}
        reply = ask(chatting, response_format=form, max_tokens=400, **sampled)
        assert reply.choices[0].finish_reason == "stop", wanted
        jsonschema.validate(json.loads(reply.choices[0].message.content), wanted)


def test_json_objects_choices_and_expressions(chatting):  # noqa: F811
    bias = {"2": 10}  # an end comes soon
    reply = ask(
        chatting, response_format={"type": "json_object"}, max_tokens=300, temperature=1, seed=1, logit_bias=bias
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
    assert reply.choices[0].message.content.startswith("{")
    choices = ["yes", "no", "yes, surely", 'a "b" \\ c']
    for seed in range(8):
        written = ask(chatting, extra_body={"structured_outputs": {"choice": choices}}, temperature=1, seed=seed)
        assert written.choices[0].message.content in choices
    regex = {"structured_outputs": {"regex": "(cat|dog)-[0-9]{3}"}}
    texts, _ = streamed(ask(chatting, extra_body=regex, stream=True, n=2, temperature=1, seed=1))
    assert all(re.fullmatch("(cat|dog)-[0-9]{3}", text) for text in texts.values())
    grammar = {"structured_outputs": {"grammar": 'start: "a" ("b" | "c")+ "d"'}}
    assert re.match("a[bc]", ask(chatting, extra_body=grammar, max_tokens=30).choices[0].message.content)


@pytest.mark.parametrize(
    "how",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/definitions/none"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x.example/s.json"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "("}}}},
        {"response_format": {"type": "xml"}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "start: other"}},
        {"structured_outputs": {"choice": []}},
        {"structured_outputs": {"choice": ["a", ""]}},
        {"structured_outputs": {"choice": ["a"], "regex": "b"}},
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(chatting, how):  # noqa: F811
    with pytest.raises(openai.BadRequestError):
        ask(chatting, extra_body=how)


def test_an_answer_ends_before_a_stop_string(chatting):  # noqa: F811
    whole = ask(chatting, temperature=0, max_tokens=60).choices[0].message.content
    for at, length in ((3, 1), (10, 2), (17, 5), (20, 9)):
        stop = whole[at : at + length]
        for streaming in (False, True):
            if streaming:
                texts, chunks = streamed(ask(chatting, temperature=0, max_tokens=60, stop=stop, stream=True))
                text, reason = texts[0], chunks[-1].choices[0].finish_reason
            else:
                choice = ask(chatting, temperature=0, max_tokens=60, stop=stop).choices[0]
                text, reason = choice.message.content, choice.finish_reason
            assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_characters_of_several_tokens_come_whole(chat_run, chatting):  # noqa: F811
    """A streamed text has no half characters, though the tokens of one come in several steps."""
    text = "Größe: 測定 😀👩‍🚀!"
    form = {"structured_outputs": {"choice": [text]}}
    chunks = list(ask(chatting, extra_body=form, stream=True, temperature=0))
    assert len(chunks) > 10
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)
    reply = ask(chatting, extra_body=form, logprobs=True, temperature=0)
    assert bytes(byte for one in reply.choices[0].logprobs.content for byte in one.bytes).decode() == text


def test_logprobs_are_those_of_the_model(chat_run, chatting):  # noqa: F811
    reply = ask(chatting, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert len(content) == 6
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == one.logprob  # greedy
        assert [other.logprob for other in one.top_logprobs] == sorted(
            (other.logprob for other in one.top_logprobs), reverse=True
        )
    streamed_content = [
        one
        for chunk in ask(chatting, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert [one.model_dump() for one in streamed_content] == [one.model_dump() for one in content]


@torch.no_grad()
def test_an_echo_has_the_likelihood_of_the_prompt(plain_run, continuing):  # noqa: F811
    """The log-probabilities of a continuation that follows a few-shot prompt with pictures equal the writer's score."""
    writer = Writer(plain_run.model, plain_run.tokenizer, rows=1)
    for parts, document in (
        ([said("The red")], Document((Text("The red"),))),
        (SHOTS, None),
    ):
        reply = continuing.client.completions.create(
            model="tiny", prompt=[*parts, said(" circle is")], echo=True, logprobs=1, max_tokens=1, temperature=0
        )
        logprobs = reply.choices[0].logprobs
        continuation = plain_run.tokenizer.encode(" circle is")
        got = sum(logprobs.token_logprobs[-1 - len(continuation) : -1])
        assert "".join(logprobs.tokens[-1 - len(continuation) : -1]) == " circle is"
        assert logprobs.token_logprobs[0] is None
        assert reply.choices[0].text.startswith("".join(part.get("text", "") for part in parts) + " circle is")
        if document is not None:
            expected = writer.score([document], [[" circle is"]])[0][0].log_probability
            assert got == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("end", ["nothing to write", "an end at once", "a token"])
def test_an_echo_has_its_likelihood_whatever_is_written_after_it(plain_run, continuing, end, streaming):  # noqa: F811
    """lm-eval asks for one token, drops the last entry and sums those of the continuation: an end must be an entry."""
    tokens = [*plain_run.tokenizer.begin, *plain_run.tokenizer.encode("The red circle is")]
    options = {"echo": True, "logprobs": 1, "temperature": 0, "max_tokens": int(end != "nothing to write")}
    options["logit_bias"] = {str(plain_run.tokenizer.end): 100 if end == "an end at once" else -100}
    reply = continuing.client.completions.create(model="tiny", prompt=[tokens, tokens[:1]], stream=streaming, **options)
    choices = joined(reply) if streaming else [choice.model_dump() for choice in reply.choices]
    for choice, prompt in zip(choices, (tokens, tokens[:1]), strict=True):
        logprobs = choice["logprobs"]
        assert {len(values) for values in logprobs.values()} == {len(prompt) + options["max_tokens"]}
        assert logprobs["token_logprobs"][0] is None
        ends = [*logprobs["text_offset"][1:], len(choice["text"])]
        stands = [choice["text"][start:end] for start, end in zip(logprobs["text_offset"], ends, strict=True)]
        special = [plain_run.tokenizer.symbol(token) for token in plain_run.tokenizer.special]
        assert stands == [token if token not in special else "" for token in logprobs["tokens"]]
        assert all(value < 0 for value in logprobs["token_logprobs"][1:])
        assert choice["finish_reason"] == ("stop" if end == "an end at once" else "length")
    writer = Writer(plain_run.model, plain_run.tokenizer, rows=1)
    expected = writer.score([Document((Text("The red"),))], [[" circle is"]])[0][0].log_probability
    if options["max_tokens"]:
        parsed = pytest.importorskip("lm_eval.models.openai_completions").LocalCompletionsAPI.parse_logprobs
        ((got, _), _) = parsed({"choices": choices}, ctxlens=[len(tokens) - 2, 1])
        assert got == pytest.approx(expected, abs=1e-3)


def joined(chunks) -> list[dict]:
    """The choices of a stream, their likelihoods put together."""
    choices: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            one = choices.setdefault(choice.index, {"index": choice.index, "text": "", "logprobs": {}})
            one |= {"text": one["text"] + choice.text, "finish_reason": choice.finish_reason}
            for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
                one["logprobs"].setdefault(name, []).extend(values)
    return [choices[number] for number in sorted(choices)]

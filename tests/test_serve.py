"""The OpenAI SDK, untouched, against a server of a tiny run: answers equal those of `mm1 chat` and `mm1 eval`."""

import base64
import json
import re
import struct
import zlib

import conftest
import openai
import pytest
import requests
import serving
from openai.types.chat import ParsedChatCompletionMessage
from serving import data_url, said, shown

from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat_format import prompt
from mm1.document import Document, Image, Mark, Text
from mm1.generate.writer import Writer
from mm1.serve.chat import answer
from mm1.serve.checking import parse
from mm1.serve.errors import ApiError
from mm1.serve.protocol import ChatRequest


@pytest.fixture(scope="session")
def chat_run(tmp_path_factory):
    return load_for_use(serving.train(tmp_path_factory.mktemp("chat"), chat=True), precision="fp32")


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    return load_for_use(serving.train(tmp_path_factory.mktemp("plain"), chat=False), precision="fp32")


@pytest.fixture(scope="session")
def chatting(chat_run):
    with serving.running(chat_run) as server:
        yield server


@pytest.fixture(scope="session")
def continuing(plain_run):
    with serving.running(plain_run) as server:
        yield server


def picture(seed: int) -> Image:
    return Image(conftest.picture(seed, 0)[0])


def user(text: str) -> Text:
    return Text(text, train=False)


def written(loaded: Loaded, document: Document, tokens: int = 24) -> str:
    return Writer(loaded.model, loaded.tokenizer, rows=1).write([document], max_tokens=tokens)[0]


CONVERSATIONS = [
    ([("user", "Is there a circle?")], prompt([user("Is there a circle?")])),
    ([("user", [shown(1), said("What is it?")])], prompt([picture(1), user("What is it?")])),
    ([("user", [said("What is it?"), shown(1)])], prompt([user("What is it?"), picture(1)])),
    (
        [("user", [shown(1), said("and"), shown(2), shown(1), said("?")])],
        prompt([picture(1), user("and"), picture(2), picture(1), user("?")]),
    ),
    (
        [("user", [shown(3), said("What?")]), ("assistant", "a red circle"), ("user", "Sure?")],
        Document(
            (
                *(Mark("user"), picture(3), user("What?"), Mark("assistant"), user("a red circle"), Mark("end")),
                *(Mark("user"), user("Sure?"), Mark("assistant")),
            )
        ),
    ),
    ([("system", "Be brief."), ("user", "What?")], prompt([user("Be brief.\n"), user("What?")])),
]


@pytest.mark.parametrize(("turns", "document"), CONVERSATIONS)
def test_a_conversation_gets_what_the_model_writes_after_its_document(chat_run, chatting, turns, document):
    messages = [{"role": role, "content": content} for role, content in turns]
    reply = chatting.client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, temperature=0)
    assert reply.choices[0].message.content == written(chat_run, document)
    assert reply.usage.prompt_tokens == Writer(chat_run.model, chat_run.tokenizer, rows=1).prompt_tokens(document)
    assert reply.usage.completion_tokens <= 24


def test_a_question_gets_the_answer_of_mm1_chat(chat_run, chatting, tmp_path):
    (tmp_path / "picture.png").write_bytes(conftest.picture(5, 0)[0])
    said_by_chat = answer(chat_run, "What is it?", images=[tmp_path / "picture.png"], tokens=20)
    messages = [{"role": "user", "content": [shown(5), said("What is it?")]}]
    reply = chatting.client.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0)
    assert reply.choices[0].message.content.strip() == said_by_chat


def test_a_run_without_chats_continues_the_text_of_one_message(plain_run, continuing):
    messages = [{"role": "user", "content": [shown(2), said(" A photo of")]}]
    reply = continuing.client.chat.completions.create(model="tiny", messages=messages, max_tokens=24, temperature=0)
    assert reply.choices[0].message.content == written(plain_run, Document((picture(2), user(" A photo of"))))
    with pytest.raises(openai.BadRequestError, match="learned no conversations"):
        continuing.client.chat.completions.create(
            model="tiny", messages=[*messages, {"role": "assistant", "content": "x"}, *messages]
        )


SHOTS = [shown(1), said(" a red circle\n"), shown(2), said(" a")]


def test_completions_take_texts_tokens_and_pictures(plain_run, continuing):
    ask = continuing.client.completions.create
    few_shot = Document((picture(1), user(" a red circle\n"), picture(2), user(" a")))
    text = Document((user("The red"),))
    tokens = [*plain_run.tokenizer.begin, *plain_run.tokenizer.encode("The red")]
    for sent, documents in (
        ("The red", [text]),
        (tokens, [text]),
        (SHOTS, [few_shot]),
        (["The red", "A"], [text, Document((user("A"),))]),
        ([SHOTS, [said("The red")]], [few_shot, text]),
        ([tokens, tokens], [text, text]),
    ):
        reply = ask(model="tiny", prompt=sent, max_tokens=24, temperature=0)
        assert [choice.text for choice in reply.choices] == [written(plain_run, document) for document in documents]
        assert [choice.index for choice in reply.choices] == list(range(len(documents)))
    assert (
        ask(model="tiny", prompt="The red", echo=True, max_tokens=4, temperature=0)
        .choices[0]
        .text.startswith("The red")
    )
    reply = ask(model="tiny", prompt="The red", temperature=0, logprobs=1, extra_body={"ignore_eos": True})
    assert len(reply.choices[0].logprobs.tokens) == 16


def streamed(chunks) -> tuple[dict[int, str], list]:
    """The text of each choice, and all chunks."""
    texts: dict[int, str] = {}
    kept = []
    for chunk in chunks:
        kept.append(chunk)
        for choice in chunk.choices:
            text = choice.delta.content if hasattr(choice, "delta") else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (text or "")
    return texts, kept


@pytest.mark.parametrize(
    "more", [{}, {"n": 3, "temperature": 1.3, "seed": 5}, {"stop": ["e", "th"]}, {"top_p": 0.5, "seed": 1}]
)
def test_streamed_text_is_the_text(chatting, continuing, more):
    options = {"model": "tiny", "max_tokens": 30, "temperature": 0, **more}
    messages = [{"role": "user", "content": [shown(1), said("What?")]}]
    for ask, body in (
        (chatting.client.chat.completions.create, {"messages": messages}),
        (continuing.client.completions.create, {"prompt": SHOTS}),
    ):
        whole = ask(**options, **body)
        texts, chunks = streamed(ask(**options, **body, stream=True, stream_options={"include_usage": True}))
        assert texts == {
            choice.index: choice.message.content if "messages" in body else choice.text for choice in whole.choices
        }
        assert chunks[-1].usage == whole.usage
        assert not chunks[-1].choices
        finishes = {choice.index: choice.finish_reason for chunk in chunks for choice in chunk.choices}
        assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}


def test_the_same_seed_gives_the_same_texts(chatting):
    def ask(seed: int) -> list[str]:
        messages = [{"role": "user", "content": "What?"}]
        reply = chatting.client.chat.completions.create(
            model="tiny", messages=messages, n=3, seed=seed, max_tokens=12, temperature=1
        )
        return [choice.message.content for choice in reply.choices]

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)
    assert len(set(ask(1))) == 3


def test_the_models_are_listed(chatting):
    assert [model.id for model in chatting.client.models.list()] == ["tiny"]
    assert chatting.client.models.retrieve("tiny").owned_by == "mm1"
    with pytest.raises(openai.NotFoundError, match="it is tiny"):
        chatting.client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="it is tiny"):
        chatting.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "What?"}])


def message(content) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}]}


def huge_png() -> bytes:
    """The header of a picture that Pillow takes for an attack."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    end = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + end


MISTAKES = [
    ({}, "messages is missing"),
    (
        message([{"type": "image_url", "image_url": data_url(b"x")}]),
        r"messages\.0\.content\.0\.image_url must be an object",
    ),
    (message("x") | {"temperature": 3}, "temperature must be at most 2"),
    (message("x") | {"temperature": "hot"}, "temperature must be a number"),
    (message("x") | {"stop": ["a"] * 17}, "stop has more than 16 entries"),
    (message("x") | {"stop": 3}, "stop must be a text or a list"),
    (message("x") | {"tools": [{"type": "function"}]}, "tools is not supported; leave it out"),
    (message("x") | {"structured_outputs": {"choice": []}}, r"structured_outputs\.choice is empty"),
    (message("x") | {"structured_outputs": {"regex": "["}}, r"the regular expression in structured_outputs\.regex is"),
    (message("x") | {"structured_outputs": {"grammar": "start: b"}}, r"the grammar \(Lark\) in structured_outputs"),
    (message("x") | {"messages": [{"role": "user", "content": "x", "x\n": 1}]}, "no field messages.0.x\n in this"),
    (message("x") | {"temperatur": 1}, "no field temperatur in this request; did you mean 'temperature'"),
    (message("x") | {"n": 0}, "n must be at least 1"),
    (message("x") | {"max_tokens": "many"}, "max_tokens must be a whole number"),
    (message("x") | {"top_logprobs": 2}, "top_logprobs needs logprobs"),
    (message("x" * 100_000), "has 100,000 characters; this server reads 32,768, and takes 512 tokens"),
    (message("a b " * 600), "the prompt has .* tokens, and this server takes 512"),
    (message(""), r"messages\.0\.content is empty"),
    (message("x") | {"messages": [{"role": "tool", "content": "x"}]}, r"messages\.0\.role must be"),
    (message("x") | {"messages": [{"role": "assistant", "content": "x"}]}, "last message must be the user's"),
    (message("x") | {"messages": []}, "messages is empty"),
    (message([shown(1)] * 33), "has 33 pictures, and this server takes 32"),
    (message([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]), "cannot be decoded"),
    (message([{"type": "image_url", "image_url": {"url": "file:" + "//" + "/etc/passwd"}}]), "must be data:image"),
    (
        message([{"type": "image_url", "image_url": {"url": data_url(conftest.picture(1, 0)[0][:90])}}]),
        "cannot be decoded",
    ),
    (message([{"type": "image_url", "image_url": {"url": data_url(huge_png())}}]), "more than 64,000,000 pixels"),
    (message([{"type": "image_url", "image_url": {"url": "https://a.example/a.png"}}]), "where --allow-media-domains"),
    (message([{"type": "video", "video": "x"}]), r"messages\.0\.content\.0 has a type"),
]


@pytest.mark.parametrize(("body", "said"), MISTAKES)
def test_a_mistake_is_an_error_object_in_plain_words(chatting, body, said):
    reply = requests.post(f"{chatting.base}/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400, error
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert re.search(said, error["message"]), error["message"]


PROMPTS = [
    ([], "prompt is empty"),
    ([None], "all entries of a list must be of one kind"),
    (None, "prompt must be a text, token ids, or parts"),
    (["a", 1], "all entries of a list must be of one kind"),
    (["a", said("b")], "all entries of a list must be of one kind"),
    ([said("b"), {"type": "text"}], r"prompt\.1\.text is missing"),
]


@pytest.mark.parametrize(("prompt", "words"), PROMPTS)
def test_a_prompt_of_no_known_form_is_told_the_forms(continuing, prompt, words):
    reply = requests.post(f"{continuing.base}/v1/completions", json={"prompt": prompt})
    assert reply.status_code == 400
    assert re.search(words, reply.json()["error"]["message"]), reply.json()
    body = b'{"prompt": "a", "temperature": NaN}'
    json_header = {"Content-Type": "application/json"}
    error = requests.post(f"{continuing.base}/v1/completions", data=body, headers=json_header).json()["error"]
    assert "NaN" in error["message"]
    suffix = requests.post(f"{continuing.base}/v1/completions", json={"prompt": "a", "suffix": "b"}).json()["error"]
    assert suffix["message"] == "suffix is not supported; leave it out"


def test_an_answer_of_the_sdk_goes_back_as_it_came_and_base64_may_have_lines(chatting):
    ask = chatting.client.chat.completions.create
    data = base64.encodebytes(conftest.picture(1, 0)[0]).decode()
    broken = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    first = ask(model="tiny", messages=[{"role": "user", "content": [broken, said("What?")]}], max_tokens=4)
    whole = ask(model="tiny", messages=[{"role": "user", "content": [shown(1), said("What?")]}], max_tokens=4)
    assert first.usage.prompt_tokens == whole.usage.prompt_tokens
    turn = first.choices[0].message.model_dump() | {"content": "a circle"}
    question = {"role": "user", "content": "Sure?"}
    assert {"refusal", "annotations", "audio", "tool_calls"} <= turn.keys()
    assert ask(model="tiny", messages=[question, turn, question], max_tokens=4).choices


ANSWERS = {
    "of a parsing client": ParsedChatCompletionMessage(role="assistant", content="a circle").model_dump(),
    "of LiteLLM": {"provider_specific_fields": {"citations": None}, "thinking_blocks": []},
    "of OpenRouter": {"reasoning_details": [{"type": "reasoning.text", "text": "round"}]},
    "with unset fields": {"tool_call_id": None, "audio": None},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_goes_back_with_the_fields_that_a_client_gives_it(name):
    question, answer = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "a circle"}
    body = json.dumps({"messages": [question, answer | ANSWERS[name], question]}).encode()
    assert parse(body, ChatRequest).messages[1].content == "a circle"
    with pytest.raises(ApiError, match=r"no field messages\.0\.x in"):
        parse(json.dumps({"messages": [question | {"x": False}]}).encode(), ChatRequest)


def test_tokenize_takes_what_the_page_says(plain_run, continuing):
    def ask(**more) -> dict:
        return requests.post(f"{continuing.base}/tokenize", json={"prompt": "The red", **more}).json()

    ids = plain_run.tokenizer.encode("The red")
    assert ask()["tokens"] == [*plain_run.tokenizer.begin, *ids]
    bare = ask(add_special_tokens=False, return_token_strs=True)
    assert (bare["tokens"], bare["count"]) == (ids, len(ids))
    assert "".join(bare["token_strs"]).replace("\u0120", " ") == "The red"
    end = plain_run.tokenizer.end
    back = requests.post(f"{continuing.base}/detokenize", json={"tokens": [*ids, end]}).json()
    assert back["prompt"] == f"The red{plain_run.tokenizer.symbol(end)}"


def test_what_is_no_json_object_or_no_route_is_refused_in_the_same_form(chatting):
    post, address = requests.post, f"{chatting.base}/v1/chat/completions"
    json_header = {"Content-Type": "application/json"}
    for content in (b"", b"{", b"[" * 100_000, b"[]", b'{"messages": NaN}', b'{"messages": "\\ud800"}', b"\xff"):
        reply = post(address, data=content, headers=json_header)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), content[:20]
    assert post(address, data=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert requests.get(address).status_code == 405
    assert requests.get(f"{chatting.base}/v1/nothing").json()["error"]["type"] == "not_found_error"


def test_keys_are_asked_for_everywhere_but_at_health(chat_run):
    with serving.running(chat_run, keys=("one", "two")) as server:
        for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/nothing"):
            assert requests.get(server.base + path).status_code == 401
            assert requests.get(server.base + path, headers={"Authorization": "Bearer on"}).status_code == 401
            assert requests.get(server.base + path, headers={"Authorization": "Basic one"}).status_code == 401
        assert requests.get(f"{server.base}/health").json() == {"status": "ok"}
        for key in ("one", "two"):
            client = openai.OpenAI(base_url=f"{server.base}/v1", api_key=key, max_retries=0)
            assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.AuthenticationError, match="needs a key"):
            openai.OpenAI(base_url=f"{server.base}/v1", api_key="three", max_retries=0).models.list()

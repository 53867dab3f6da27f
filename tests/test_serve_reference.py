"""The page of routes and fields: it has all that the OpenAPI document has, and loads nothing."""

import re

import pytest
import requests
import serving
from test_serve import chat_run  # noqa: F401  (a fixture)
from test_serve_page import browser, long, needs_browser, shoot  # noqa: F401

from mm1.serve import protocol
from mm1.serve.reference import described


def words(schema: dict) -> str:
    return "".join(part.text for part in described(schema))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 128}, "whole number, at least 1, at most 128"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"anyOf": [{"type": "string"}, {"items": {"type": "string"}, "type": "array", "maxItems": 2}]},
         "text or list of (text), at most 2 entries"),
        ({"anyOf": [{"type": "integer", "maximum": 2}, {"type": "number", "maximum": 2}]}, "number, at most 2"),
        ({"enum": ["a", "b"], "type": "string"}, "'a' or 'b'"),
        ({"const": "text", "type": "string"}, "'text'"),
        ({"$ref": "#/components/schemas/Message"}, "Message"),
        ({"type": ["string", "null"]}, "text"),
        ({}, "anything"),
    ],
)  # fmt: skip
def test_a_schema_is_said_in_words(schema, said):
    assert words(schema) == said


def test_the_page_has_every_route_and_field_and_loads_nothing(chat_run):  # noqa: F811
    with serving.running(chat_run, keys=("key",)) as server:
        reply = requests.get(f"{server.base}/docs", timeout=60)
        document = requests.get(f"{server.base}/openapi.json", timeout=60).json()
    assert reply.status_code == 200
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    for word in ("<script", "http:", "https:", "//cdn", "@import", " src="):
        assert word not in reply.text
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}<" in reply.text
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/models"} < document[
        "paths"
    ].keys()
    for kind in (protocol.ChatRequest, protocol.CompletionRequest, protocol.TokenizeRequest, protocol.ResponseFormat):
        section = re.search(rf'<h2 id="{kind.__name__}">.*?</table>', reply.text, re.DOTALL)
        assert section is not None, kind
        for name, field in kind.model_fields.items():
            assert f"<code>{field.alias or name}</code>" in section[0], (kind, name)
    links = set(re.findall(r'href="#(\w+)"', reply.text))
    assert links <= set(re.findall(r'<h2 id="(\w+)">', reply.text))


@long
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_reads_on_a_phone(browser, chat_run, scheme):  # noqa: F811
    with serving.running(chat_run) as server:
        page = browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 640}).new_page()
        errors: list[str] = []
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(f"{server.base}/docs")
        page.get_by_role("heading", name="ChatRequest").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "it scrolls sideways on a phone"
        page.get_by_role("link", name="CompletionRequest").first.click()
        assert page.url.endswith("#CompletionRequest")
        shoot(page, f"reference-{scheme}")
        assert not errors

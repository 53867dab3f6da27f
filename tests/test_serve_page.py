"""The chat page in a real browser: Chromium, which tests of CI that have none leave out."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import conftest
import pytest
import requests
import serving
from serving import Running
from test_serve import chat_run, plain_run  # noqa: F401  (fixtures)

from mm1.serve.limits import Limits

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("MM1_SCREENSHOTS", "")

DROP = """([bytes, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
  const how = { dataTransfer: files, bubbles: true, cancelable: true };
  for (const kind of ["dragover", "drop"]) document.dispatchEvent(new DragEvent(kind, how));
}"""
PASTE = """bytes => {
  const files = new DataTransfer();
  files.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
  const how = { clipboardData: files, bubbles: true, cancelable: true };
  document.dispatchEvent(new ClipboardEvent("paste", how));
}"""

long = pytest.mark.long
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium, or CHROMIUM=PATH")


def test_the_page_loads_nothing_from_elsewhere(chat_run):  # noqa: F811
    with serving.running(chat_run, keys=("key",)) as server:
        reply = requests.get(server.base, timeout=60)
        assert reply.headers["Content-Type"].startswith("text/html")
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]
        for word in ("http:", "https:", "//cdn", "@import", " src=", "innerHTML"):
            assert word not in reply.text


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


def opened(browser, server: Running, **how):
    """The page in a new tab, where an error of its script fails the test."""
    page = browser.new_context(**how).new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.errors = errors
    page.goto(server.base)
    return page


def wait(page, expression: str) -> None:
    """Wait until an expression is true: the page's own policy forbids playwright's way."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.02)


def shoot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def slowed(server: Running, seconds: float) -> None:
    """Let every step of the engine take longer, so that an answer can be seen while it is written."""
    engine = server.server.scheduler.engine
    step = engine.step

    def later():
        time.sleep(seconds)
        return step()

    engine.step = later


def picture(seed: int) -> list[int]:
    return list(conftest.picture(seed, 0)[0])


@long
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_is_dropped_asked_about_stopped_and_asked_again(browser, chat_run, scheme):  # noqa: F811
    limits = Limits(max_concurrent=2, max_length=512)
    with serving.running(chat_run, limits=limits) as server:
        slowed(server, 0.02)
        page = opened(browser, server, color_scheme=scheme, viewport={"width": 900, "height": 700})
        page.get_by_role("heading", name="tiny").wait_for()
        page.evaluate(DROP, [picture(1), "one.png"])
        page.evaluate(PASTE, picture(2))
        page.get_by_alt_text("picture 2").wait_for()
        page.get_by_role("button", name="Remove picture 2").click()
        assert page.locator(".thumb").count() == 1
        page.get_by_label("Your question").fill("What is it?")
        page.keyboard.press("Enter")
        answer = page.locator(".turn.assistant").last
        wait(page, "document.querySelector('.turn.assistant')?.textContent.length > 20")
        first = answer.text_content()
        wait(page, f"document.querySelector('.turn.assistant').textContent.length > {len(first) + 10}")
        shoot(page, f"streaming-{scheme}")
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        deadline = time.monotonic() + 30
        while server.server.scheduler.running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.server.scheduler.running == 0, "the answer goes on after Stop"
        stopped = answer.text_content()
        assert stopped.startswith(first)
        page.get_by_role("button", name="Regenerate").click()
        wait(page, "document.querySelector('.turn.assistant')?.textContent.length > 20")
        assert answer.text_content()[:15] == first[:15], "at temperature 0 the same text"
        page.keyboard.press("Escape")
        page.get_by_text("Stopped.").wait_for()
        page.get_by_label("Your question").fill("And now?")
        page.get_by_role("button", name="Send").click()
        wait(page, "document.querySelectorAll('.turn.assistant').length === 2")
        wait(page, "document.querySelectorAll('.turn.assistant')[1].textContent.length > 20")
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        assert page.locator(".turn.user img").count() == 1
        shoot(page, f"turns-{scheme}")
        page.get_by_role("button", name="New").click()
        assert page.locator(".turn").count() == 0
        assert not page.errors


@long
@needs_browser
def test_a_base_model_has_a_form_of_examples_on_a_phone(browser, plain_run, tmp_path):  # noqa: F811
    paths = [tmp_path / f"{seed}.png" for seed in (1, 2)]
    for seed, path in zip((1, 2), paths, strict=True):
        path.write_bytes(bytes(picture(seed)))
    with serving.running(plain_run) as server:
        page = opened(browser, server, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
        page.get_by_role("button", name="Add an example").tap()
        page.locator(".shot input[type=file]").set_input_files(str(paths[0]))
        page.get_by_label("Text of example 1").fill("a red circle")
        page.locator("#files").set_input_files(str(paths[1]))
        page.get_by_role("textbox", name="The text to continue").fill(" a")
        page.get_by_role("button", name="Send").tap()
        wait(page, "document.querySelector('.turn.assistant')?.textContent.length > 5")
        wait(page, "!document.getElementById('send').disabled")
        parts = [serving.shown(1), serving.said(" a red circle\n"), serving.shown(2), serving.said(" a")]
        expected = server.client.completions.create(
            model="tiny", prompt=parts, max_tokens=64, temperature=0, stop=["\n"]
        )
        assert page.locator(".turn.assistant").text_content() == expected.choices[0].text
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "it scrolls sideways on a phone"
        tops = [page.get_by_role("button", name=name).bounding_box()["y"] for name in ("Add an example", "Send")]
        assert tops[0] == tops[1], "the buttons of a phone stand in one line"
        shoot(page, "examples-phone")
        assert not page.errors


@long
@needs_browser
def test_the_page_asks_for_a_key_and_shows_errors(browser, chat_run):  # noqa: F811
    with serving.running(chat_run, keys=("secret",), limits=Limits(max_concurrent=1, max_length=64)) as server:
        page = opened(browser, server)
        page.get_by_label("This server needs a key").fill("secret")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="tiny").wait_for()
        page.get_by_label("Your question").fill("many words " * 60)
        page.get_by_role("button", name="Send").click()
        page.get_by_role("status").get_by_text("and this server takes 64").wait_for()
        assert page.get_by_label("Your question").input_value() == "many words " * 60
        shoot(page, "error")


@long
@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_goes_wrong_is_said_beside_the_form_which_keeps_the_question(browser, chat_run, scheme):  # noqa: F811
    with serving.running(chat_run) as server:
        page = opened(browser, server, viewport={"width": 375, "height": 667}, color_scheme=scheme)
        page.get_by_role("heading", name="tiny").wait_for()
        status, question = page.get_by_role("status"), page.get_by_label("Your question")
        notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"}
        page.locator("#files").set_input_files([notes])
        status.get_by_text("notes.txt: no picture").wait_for()
        page.locator("#files").set_input_files([{"name": "a.png", "mimeType": "image/png", "buffer": b"broken"}])
        page.locator(".thumb").wait_for()
        question.fill("What is it?")
        page.get_by_role("button", name="Send").click()
        status.get_by_text("a picture cannot be decoded").wait_for()
        assert question.input_value() == "What is it?"
        assert (page.locator(".thumb").count(), page.locator(".turn").count()) == (1, 0)
        page.get_by_role("button", name="Remove picture 1").click()
        tops = {name: page.get_by_role("button", name=name).bounding_box()["y"] for name in ("Regenerate", "Send")}
        assert len(set(tops.values())) == 1, "the buttons of a phone stand in one line"
        page.evaluate(DROP, [picture(1), "1.png"])
        page.locator(".thumb").wait_for()
        shoot(page, f"kept-{scheme}")
        end = {str(server.server.loaded.tokenizer.end): 100}

        def ending(route) -> None:
            route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"logit_bias": end}))

        page.route("**/v1/chat/completions", ending)
        page.get_by_role("button", name="Send").click()
        status.get_by_text("The model ended at once").wait_for()
        shoot(page, f"empty-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375

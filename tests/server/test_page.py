"""The page at /, in a headless Chromium: a conversation, its tokens and their load, and the slider."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import expect, sync_playwright

from clada.server.gate import Access
from clada.server.pages import FOLDER
from tests.support.browser import find_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser; skips where none is installed and none can be fetched."""
    path, why = find_browser()
    if not path:
        pytest.skip(why)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser) -> Iterator[Any]:
    """A tab, whose errors fail the test, and which asks nobody but the server."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: told.append(str(error)))
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    context.close()
    assert [line for line in told if not line.startswith("Failed to load resource")] == []  # an answer's status
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} <= {tab.address}


def opened(page, server):
    page.address = server.address.removeprefix("http://")
    page.goto(server.address)
    return page


def ask(page, text: str) -> Any:
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_selector(".assistant:last-child .facts")
    return page.locator(".assistant").last


def test_a_question_is_answered_token_by_token(page, server):
    opened(page, server)
    expect(page.locator("#model")).to_have_text("tiny", timeout=20_000)
    answer = ask(page, "How is a file read?")
    tokens = answer.locator(".token")
    count = tokens.count()
    assert count > 5
    loads = [
        float(load) for load in tokens.evaluate_all("all => all.map(t => t.style.getPropertyValue('--load') || 0)")
    ]
    assert all(0 <= load <= 1 for load in loads)
    assert len(set(loads)) > 1
    shades = tokens.evaluate_all("all => all.map(t => getComputedStyle(t).backgroundColor)")
    hardest, easiest = loads.index(max(loads)), loads.index(min(loads))
    assert shades[hardest] != shades[easiest]
    assert re.search(r"\d+ tokens, [\d.]+ [kM]?B read", page.text_content("#counts"))
    assert re.search(r"\d+ of \d+ prompt tokens were read before", answer.text_content())
    messages = [{"role": "user", "content": "How is a file read?"}]
    prompt = len(server.session.encode_chat(messages))
    assert f"of {prompt} prompt tokens" in answer.text_content()


def test_the_slider_says_how_many_bytes_are_read(page, server):
    opened(page, server)
    expect(page.locator("#model")).to_have_text("tiny", timeout=20_000)
    read = {}
    for share in ("1", "0.7"):
        page.click("#clear")  # an answer is as long as the context allows
        page.fill("#bytes", share)
        assert page.text_content("#share") == f"{float(share):.0%}"
        read[share] = int(re.search(r"(\d+)% of", ask(page, "x").text_content())[1])
    assert read["1"] == 100
    assert read["0.7"] < 90
    assert float(page.get_attribute("#bytes", "min")) >= server.client.models.retrieve("tiny").least_bytes


def test_what_is_written_is_text(page, server):
    """No answer or question becomes a part of the page."""
    opened(page, server)
    ask(page, "<img src=x onerror=alert(1)><b>x</b>")
    assert page.locator("main img, main b").count() == 0
    assert page.locator(".user").text_content() == "<img src=x onerror=alert(1)><b>x</b>"


def test_an_answer_is_stopped_and_a_chat_begun_anew(page, serving, slow):
    server = serving()
    opened(page, server)
    page.fill("#question", "x")
    page.press("#question", "Enter")
    page.wait_for_selector(".token", state="attached")
    page.click("#send")
    page.wait_for_selector(".assistant .facts")
    assert page.text_content("#send") == "Send"
    page.click("#clear")
    assert page.locator(".message").count() == 0


def test_errors_are_told_and_a_key_is_asked_for(page, serving):
    server = serving(access=Access("secret"))
    opened(page, server)
    page.wait_for_selector("#access:not([hidden])")
    assert "API key is missing" in page.text_content("#error")
    page.fill("#key", "secret")
    ask(page, "x")
    assert page.locator("#access").is_hidden()
    assert page.locator("#error").is_hidden()
    page.fill("#question", "x " * 500)
    page.press("#question", "Enter")
    page.wait_for_selector("#error:not([hidden])")
    assert "this server reads 127 at most" in page.text_content("#error")


def test_it_fits_a_narrow_window(page, server):
    page.set_viewport_size({"width": 360, "height": 640})
    opened(page, server)
    ask(page, "x" * 60)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_it_allows_itself_nothing_of_others(server):
    for path in ("/", "/page.css", "/page.js"):
        found = server.http.get(path)
        assert "default-src 'none'" in found.headers["Content-Security-Policy"]
        assert found.headers["X-Content-Type-Options"] == "nosniff"
    for file in FOLDER.iterdir():
        assert not re.search(r"(?:https?:)?//[a-z]", file.read_text(encoding="utf-8").replace("// ", "")), file

"""The page at ``/``, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Running, Start
from fake_engine import FakeEngine

from ryzc.runtime.server.app import ASSETS
from ryzc.runtime.tokenizer import Tokenizer

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def test_the_page_needs_nothing_from_elsewhere(server: Running) -> None:
    answer = server.http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="([^"#]+)', answer.text):
        assert server.http.get(f"/{path}").status_code == 200, path
    text = "".join(path.read_text() for path in ASSETS.iterdir())
    foreign = set(re.findall(r"https?://[^\s\"')/]+", text)) - {"http://www.w3.org"}
    assert not foreign


def test_the_page_can_be_left_out(start: Start) -> None:
    assert start(page=False).http.get("/").status_code == 404


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested through Playwright")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    contexts = []

    def begin(server: Running, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda sent: page.faults.append(sent.url) if not sent.url.startswith(server.url) else None)
        page.goto(server.url)
        page.wait_for_selector("#model option", state="attached")
        return page

    yield begin
    for context in contexts:
        context.close()


def ask(page: Any, text: str) -> None:
    page.fill("#input", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:not([hidden])")
    page.wait_for_selector(".stats")


@pytest.mark.slow
def test_a_conversation(start: Start, tokenizer: Tokenizer, open_page: Any) -> None:
    engine = FakeEngine(tokenizer, lambda request, _: f"Answer **{len(engine.requests)}**.", pause=0.01)
    server = start(engine=engine)
    page = open_page(server)
    ask(page, "First")
    assert page.inner_text(".assistant .text") == "Answer 1."
    assert page.inner_html(".assistant .text strong") == "1"
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · first after \d+ ms", page.inner_text(".stats"))
    ask(page, "Second")
    assert "First<|im_end|>\n<|im_start|>assistant\nAnswer **1**." in server.prompt()
    page.locator(".assistant").last.get_by_label("Answer again").click()
    page.get_by_text("Answer 3.").wait_for()
    page.wait_for_selector("#send:not([hidden])")
    page.reload()
    assert page.locator(".assistant .text").all_inner_texts() == ["Answer 1.", "Answer 3."]
    page.click("#new")
    assert page.is_visible("#empty")
    page.click(".chat")
    assert page.locator("article").count() == 4
    page.get_by_label("Delete this conversation").click()
    page.reload()
    assert page.is_visible("#empty")
    assert not page.faults


@pytest.mark.slow
def test_stop_ends_the_request(start: Start, tokenizer: Tokenizer, open_page: Any) -> None:
    server = start(engine=FakeEngine(tokenizer, "word " * 2000, pause=0.01))
    page = open_page(server)
    page.fill("#input", "Go")
    page.click("#send")
    page.get_by_text("word word").wait_for()
    page.click("#stop")
    page.wait_for_selector(".stats")
    assert "stopped" in page.inner_text(".stats")
    for _ in range(100):
        if server.engine.requests[0].cancelled:
            break
        page.wait_for_timeout(20)
    assert server.engine.requests[0].cancelled
    assert not page.faults


@pytest.mark.slow
def test_settings_are_sent_and_kept(start: Start, open_page: Any) -> None:
    server = start()
    page = open_page(server)
    page.click("#open-settings")
    assert page.wait_for_selector("[name=temperature][placeholder='0.8']")
    for name, value in {
        "system": "Be brief.",
        "temperature": "0.3",
        "top_k": "7",
        "seed": "5",
        "max_tokens": "9",
    }.items():
        page.fill(f"[name={name}]", value)
    page.select_option("[name=thinking]", "off")
    page.click("dialog .strong")
    ask(page, "Hi")
    options = server.engine.requests[-1].options
    assert (options.sampling.temperature, options.sampling.top_k, options.sampling.seed) == (0.3, 7, 5)
    assert options.max_tokens == 9
    assert server.prompt().startswith("<|im_start|>system\nBe brief.")
    assert server.prompt().endswith("</think>\n\n")
    page.reload()
    page.click("#open-settings")
    assert page.input_value("[name=system]") == "Be brief."
    assert not page.faults


@pytest.mark.slow
def test_a_key_is_asked_for(start: Start, browser: Any) -> None:
    server = start(api_key=("secret",))
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_text("a valid API key is needed").wait_for()
    page.click("#open-settings")
    page.fill("[name=key]", "secret")
    page.click("dialog .strong")
    page.wait_for_selector("#model option", state="attached")
    ask(page, "Hi")
    assert page.inner_text(".assistant .text") == "Hello world!"
    page.close()


HOSTILE = (
    "<img src=x onerror=boom()>",
    "<script>boom()</script>",
    "[a](javascript:boom())",
    "[a](https://e.example/\"onmouseover=boom())",
    "![a](https://e.example/x.png)",
    "`<b>` **<i>** | <u> |",
    "```\"><script>boom()</script>\n<b>\n```",
    "[a](https://e.example/x' onclick='boom())",
    "<https://e.example/\"><svg onload=boom()>",
    "| <svg onload=boom()> | b |\n|---|---|\n| <a href=x> | `|` |",
    "\u00000\u0000 `x` \u00001\u0000",
)  # fmt: skip


@pytest.mark.slow
def test_no_answer_becomes_a_tag(server: Running, open_page: Any) -> None:
    page = open_page(server)
    allowed = (
        "a blockquote br button code del div em figcaption figure h1 h2 h3 h4 h5 h6 hr input li ol p pre span strong"
    )
    allowed += " table tbody td th thead tr ul"
    check = """async ([text, allowed]) => {
        const { markdown } = await import("/page/markdown.js");
        const root = document.createElement("template");
        root.innerHTML = markdown(text);
        const faults = [];
        const names = ["class", "href", "target", "rel", "type", "disabled", "checked", "start"];
        for (const element of root.content.querySelectorAll("*")) {
            if (!allowed.includes(element.localName)) faults.push(element.localName);
            for (const { name, value } of element.attributes)
                if (!names.includes(name)) faults.push(name);
                else if (name === "href" && !/^(https?:|mailto:)/.test(value)) faults.push(value);
        }
        return faults;
    }"""
    for text in (*HOSTILE, "\n\n".join(HOSTILE), "> - " + "\n> - ".join(HOSTILE)):
        assert page.evaluate(check, [text, allowed.split()]) == [], text
    assert not page.faults


MARKDOWN = [
    ("a **b** *c* `d*e*` ~~f~~", "<p>a <strong>b</strong> <em>c</em> <code>d*e*</code> <del>f</del></p>"),
    ("# One\ntwo", "<h1>One</h1><p>two</p>"),
    ("snake_case_name 2 * 3 * 4", "<p>snake_case_name 2 * 3 * 4</p>"),
    ("- a\n- b\n  - c\n", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("1. a\n\n2. b", "<ol><li>a</li><li>b</li></ol>"),
    ("a\n- b", "<p>a</p><ul><li>b</li></ul>"),
    ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
    ("---", "<hr>"),
    (
        "a | b\n--|--\n1 | 2",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td>2</td></tr></tbody></table>",
    ),
    ("1 < 2 & 3", "<p>1 &lt; 2 &amp; 3</p>"),
    ("\\*a\\*", "<p>*a*</p>"),
]  # fmt: skip


@pytest.mark.slow
def test_markdown(server: Running, open_page: Any) -> None:
    page = open_page(server)
    script = "async (text) => (await import('/page/markdown.js')).markdown(text)"
    for text, html in MARKDOWN:
        made = page.evaluate(script, text)
        assert made.replace('<div class="table">', "").replace("</div>", "") == html
    code = page.evaluate(script, "```py\nif a < b:\n    **c**\n```\nafter")
    assert "<pre><code>if a &lt; b:\n    **c**</code></pre></figure><p>after</p>" in code
    unfinished = page.evaluate(script, "```\nstill coming")
    assert "<code>still coming</code>" in unfinished


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(server: Running, open_page: Any, scheme: str) -> None:
    page = open_page(
        server, viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True, color_scheme=scheme
    )
    server.engine.say = "x" * 200 + "\n\n```\n" + "y" * 300 + "\n```\n\n|" + " wide |" * 30 + "\n|" + "---|" * 30 + "\n"
    page.fill("#input", "z" * 300)
    page.click("#send")
    page.wait_for_selector(".stats")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.getElementById('scroll').scrollWidth") <= 360
    assert not page.is_visible("#side .brand")
    page.click("#menu")
    page.wait_for_selector("#side .brand", state="visible")
    back = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(back)
    assert (sum(map(int, re.findall(r"\d+", before))) > 380) == (scheme == "light")
    page.locator("#shade").click(position={"x": 350, "y": 300})
    page.click("#theme")
    assert page.evaluate(back) != before
    page.reload()
    assert page.evaluate(back) != before
    assert not page.faults

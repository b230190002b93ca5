"""A headless browser, and the explorer of a server with made-up answers: a plugin of the tests that name it."""

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import made_up_api as made_up
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def world() -> made_up.World:
    return made_up.movies()


@pytest.fixture(scope="module")
def base_url(world: made_up.World) -> Iterator[str]:
    with made_up.serving(world) as url:
        yield url


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a fresh profile; at the end nothing may have gone wrong or been asked elsewhere."""
    contexts, problems = [], []

    def open_(url: str, *, allowed: str = r"$^", width: int = 1280, ready: bool = True, **options: Any) -> Page:
        options = {"viewport": {"width": width, "height": 900}, "reduced_motion": "reduce", **options}
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        origin = re.match(r"\w+://[^/]+/", url)[0]
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        page.on("request", lambda r: None if r.url.startswith((origin, "data:")) else problems.append(r.url))
        page.goto(url)
        page.allowed_problems = re.compile(allowed)
        if ready:
            expect(page.locator("#list > li").first).to_be_visible()
        return page

    yield open_
    allowed = [page.allowed_problems for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert [p for p in problems if not any(a.search(p) for a in allowed)] == []

"""What the tests of the explorer share: hostile strings, and a page read beside what the API answers."""

import json
from typing import Any

import made_up_api as made_up
from playwright.sync_api import Page, expect

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "\u202eright to left\u202c",
    "שלום & goodbye",
    "tab\there, line\nthere, bell\x07",
    "{{7*7}} ${7*7} %00 &lt;b&gt;",
    "../../etc/passwd?a=b#c",
    "`back` ticks and spaces   ",
    "x" * 300,
)
SHOWN = {"\t": "␉", "\n": "␊", "\x07": "␇"}


def shown(text: str) -> str:
    """How the page writes a string: control characters as pictures."""
    return "".join(SHOWN.get(c, c) for c in text)


def hostile() -> made_up.World:
    """Three tasks, items and users whose every string is hostile."""
    tasks = (("<b>watch</b>", "ranking"), ("`liked` it\u202e", "binary"), ("stars", "regression"))
    items = {text: {"title": text[::-1], "genres": f"{text}|<i>Drama</i>", "year": "<u>1999"} for text in HOSTILE}
    items |= {f"plain {n}": {"title": "", "genres": "", "year": ""} for n in range(20)}
    users = {text: {"age": text} for text in HOSTILE}
    return made_up.World(tasks, "0.5 * `<b>watch</b>` + 0.3 * ```liked`` it\u202e`", items, users, name=HOSTILE[0])


def ask(page: Page, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the API answers to the same question from outside of the page."""
    answer = page.request.post(
        page.url.split("#")[0] + path, data=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.ok, answer.text()
    return answer.json()


def settled(page: Page) -> None:
    """Waits until the list answers the newest question."""
    page.wait_for_timeout(60)
    expect(page.locator("#list")).not_to_have_attribute("aria-busy", "true")


def listed(page: Page) -> list[str]:
    """The raw ids on the list, from top to bottom."""
    return [text.removeprefix("id ") for text in page.locator("#list > li > .head .id").all_inner_texts()]


def expected(page: Page, user: str, **options: Any) -> dict[str, Any]:
    """What the API recommends for the mix that the page shows."""
    return ask(
        page, "v1/recommend", {"user_id": user, "mix": page.get_by_label("Mix as a formula").input_value(), **options}
    )


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def user_box(page: Page) -> Any:
    return page.get_by_role("combobox", name="Find a user")


def matches(page: Page) -> Any:
    """What the open search box proposes."""
    return page.locator(".find [role=option]:visible")

"""The explorer takes any string as text, and is there for keyboards, screen readers and every width of screen."""

from itertools import pairwise
from urllib.parse import quote

import made_up_api as made_up
import pytest
from browsing import HOSTILE, ask, expected, hostile, ids, listed, matches, settled, shown, user_box
from playwright.sync_api import expect

pytest_plugins = ("browser_fixtures",)


def test_hostile_strings_are_text(opened) -> None:
    world = hostile()
    with made_up.serving(world) as url:
        page = opened(url)
        page.get_by_label("How many").select_option("50")
        page.get_by_label("Leave out what was seen").uncheck()
        settled(page)
        assert page.locator("h1").inner_text() == HOSTILE[0]
        names = [text.strip() for text in page.locator("#list > li > .head .name").all_text_contents()]
        for text in HOSTILE:
            assert shown(text[::-1]).strip() in names
            user_box(page).fill(text.split("\n")[0][:25])  # a box of one line cannot hold more
            expect(matches(page).locator(".name").filter(has_text=shown(text))).to_have_count(1)
        for n, text in enumerate(HOSTILE):
            page.goto(f"{url}#user={quote(text)}")
            page.wait_for_timeout(100)
            settled(page)
            rows = ask(page, "v1/recommend", {"user_id": text, "mix": world.mix, "k": 50, "exclude_seen": False})
            wanted = [shown(world.items[i]["title"] or i) for i in ids(rows)]
            assert page.locator("#list > li > .head .name").all_text_contents() == wanted, n
        page.get_by_role("button", name="Why this").first.click()
        expect(page.locator("#list .panel .similar li")).to_have_count(5)
        expect(page.locator(".slider label")).to_have_text([name for name, _ in world.tasks])
        page.get_by_role("slider").nth(2).fill("0.9")  # after Diversity and the first task
        settled(page)
        written = page.get_by_label("Mix as a formula").input_value()
        assert written == "0.5 * `<b>watch</b>` + 0.9 * ```liked`` it\u202e`"
        assert page.locator("b, i, u, img, iframe, script:not([src]), [style*=expression]").count() == 0
        assert page.locator("script").count() == 1


def test_the_keyboard_is_enough(opened, base_url) -> None:
    page = opened(base_url)
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to the recommendations")).to_be_focused()
    press("Enter")
    expect(page.get_by_role("heading", name="Recommendations")).to_be_focused()
    press("Tab")
    expect(page.get_by_role("button", name="Why this").first).to_be_focused()
    press("Enter")
    expect(page.locator("#list .panel .because").first).to_be_visible()
    box = user_box(page)
    for _ in range(20):
        if box.evaluate("node => node === document.activeElement"):
            break
        press("Shift+Tab")
    expect(box).to_be_focused()
    page.keyboard.type("19")
    expect(matches(page).first).to_be_visible()
    press("ArrowDown")
    press("ArrowDown")
    active = page.locator(f"#{box.get_attribute('aria-activedescendant')}")
    expect(active).to_have_attribute("aria-selected", "true")
    expect(active).to_contain_text("191")
    press("Enter")
    settled(page)
    assert listed(page) == ids(expected(page, "191"))
    for _ in range(8):
        press("Tab")
        if page.get_by_role("slider", name="watch").evaluate("node => node === document.activeElement"):
            break
    before = listed(page)
    for _ in range(12):
        press("ArrowLeft")
    settled(page)
    assert page.get_by_label("Mix as a formula").input_value() == "watch ** 0.4 * rating ** 0.5"
    assert listed(page) == ids(expected(page, "191")) != before
    expect(page.get_by_role("slider", name="watch")).to_be_focused()
    expect(page.get_by_role("status").filter(has_text="10 recommendations, against the default mix")).to_have_count(1)


def test_focus_stays_on_an_item_that_moves(opened, base_url) -> None:
    page = opened(base_url)
    button = page.get_by_role("button", name="Why this").nth(4)
    name = button.get_attribute("aria-label")
    button.focus()
    page.evaluate("location.hash = 'user=190&mix=rating ** 0.5 * watch ** 0.9'")
    page.wait_for_timeout(200)
    settled(page)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == name


CONTRAST = """() => {
  const channel = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.closest("svg, noscript, option")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, `${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}`]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened, base_url, scheme) -> None:
    page = opened(base_url, color_scheme="light")
    if scheme == "dark":
        page.get_by_role("button", name="Dark theme").click()
    expect(page.get_by_role("button", name="Dark theme")).to_have_attribute(
        "aria-pressed", str(scheme == "dark").lower()
    )
    page.get_by_role("slider", name="watch").fill("0.2")
    settled(page)
    page.get_by_role("button", name="Why this").first.click()
    expect(page.locator("#list .panel .because")).to_be_visible()
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [(round(ratio, 2), what) for ratio, what in found if ratio < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 23)"
    assert dark is (scheme == "dark")


def test_every_input_is_named_and_every_id_is_its_own(opened, base_url) -> None:
    page = opened(base_url)
    page.get_by_role("button", name="Why this").first.click()
    expect(page.locator("#list .panel .because")).to_be_visible()
    inputs = page.locator("input, select, textarea, button")
    unnamed = inputs.evaluate_all(
        "nodes => nodes.filter((n) => !n.labels?.length && !n.ariaLabel && !n.textContent).map((n) => n.outerHTML)"
    )
    assert unnamed == [] and inputs.count() > 20
    found = page.locator("[id]").evaluate_all("nodes => nodes.map((n) => n.id)")
    assert len(found) == len(set(found))
    for name in ("aria-controls", "aria-labelledby", "aria-describedby", "for"):
        for value in page.locator(f"[{name}]").evaluate_all(f"nodes => nodes.map((n) => n.getAttribute('{name}'))"):
            assert set(value.split()) <= set(found), (name, value)
    for role in ("banner", "main", "navigation"):
        expect(page.get_by_role(role)).to_have_count(1)
    levels = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all("nodes => nodes.map((n) => Number(n.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))


@pytest.mark.parametrize("width", [320, 390, 800, 1440])
def test_nothing_is_wider_than_the_screen(opened, width) -> None:
    with made_up.serving(hostile()) as url:
        page = opened(url, width=width)
        page.get_by_label("How many").select_option("50")
        settled(page)
        page.get_by_role("button", name="Why this").first.click()
        expect(page.locator("#list .panel .because")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width

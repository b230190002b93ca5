"""The explorer on the server it is shipped with, over a bundle whose ids and titles are hostile."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from browsing import HOSTILE, ask, expected, ids, settled, shown, user_box
from playwright.sync_api import expect
from speaking import loaded, running

from polytask.bundle import Bundle
from polytask.data.split import split
from polytask.data.table import read_dataset
from polytask.schema import Schema, Task
from polytask.serve.settings import Limits

pytest_plugins = ("browser_fixtures",)

REPORT = b"<!DOCTYPE html><html lang=en><title>R</title><link rel=icon href=data:,><h1>Who gained</h1></html>"
TASKS = (Task("<b>watch</b>", "ranking"), Task("`stars`", "regression", label="rating"))
ITEMS = [*HOSTILE, *(f"plain {n}" for n in range(20))]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server; every user had two items in five."""
    from shipped import finished

    draw = np.random.default_rng(3)
    had = [(user, item) for user in HOSTILE for item in ITEMS if draw.random() < 0.4]
    users, items = zip(*had, strict=True)
    log = pl.DataFrame({"user": users, "item": items, "rating": draw.integers(1, 6, len(had)).astype(float)})
    titles = pl.DataFrame({"item": ITEMS, "title": [text[::-1] for text in ITEMS], "genres": [f"{t}|x" for t in ITEMS]})
    data = read_dataset(log, Schema(TASKS, user="user", item="item"), items=titles, name="hostile")
    run = finished(split(data, "random", valid=0.2, test=0.2))
    folder = tmp_path_factory.mktemp("explorer") / "bundle"
    Bundle.save(folder, run, mix="`<b>watch</b>` * exp(```stars```) ** 0.5")
    with ThreadPoolExecutor(1) as another:  # this thread has the event loop of the browser
        app = another.submit(loaded, folder, Limits(), report=REPORT).result()
    with running(app, Limits()) as client:
        yield f"http://127.0.0.1:{client.port}/"


def titles_shown(page) -> list[str]:
    return page.locator("#list > li > .head .name").all_text_contents()


def expected_titles(page, user: str) -> list[str]:
    return [shown(item[::-1]) for item in ids(expected(page, user))]


def test_the_list_of_every_user_is_the_servers(opened, served) -> None:
    page = opened(served)
    for user in HOSTILE:
        page.goto(f"{served}#user={quote(user)}")
        expect(user_box(page)).to_have_value(shown(user))
        page.wait_for_timeout(60)
        settled(page)
        assert titles_shown(page) == expected_titles(page, user)


def test_sliders_search_panels_and_newcomers_work_on_it(opened, served: str) -> None:
    page = opened(served)
    user_box(page).fill("passwd")
    expect(page.locator(".find [role=option]:visible")).to_have_count(1)
    page.keyboard.press("Enter")
    settled(page)
    before = titles_shown(page)
    assert before == expected_titles(page, HOSTILE[6])
    page.get_by_role("slider", name="`stars`").fill("0")
    settled(page)
    assert page.get_by_label("Mix as a formula").input_value() in ("`<b>watch</b>`", "`<b>watch</b>` ** 1")
    assert titles_shown(page) == expected_titles(page, HOSTILE[6])
    page.get_by_role("button", name="Why this").first.click()
    expect(page.locator("#list .panel .because tbody tr")).to_have_count(3)  # two tasks, one part of the mix
    expect(page.locator("#list .panel .similar li")).to_have_count(5)
    page.get_by_role("radio", name="A newcomer").check()
    page.get_by_role("combobox", name="Pick items").fill("plain 7")
    page.locator(".find [role=option]:visible").first.click()
    settled(page)
    mix = page.get_by_label("Mix as a formula").input_value()
    answer = ask(page, "v1/recommend", {"history": ["plain 7"], "mix": mix})
    assert titles_shown(page) == [shown(item[::-1]) for item in ids(answer)]
    assert page.locator("b, img, iframe").count() == 0


def test_its_facts_are_told(opened, served: str) -> None:
    page = opened(served)
    bundle = ask_model(page)
    expect(page.locator("#model-facts")).to_contain_text(bundle["model_version"][:8])
    expect(page.locator("#tasks")).to_contain_text("<b>watch</b>")
    points = page.get_by_role("listbox", name="Measured mixes").get_by_role("option")
    expect(points).to_have_count(len(bundle["mix_points"]))
    points.last.click()
    settled(page)
    assert page.get_by_label("Mix as a formula").input_value() in [point["mix"] for point in bundle["mix_points"]]
    expect(page.locator("#card")).to_contain_text("hostile")


def ask_model(page) -> dict:
    return page.request.get(page.url.split("#")[0] + "v1/model").json()


def test_the_report_of_a_comparison_opens_from_it(opened, served: str) -> None:
    page = opened(served)
    page.get_by_role("link", name="Comparison").click()
    page.wait_for_url(f"{served}report")
    expect(page.get_by_role("heading")).to_have_text("Who gained")

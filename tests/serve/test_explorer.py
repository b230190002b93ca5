"""The explorer in a headless browser: what it shows is what the API answers."""

import re
from dataclasses import replace
from math import exp
from typing import Any
from urllib.parse import quote

import made_up_api as made_up
import pytest
from browsing import ask, expected, ids, listed, matches, settled, user_box
from playwright.sync_api import expect

pytest_plugins = ("browser_fixtures",)


def test_the_first_user_stands_there_with_history_and_recommendations(opened, base_url, world) -> None:
    page = opened(base_url)
    expect(page.get_by_role("heading", level=1)).to_have_text("movies-mmoe")
    expect(page.locator("#model-facts")).to_contain_text("version 3f9c2a71 · 40 users · 60 items · 95\u202f285 rows")
    first = next(iter(world.users))
    expect(user_box(page)).to_have_value(first)
    assert listed(page) == ids(expected(page, first)) and len(listed(page)) == 10
    top = world.items[listed(page)[0]]
    row = page.locator("#list > li").first
    for text in (top["title"], top["year"], *top["genres"].split("|")):
        expect(row.locator(".described")).to_contain_text(text)
    past = ask(page, "v1/history", {"user_id": first, "limit": 50})
    assert [f"id {i}" for i in ids(past)] == page.locator("#past ol > li .id").all_inner_texts()


def test_a_user_is_found_by_typing(opened, base_url) -> None:
    page = opened(base_url)
    user_box(page).fill("writer")
    options = matches(page)
    expect(options).to_have_count(12)
    expect(options.first).to_contain_text("191")
    user_box(page).fill("207")
    expect(options).to_have_count(1)
    options.first.click()
    settled(page)
    expect(user_box(page)).to_have_value("207")
    expect(user_box(page)).to_have_attribute("aria-expanded", "false")
    assert listed(page) == ids(expected(page, "207"))
    assert "user=207" in page.url
    user_box(page).fill("nobody at all")
    expect(page.get_by_text("Nothing found")).to_be_visible()


def test_moving_a_slider_reorders_the_list_as_the_api_does(opened, base_url) -> None:
    page = opened(base_url)
    usual = expected(page, "190")
    slider = page.get_by_role("slider", name="watch")
    slider.fill("0.2")
    settled(page)
    expect(page.get_by_label("Mix as a formula")).to_have_value("watch ** 0.2 * rating ** 0.5")
    now = expected(page, "190")
    assert listed(page) == ids(now) != ids(usual)
    for task, row in zip(("watch", "rating"), page.locator(".slider").all(), strict=True):
        mean, before = (sum(i["values"][task] for i in a["items"]) / 10 for a in (now, usual))
        assert row.locator(".expected").inner_text() == f"{mean:.2f}"
        arrow = "▲ +" if mean > before else "▼ −"
        assert row.locator(".change").inner_text() == f"{arrow}{abs(mean - before):.2f}"
    moved = [i["rank"] - n for i in usual["items"] for n, found in enumerate(ids(now), 1) if found == i["item_id"]]
    new = 10 - len(moved)
    expect(page.locator("#list-facts")).to_have_text(
        f"against the default mix: {new} new, {sum(map(bool, moved))} moved"
    )
    page.get_by_role("button", name="Back to the default").click()
    settled(page)
    assert listed(page) == ids(usual)
    expect(page.locator("#list-facts")).to_have_text("same as with the default mix")


def test_every_step_of_a_dragged_slider_ends_in_the_list_of_the_last(opened, base_url) -> None:
    page = opened(base_url)
    slider = page.get_by_role("slider", name="rating")
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2, steps=40)
    page.mouse.up()
    settled(page)
    expect(page.get_by_label("Mix as a formula")).to_have_value("watch * rating ** 2")
    assert listed(page) == ids(expected(page, "190"))


def test_a_question_about_the_user_before_is_given_up(opened, base_url) -> None:
    page = opened(base_url)
    held: list[Any] = []
    page.route(
        "**/v1/recommend", lambda r: held.append(r) if '"191"' in r.request.post_data else r.continue_()
    )  # never answered
    for user in ("191", "192"):
        user_box(page).fill(user)
        matches(page).first.click()
        page.wait_for_timeout(150)
    settled(page)
    assert held
    assert listed(page) == ids(expected(page, "192")) != ids(expected(page, "191"))


def test_a_formula_is_typed_and_its_faults_are_told_in_place(opened, base_url) -> None:
    page = opened(base_url, allowed="400")
    formula, error = page.get_by_label("Mix as a formula"), page.locator("#mix-error")
    formula.fill("0.3 * watch + 0.7 * rating")
    formula.press("Enter")
    settled(page)
    expect(page.locator(".weight").first).to_have_text("weight 0.3")
    assert listed(page) == ids(expected(page, "190"))
    formula.fill("max(watch, rating / 5)")
    settled(page)
    expect(page.locator("#mix-note")).to_contain_text("The sliders cannot write this formula")
    page.wait_for_timeout(700)
    settled(page)
    kept = listed(page)
    assert kept == ids(expected(page, "190"))
    formula.fill("watch * ratng")
    formula.press("Enter")
    expect(error).to_contain_text("mix, column 9: task 'ratng' is unknown. Did you mean 'rating'?")
    expect(formula).to_have_attribute("aria-invalid", "")
    assert listed(page) == kept
    page.get_by_role("slider", name="rating").fill("0.4")
    settled(page)
    expect(error).to_have_text("")
    assert listed(page) == ids(expected(page, "190"))


READINGS = {
    "watch": ["powers", [["watch", 1], ["my task", 0]]],
    "watch ** .5*`my task`": ["powers", [["watch", 0.5], ["my task", 1]]],
    "`my task` ** -1e0": ["powers", [["my task", -1], ["watch", 0]]],
    "0.7 * watch - `my task` * 2": ["sum", [["watch", 0.7], ["my task", -2]]],
    "-watch + 0.5 * `my task`": ["sum", [["watch", -1], ["my task", 0.5]]],
    "watch * watch": None,
    "2 * watch * `my task`": None,
    "watch + log(`my task`)": None,
    "watch ** 2 + `my task`": None,
    "watch ** watch": None,
    "other": None,
    "watch **": None,
    "watch + - `my task`": None,
    "": None,
    "`open": None,
}
READ = """async (texts) => {
  const { parse, write } = await import("./assets/mix.js");
  const read = (text) => {
    const found = parse(text, ["watch", "my task"]);
    return found && [found.form, [...found.weights], write(found.form, found.weights)];
  };
  return texts.map(read);
}"""


def test_sliders_read_products_of_powers_and_weighted_sums(opened, base_url) -> None:
    page = opened(base_url)
    found = page.evaluate(READ, list(READINGS))
    assert [each and each[:2] for each in found] == list(READINGS.values())
    written = [each[2] for each in found if each]
    assert written == [
        "watch",
        "watch ** 0.5 * `my task`",
        "`my task` ** -1",
        "0.7 * watch - 2 * `my task`",
        "-watch + 0.5 * `my task`",
    ]
    assert [each[:2] for each in page.evaluate(READ, written)] == [each for each in READINGS.values() if each]


def test_the_picture_marks_the_nearest_mix_and_sets_the_sliders(opened, base_url) -> None:
    page = opened(base_url)
    picture = page.get_by_role("listbox", name=re.compile("^Measured mixes"))
    points = picture.get_by_role("option")
    expect(points).to_have_count(11)
    page.get_by_role("slider", name="watch").fill("0.1")
    settled(page)
    here = picture.locator("[aria-selected=true]")
    expect(here).to_have_attribute(
        "aria-label", re.compile(r"^watch \*\* 0\.4 \* rating \*\* 1\.6: watch \S+, rating \S+")
    )
    expect(page.locator("#pareto")).to_contain_text("Nearest measured mix")
    points.nth(9).click()
    settled(page)
    text = page.get_by_label("Mix as a formula").input_value()
    expect(here).to_have_count(1)
    assert here.get_attribute("aria-label").startswith(text + ":")
    expect(page.locator("#pareto")).to_contain_text("Your mix")
    assert listed(page) == ids(expected(page, "190"))
    here.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    settled(page)
    assert page.get_by_label("Mix as a formula").input_value() == "watch ** 0.2 * rating ** 1.8"
    expect(here).to_be_focused()


def test_why_this_tells_what_each_task_says(opened, base_url, world) -> None:
    page = opened(base_url)
    item = listed(page)[1]
    button = page.get_by_role("button", name="Why this").nth(1)
    button.click()
    panel = page.locator(f"#{button.get_attribute('aria-controls')}")
    told = ask(page, "v1/explain", {"user_id": "190", "item_id": item, "mix": world.mix})
    expect(panel.locator(".because")).to_be_visible()
    predicted, made_of = panel.locator(".because tbody").all()
    for row, task in zip(predicted.locator("tr").all(), told["tasks"], strict=True):
        assert row.locator("th").inner_text() == task["task"]
        assert row.locator("td").inner_text() == f"{task['value']:.2f} {task['label']}"
    for row, part in zip(made_of.locator("tr").all(), told["parts"], strict=True):
        assert row.locator("th").inner_text() == part["text"]
        assert float(row.locator(".number").inner_text().removeprefix("× ")) == pytest.approx(
            exp(part["part"]), rel=1e-3
        )
    expect(panel.locator("caption").nth(1)).to_have_text(f"Score {told['score']:.3f}, rank 2: what it is made of")
    alike = ask(page, "v1/similar", {"item_id": item, "k": 5})
    assert panel.locator(".similar .id").all_inner_texts() == [f"id {i}" for i in ids(alike)]
    page.get_by_role("slider", name="watch").fill("0.95")
    settled(page)
    expect(panel.locator(".because tbody").nth(1)).to_contain_text("watch ** 0.95")
    button.click()
    expect(panel).to_be_hidden()


def test_why_this_tells_the_summands_of_a_sum(opened, base_url) -> None:
    page = opened(f"{base_url}#user=190&mix={quote('0.3 * rating - 0.1 * watch')}")
    page.get_by_role("button", name="Why this").first.click()
    made_of = page.locator("#list .panel .because tbody").nth(1)
    expect(made_of.locator("th")).to_have_text(["0.3 * rating", "-(0.1 * watch)"])
    told = ask(page, "v1/explain", {"user_id": "190", "item_id": listed(page)[0], "mix": "0.3 * rating - 0.1 * watch"})
    first, second = (part["part"] for part in told["parts"])
    assert first + second == pytest.approx(told["score"])
    numbers = made_of.locator(".number").all_inner_texts()
    assert numbers[0].startswith("+") and float(numbers[0]) == pytest.approx(first, rel=1e-3)
    assert numbers[1].startswith("−") and float(numbers[1].replace("−", "-")) == pytest.approx(second, rel=1e-3)


def test_a_newcomer_is_answered_from_picked_items(opened, base_url) -> None:
    page = opened(base_url)
    page.get_by_role("radio", name="A newcomer").check()
    settled(page)
    box = page.get_by_role("combobox", name="Pick items the newcomer liked")
    picked = []
    for text in ("Harbor", "Winter"):
        box.fill(text)
        expect(matches(page).first).to_contain_text(text)
        picked.append(ask(page, "v1/search", {"side": "item", "text": text, "limit": 1})["matches"][0]["id"])
        matches(page).first.click()
        settled(page)
    expect(page.locator("#list-facts")).to_contain_text("cold start")
    body = {"history": picked, "mix": "watch * rating ** 0.5"}
    assert listed(page) == ids(ask(page, "v1/recommend", body))
    page.get_by_role("slider", name="watch").fill("2")
    settled(page)
    assert listed(page) == ids(ask(page, "v1/recommend", {**body, "mix": "watch ** 2 * rating ** 0.5"}))
    page.get_by_role("button", name="Why this").first.click()
    expect(page.locator("#list .panel").first).to_contain_text("Its parts are told for known users only")
    page.get_by_role("button", name="Take back").first.click()
    settled(page)
    now = ask(page, "v1/recommend", {"history": picked[1:], "mix": "watch ** 2 * rating ** 0.5"})
    assert listed(page) == ids(now)
    again = opened(page.url)
    assert listed(again) == ids(now)


def test_options_reach_the_api(opened, base_url, world) -> None:
    page = opened(base_url)
    page.get_by_label("How many").select_option("5")
    page.get_by_label("Leave out what was seen").uncheck()
    page.get_by_role("slider", name="Diversity").fill("0.3")
    settled(page)
    _, body = [asked for asked in world.asked if asked[0] == "/v1/recommend"][-1]
    assert (body["k"], body["exclude_seen"], body["diversity"]) == (5, False, 0.3)
    assert listed(page) == ids(expected(page, "190", k=5, exclude_seen=False))


def test_verdicts_tasks_and_card_are_told(opened, base_url) -> None:
    page = opened(base_url)
    verdicts = page.get_by_role("table", name="What training the tasks together did")
    expect(verdicts.get_by_role("row")).to_have_count(3)
    expect(verdicts.get_by_role("row", name="watch")).to_contain_text("positive transfer")
    expect(verdicts.get_by_role("row", name="rating")).to_contain_text("negative transfer")
    expect(page.get_by_role("table", name="What the model predicts")).to_contain_text("auc 0.910")
    card = page.locator("#card")
    expect(card.get_by_role("heading", name="made-up <model>")).to_be_visible()
    expect(card.locator("table tbody th, table tbody td")).to_have_text(["watch", "0.3312", "a | b", "0.1"])
    expect(card.locator("ul li").nth(1)).to_have_text("second <img src=x onerror=alert(1)>")
    expect(card.locator("ol li")).to_have_text(["one", "two"])
    expect(card.locator("pre")).to_have_text("polytask serve FOLDER")
    assert [a.get_attribute("href") for a in card.locator("a").all()] == ["https://example.org/x"]
    assert "library_name" not in card.inner_text()


def test_an_address_shares_a_view(opened, base_url) -> None:
    page = opened(f"{base_url}#user=201&mix={quote('0.2 * watch + 0.8 * rating')}")
    expect(user_box(page)).to_have_value("201")
    expect(page.locator(".weight").nth(1)).to_have_text("weight 0.8")
    assert listed(page) == ids(expected(page, "201"))
    page.goto(f"{base_url}#user=202")
    expect(user_box(page)).to_have_value("202")
    settled(page)
    assert page.get_by_label("Mix as a formula").input_value() == "watch * rating ** 0.5"
    assert listed(page) == ids(expected(page, "202"))


def test_a_token_is_asked_for_once_and_kept(opened, world) -> None:
    with made_up.serving(replace(world, token="s3cret")) as url:
        page = opened(url, allowed="401", ready=False)
        token = page.get_by_label("Token", exact=True)
        token.fill("wrong")
        token.press("Enter")
        expect(page.get_by_text("did not accept that token")).to_be_visible()
        token.fill("s3cret")
        token.press("Enter")
        expect(page.locator("#list > li")).to_have_count(10)
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.reload()
        expect(page.locator("#list > li")).to_have_count(10)
        expect(page.get_by_role("dialog")).to_be_hidden()


def test_without_measured_mixes_verdicts_or_titles_the_page_still_works(opened, monkeypatch) -> None:
    whole = made_up.model
    bare = {"mix_points": [], "verdicts": [], "card": "", "display": {"title": None, "columns": []}}
    monkeypatch.setattr(made_up, "model", lambda world: whole(world) | bare)
    with made_up.serving(replace(made_up.movies(), mix="log1p(rating) * watch", title=None)) as url:
        page = opened(url)
        expect(page.locator("#front")).to_be_hidden()
        expect(page.locator("#verdicts")).to_contain_text("is not known")
        expect(page.locator("#mix-note")).to_contain_text("The sliders cannot write this formula")
        page.get_by_role("slider", name="watch").fill("0.5")
        settled(page)
        assert page.get_by_label("Mix as a formula").input_value() == "watch ** 0.5 * rating"
        names = page.locator("#list > li > .head .name").all_text_contents()
        assert names == ids(expected(page, "190"))


def test_another_version_of_the_model_is_told(opened, base_url) -> None:
    page = opened(base_url)
    expect(page.locator("#notice")).to_be_hidden()

    def reloaded(route: Any) -> None:
        route.fulfill(json=route.fetch().json() | {"model_version": "0123456789abcdef"})

    page.route("**/v1/recommend", reloaded)
    page.get_by_role("slider", name="watch").fill("0.3")
    expect(page.get_by_role("alert").filter(has_text="another version of the model (01234567)")).to_be_visible()


def test_a_busy_server_is_asked_again_and_a_lost_one_is_told(opened, base_url) -> None:
    page = opened(base_url, allowed="429|ERR_FAILED")
    answers = iter([429, 200])
    page.route("**/v1/recommend", lambda r: r.fulfill(status=429) if next(answers, 200) == 429 else r.continue_())
    page.get_by_role("slider", name="watch").fill("0.3")
    settled(page)
    assert listed(page) == ids(expected(page, "190"))
    page.unroute("**/v1/recommend")
    page.route("**/v1/recommend", lambda route: route.abort())
    page.get_by_role("slider", name="watch").fill("0.6")
    expect(page.locator("#list-error")).to_have_text("The server does not answer")

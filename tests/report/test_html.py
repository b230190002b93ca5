"""The page is whole, takes no text from outside for markup, and draws its plots from a file without a network."""

import json
import re
import subprocess
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up import exercise
from plotly.offline import get_plotlyjs

from polytask.report import document, report
from polytask.report.html import html, json_block
from polytask.report.tables import verdict_table

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '"><b>&lt;i&gt;',
    "<!-- part: plotly -->\u2028|\n\x1b[31m",
    '<a href="javascript:alert(1)">%{x}</a>',
)


class Page(HTMLParser):
    """What a browser would make of a page: elements, texts, and the scripts by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._script: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs)
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        else:
            self.scripts[-1] = self.scripts[-1][0], self.scripts[-1][1] + data


@pytest.fixture(scope="module", params=["plain", "hostile"])
def source(request: pytest.FixtureRequest) -> str:
    if request.param == "plain":
        return html(document(exercise(), title="A title"))
    return html(document(exercise(names=HOSTILE, tasks=("<script>w", "r</td>|")), title=HOSTILE[0]))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_no_text_becomes_markup(page: Page) -> None:
    names = {tag for tag, _ in page.tags}
    assert not names & {"img", "b", "i", "iframe", "object", "form"}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert [tag for tag, _ in page.tags].count("script") == 7 + 2
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links and all(link and link.startswith("#") for link in links)


def test_names_are_shown_as_they_are() -> None:
    page = Page(html(document(exercise(names=HOSTILE), title=HOSTILE[1])))
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text
    assert "\\u2028|\\n\\x1b[31m" in page.text and "\x1b" not in page.text and "\u2028" not in page.text


def test_the_policy_allows_these_scripts_and_nothing_else(page: Page) -> None:
    (policy,) = [str(a["content"]) for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    run = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    hashes = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in run]
    assert policy.startswith(f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src")
    assert len(run) == 2 and run[0] == get_plotlyjs()


def test_data_blocks_parse_and_cannot_end_their_script(page: Page) -> None:
    blocks = {attrs["id"]: text for attrs, text in page.scripts if attrs.get("type") == "application/json"}
    assert list(blocks) == ["figure-seesaw", "figure-tradeoff", *(f"figure-comparison-{n}" for n in range(5))]
    assert [a["data-figure"] for _, a in page.tags if "data-figure" in a] == list(blocks)
    for text in blocks.values():
        assert not set(text) & set("<>&\u2028\u2029")
        assert json.loads(text)["data"]


def test_colors_belong_to_settings_and_plot_names_are_escaped() -> None:
    page = Page(html(document(exercise(names=HOSTILE), title="t")))
    colors: dict[str, set[str]] = {}
    for attrs, text in page.scripts:
        if str(attrs.get("id")).startswith("figure-comparison"):
            for trace in json.loads(text)["data"]:
                if "name" in trace:
                    colors.setdefault(trace["name"], set()).add(trace["line"]["color"])
    assert len(colors) == 6 and all(len(c) == 1 for c in colors.values())
    assert not [name for name in colors if set(name) & set("<>\n\x1b")]


def test_the_page_needs_nothing_from_elsewhere(source: str) -> None:
    own = source.replace(get_plotlyjs(), "")
    assert len(own) < len(source) and not re.search(r"https?://|\bsrc=|@import|url\(", own.replace("src=x onerror", ""))


def test_tables_have_captions_and_scopes_and_verdicts_have_words(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == 7
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    assert "▼ negative transfer" in page.text and "– nothing shared" in page.text


def test_a_line_stands_where_a_group_of_columns_begins() -> None:
    table = verdict_table(document(exercise(), title="t"))
    assert [table.columns[n] for n in sorted(table.edges)] == ["Joint", "Joint"] and min(table.edges) == 3


def test_json_blocks_are_strict() -> None:
    assert json_block('{"a": "</x>&\u2028"}') == '{"a":"\\u003c/x\\u003e\\u0026\\u2028"}'
    with pytest.raises(ValueError, match="NaN is not JSON"):
        json_block('{"a": NaN}')


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_a_browser_draws_every_plot_from_a_file(tmp_path: Path) -> None:
    path = report(exercise(epochs=20, names=HOSTILE), tmp_path / "out", title=HOSTILE[0])
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    drawn = Page(done.stdout)
    classes = [attrs.get("class") for _, attrs in drawn.tags]
    assert classes.count("main-svg") >= 7, done.stderr[-2000:]
    assert classes.count("js-line") >= 5 * 2 * 5
    assert not {tag for tag, _ in drawn.tags} & {"img", "b", "iframe"}
    assert not [a for tag, a in drawn.tags if "onerror" in a or (tag == "a" and "javascript" in str(a))]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]

"""The page: what it says, that it needs nothing else, and how a real browser lays it out."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from bench_reports import a_report, a_row
from infer_bench.charts import Line, Ridge, lines, ridges
from infer_bench.page import to_page
from infer_bench.report import Model, Row

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
VOID = {"meta", "rect", "line", "circle", "br"}


class Outline(HTMLParser):
    """Checks that tags are closed in order; keeps those it saw with their attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def outline(page):
    parser = Outline()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def two_engines(**changes):
    return a_report(
        a_row("toy", "short"),
        a_row("toy", "medium"),
        a_row("toy", "short", engine="other", times=(2.0, 2.1, 2.05)),
        Row(engine="other", model="toy", case="medium", status="oom", reason="out of memory"),
        **changes,
    )


def test_the_page_has_a_chart_of_each_kind_and_every_table():
    page = to_page([two_engines()])

    tags = [tag for tag, _ in outline(page)]
    titles = re.findall("<h2>(.*?)</h2>", page)
    # throughput, MBU and context once a model, step times once an engine
    assert tags.count("svg") == 3 + 2
    assert titles == [
        "E2E throughput",
        "Decode against the memory floor",
        "Decode step times",
        "Tokens/s against context",
        "Tables",
        "Notes",
    ]
    assert "oom: toy on other (medium): out of memory" in page
    assert "2 of" not in page
    assert "<b>3 of 4</b>" in page


def test_a_tile_says_how_a_model_compares_with_other_engines_and_with_its_floor():
    report = a_report(
        a_row("toy", times=(1.0,)),
        a_row("toy", engine="other", times=(2.0,)),
        Row(engine="absent", model="toy", case="short", status="skipped", reason="none"),
    )

    page = to_page([report])

    # 8 tokens in 5 ms + 7 * 1.05 ms; 2.1 GB in 1.05 ms at 4 TB/s
    assert "<b>647.8 tok/s</b><span>Toy, short</span><span>1.60x other (406.1)</span>" in page
    assert "<span>50 % of the memory floor&#x27;s speed</span>" in page
    assert "<b>2 of 2</b><span>rows ok</span><span>1 skipped</span>" in page
    assert page.count("absent") == 1  # in the notes


def test_cells_without_a_number_stand_out():
    assert "<td class='bad'>oom</td>" in to_page([two_engines()])


def test_the_page_needs_no_network_no_script_and_no_other_file():
    page = to_page([two_engines()])

    assert not re.search(r"https?:|//|@import|url\(", page)
    assert not {tag for tag, _ in outline(page)} & {"script", "link", "img", "iframe", "object"}
    assert not any(name in attrs for _, attrs in outline(page) for name in ("src", "href"))


def test_names_from_outside_cannot_become_markup():
    row = a_row("<script>alert(1)</script>", "short")
    failed = Row(engine="infer", model=row.model, case="medium", status="failed", reason="<b>&amp;")
    label = "</title><script>"
    model = Model(name=row.model, label=label, plugin=None)

    page = to_page([a_report(row, failed, models=(model,))])

    assert "<script" not in page
    assert "&lt;b&gt;&amp;amp;" in page
    outline(page)


def test_several_reports_have_a_history_and_the_newest_is_shown_in_full():
    old = two_engines(created=datetime(2025, 1, 1, tzinfo=UTC))
    new = two_engines(created=datetime(2026, 1, 1, tzinfo=UTC))

    page = to_page([new, old])

    assert "2 reports, oldest left; infer drawn through, other dashed" in page
    assert "2026-01-01 00:00 UTC</p>" in page
    assert "2025-01-01 00:00 UTC</summary>" in page
    # short on both engines, medium on one; two reports each
    history = page.partition("<h2>History</h2>")[2].partition("<h2>Tables</h2>")[0]
    assert history.count("<circle") == 2 * 3
    assert "hardware differs" not in page


def test_a_report_where_nothing_worked_is_still_a_page():
    failed = Row(engine="infer", model="toy", case="short", status="failed", reason="no luck")

    page = to_page([a_report(failed)])

    outline(page)
    assert "0 of 1" in page
    assert "failed: toy (every config): no luck" in page


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0]])
def test_a_distribution_without_spread_can_be_drawn(values):
    assert "<path" in ridges([Ridge("short", 0, values)], unit="ms")


@pytest.mark.parametrize("points", [[(1.0, 5.0)], [(1.0, 0.0), (2.0, 0.0)]])
def test_a_line_of_one_point_or_of_zeros_can_be_drawn(points):
    assert "nan" not in lines([Line("toy", 0, points)], dots=True)


def test_a_ridge_is_highest_where_most_steps_are():
    values = [1.0] * 90 + [2.0] * 10

    drawn = ridges([Ridge("short", 0, values)], unit="ms")

    heights = [float(y) for y in re.findall(r"L[\d.]+ ([\d.]+)h", drawn)]
    assert heights[0] == min(heights)  # y grows downwards
    assert "P50 1.000, P95 2.000, P99 2.000 ms, n = 100" in drawn


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Open a page in a headless browser: body's background, widths of document and window."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH; Debian: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    probe = (
        "<script>document.title = [getComputedStyle(document.body).backgroundColor, "
        "document.documentElement.scrollWidth, innerWidth, "
        "[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 50),"
        "Math.max(...[...document.querySelectorAll('figure')].map("
        "f => f.getBoundingClientRect().right))].join('|')</script></body>"
    )
    (folder / "page.html").write_text(
        to_page([two_engines()]).replace("</body>", probe), encoding="utf-8"
    )

    def look(width, *, dark):
        done = subprocess.run(
            [
                CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                f"--window-size={width},900", "--dump-dom", f"file://{folder / 'page.html'}",
            ],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        found = re.search("<title>(.*?)</title>", done.stdout)
        assert found, done.stderr[-2000:]
        return found[1].split("|")

    return look


@pytest.mark.parametrize("width", [500, 1400])
@pytest.mark.parametrize(
    ("dark", "paper"), [(False, "rgb(252, 252, 251)"), (True, "rgb(24, 24, 23)")]
)
def test_a_browser_shows_it_light_or_dark_and_never_wider_than_the_window(
    browser, width, dark, paper
):
    background, page_width, window_width, charts_visible, right_edge = browser(width, dark=dark)

    assert background == paper
    assert int(page_width) <= int(window_width) == width
    assert charts_visible == "true"
    assert float(right_edge) <= width

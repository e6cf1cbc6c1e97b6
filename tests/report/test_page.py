"""The report in a browser: it opens offline, filters, compares, steps through a problem's history, and can be read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rewards import Verdict
from rl_engine.report.page import read_runs, write_page
from tests.helpers.run_directories import answered, evaluated, publish, record_step, start_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "</script><script>window.hacked = 1</script><img src='https://example.org/x.png' onerror='window.hacked = 2'>"
RIGHT, WRONG, NONE = ("so 4", Verdict.CORRECT), ("so 5", Verdict.INCORRECT), (HOSTILE, Verdict.NO_ANSWER)
LEAST_CONTRAST = 4.5

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def make_run(run: Path, reward: float) -> Path:
    """Make a run of three steps: `again` is sampled at each and improves; each step has one other problem."""
    records = start_run(run, "train.steps=4")
    records.metrics({"step": 0, "adapter/version": 0, **evaluated(run, "aime2024", 0, 0.2)})
    for step in (1, 2, 3):
        texts = {"again": [RIGHT] * step + [WRONG] * (3 - step), f"only-{step}": [WRONG, NONE]}
        publish(run, step)
        metrics = {
            "reward/mean": reward * step,
            "completion/tokens_mean": 100.0 * step,
            "completion/tokens_mean_wrong": 300.0,
            "sampler/kl": 10.0 ** -(step + 8),
            "loss/clip_low_frac": 0.0,
            "time/rollout_s": 1.0,
            "time/learn_s": 2.0,
            "time/step_s": 3.25,
            "throughput/tokens_per_s": 1234.5,
        }
        record_step(records, step, texts, metrics | (evaluated(run, "aime2024", 3, 0.5) if step == 3 else {}))
    again = [WRONG, RIGHT, RIGHT] if reward > 0.2 else [WRONG, RIGHT, WRONG]
    answered(run, "aime2024", 0, {"gained": [WRONG], "lost": [RIGHT], "left": [NONE]})
    answered(run, "aime2024", 3, dict(zip(("lost", "gained", "left"), ([one] for one in again), strict=True)))
    return run


@dataclass
class Opened:
    """A page, with its console messages and its requests."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def go(self, file: Path) -> Page:
        self.page.goto(file.as_uri())
        return self.page


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A page of one run, and a page of two."""
    root = tmp_path_factory.mktemp("report")
    runs = [make_run(root / "first", 0.25), make_run(root / "second", 0.125)]
    return write_page(read_runs(runs[:1], 4), root / "one.html"), write_page(read_runs(runs, 4), root / "two.html")


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """A page in a laptop's window that must stay offline and free of errors."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    opened = Opened(page)
    yield opened
    page.close()
    assert opened.complaints == []
    assert all(url.startswith("file:") for url in opened.requests)
    assert opened.requests


def shown_groups(page: Page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator("#problems li").all_inner_texts()]


def test_what_a_model_wrote_is_shown_and_not_run(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    page.select_option("#verdict", "no_answer")
    assert page.locator("#cards .card pre").all_inner_texts() == [HOSTILE]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_a_page_of_one_step_counts_in_whole_steps(opened: Opened, tmp_path: Path) -> None:
    """And prints dark on white, whatever was chosen for the screen."""
    records = start_run(tmp_path)
    metrics = {"reward/mean": 1.0, "time/learn_s": 1.0, "time/step_s": 1.0, "throughput/tokens_per_s": 1.0}
    record_step(records, 1, {"a": [RIGHT]}, metrics)
    page = opened.go(write_page(read_runs([tmp_path], 1), tmp_path / "page.html"))
    assert page.locator("[data-chart=reward] svg text[text-anchor=middle]").all_text_contents() == ["1", "2", "step"]
    assert page.locator("[data-chart=time] svg line.area").evaluate("part => part.getBBox().height") > 100
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    expect(page.locator("body")).not_to_have_css("background-color", "rgb(255, 255, 255)")
    page.emulate_media(media="print")
    expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")


def test_on_paper_charts_fill_columns_and_no_table_is_cut(opened: Opened, files: tuple[Path, Path]) -> None:
    """Paper is not as wide as the window that the charts were drawn for, and cannot be scrolled."""
    page = opened.go(files[0])
    page.emulate_media(media="print")
    widths = """all => all.filter(svg => svg.clientWidth).map(svg => [svg, svg.parentElement].map(
        part => Math.round(part.getBoundingClientRect().width)))"""
    for drawn, column in page.eval_on_selector_all("svg.plot", widths):
        assert drawn == column
    expect(page.locator(".scroll").first).to_have_css("overflow-x", "visible")
    expect(page.locator("#problems")).to_be_hidden()


def test_a_viewer_without_scripts_says_what_is_missing(browser: Browser, files: tuple[Path, Path]) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(files[0].as_uri())
    assert page.locator("noscript p").is_visible()
    page.close()


def test_completions_are_filtered_by_step_and_verdict(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    assert len(shown_groups(page)) == 6
    page.select_option("#step", "2")
    assert sorted(shown_groups(page)) == ["step 2 ✓✓✗ What is again?", "step 2 ✗∅ What is only-2?"]
    page.select_option("#verdict", "correct")
    assert shown_groups(page) == ["step 2 ✓✓✗ What is again?"]
    assert page.locator("#cards .card .verdict").all_inner_texts() == ["✓ correct", "✓ correct"]
    assert page.locator("#cards .card .head.note").first.inner_text().split("\n") == [
        "reward 1",
        "adv. +0.50",
        "4 tokens",
    ]
    assert "2 of 3 completions right · 2 shown" in page.inner_text("#reference")
    page.click("#step-before")
    assert shown_groups(page) == ["step 1 ✓✗✗ What is again?"]
    page.select_option("#step", "all")
    page.select_option("#verdict", "all")
    page.fill("#text", "ONLY-3")
    assert shown_groups(page) == ["step 3 ✗∅ What is only-3?"]
    assert page.inner_text("#found") == "1 of 6 groups"
    page.fill("#text", "nowhere to be found")
    assert page.is_hidden("#browser")


def test_a_problem_is_followed_through_the_steps(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    page.click("#problems button:has-text('again')")
    history = page.locator("#history button[aria-current]")
    assert history.inner_text() == "step 1: 1/3"
    assert page.is_disabled("#history button[title='Earlier step']")
    for expected, verdicts in (("step 2: 2/3", "✓✓✗"), ("step 3: 3/3", "✓✓✓")):
        page.focus("#history button[title='Later step']")
        page.keyboard.press("Enter")
        assert history.inner_text() == expected
        assert "".join(text[0] for text in page.locator("#cards .card .verdict").all_inner_texts()) == verdicts
    assert page.locator("#history button").all_inner_texts() == ["◀", "step 1: 1/3", "step 2: 2/3", "step 3: 3/3", "▶"]
    page.click("#group-after")
    assert "only-3" in page.inner_text("#problem-id")
    assert page.inner_text("#history") == "Shown at this step only."


def test_base_and_best_stand_beside_each_other(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    page.click("nav a[href='#pairs']")
    assert "2 newly right, 1 newly wrong" in page.inner_text("#pair-gain")
    assert page.locator("#pair-problems li").count() == 2
    page.click("#pair-problems li:has-text('gained')")
    assert page.locator("#pair-cards .verdict").all_inner_texts() == ["✗ incorrect", "✓ correct"]
    assert "step 0: 0 % · step 3: 100 %" in page.inner_text("#pair-reference")
    page.select_option("#pair-order", "wrong")
    assert page.inner_text("#pair-id") == "lost"
    page.click("#pair-cards pre >> nth=0")
    assert page.evaluate("window.hacked") is None


def test_two_runs_are_compared_by_problem(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[1])
    row = page.inner_text("#compared tbody tr")
    assert row.split("\t")[0] == "second, step 3 − first, step 3"
    assert "−33.3" in row
    assert page.inner_text("#pair-id") == "left"
    assert page.locator("#pair-order option:enabled").all_inner_texts() == ["newly wrong", "most mixed", "longest"]


def test_sampled_groups_are_sorted(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    page.select_option("#order", "longest")
    assert "∅" in shown_groups(page)[0]
    page.select_option("#order", "mixed")
    assert shown_groups(page)[0] in ("step 1 ✓✗✗ What is again?", "step 2 ✓✓✗ What is again?")


def test_charts_are_grouped_and_explain_themselves(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    assert page.locator("#charts h3:visible").all_inner_texts() == [
        "Quality", "Length", "Sampler check", "System", "Any other",
    ]  # fmt: skip
    assert page.locator("#charts figure").first.get_attribute("data-chart") == "accuracy_aime2024"
    assert page.locator("#charts svg text[text-anchor=middle]").first.text_content() == "0"
    gap = page.locator("figure[data-chart=sampler_kl]")
    assert gap.locator(".about").is_hidden()
    gap.locator(".ask").click()
    assert "< 0.01 in bfloat16" in gap.locator(".about").inner_text()


def test_scores_that_were_asked_otherwise_are_not_joined(
    opened: Opened, files: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = opened.go(files[0]).locator("figure[data-chart^=accuracy] path.line")
    expect(lines).to_have_count(1)
    told, file = '"metrics":{', tmp_path / "resumed.html"
    text = files[0].read_text(encoding="utf-8")
    assert told in text
    file.write_text(text.replace(told, f'{told}"asked":[0,0,0,1],'), encoding="utf-8")
    opened.go(file)
    expect(lines).to_have_count(2)


def test_curves_are_told_apart_without_colour(opened: Opened, files: tuple[Path, Path]) -> None:
    """Curves differ in their dashes, and few points are marked."""
    page = opened.go(files[0])
    lines = page.locator("figure[data-chart=cot_length] .line[d]")
    dashes = [lines.nth(place).get_attribute("stroke-dasharray") for place in range(lines.count())]
    assert len(dashes) == 2
    assert len(set(dashes)) == 2
    page.select_option("figure select", "eval/aime2024/avg")
    assert page.locator("figure").last.locator("circle").count() == 2


def test_runs_stand_side_by_side_within_the_window(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[1])
    table = page.locator("#side-by-side")
    assert table.locator("th").all_inner_texts()[:4] == ["Run", "first", "second", "Model"]
    assert table.evaluate("table => table.offsetWidth <= table.parentElement.clientWidth")
    page.uncheck("#runs label:has-text('first') input")
    assert table.locator("th:visible").all_inner_texts()[:3] == ["Run", "second", "Model"]


def test_runs_are_overlaid_and_switched_off(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[1])
    reward = page.locator("figure[data-chart=reward]")
    assert reward.locator(".line").count() == 2
    assert reward.locator("svg.plot").get_attribute("aria-label") == (
        "Reward, mean of completions; last: first 0.750, second 0.375"
    )
    assert page.locator("figure[data-chart=accuracy_aime2024] .band").count() == 2
    page.uncheck("#runs label:has-text('first') input")
    assert reward.locator(".line").count() == 1
    assert "first" not in str(reward.locator("svg.plot").get_attribute("aria-label"))
    assert page.locator("#overview tbody tr:visible").all_inner_texts()[0].startswith("second")
    page.select_option("#run", label="second")
    page.select_option("#step", "3")
    assert len(shown_groups(page)) == 2


def test_the_pointer_reads_values_off_a_chart(opened: Opened, files: tuple[Path, Path]) -> None:
    page = opened.go(files[0])
    chart = page.locator("figure[data-chart=accuracy_aime2024]")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg.plot").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 15, box["y"] + 60)
    assert chart.locator(".tip").inner_text().split("\n")[0] == "step 3"
    assert "AIME 2024 50.0 (45.0–55.0)" in chart.locator(".tip").inner_text()
    gap = page.locator("figure[data-chart=sampler_kl]")
    assert gap.locator(".log").get_attribute("aria-pressed") == "true"
    straight = gap.locator(".line").get_attribute("d")
    gap.locator(".log").click()
    assert gap.locator(".line").get_attribute("d") != straight
    assert page.is_hidden("figure[data-chart=clipped]")
    assert "Held by a clipping bound, 0 % of tokens" in page.inner_text("#constant")
    assert page.locator("figure[data-chart=time] .area[d]").count() == 2
    page.select_option("figure select", "time/step_s")
    last = page.locator("figure").last
    assert str(last.locator("svg.plot").get_attribute("aria-label")).endswith("last: time/step_s 3.25")


def test_a_run_that_has_just_begun_opens(opened: Opened, tmp_path: Path) -> None:
    records = start_run(tmp_path)
    page = opened.go(write_page(read_runs([tmp_path], 4), tmp_path / "page.html"))
    assert "No step is on record yet." in page.inner_text("#curves")
    assert "This page holds no completions." in page.inner_text("#completions")
    assert "No adapter is kept" in page.inner_text("#adapters")
    record_step(
        records,
        1,
        {},
        {"sampler/kl": 0.0, "reward/mean": float("nan"), "time/step_s": 1.0, "throughput/tokens_per_s": 1.0},
    )
    page = opened.go(write_page(read_runs([tmp_path], 4), tmp_path / "page.html"))
    gap = page.locator("figure[data-chart=sampler_kl]")
    assert gap.locator("circle").count() == 1
    assert gap.locator(".log").get_attribute("aria-pressed") == "false"
    assert page.is_hidden("figure[data-chart=reward]")


# The contrast of all text with its background, as WCAG 2 defines it; disabled controls are exempt.
CONTRASTS = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const [r, g, b, alpha = 1] = channels(getComputedStyle(node).backgroundColor);
      if (alpha === 1) return [r, g, b];
    }
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility() || node.disabled || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const [a, b] = [luminance(channels(node.ownerSVGElement ? style.fill : style.color)), luminance(behind(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${node.tagName} ${node.textContent}`.slice(0, 60)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_all_text_stands_out_and_fits_a_laptop_and_a_phone(
    width: int, scheme: Literal["light", "dark"], opened: Opened, files: tuple[Path, Path]
) -> None:
    opened.page.set_viewport_size({"width": width, "height": 800})
    opened.page.emulate_media(color_scheme=scheme)
    for file in files:
        page = opened.go(file)
        contrasts: list[Any] = page.evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert min(contrasts)[0] >= LEAST_CONTRAST, min(contrasts)
        brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
        assert (int(brightness) < 50) == (scheme == "dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # A table may be wider than a phone: it scrolls on its own.
        wide = """[...document.querySelectorAll('main *')].filter(
          e => e.getBoundingClientRect().right > innerWidth && (innerWidth > 1000 || !e.closest('.scroll'))).length"""
        assert page.evaluate(wide) == 0


def test_a_watched_page_loads_itself_again(opened: Opened, tmp_path: Path) -> None:
    """The user's choices are kept."""
    run = make_run(tmp_path / "run", 0.25)
    file = write_page(read_runs([run], 4), tmp_path / "page.html", reload_s=3600)
    opened.page.clock.install()
    page = opened.go(file)
    page.select_option("#step", "3")
    page.select_option("#verdict", "incorrect")
    page.evaluate("scrollTo(0, 900)")
    page.locator("figure[data-chart=sampler_kl] .log").click()
    before = page.evaluate("scrollY")
    assert before > 0
    page.evaluate("window.old = true")
    with page.expect_event("load"):
        write_page(read_runs([run], 1), file, reload_s=3600)
        page.clock.fast_forward("01:00:00")
    assert page.evaluate("window.old") is None
    assert (page.input_value("#step"), page.input_value("#verdict")) == ("3", "incorrect")
    assert page.locator("figure[data-chart=sampler_kl] .log").get_attribute("aria-pressed") == "false"
    assert page.evaluate("scrollY") == before
    assert page.inner_text("#fresh").startswith("live")


def test_formulas_are_drawn_and_copied_as_they_were_written(opened: Opened, tmp_path: Path) -> None:
    text = (
        r"Half, $\frac{1}{2}$ or \(\sqrt[3]{x}\), is not $\frac{1}{$ nor $\href{https://example.org}{x}$ at $5 and $6."
    )
    records = start_run(tmp_path / "run")
    times = {"time/step_s": 1.0, "throughput/tokens_per_s": 1.0}
    record_step(records, 1, {r"$\alpha$": [(text, Verdict.CORRECT)]}, times)
    for version in (0, 1):
        evaluated(tmp_path / "run", "aime2024", version, 0.5)
        answered(tmp_path / "run", "aime2024", version, {"$x^2$": [(text, Verdict.CORRECT)]})
    page = opened.go(write_page(read_runs([tmp_path / "run"], 4), tmp_path / "page.html"))
    for place, count in (("#cards", 2), ("#problem", 1), ("#pair-problem", 1), ("#pair-cards", 4)):
        assert page.locator(f"{place} math").count() == count
    half = page.locator("#cards .formula").first
    assert half.get_attribute("title") == r"$\frac{1}{2}$"
    one, two = (half.locator("mn").nth(place).bounding_box() for place in (0, 1))
    assert one is not None
    assert two is not None
    assert one["y"] + one["height"] <= two["y"]  # one above the other: the browser renders the fraction
    assert page.locator("[href*=example]").count() == 0
    copied = """() => {
      let text;
      getSelection().selectAllChildren(document.querySelector('#cards pre'));
      const event = new ClipboardEvent('copy', {clipboardData: new DataTransfer(), bubbles: true});
      document.querySelector('#cards pre').dispatchEvent(event);
      return event.clipboardData.getData('text/plain');
    }"""
    assert page.evaluate(copied) == text
    page.click("#as-written")
    # `expect` waits: on a busy machine a click returns before the page has handled it.
    expect(page.locator("math")).to_have_count(0)
    assert page.inner_text("#cards pre") == text
    page.reload()
    assert page.locator("math").count() == 0


def test_a_page_without_formulas_has_no_switch_for_them(opened: Opened, files: tuple[Path, Path]) -> None:
    assert opened.go(files[0]).is_hidden("#as-written")

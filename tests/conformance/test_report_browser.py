"""report.html in a real browser: what a reader does with it, by pointer and by keys."""

import json
import os
import shutil
import subprocess
import threading

import pytest
from report_of_a_broken_plugin import KERNEL

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")


@pytest.fixture(scope="module")
def context():
    """One for all tests: chromium can take long over closing one. What takes 5 minutes hangs."""
    end = ("pkill", "-KILL", "-P", str(os.getpid()))  # playwright's driver, and with it the browser
    watch = threading.Timer(300, subprocess.run, [end])
    watch.daemon = True
    watch.start()
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium.new_context(
            reduced_motion="reduce", permissions=["clipboard-read", "clipboard-write"]
        )
        chromium.close()
    watch.cancel()


@pytest.fixture
def visit(context, broken_report):
    """``visit(window, scheme)``: the page, open. At the end nothing was said in the console,
    raised, or asked of anywhere but the file."""
    address = (broken_report[0] / "report.html").as_uri()
    pages, troubles = [], []

    def go(window=DESKTOP, scheme="light"):
        page = context.new_page()
        pages.append(page)
        page.set_viewport_size(window)
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: asked.url == address or troubles.append(asked.url))
        page.goto(address)
        return page

    yield go
    for page in pages:
        page.evaluate("localStorage.clear()")
        page.close()
    assert troubles == []


def ids(page):
    """Ids of the cases listed."""
    return [
        text.replace("\u200b", "") for text in page.locator("#cases .case .id").all_text_contents()
    ]


def told(report, **values):
    """Ids of the report's cases that have these values."""
    return {
        case["id"]
        for case in report[1]["cases"]
        if all(case[key] == value for key, value in values.items())
    }


def shown_in_full(page):
    page.locator(".more-cases").evaluate("(more) => { while (!more.hidden) more.click(); }")
    return ids(page)


def test_it_opens_on_the_failures(visit, broken_report):
    page = visit()
    assert page.locator("h1").inner_text() == "mychip does not conform"
    failed = told(broken_report, outcome="failed")
    assert failed
    first = ids(page)[: len(failed)]
    assert set(first) == failed
    assert page.locator("#cases .case").count() == 25  # the others on demand
    assert len(shown_in_full(page)) == len(broken_report[1]["cases"])


def test_a_cell_lists_its_cases(visit, broken_report):
    page = visit()
    cell = page.get_by_role("button", name="linear, float32:")
    assert "failed" in cell.get_attribute("class")
    cell.click()
    assert cell.get_attribute("aria-pressed") == "true"
    assert set(shown_in_full(page)) == told(broken_report, op="linear", dtype="float32")
    cell.click()
    assert page.locator(".chip").count() == 0

    page.get_by_role("button", name="linear: ").click()
    page.get_by_role("button", name=f"{KERNEL}, float32:").click()
    own = told(broken_report, op="linear", dtype="float32", implementation=KERNEL)
    assert set(shown_in_full(page)) == own
    page.get_by_role("button", name="remove implementation").click()
    assert set(shown_in_full(page)) == told(broken_report, op="linear", dtype="float32")


def test_the_matrix_is_walked_by_keys(visit, broken_report):
    page = visit()
    page.locator('.cell[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    label = page.evaluate("document.activeElement.ariaLabel")
    op, dtype = label.split(":")[0].split(", ")
    assert op != "linear"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "cases-title"
    assert set(shown_in_full(page)) == told(broken_report, op=op, dtype=dtype)
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("inputs_kept odd")
    assert ids(page)
    assert all("odd" in id for id in ids(page))


def test_a_failure_says_the_rule_the_input_and_how_to_see_it_again(visit, broken_report):
    page = visit()
    id = f"ops/linear/{KERNEL}/float32/odd"
    (case,) = (case for case in broken_report[1]["cases"] if case["id"] == id)
    page.get_by_role("searchbox").fill(id)
    assert ids(page) == [id]
    text = page.locator(".detail").inner_text()
    rule = broken_report[1]["rules"]["accuracy"]
    for said in (
        f"{rule['number']} accuracy", rule["strength"], rule["says"], case["broken"][0]["says"],
        case["input"], case["ran"], case["reproduce"],
    ):  # fmt: skip
        assert said in text
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == case["reproduce"]


def test_outcome_and_rule_are_chosen_too(visit, broken_report):
    page = visit()
    page.locator('.total[data-outcome="expected"]').click()
    assert set(shown_in_full(page)) == told(broken_report, outcome="expected")
    page.get_by_label("Search cases").fill("no such case")
    assert page.locator(".found").inner_text() == "No case is like this."
    page.keyboard.press("Escape")
    page.locator("#rules").get_by_role("button", name="accuracy").first.click()
    looked = {case["id"] for case in broken_report[1]["cases"] if "accuracy" in case["rules"]}
    assert set(shown_in_full(page)) == looked
    assert broken_report[1]["rules"]["accuracy"]["says"] in page.locator(".active").inner_text()


def test_a_point_of_the_plot_names_its_case(visit, broken_report):
    page = visit()
    plot = page.locator(".plot svg")
    plot.scroll_into_view_if_needed()
    assert page.locator(".plot .lane").count() > 4
    plot.focus()
    page.keyboard.press("ArrowDown")
    tip = page.locator(".tip")
    assert tip.locator("span").inner_text() in told(broken_report, op="linear")
    ring = page.locator(".ring").bounding_box()
    plot.blur()
    assert tip.is_hidden()
    page.mouse.move(ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2)
    pointed = tip.locator("span").inner_text()
    page.mouse.down()
    page.mouse.up()
    assert ids(page) == [pointed]
    page.get_by_text("peak", exact=True).click()
    assert page.locator(".plot .lane").count() > 4


def test_expectations_and_planted_faults_are_shown(visit):
    page = visit()
    expectations = page.locator("#expectations").inner_text()
    assert "the tail is lost; fixed in 0.3" in expectations
    assert "2999-06-30" in expectations
    assert "matches no case (left over)" in expectations
    faults = page.locator("#self-test")
    assert "2 of 3 were killed" in faults.inner_text()
    assert "stale_buffer" in faults.inner_text()  # open: it survived
    assert "dropped_tail" not in faults.inner_text()
    faults.get_by_text("numeric").click()
    faults.get_by_text("dropped_tail", exact=True).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(visit, scheme):
    page = visit(PHONE, scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.wait_for_function(
        "[...document.querySelectorAll('.case')].every((one) => one.querySelector('.detail'))"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    beyond = page.evaluate(
        """[...document.querySelectorAll("main *")]
             .filter((e) => !e.closest(".scroll, .hidden, .plot") && e.offsetParent)
             .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
             .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert beyond == []


def test_colours_are_the_system_s_or_chosen(visit):
    page = visit(scheme="dark")
    dark = ground(page)
    button = page.get_by_role("button", name="colours: as the system")
    button.click()  # dark
    assert ground(page) == dark
    page.get_by_role("button", name="colours: dark").click()
    light = ground(page)
    assert luminance(light) > 0.8 > 0.2 > luminance(dark)
    page.reload()
    assert ground(page) == light
    assert ground(visit()) == light


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def luminance(colour):
    return sum(map(float, json.loads(f"[{colour[4:-1]}]"))) / 3 / 255

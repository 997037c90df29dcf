"""``python docs/screenshots.py [FOLDER]`` takes the pictures of a conformance report.

Of the report in FOLDER, or the one that ``make conform`` wrote: images/conformance-*.png. Needs
chromium, and playwright for Python.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).with_name("images")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]

# name -> size of the window, pixels for each of its, colours, what to bring to its top
PICTURES = {
    "desktop-light": ((1280, 1560), 1, "light", "header"),
    "desktop-dark": ((1280, 1000), 1, "dark", "#budgets"),
    "phone": ((390, 844), 2, "light", "#matrix"),
}


def take(browser: Browser, report: Path, name: str) -> Path:
    """Take one picture; its path."""
    (width, height), scale, scheme, top = PICTURES[name]
    page = browser.new_page(
        viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme
    )
    page.goto(report.resolve().as_uri())
    page.locator(top).evaluate("(element) => element.scrollIntoView()")
    page.wait_for_timeout(300)  # until the plot has its width
    picture = IMAGES / f"conformance-{name}.png"
    page.screenshot(path=picture)
    page.close()
    return picture


def main(folder: Path) -> None:
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=ARGUMENTS
        )
        for name in PICTURES:
            picture = take(browser, folder / "report.html", name)
            print(f"{picture.relative_to(ROOT)}  {picture.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out" / "conformance")

"""The pages in a real browser: Debian's chromium, driven by Playwright (`apt-get install chromium`)."""

import shutil
import subprocess
import sys

import pytest
from test_reports import insects, run  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no chromium here: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's workspace, as a user has it."""
    root = tmp_path_factory.mktemp("demo") / "ws"
    subprocess.run([sys.executable, "-m", "toolkit", "demo", str(root)], check=True, capture_output=True)
    return root


def opened(browser, path, size, **options):
    """The page, what it said on the console, and what it asked the network for."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), SIZES[size], strict=True)), **options)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.resolve().as_uri())
    return page, said, [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["eda", "report"])
def test_pages_of_the_demo_are_sound(name, size, scheme, demo, browser):
    assert run(demo, name).exit_code == 0
    page, said, asked = opened(browser, demo / "reports" / f"{name}.html", size, color_scheme=scheme)
    assert not said
    assert not asked
    assert page.evaluate("[...document.images].every(image => image.alt && image.complete && image.naturalWidth > 0)")
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(part => part.getAttribute('aria-label'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]  # nothing scrolls sideways but tables
    assert page.evaluate("[...document.querySelectorAll('th')].every(cell => cell.scope)")
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert contrast(ink, paper) > 7
    page.close()


def test_a_click_on_a_confusion_cell_shows_its_images(demo, browser):
    assert run(demo, "report").exit_code == 0
    page, said, _ = opened(browser, demo / "reports" / "report.html", "desktop")
    buttons = page.locator("table.confusion button")
    assert buttons.count() > 1
    first = page.locator(f"#{buttons.nth(0).get_attribute('aria-controls')}")
    assert not first.is_visible()
    buttons.nth(0).click()
    assert first.is_visible()
    assert first.locator("img").count() > 0
    buttons.nth(1).focus()
    page.keyboard.press("Enter")
    assert not first.is_visible()
    assert page.locator(f"#{buttons.nth(1).get_attribute('aria-controls')}").is_visible()
    page.keyboard.press("Enter")
    assert page.locator(".drawer:visible").count() == 0
    assert not said
    page.close()


def test_hostile_names_do_nothing_in_a_browser(tmp_path, browser):
    from test_reports import HOSTILE, hostile

    root = hostile(tmp_path / "work")
    for name in ("eda", "report"):
        assert run(root, name).exit_code == 0
        page, said, asked = opened(browser, root / "reports" / f"{name}.html", "desktop")
        page.wait_for_timeout(200)
        assert not said
        assert not asked
        text = page.locator("body").inner_text()
        assert all(one in text for one in HOSTILE)
        page.close()


def contrast(first: str, second: str) -> float:
    """WCAG's contrast of two colours as `rgb(1, 2, 3)`."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

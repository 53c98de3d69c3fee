"""The pages in a real browser: Debian's chromium, driven by Playwright, for the demo and for 12,000 images of Fashion-MNIST.

`apt-get install chromium dataset-fashion-mnist`; fonts-noto-cjk and fonts-noto-color-emoji, to see every script in the screenshots.
"""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.analysis.pages.test_pages import run

pytestmark = pytest.mark.slow

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ROOT = Path(__file__).parents[3]
FASHION = Path("/usr/share/datasets/fashion-mnist")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no chromium here: apt-get install chromium"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=[*QUIET, "--disable-component-update"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's workspace, as a user has it."""
    root = tmp_path_factory.mktemp("demo") / "ws"
    call("-m", "toolkit", "demo", root)
    for name in ("eda", "report"):
        assert run(root, name).exit_code == 0
    return root


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """10,000 training and 2,000 test images, two members of a small network after one pass, blended and submitted."""
    assert FASHION.is_dir(), "no Fashion-MNIST here: apt-get install dataset-fashion-mnist"
    root = tmp_path_factory.mktemp("fashion") / "ws"
    bench, recipe = ROOT / "benchmarks" / "fashion.py", ROOT / "recipes" / "timm_kfold.py"
    call(bench, "--make-only", "--workspace", root)
    call("-m", "toolkit", "split", "--folds", "2", cwd=root)
    for member, lr in (("small", "0.004"), ("other", "0.001")):
        words = ("--model", f"{root}/small.py:build", "--no-pretrained", "--size", "28", "--epochs", "1", "--lr", lr)
        call(recipe, "--workspace", root, "--device", "cpu", "--member", member, *words)
    call("-m", "toolkit", "tta", "--set", "hflip", "--limit", "600", "--members", "small", cwd=root)
    for words in (("blend",), ("ensemble", "folds", "--blend"), ("submit",)):
        call("-m", "toolkit", *words, cwd=root)
    for name in ("report", "eda", "report"):
        assert run(root, name).exit_code == 0
    return root


def call(*words, cwd=ROOT):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr


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


# text whose contrast with what lies behind it is below WCAG's 4.5 (3 for large text), outside of plots
FAINT = """() => {
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, under) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map(i => top[i] * a + under[i] * (1 - a)); };
  const light = c => c.map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => e ? over(parts(getComputedStyle(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255];
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg, script, .skip, [hidden]") || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e), [a, b] = [light(parts(style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) found.push([e.tagName, e.textContent.slice(0, 40), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["eda", "report"])
@pytest.mark.parametrize("data", ["demo", "fashion"])
def test_pages_are_sound(data, name, size, scheme, request, browser, tmp_path):
    path = request.getfixturevalue(data) / "reports" / f"{name}.html"
    assert path.stat().st_size < 15e6
    page, said, asked = opened(browser, path, size, color_scheme=scheme)
    assert page.evaluate("document.images.length") > 40
    assert page.evaluate("[...document.images].every(image => image.alt && image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.querySelectorAll('svg').length") >= 4
    assert page.evaluate("[...document.querySelectorAll('svg')].every(plot => plot.closest('[role=img]').ariaLabel)")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]  # nothing scrolls sideways but tables
    assert page.evaluate("[...document.querySelectorAll('th')].every(cell => cell.scope)")
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0 && box.ariaLabel)")
    assert page.evaluate(FAINT) == []
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert contrast(ink, paper) > 7
    page.locator("nav a").last.click()
    top = page.locator("section").last.bounding_box()["y"]
    assert 0 <= top < SIZES[size][1]
    shot = Image.open(io.BytesIO(page.screenshot(path=tmp_path / f"{data}-{name}-{size}-{scheme}.png"))).convert("L")
    assert shot.size == SIZES[size]
    assert len(set(shot.resize((60, 60)).tobytes())) > 10  # something is there
    assert not said
    assert not asked
    page.close()


@pytest.mark.parametrize("data", ["demo", "fashion"])
def test_a_click_on_a_confusion_cell_shows_its_images(data, request, browser):
    page, said, _ = opened(browser, request.getfixturevalue(data) / "reports" / "report.html", "desktop")
    buttons = page.locator("table.confusion button")
    assert buttons.count() > 10
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
    buttons.nth(0).click()
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    assert page.locator(".drawer:visible").count() == 0
    assert buttons.nth(0).evaluate("button => button === document.activeElement")
    for button in buttons.all()[:40]:
        button.click()
        shown = page.locator(".drawer:visible")
        assert shown.count() == 1
        count = int(button.inner_text().split()[0].replace(",", ""))
        assert 1 <= shown.locator("figure").count() <= min(count, 12)
    assert not said
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_an_explanation_is_sound(size, demo, browser):
    assert run(demo, "explain", "0001", "--tta", "hflip").exit_code == 0
    page, said, asked = opened(browser, demo / "reports" / "explain-0001.html", size)
    assert page.evaluate("[...document.images].every(image => image.alt && image.naturalWidth >= 300)")
    assert page.evaluate("document.images.length") == 2  # what the model sees, and the saliency over it
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert page.evaluate(FAINT) == []
    assert page.locator("tbody tr").count() == 10  # five folds, two views
    assert not said
    assert not asked
    page.close()


def test_a_page_prints_whole_and_dark_on_light(fashion, browser):
    page, _, _ = opened(browser, fashion / "reports" / "report.html", "desktop", color_scheme="dark")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("nav").is_visible()
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(box => box.scrollHeight <= box.clientHeight + 1)")
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert (ink, paper) == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")
    page.close()


def test_hostile_names_do_nothing_in_a_browser(tmp_path, browser):
    from tests.analysis.pages.test_pages import HOSTILE, NAMES, hostile

    root = hostile(tmp_path / "work")
    for name in ("eda", "report"):
        assert run(root, name).exit_code == 0
        page, said, asked = opened(browser, root / "reports" / f"{name}.html", "desktop")
        page.wait_for_timeout(200)
        assert not said
        assert not asked
        text = page.locator("body").inner_text()
        assert all(one in text for one in HOSTILE)
        assert name == "eda" or all(one in text for one in NAMES)
        page.close()


def contrast(first: str, second: str) -> float:
    """WCAG's contrast of two colours as `rgb(1, 2, 3)`."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)

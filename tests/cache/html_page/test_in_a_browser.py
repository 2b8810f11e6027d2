"""The page in a headless browser: it draws, filters, orders and compares, and runs no text."""

import numpy as np
import PIL.Image
import pytest

from benchmarks._browser import BROWSER, DRIVER, Browser, driver_port
from cache import Entry, Rejection, Store, content_digest, request_key

HOSTILE = "</script><b>bold</b><img src=x onerror=\"document.title='run'\">"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]


@pytest.fixture(scope="module")
def port():
    with driver_port() as port:
        yield port


@pytest.fixture(scope="module")
def browser(port):
    window = Browser(port)
    yield window
    window.close()


@pytest.fixture
def page(tmp_path, run):
    """A page of 600 images and 60 rejections, all from one source."""
    source = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "src").mkdir()
    PIL.Image.fromarray(source).save(tmp_path / "src/x.png")
    digest = content_digest((tmp_path / "src/x.png").read_bytes())
    classes = {"data_set": "d", "source_class": "wren", "target_class": HOSTILE}
    with Store(tmp_path / "c", codec="raw", durability="process") as store:
        entries = [
            Entry(request_of(n, digest), source // 2, {"clip": n / 600}, classes)
            for n in range(600)
        ]
        store.put_many(entries)
        for n in range(600, 660):
            request = request_of(n, digest)
            store.reject(
                request_key(request), request, Rejection("blank" if n % 2 else "off-class")
            )
    assert run("show", store.path, "--html", tmp_path / "p.html", "--sources", tmp_path / "src")
    return tmp_path / "p.html"


def request_of(n, digest):
    return {
        "method": ("diff_mix", "sgd_mix")[n % 2],
        "source_label": 0,
        "target_label": 1,
        "strength": (n % 4 + 1) / 4,
        "prompt": f"{HOSTILE} number {n}",
        "source_digest": digest,
    }


COUNT = "return document.getElementById('count').textContent"
CARDS = "return [...document.querySelectorAll('.card')].map(card => card.innerText)"


def test_only_the_cards_near_the_screen_exist_and_no_text_is_run(page, browser):
    browser.open(page)
    assert browser.run(COUNT) == "660 images"
    assert 0 < len(browser.run(CARDS)) < 60
    assert browser.run("return document.body.scrollWidth <= document.body.clientWidth")
    assert browser.run("return document.title").startswith("Images of ")
    assert browser.run("return document.querySelectorAll('b, svg, iframe').length") == 0
    sources = browser.run("return [...document.images].map(image => image.src.slice(0, 23))")
    assert set(sources) == {"data:image/webp;base64,"}
    assert HOSTILE in browser.run(CARDS)[0]


def test_scrolling_draws_the_last_image(page, browser):
    browser.open(page)
    browser.run("scrollTo(0, document.body.scrollHeight)")
    assert "rejected: " in browser.run(CARDS)[-1]
    assert len(browser.run(CARDS)) < 60


@pytest.mark.parametrize(
    ("state", "count"),
    [
        ({"method": "sgd_mix"}, "330 of 660 images"),
        ({"status": "rejected"}, "60 of 660 images"),
        ({"status": "rejected:blank"}, "30 of 660 images"),
        ({"least": "0.75"}, "330 of 660 images"),
        ({"least": "0.3", "most": "0.5"}, "165 of 660 images"),
        ({"text": "sgd_mix BLANK"}, "30 of 660 images"),
        ({"target": HOSTILE, "method": "none"}, "660 images"),
        ({"text": "nothing has this"}, "0 of 660 images"),
    ],
)
def test_filters_are_kept_in_the_address(state, count, page, browser):
    browser.open(page, **state)
    assert browser.run(COUNT) == count


def test_a_choice_filters_and_clearing_shows_all(page, browser):
    browser.open(page)
    browser.run(
        "const choice = document.getElementById('method'); choice.value = 'diff_mix';"
        "choice.dispatchEvent(new Event('input', { bubbles: true }))"
    )
    assert browser.run(COUNT) == "330 of 660 images"
    assert browser.run("return location.hash") == "#method=diff_mix"
    browser.click("#reset")
    assert browser.run(COUNT) == "660 images"


def test_images_are_ordered_by_a_score_and_those_without_are_last(page, browser):
    browser.open(page, order="-score clip")
    assert "clip 0.998" in browser.run(CARDS)[0]
    browser.run("scrollTo(0, document.body.scrollHeight)")
    assert "rejected: " in browser.run(CARDS)[-1]


def test_a_click_compares_an_image_with_its_source(page, browser):
    browser.open(page)
    browser.click(".card")
    facts = "return document.getElementById('facts').innerText"
    assert f"{HOSTILE} number 0" in browser.run(facts)
    assert browser.run("return document.querySelectorAll('#pair img').length") == 2
    browser.run(
        "const wipe = document.getElementById('wipe'); wipe.value = 20;"
        "wipe.dispatchEvent(new Event('input'))"
    )
    clip = "return document.querySelector('#pair .over').style.clipPath"
    assert browser.run(clip) == "inset(0px 0px 0px 80%)"
    browser.click("#after")
    assert f"{HOSTILE} number 1" in browser.run(facts)
    browser.click("#close")
    assert browser.run("return document.getElementById('one').open") is False


def test_a_phone_shows_the_page_without_scrolling_sideways(page, port):
    screen = {"width": 390, "height": 844, "pixelRatio": 2.0}
    phone = Browser(port, mobileEmulation={"deviceMetrics": screen})
    phone.open(page)
    assert phone.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert phone.run("return document.getElementById('more').open") is False
    phone.click(".card")
    assert phone.run("return document.getElementById('one').scrollWidth") <= 390
    phone.close()

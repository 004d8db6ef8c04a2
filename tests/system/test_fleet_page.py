"""The fleet's page in a real browser: complete, harmless, usable from a keyboard, right in every light."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.fleet import rollouts, server
from edge.fleet.desk import Desk
from tests.awaiting import await_true
from tests.devtools import CHROMIUM, Page, browser
from tests.fleet_scene import HOSTILE, build
from tests.fleets import Asker

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install -y chromium")
TOKEN = "t" * 43


@contextlib.contextmanager
def serving(desk: Desk) -> Iterator[str]:
    """Serve a fleet in a thread of this process; gives its address."""
    import uvicorn

    ready, found = threading.Event(), []
    application = server.Application(desk, token=TOKEN)

    def on_ready(url: str) -> None:
        found.append(url)
        ready.set()

    made: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def remembered(self: uvicorn.Server, *arguments: object) -> None:
        made.append(self)
        run(self)

    patched = pytest.MonkeyPatch()
    patched.setattr(uvicorn.Server, "run", remembered)
    thread = threading.Thread(
        target=server.serve,
        args=(application,),
        kwargs={"host": "127.0.0.1", "port": 0, "tls": None, "on_ready": on_ready},
    )
    thread.start()
    assert ready.wait(60)
    try:
        yield found[0]
    finally:
        made[0].should_exit = True
        thread.join()
        patched.undo()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Desk, list[Asker], Page]]:
    folder = tmp_path_factory.mktemp("page")
    desk, askers = build(folder / "fleet")
    with serving(desk) as url, browser(folder) as page:
        yield url, desk, askers, page


@pytest.fixture
def page(scene: tuple[str, Desk, list[Asker], Page]) -> Page:
    """The overview, open."""
    url, _, _, made = scene
    made.go("about:blank")
    made.console.clear()
    made.requested.clear()
    made.send("Emulation.clearDeviceMetricsOverride")
    made.send("Emulation.setEmulatedMedia", features=[])
    made.go(f"{url}#token={TOKEN}")
    made.await_js("document.querySelector('.waves') !== null")
    return made


def test_the_page_asks_its_server_alone_and_refuses_nothing(page: Page, scene) -> None:
    url = scene[0]
    page.go(f"{url}#/device/{scene[2][0].id}")
    page.await_js("document.querySelector('.chart') !== null")
    assert page.console == []
    assert page.requested
    assert all(address.startswith(url) for address in page.requested)


def test_the_token_leaves_the_address_and_a_wrong_one_opens_nothing(page: Page, scene) -> None:
    assert page.js("location.hash") == "#/"
    page.js("sessionStorage.clear()")
    page.go("about:blank")
    page.go(scene[0])
    page.await_js("document.activeElement.id === 'token'")
    page.press(*"wrong", "Enter")
    page.await_js("document.querySelector('[role=alert]') !== null")
    assert "waves" not in page.js("document.body.innerHTML")
    page.press(*TOKEN, "Enter")
    page.await_js("document.querySelector('.waves') !== null")


def test_the_overview_shows_waves_bundles_and_health(page: Page) -> None:
    text = page.js("document.getElementById('main').innerText")
    assert re.search(r"15 of 40 devices confirmed, 1 failed, 0 silent, 4 under way", text)
    assert "19 devices: 14 confirmed, 1 failed, 4 waiting" in text
    assert "20 devices: not yet begun" in text
    assert page.js("document.querySelectorAll('.tiles a').length") == 4
    assert page.js("document.querySelectorAll('[aria-current=step]').length") == 1


def test_what_a_device_says_is_text(page: Page, scene) -> None:
    page.await_js(f"document.body.innerText.includes({HOSTILE[:30]!r})")
    assert page.js("document.querySelector('main img, main script, main b:not(.wave b, .tiles b)')") is None
    page.go(f"{scene[0]}#/device/{scene[2][0].id}")
    page.await_js("document.querySelector('.meter') !== null")
    assert "<b>height</b>" in page.js("document.body.innerText")
    assert "owned" not in page.js("document.title")


def test_a_device_shows_its_history_latencies_and_drift(page: Page, scene) -> None:
    page.go(f"{scene[0]}#/device/{scene[2][0].id}")
    page.await_js("document.querySelectorAll('.chart').length === 2")
    text = page.js("document.getElementById('main').innerText")
    assert re.search(r"<b>height</b>\s+input\s+1\.\d+\s+0\.2\d+\s+drifted", text)
    assert re.search(r"width\s+input\s+0\.\d+\s+0\.2\d+\s+no", text)
    assert "confirmed" in text
    assert page.js("document.querySelector('.chart polyline').getAttribute('points').split(' ').length") == 60


def test_a_keyboard_alone_pauses_and_resumes(page: Page, scene) -> None:
    desk = scene[1]
    page.press("Tab")
    assert page.js("document.activeElement.id") == "skip"
    page.press("Enter")
    assert page.js("document.activeElement.id") == "main"
    words = []
    for _ in range(12):
        page.press("Tab")
        words.append(page.js("document.activeElement.textContent"))
        outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", words
        if words[-1] == "Pause":
            break
    page.press("Enter")
    page.await_js("document.getElementById('ask').open")
    page.press("Escape")
    page.await_js("!document.getElementById('ask').open")
    page.press("Enter")
    page.await_js("document.getElementById('ask').open")
    page.press("Tab")
    assert page.js("document.activeElement.textContent") == "Pause"
    page.press("Enter")
    page.await_js("document.querySelector('.badge').textContent === 'paused'")
    with desk.store.reading() as db:
        assert rollouts.listed(db, live=True)[0].rollout.status == "paused"
    page.js("[...document.querySelectorAll('button')].find((each) => each.textContent === 'Resume').focus()")
    page.press("Enter")
    page.await_js("document.getElementById('ask').open")
    page.press("Tab", "Enter")
    page.await_js("document.querySelector('.badge').textContent === 'running'")


def test_what_is_new_comes_by_itself_and_keeps_the_focus_and_what_is_open(page: Page, scene) -> None:
    _, desk, askers, _ = scene
    page.js("document.querySelector('summary').click()")
    page.js("document.querySelector('summary').focus()")
    before = page.js("document.querySelector('.waves').innerText")
    fresh = next(asker for asker in askers[15:] if asker.offer()["kind"] == "install")
    fresh.tell(digest=fresh.offer()["digest"], release=3)
    await_true(lambda: page.js("document.querySelector('.waves').innerText") != before)
    assert page.js("document.querySelector('details').open")
    assert page.js("document.activeElement.tagName") == "SUMMARY"
    assert desk.live


def test_devices_are_found_by_name_and_health(page: Page, scene) -> None:
    page.go(f"{scene[0]}#/devices?health=silent")
    page.await_js("document.querySelectorAll('tbody tr').length === 1")
    page.js("location.hash = '#/devices?text=gate'")
    page.await_js("document.querySelectorAll('tbody tr').length === 3")
    page.js("document.querySelector('input[type=search]').focus()")
    page.js("document.querySelector('input[type=search]').select()")
    page.press(*"press-07")
    page.await_js("document.querySelectorAll('tbody tr').length === 1")
    assert page.js("document.activeElement.value") == "press-07"
    page.js("location.hash = '#/device/nobody'")
    page.await_js("document.querySelector('.problem') !== null")


def test_everything_to_use_has_a_name_and_a_place(page: Page) -> None:
    for selector in ("header", "nav", "main", "h1"):
        assert page.js(f"document.querySelectorAll('{selector}').length") == 1, selector
    named = (
        "each.textContent.trim() || each.getAttribute('aria-label') || (each.labels && each.labels.length)"
    )
    nameless = (
        f"[...document.querySelectorAll('a, button, input, summary')].filter(each => !({named})).length"
    )
    assert page.js(nameless) == 1  # the dialog's button, which gets its words when it opens
    assert page.js("document.querySelectorAll('th:not([scope])').length") == 0
    assert page.js("document.documentElement.lang") == "en"


# The least contrast between a word and what is behind it, and where (WCAG 2.2, "contrast ratio").
CONTRAST = r"""(() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\d.]+/g).map(Number)
      .map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let least = 99, where = "";
  for (const each of document.querySelectorAll("main *, header *")) {
    if (![...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    let under = each;
    while (/rgba\(0, 0, 0, 0\)/.test(getComputedStyle(under).backgroundColor)) under = under.parentElement;
    const style = getComputedStyle(each);
    const one = luminance(each.ownerSVGElement ? style.fill : style.color);
    const two = luminance(getComputedStyle(under).backgroundColor);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < least) [least, where] = [ratio, `${each.tagName} ${each.textContent.slice(0, 40)}`];
  }
  return [least, where];
})()"""


@pytest.mark.parametrize("light", ["light", "dark"])
def test_every_word_can_be_read_in_light_and_dark(page: Page, scene, light: str, tmp_path: Path) -> None:
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": light}])
    for route in ("#/", "#/devices", f"#/device/{scene[2][0].id}"):
        page.go(f"{scene[0]}{route}")
        page.await_js("document.querySelector('section') !== null")
        least, where = page.js(CONTRAST)
        assert least >= 4.5, (route, where)
        assert len(page.look(tmp_path / "page.png")) > 10_000
    back = page.js("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(15, 19, 24)" if light == "dark" else "rgb(244, 245, 247)")


def test_a_phone_scrolls_tables_and_never_the_page(page: Page, scene) -> None:
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    for route in ("#/", "#/devices", f"#/device/{scene[2][0].id}"):
        page.go(f"{scene[0]}{route}")
        page.await_js("document.querySelector('section') !== null")
        assert page.js("[innerWidth, document.documentElement.scrollWidth]") == [360, 360], route


def test_a_server_that_goes_away_is_said(scene, tmp_path: Path) -> None:
    desk, _ = build(tmp_path / "fleet", n_devices=20)
    page = scene[3]
    with serving(desk) as url:
        page.go(f"{url}#token={TOKEN}")
        page.await_js("document.querySelector('.waves') !== null")
    page.await_js("document.getElementById('link').textContent.includes('does not answer')")
    assert page.js("document.querySelector('.waves') !== null")  # what was known stays


def test_an_abort_returns_the_devices(page: Page, scene) -> None:
    page.js("document.querySelector('main button.danger').click()")
    page.js("document.getElementById('ask-yes').click()")
    page.await_js("document.querySelector('.badge').textContent === 'aborted'")
    assert re.search(r"1\d devices still to return", page.js("document.getElementById('main').innerText"))
    askers = scene[2]
    for asker in askers:
        if asker.offer()["kind"] == "return":
            asker.tell(digest=asker.offer()["digest"], previous=None)
    page.await_js("document.getElementById('main').innerText.includes('Every device has returned')")

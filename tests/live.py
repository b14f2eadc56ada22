"An explorer's notebook, served as `encapnet explore` serves it and opened in a real browser."

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

from encapnet.show.explore import serve

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ('voila', 'lab')
PATIENCE = 60_000  # ms: two cores, shared


# From the next key to the frame after the explorer tells of its new picture.
_TIMED = """() => {
  window.moved = null;
  document.addEventListener('keydown', () => {
    const began = performance.now();
    const drawn = () => requestAnimationFrame(() => { window.moved = performance.now() - began; });
    const watch = new MutationObserver(() => { watch.disconnect(); drawn(); });
    watch.observe(document.querySelector('.explorer'), { attributes: true, attributeFilter: ['data-facts'] });
  }, { once: true, capture: true });
}"""


class Live:
    """A page on which an explorer is drawn: what it said, what it asked for, and a hand to play
    with it."""

    def __init__(self, page, url, artefacts):
        self.page, self.url, self.artefacts = page, url, artefacts
        # seconds: since the page was asked for, since its cells were
        self.errors, self.asked, self.seconds = [], [], {}
        page.on(
            'console',
            lambda message: self.errors.append(message.text) if message.type == 'error' else None,
        )
        page.on('pageerror', lambda error: self.errors.append(str(error)))
        page.on('request', lambda request: self.asked.append(request.url))
        page.on('websocket', lambda socket: self.asked.append(socket.url))

    @property
    def elsewhere(self):
        "What was asked of other hosts than the server."
        here = self.url.split('/')[2]
        return [
            url
            for url in self.asked
            if url.split(':')[0] not in ('data', 'blob') and url.split('/')[2] != here
        ]

    @property
    def explorer(self):
        return self.page.locator('.explorer').first

    @property
    def facts(self):
        "What the explorer tells of itself."
        return json.loads(self.explorer.get_attribute('data-facts', timeout=PATIENCE))

    def until(self, holds, seconds=10):
        "Wait until the facts are as they should be; how long that took, in seconds."
        begun = time.monotonic()
        while not holds(found := self.facts):
            assert time.monotonic() - begun < seconds, f'still {found}'
            self.page.wait_for_timeout(5)
        return time.monotonic() - begun

    def picture(self, name, selector='.chart'):
        "Pixels of an element; kept as an artefact."
        path = self.artefacts / f'{name}.png'
        return self.explorer.locator(selector).first.screenshot(path=path, animations='disabled')

    def pictures(self, name):
        "Pixels of every drawing that can be seen."
        drawn = self.explorer.locator('.chart:visible, .pixels:visible')
        return [
            drawn.nth(k).screenshot(path=self.artefacts / f'{name}-{k}.png', animations='disabled')
            for k in range(drawn.count())
        ]

    def control(self, label):
        return self.explorer.get_by_label(label, exact=True)

    def drag(self, label, share):
        "Move a slider by the mouse, from its middle to a share of its width."
        self.control(label).scroll_into_view_if_needed()
        box = self.control(label).bounding_box()
        at = box['y'] + box['height'] / 2
        self.page.mouse.move(box['x'] + box['width'] / 2, at)
        self.page.mouse.down()
        self.page.mouse.move(box['x'] + box['width'] * share, at, steps=4)
        self.page.mouse.up()

    def press(self, label, *keys):
        self.control(label).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def milliseconds(self, label, *keys):
        "From each key to the paint that follows, as the page sees it."
        self.control(label).focus()
        taken = []
        for key in keys:
            self.page.evaluate(_TIMED)
            self.page.keyboard.press(key)
            self.page.wait_for_function('window.moved !== null', timeout=PATIENCE)
            taken.append(self.page.evaluate('window.moved'))
        return taken


def artefacts(tmp_path):
    "Where pictures go: the folder that ENCAPNET_ARTEFACTS names, or this test's own."
    folder = Path(os.environ.get('ENCAPNET_ARTEFACTS') or tmp_path / 'artefacts')
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def live(browser, name, host, tmp_path, **given):
    """The explorer of that name on a page, drawn; the server goes with the context. A screenshot
    tells what was there at last."""
    notebook = ROOT / 'nbs' / 'explore' / f'{name}.ipynb'
    with serve.serving([notebook], name, host == 'lab', **given) as (url, server):
        context = browser.new_context(
            viewport={'width': 1300, 'height': 1000}, reduced_motion='reduce', accept_downloads=True
        )
        seen = Live(context.new_page(), url, artefacts(tmp_path))
        seen.server = server
        try:
            begun = asked = time.monotonic()
            seen.page.goto(url, timeout=PATIENCE)
            if host == 'lab':
                asked = run_in_lab(seen)
            seen.explorer.wait_for(timeout=PATIENCE)
            seen.until(bool, PATIENCE / 1000)
            seen.seconds = dict(opened=time.monotonic() - begun, drawn=time.monotonic() - asked)
            yield seen
        except Exception:
            text = seen.page.locator('body').inner_text()
            print(f'the page says: {text}', *seen.errors, sep='\n')
            raise
        finally:
            shot = seen.artefacts / f'{name}-{host}.png'
            seen.page.screenshot(path=shot, full_page=True)
            print(f'screenshot: {shot}')
            context.close()


def run_in_lab(seen):
    """Run all cells, again if need be: what is asked while the kernel connects is lost. Returns
    when the try that counts began."""
    page, deadline = seen.page, time.monotonic() + PATIENCE / 1000
    page.locator('.jp-Notebook .jp-CodeCell .jp-Editor').first.wait_for(timeout=PATIENCE)
    idle, waiting, dialog = (
        page.get_by_text('python3 | Idle'),
        page.get_by_text('[*]:'),
        page.locator('.jp-Dialog'),
    )
    while True:
        idle.wait_for(timeout=PATIENCE)
        page.wait_for_timeout(300)
        begun = time.monotonic()
        assert begun < deadline, 'cells do not run'
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
        page.wait_for_timeout(500)
        while dialog.count() or waiting.count() or seen.explorer.count():
            if seen.explorer.count():
                return begun
            if dialog.count():  # which kernel? A second one would be one too many
                page.keyboard.press('Escape')
            assert time.monotonic() < deadline, 'cells do not end'
            page.wait_for_timeout(50)

"""What a browser counts in a capConv's maps is what Python counts, and the layer's slider answers
at once."""

import base64

import pytest
import torch
from browsing import Visit

from encapnet.nn.encapnets import SixLayerEncapNet
from encapnet.show.explore import capconv as explore_capconv
from encapnet.show.explore.picture import Page

pytestmark = pytest.mark.browser

# Sets the slider as a hand would and waits for the frame after; returns what the page says of
# itself, and how long that took.
MOVE = """(value) => new Promise((done) => {
  const control = document.querySelector('[aria-label="Layer"]'), began = performance.now();
  control.value = value;
  control.dispatchEvent(new Event("input", { bubbles: true }));
  const told = () => JSON.parse(document.querySelector(".explorer").dataset.facts);
  requestAnimationFrame(() => setTimeout(() => done({ ...told(), wall: performance.now() - began })));
})"""
PRESENT = 150  # milliseconds in which a control has to answer


def spelled(value):
    "The same with bytes as text, for a page."
    if isinstance(value, dict):
        return {key: spelled(one) for key, one in value.items()}
    if isinstance(value, list):
        return [spelled(one) for one in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


@pytest.fixture(scope='module')
def opened(browser, tmp_path_factory):
    def open_(model, image, label, names):
        page = Page(
            'capconv', spelled(explore_capconv.mixed(model, image, label, names, 'a network'))
        )
        path = tmp_path_factory.mktemp('page') / 'capconv.html'
        path.write_text(
            f'<!doctype html><meta charset=utf-8><title>capConv</title>{page._repr_html_()}',
            encoding='utf-8',
        )
        return Visit(browser, path)

    return open_


@pytest.fixture(scope='module')
def digits():
    return explore_capconv.watched('digits')


@pytest.fixture(scope='module')
def stirred(digits):
    "A network whose coefficients are not all 1, as after some training."
    model = explore_capconv.networks(digits[0], 'nowhere')[0].load(0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if '.m1.' in name or '.m2.' in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope='module')
def visit(opened, stirred, digits):
    pixels, labels, names = digits
    with opened(stirred, pixels[3], labels[3], names) as visit:
        yield visit
    assert (visit.said, visit.asked) == ([], [])


def test_numbers_are_those_of_the_package(visit, stirred, digits):
    pixels, labels, _ = digits
    facts = visit.page.evaluate(MOVE, 6)
    found = explore_capconv.mixes(stirred, pixels[3:4])
    m1, m2, share = zip(*map(explore_capconv.mixture, found.values()), strict=True)
    assert (facts['layer'], facts['name'], facts['label']) == (6, list(found)[6], labels[3])
    assert facts['m1'] == pytest.approx(m1, rel=1e-4) and facts['m2'] == pytest.approx(m2, rel=1e-4)
    assert facts['share'] == pytest.approx(share, rel=1e-4)
    assert not facts['still'] and len(set(m1)) > 1


def test_layers_show_other_pixels(visit):
    shown = 'document.querySelector(\'[aria-label^="Coefficients m₂"]\').toDataURL()'
    pictures = set()
    for layer in (0, 4, 15):
        visit.page.evaluate(MOVE, layer)
        pictures.add(visit.see(shown))
    assert len(pictures) == 3
    assert 'module 4, Type II, 3' in visit.page.locator('output').inner_text()
    assert visit.page.locator('[role=img]:not([aria-label])').count() == 0


def test_the_slider_answers_at_once(visit):
    for layer in (0, 1, 7, 15):
        # The best of three: a machine that is busy with something else is not what is asked about.
        assert min(visit.page.evaluate(MOVE, layer)['wall'] for _ in range(3)) < PRESENT


def test_an_untrained_network_is_said_to_be_even(opened, digits):
    pixels, labels, names = digits
    with opened(
        explore_capconv.networks(pixels, 'nowhere')[0].load(0), pixels[0], labels[0], names
    ) as visit:
        assert 'All coefficients are 1' in visit.page.locator('[aria-live]').inner_text()
        assert visit.see("JSON.parse(document.querySelector('.explorer').dataset.facts).still")
        assert visit.said == []


@pytest.mark.parametrize(
    'coefficients, says', [('v3', 'come from the aide'), ('master', 'no aide')]
)
def test_six_layers_have_one_capconv(opened, digits, coefficients, says):
    pixels, labels, names = digits
    with opened(
        SixLayerEncapNet(groups=2, coefficients=coefficients), pixels[0], labels[0], names
    ) as visit:
        assert says in visit.page.locator('[aria-live]').inner_text()
        assert visit.shown("[aria-label^='Aide']") == (coefficients == 'v3')
        assert visit.page.locator('input').count() == 0 and visit.said == []

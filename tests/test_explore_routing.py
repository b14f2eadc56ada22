"""The routing explorer on a page without a kernel: what it draws is what Python computes, and it
answers at once."""

import json

import pytest
import torch
from browsing import Visit

from encapnet.data.loading import load
from encapnet.nn.agreement import agreement_histogram
from encapnet.nn.dynamic import dynamic_routing
from encapnet.nn.em import em_routing
from encapnet.show.explore.picture import unpacked
from encapnet.show.explore.routing_page import routing_page
from encapnet.show.explore.votes import untrained
from encapnet.training.diagnostics import pixels_to_watch


@pytest.fixture(scope='module')
def page():
    digits = load('digits', 'test', None, 40)
    pixels, _ = pixels_to_watch(digits, 'mild', len(digits))
    shown = [
        (title, untrained(pixels, groups=2, **options), turns)
        for title, options, turns in (
            ('dynamic', {}, (-30, 0, 30)),
            ('EM', dict(routing='em'), (0,)),
            ('lower', dict(normalize='lower'), (0,)),
        )
    ]
    return routing_page(shown, pixels[[3, 14]], digits.labels[[3, 14]], digits.classes)


@pytest.fixture(scope='module')
def visit(page, browser, tmp_path_factory):
    path = tmp_path_factory.mktemp('explorer') / 'routing.html'
    path.write_text(
        f'<!doctype html><meta charset=utf-8><title>routing</title>{page._repr_html_()}',
        encoding='utf-8',
    )
    with Visit(browser, path) as found:
        found.page.set_default_timeout(5000)
        yield found
        assert found.said == [] and found.asked == []


def facts(visit):
    visit.page.evaluate(
        '() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))'
    )
    return json.loads(visit.page.locator('#explorer-routing').get_attribute('data-facts'))


def put(visit, label, value):
    control = visit.page.get_by_label(label, exact=True)
    if control.evaluate('(c) => c.tagName') == 'SELECT':
        control.select_option(str(value))
    else:
        control.evaluate(
            "(c, value) => { c.value = value; c.dispatchEvent(new Event('input', { bubbles: true "
            '})); }',
            str(value),
        )
    return facts(visit)


def routed(entry, iterations, temperature=1.0, axis='higher'):
    """What Python makes of a page's votes, capsules and how active they are: each lower capsule
    is the number 1, and its votes are its transform."""
    cast = torch.from_numpy(unpacked(entry['votes'])).double()  # (i, j, e)
    if entry['kind'] == 'em':
        # (g = i, j, d = 1, e): the capsule is the number 1
        transform = cast[:, :, None]
        one, active = (
            torch.ones(1, len(cast), 1, 1, dtype=torch.float64),
            torch.from_numpy(unpacked(entry['activation'])).double(),
        )
        betas = (torch.from_numpy(unpacked(entry[name])).double() for name in ('beta_u', 'beta_a'))
        mean, a = em_routing(
            one,
            active.view(1, -1, 1),
            transform,
            *betas,
            iterations=iterations,
            temperature=1 / temperature,
        )
        return mean[0], a[0]
    one = torch.ones(1, len(cast), 1, 1, dtype=torch.float64)
    if temperature == 1:
        v = dynamic_routing(one, cast[:, :, None], iterations=iterations, normalize=axis)[0]
        return v, v.norm(dim=1)
    raise AssertionError('the engine has no temperature')


@pytest.mark.parametrize('iterations', [1, 2, 3, 6])
@pytest.mark.parametrize(
    ('network', 'axis'), [('dynamic', 'higher'), ('dynamic', 'lower'), ('EM', None)]
)
def test_the_browser_routes_as_python_does(page, visit, network, axis, iterations):
    put(visit, 'Network', network)
    picture = page.data['entries'][-1]['picture']
    put(visit, 'Image', picture)
    if axis:
        put(visit, 'Softmax over', axis)
    said = put(visit, 'Iterations R', iterations)
    entry = next(
        one
        for one in page.data['entries']
        if (one['network'], one['turn'], one['picture']) == (network, 0, picture)
    )
    v, lengths = routed(entry, iterations, axis=axis or 'higher')
    assert said['title'] == network and said['iterations'] == iterations
    assert said['lengths'] == pytest.approx(lengths.tolist(), rel=1e-5, abs=1e-9)
    cast = torch.from_numpy(unpacked(entry['votes'])).double()
    histogram = agreement_histogram(cast[:, said['chosen']][None, :, None], v[None, said['chosen']])
    # a cosine on the edge of a bin may fall on either side
    assert said['share'] == pytest.approx(histogram.share.tolist(), abs=1.01 / len(cast))


def test_every_control_moves_the_picture(page, visit):
    put(visit, 'Network', 'dynamic')
    put(visit, 'Image', page.data['entries'][-1]['picture'])
    put(visit, 'Iterations R', 3)
    put(visit, 'Softmax over', 'higher')
    for label, value in (
        ('Iterations R', 5),
        ('Temperature', -0.8),
        ('Class', 7),
        ('Softmax over', 'lower'),
        ('Image', page.data['entries'][0]['picture']),
        ('Rotation', 2),
    ):
        before = visit.page.locator('#explorer-routing .row + .row').screenshot()
        put(visit, label, value)
        assert visit.page.locator('#explorer-routing .row + .row').screenshot() != before, label


def test_temperature_undoes_routing_and_sharpens_it(visit):
    put(visit, 'Network', 'dynamic')
    put(visit, 'Softmax over', 'higher')
    put(visit, 'Temperature', 0)
    uniform = put(visit, 'Iterations R', 1)['lengths']
    put(visit, 'Iterations R', 10)
    hot, cold = put(visit, 'Temperature', 1)['lengths'], put(visit, 'Temperature', -1)['lengths']
    assert max(map(abs, (a - b for a, b in zip(hot, uniform)))) < max(
        map(abs, (a - b for a, b in zip(cold, uniform)))
    )
    put(visit, 'Temperature', 0)


def test_the_keyboard_works(visit):
    put(visit, 'Network', 'dynamic')
    put(visit, 'Iterations R', 3)
    visit.page.get_by_label('Iterations R', exact=True).focus()
    visit.page.keyboard.press('ArrowRight')
    assert facts(visit)['iterations'] == 4
    visit.page.get_by_label('Network', exact=True).focus()
    visit.page.keyboard.press('ArrowDown')
    assert facts(visit)['title'] == 'EM'
    assert (
        visit.page.evaluate("() => document.activeElement.getAttribute('aria-label')") == 'Network'
    ), 'focus stays where the reader is'

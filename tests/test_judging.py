"""Verdicts that see: levels hold where the truth is known, pairing and borrowing find what they
should, and nothing is found in noise."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from encapnet.study import calibration, judging, spending, worlds
from encapnet.study.judging import (
    LOOKS,
    Table,
    boundary,
    distance_gap,
    paired,
    reduction,
    reduction_gap,
    smallest_effect,
)
from encapnet.study.scatter import Row
from encapnet.study.worlds import World


def band(share, tests):
    "Where a share lies in 998 of 1,000 simulations of so many tests."
    return [quantile / tests for quantile in stats.binom.ppf([0.001, 0.999], tests, share)]


WORLD = World()


def table(world=WORLD, seed=0):
    bits = worlds.draw(world, 1, np.random.default_rng(seed))[0]
    return Table(
        {
            f'row {number}': Row(list(100 * row.mean(1)), world.images, row)
            for number, row in enumerate(bits)
        }
    )


def quiet(images=10_000, **errors):
    "A table whose rows scatter by a twentieth of a point and whose answers are not known."
    return Table(
        {name: Row([error - 0.05, error, error + 0.05], images) for name, error in errors.items()}
    )


@pytest.mark.parametrize(
    'world',
    [
        World(shared=0.0, spread=0.0),
        World(shared=0.8, spread=0.0),
        World(shared=0.5, spread=1.0),
        World(shared=0.8, spread=1.0, rows='unequal'),
        World(shared=0.8, spread=0.3, rows='unequal', seeds=5),
        World(error=20.0, spread=1.0, seeds=5),
        World(error=50.0, spread=0.3, seeds=3),
        World(error=1.0, spread=0.3),
        World(error=1.0, spread=0.0, shared=0.0),
    ],
    ids=calibration.describe,
)
def test_level_holds(world):
    found = calibration.rates(world, studies=400, seed=11)
    low, high = band(0.04, found.tests)[0], band(0.06, found.tests)[1]
    assert low < found.level < high
    assert found.power > 0.6  # of an effect that is found in 80 % where all variances are known


def test_what_pairing_and_borrowing_gain():
    """2.6 % against 1.7 % on a thousand images with three seeds: today's rule finds it in one
    study of twenty."""
    world = World(error=1.7, gap=0.9, seeds=3, images=1000, shared=0.8, spread=0.15)
    seen = calibration.simulate(world, 400, seed=3)
    found = {
        name: calibration.judge_simulated(seen, rule, world)
        for name, rule in calibration.RULES.items()
    }
    assert found['today'].power < 0.15 and found['judged'].power > 0.6
    assert found['judged'].power > found['alone'].power + 0.1


def test_early_stopping_spends_no_more_than_the_level():
    looks = spending.looked_at(World(shared=0.0, spread=1.0), studies=300, seed=5)
    assert [one.level for one in looks] == sorted(one.level for one in looks)
    assert (
        looks[0].level < band(0.035, looks[0].tests)[1]
        and looks[-1].level < band(0.055, looks[-1].tests)[1]
    )


def test_boundaries_are_those_of_the_integral():
    assert [boundary(n) for n in LOOKS] == pytest.approx(
        spending.spent(spending.ROOT, LOOKS), abs=2e-5
    )
    assert boundary(2) == 0 and boundary(4) == boundary(3) and boundary(20) == boundary(12)
    assert (
        judging.spent_p(0.0249, 3) < 0.05 < judging.spent_p(0.0251, 3)
        and judging.spent_p(1e-9, 2) == 1.0
    )
    assert math.isnan(judging.spent_p(math.nan, 3))


def test_seeds_between_looks_wait():
    row = Row([1.0, 2.0, 3.0, 9.0], 100, np.zeros((4, 100), bool))
    counted = judging.at_look(row)
    assert counted.errors == [1.0, 2.0, 3.0] and counted.wrong.shape == (3, 100)


def test_sides_mirror_and_p_agrees_with_the_interval():
    one = table(World(gap=2.0), seed=4)
    for level in (0.05, 0.025):
        for other in ('row 5', 'row 6', 'row 1'):
            gap, back = (
                paired(one, {'row 4': sign, other: -sign}, level=level) for sign in (1, -1)
            )
            assert (gap.value, gap.low, gap.high) == pytest.approx(
                (-back.value, -back.high, -back.low)
            )
            assert (gap.p < level) == (gap.low > 0 or gap.high < 0)


def test_answers_come_as_lists_too():
    "As `study.answers` unpacks them."
    known = table(World(gap=2.0), seed=4)
    lists = Table(
        {name: row._replace(wrong=row.wrong.tolist()) for name, row in known.rows.items()}
    )
    assert paired(lists, {'row 4': 1, 'row 5': -1}) == paired(known, {'row 4': 1, 'row 5': -1})


def test_weights_scale_and_margins_shift():
    one = table(World(gap=2.0), seed=4)
    single, double = paired(one, {'row 4': 1, 'row 5': -1}), paired(one, {'row 4': 2, 'row 5': -2})
    assert double[:3] == pytest.approx(
        [2 * value for value in single[:3]]
    ) and double.p == pytest.approx(single.p)
    assert paired(one, {'row 4': 1.1, 'row 5': -1}).value == pytest.approx(
        single.value + 0.1 * one.parts['row 4'].error
    )
    four = paired(one, {'row 4': 1, 'row 5': -1, 'row 0': -1, 'row 1': 1})
    assert four.high - four.low > single.high - single.low
    # against a printed number
    against = paired(one, {'row 5': -1}, value=10 - one.parts['row 5'].error)
    assert against.low < 10 - one.parts['row 5'].error < against.high


def test_rows_of_unequal_numbers_of_seeds():
    bits = worlds.draw(World(seeds=12), 1, np.random.default_rng(0))[0]
    rows = {
        str(number): Row(list(100 * row[:n].mean(1)), 1000, row[:n])
        for number, (row, n) in enumerate(zip(bits, (2, 3, 5, 12)))
    }
    gap = paired(Table(rows), {'0': 1, '3': -1})
    assert gap.seeds == 2 and gap.low < gap.high and 0 < gap.p <= 1


def test_without_answers_there_is_less_to_go_by():
    known = table(World(gap=1.5), seed=2)
    blind = Table({name: row._replace(wrong=None) for name, row in known.rows.items()})
    mixed = Table(known.rows | {'row 5': blind.rows['row 5']})
    widths = [
        found.high - found.low
        for found in (paired(one, {'row 4': 1, 'row 5': -1}) for one in (known, mixed, blind))
    ]
    assert widths == sorted(widths)


@pytest.mark.parametrize('errors', [[0.0, 0.0, 0.0], [100.0, 100.0, 100.0], [90.0, 90.0, 90.0]])
def test_rows_that_never_vary(errors):
    "Constant answers: an interval of some width, nothing found, and no warning."
    wrong = np.tile(np.arange(1000) < 10 * errors[0], (3, 1))
    for answers in (wrong, None):
        still = Table(
            {'a': Row(errors, 1000, answers), 'b': Row(errors, 1000, answers)}
            | {'c': Row([5.0, 6.0, 5.5], 1000)}
        )
        gap = paired(still, {'a': 1, 'b': -1})
        assert gap.value == 0 and gap.low < 0 < gap.high and gap.p == pytest.approx(1)
        assert paired(still, {'a': 1, 'c': -1}).p < 0.01


def test_single_seeds_have_an_interval_and_no_p():
    alone = Table({'a': Row([5.0], 1000), 'b': Row([9.0], 1000)})
    gap = paired(alone, {'b': 1, 'a': -1})
    assert (
        gap.seeds == 1
        and gap.source == 'test images'
        and math.isnan(gap.p)
        and 0 < gap.low < 4 < gap.high
    )
    assert smallest_effect(alone, {'b': 1, 'a': -1}) > 0


def test_distances():
    x, y = dict(x1=1, x2=-1), dict(y1=1, y2=-1)
    confirmed = distance_gap(quiet(x1=5.0, x2=9.0, y1=8.0, y2=8.1), x, y)
    refuted = distance_gap(quiet(x1=5.0, x2=5.0, y1=11.0, y2=8.0), x, y)
    assert confirmed.low > 0 and confirmed.p < 0.05 and refuted.high < 0 and refuted.p < 0.05
    # differences of opposite sign
    against = distance_gap(quiet(x1=9.0, x2=5.0, y1=8.0, y2=8.1), x, y)
    assert against.low > 0 and against.value == pytest.approx(3.9)
    with pytest.raises(ValueError, match='one and the same'):
        distance_gap(quiet(x1=5.0, x2=9.0), x, x)


def test_distances_that_are_nothing_are_not_compared_on_noise():
    dice, decided = np.random.default_rng(0), 0
    x, y = dict(a=1, b=-1), dict(c=1, d=-1)
    for errors in dice.normal(5.0, (0.3, 0.3, 1.0, 1.0), (100, 3, 4)):
        gap = distance_gap(
            Table({name: Row(list(column), 10_000) for name, column in zip('abcd', errors.T)}), x, y
        )
        assert (gap.p < 0.05) == (gap.low > 0 or gap.high < 0)
        decided += gap.p < 0.05
    assert decided <= 5


def test_distance_level_where_one_difference_is_the_other():
    "|d_X| = |d_Y| = 3 points."
    dice, decided = np.random.default_rng(1), 0
    for errors in dice.normal((5.0, 8.0, 8.0, 5.0), 0.5, (200, 3, 4)):
        rows = Table({name: Row(list(column), 10**6) for name, column in zip('abcd', errors.T)})
        decided += distance_gap(rows, dict(a=1, b=-1), dict(c=1, d=-1)).p < 0.05
    assert decided / 200 < band(0.06, 200)[1]


def test_reductions():
    ours = quiet(a=5.82, c=4.58, resnet=8.03, resnet_ot=7.67)
    share = reduction(ours, 'a', 'c')
    assert share.value == pytest.approx(100 * (1 - 4.58 / 5.82)) and share.low > 0
    gap = reduction_gap(ours, ('a', 'c'), ('resnet', 'resnet_ot'))
    assert gap.low > 0 and gap.value == pytest.approx(
        share.value - reduction(ours, 'resnet', 'resnet_ot').value
    )
    none = reduction(Table({'a': Row([0.0, 0.0], 100), 'b': Row([0.0, 0.0], 100)}), 'a', 'b')
    assert none.value == 0 and math.isfinite(none.high)


def test_the_smallest_effect_is_found_as_often_as_it_says():
    "And more seeds shrink it, down to what the images leave."
    world = World(seeds=3, spread=0.5, shared=0.5, error=5.0)
    effects = [smallest_effect(table(world, seed), {'row 0': 1, 'row 1': -1}) for seed in range(20)]
    found = calibration.rates(world._replace(gap=float(np.mean(effects))), studies=300)
    assert 0.7 < found.power < 0.92
    one = table(world)
    shrinking = [
        smallest_effect(one, {'row 0': 1, 'row 1': -1}, times) for times in (1, 2, 4, 1000, 2000)
    ]
    assert shrinking == sorted(shrinking, reverse=True) and shrinking[-1] > 0.9 * shrinking[-2] > 0


@pytest.mark.parametrize(
    ('call', 'told'),
    [
        (lambda: Table({'a': Row([5.0], 1000), 'b': Row([5.0], 100)}), 'tested on the same images'),
        (lambda: Table({'a': Row([], 1000)}), 'at least one error'),
        (
            lambda: Table({'a': Row([5.0], 1000, np.zeros((1, 10), bool))}),
            'expected 1 seeds and 1000 images',
        ),
        (lambda: Table({}), 'at least one row'),
        (lambda: paired(quiet(a=5.0), {'b': 1}), "no row 'b'"),
        (lambda: paired(quiet(a=5.0), {'a': 0}), 'at least one weight'),
        (lambda: smallest_effect(quiet(a=5.0), {'a': 1}, times=0), 'above 0'),
        (lambda: calibration.rates(World(rows='odd')), 'expected one of equal'),
        (lambda: calibration.rates(World(shared=0.9)), 'shared <= alike'),
    ],
)
def test_bad_input_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_the_committed_table_has_every_world_and_holds_the_level():
    lines = calibration.tabulated()
    assert [line['world'] for line in lines] == list(calibration.WORLDS)
    # Without the worlds that the notebook names as those where it does not hold.
    counted = [line for line in lines if int(line['seeds']) > 2 and line['rows'] != 'wild']
    levels = [
        float(line['level'])
        for line in counted
        if (line['error'], line['spread']) != ('1.0', '1.0')
    ]
    # 4 to 6 %, and what 4,000 comparisons leave open at either end.
    assert (
        band(0.04, 4000)[0] < min(levels) / 100
        and max(levels) / 100 < band(0.06, 4000)[1]
        and 4.0 < np.mean(levels) < 6.0
    )
    name = list(calibration.WORLDS)[20]
    (again,) = calibration.tabulate(None, {name: calibration.WORLDS[name]}, studies=2000)
    (line,) = [line for line in lines if line['world'] == name]
    assert [float(again[column]) for column in ('level', 'power')] == pytest.approx(
        [float(line[column]) for column in ('level', 'power')], abs=0.3
    )


def test_import_is_light():
    code = (
        'from encapnet.study import calibration, judging, scatter, spending, worlds; '
        "import sys; print(sorted({'numpy', "
        "'scipy', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr

"""Claims and verdicts on small inputs: distances without a sign, losses that fall to a constant
answer, networks that have not learned."""

import math

import pytest
import torch

from encapnet.data.content import fingerprint
from encapnet.cli.main import _command

from encapnet.nn import losses
from encapnet.nn.encapnets import EncapNet, SixLayerEncapNet
from encapnet.nn.resnet import ResNet
from encapnet.study import paper
from encapnet.study.answers import pack_mistakes
from encapnet.study.claims import CLAIMS
from encapnet.study.rules import Below, Crops, Differs, Diverges, Level, Trend, best_constant_loss
from encapnet.study.statements import rule_text
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.freshness import code_of
from encapnet.study.ledger import append_ledger
from encapnet.study.records import Record
from encapnet.study.findings import VERDICTS, by_measurement, judge, kind
from encapnet.study.gaps import Gap, gaps
from encapnet.study.gates import exempt, too_early
from encapnet.study.power import resolvable
from encapnet.study.results import Place, Result, results
from encapnet.study.verdicts import judge_all

HERE = Place('quick', 'digits')
SEEDS = 3


def runs(row, *errors, scatter=0.05, **more):
    "Three seeds of a row with these errors over the epochs, learned unless they say otherwise."
    usual = dict(constant_error=90.0, losses=tuple(error / 180 for error in errors))
    found = {}
    for seed in range(SEEDS):
        moved = tuple(error + scatter * (seed - 1) for error in errors)
        found[seed] = Result(
            row,
            'quick',
            'digits',
            seed,
            moved[-1],
            10_000,
            (4000, len(errors)),
            errors=moved,
            **usual | more,
        )
    return found


def seen(**errors):
    return {row: runs(row, error, error) for row, error in errors.items()}


# 1 Distances


def test_distance_has_no_sign():
    rule = Differs(('encapnet_ot', 'encapnet_kl'), ('resnet_ot', 'resnet_kl'))
    found = judge(
        [rule], seen(encapnet_ot=5.0, encapnet_kl=5.0, resnet_ot=11.0, resnet_kl=8.0), HERE
    )[0]
    assert found.verdict == 'direction disagrees'
    mirrored = judge(
        [rule], seen(encapnet_ot=11.0, encapnet_kl=8.0, resnet_ot=5.0, resnet_kl=5.0), HERE
    )[0]
    assert mirrored.verdict == 'direction agrees'


# 2 Convergence


@pytest.mark.parametrize('loss', ['margin', 'spread', 'cross_entropy'])
@pytest.mark.parametrize('classes', [2, 10])
def test_the_best_constant_loss_is_the_least_of_all_constant_scores(loss, classes):
    "By descent from random scores, on a batch with one image of each class."
    torch.manual_seed(0)
    scores = torch.rand(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn='strong_wolfe')
    target = torch.arange(classes)

    def step():
        optimizer.zero_grad()
        value = getattr(losses, f'{loss}_loss')(scores.expand(classes, classes), target)
        value.backward()
        return value

    optimizer.step(step)
    assert step().item() == pytest.approx(best_constant_loss(loss, classes), abs=1e-6)


def test_the_best_constant_margin_loss_of_ten_classes_is_known():
    assert best_constant_loss('margin', 10) == pytest.approx(0.5236, abs=5e-5)


def test_a_fall_to_the_constant_answer_is_no_convergence():
    rule = Diverges('row')
    constant = judge([rule], dict(row=runs('row', 90.0, 90.0, losses=(0.70, 0.524))), HERE)[0]
    assert (
        constant.verdict == 'direction agrees'
        and '0.5236' in constant.ours
        and '100 %' in constant.ours
    )
    assert 'however early' in constant.gate and 'convergence' in constant.gate
    assert (
        judge([rule], dict(row=runs('row', 20.0, 5.0, losses=(0.4, 0.05))), HERE)[0].verdict
        == 'direction disagrees'
    )


def test_the_card_of_divergence_says_which_loss_it_is():
    note = CLAIMS['raw_l2_diverges'].note
    assert 'divergences' in note and 'margin loss' in note


# 3, 5, 6, 7 Arithmetic and measurements


@pytest.mark.parametrize('claim, built', [('fewer_in_mapping', 1.3), ('fewer_in_routing', 455)])
def test_a_formula_and_a_network_are_two_findings(claim, built):
    formula, network = (by_measurement(rule, {}) for rule in CLAIMS[claim].rules)
    assert (formula.verdict, network.verdict) == ('exact', 'direction disagrees')
    assert float(network.ours) == pytest.approx(built, rel=0.01)


def test_factors_as_built_are_those_of_the_network():
    with torch.device('meta'):
        layer = SixLayerEncapNet().capsules
    mappings = layer.master.conv.weight.numel() + layer.aide.conv.weight.numel()
    coefficients = layer.m1.weight.numel() + layer.m2.weight.numel()
    assert paper.built_factors() == pytest.approx(
        (paper.TRANSFORM / mappings, paper.COEFFICIENTS / coefficients)
    )


def test_the_batch_bound_tells_of_the_smaller_layer():
    fitting = dict(
        a_dynamic_votes=dict(largest_batch=11),
        a512_dynamic_votes=dict(largest_batch=44),
        b_em_votes=dict(largest_batch=4),
        b512_em_votes=dict(largest_batch=18),
    )
    told = [by_measurement(rule, fitting).ours for rule in CLAIMS['batch_bound'].rules]
    assert (
        told == ['batch 11; at J = 512 batch 44', 'batch 4; at J = 512 batch 18']
        and 'J = 512' in CLAIMS['batch_bound'].note
    )


def test_the_networks_compared_have_the_sizes_that_the_note_names():
    def millions(network):
        return f'{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.1f} million'

    with torch.device('meta'):
        sizes = millions(EncapNet(skip='both')), millions(ResNet())
    assert all(size in CLAIMS['encapnet_over_resnet'].note for size in sizes), sizes


def test_the_order_of_times_is_read_at_batch_8_where_that_is_quick():
    rule = CLAIMS['runtime_order'].rules[0]
    assert dict(zip((row.partition('/')[2] for row in rule.rows), rule.batches)) == dict(
        c_cnn_shape=8,
        e_master=8,
        f_master_aide=8,
        d_cnn_parameters=8,
        a_dynamic_votes=2,
        b_em_votes=2,
    )
    at_two, at_eight = (
        dict(zip('cefd', (1.0, 1.0, 1.0, 1.0))),
        dict(zip('cefd', (1.0, 2.0, 3.0, 4.0))),
    )
    timed = {
        row.partition('/')[2]: dict(seconds={'2': [at_two[row[12]]], '8': [at_eight[row[12]]]})
        for row in rule.rows[:4]
    }
    timed |= dict(
        a_dynamic_votes=dict(seconds={'2': [9.0]}), b_em_votes=dict(seconds={'2': [19.0]})
    )
    assert by_measurement(rule, timed).verdict == 'direction agrees'
    del timed['c_cnn_shape']['seconds']['8']
    assert (by_measurement(rule, timed).verdict, by_measurement(rule, timed).why) == (
        'not attempted',
        'not measured: (c) at batch 8',
    )


@pytest.mark.parametrize(
    'claim', ['less_bytes_master', 'less_bytes_aide', 'less_seconds_master', 'less_seconds_aide']
)
def test_memory_and_time_are_claims_of_their_own(claim):
    small, large = ({'2': value, '8': value} for value in (1e8, 9e9))
    timed = {name: {'2': [value]} for name, value in (('less', 0.1), ('more', 4.0))}
    costs = {row: dict(bytes=small, seconds=timed['less']) for row in ('e_master', 'f_master_aide')}
    costs |= {
        row: dict(bytes=large, seconds=timed['more']) for row in ('a_dynamic_votes', 'b_em_votes')
    }
    found = [by_measurement(rule, costs) for rule in CLAIMS[claim].rules]
    assert [one.verdict for one in found] == ['direction agrees'] * 2
    assert all('batch 8' in one.paper for one in found[:1]) or all(
        one.paper.endswith(' s') for one in found
    )


# 4, 8, 10 Figure 2

LAST = ('em', 'last'), ('dynamic', 'last')


def looked_at(row, *panels, **more):
    "Three seeds with these histograms of shares and lengths, one for each epoch."
    told = dict(share=[shares for shares, _ in panels], length=[lengths for _, lengths in panels])
    for name, place in (('dissimilar', 0), ('similar', -1)):
        told[name] = [[shares[place], 0.0] for shares, _ in panels]
        told[f'{name}_length'] = [[lengths[place], 0.001] for _, lengths in panels]
    found = runs(row, *[10.0] * len(panels), **more)
    for seed, run in found.items():
        wobbled = told | dict(
            share=[
                [share * (1 + 1e-3 * seed * (bin in (0, 19))) for bin, share in enumerate(shares)]
                for shares in told['share']
            ]
        )
        found[seed] = run._replace(
            agreement=dict(true=wobbled, epochs=[*range(1, len(panels) + 1)])
        )
    return found


def panel(low, high, scale=1.0, near=1.0, ends=1.0):
    """A histogram: shares of the end bins, the rest even; lengths with a scale, and those near
    zero and at the ends."""
    shares = [low, *[(1 - low - high) / 18] * 18, high]
    return shares, [
        scale * (ends if bin in (0, 19) else near if 8 <= bin < 12 else 1.0) for bin in range(20)
    ]


EVEN, POLAR = panel(0.05, 0.05), panel(0.3, 0.4, near=0.5, ends=2.0)
DYNAMIC, EM = 'table1/a_dynamic', 'table1/b_em'


def verdict(rule, dynamic, em=(EVEN, EVEN)):
    return judge([rule], {DYNAMIC: looked_at(DYNAMIC, *dynamic), EM: looked_at(EM, *em)}, HERE)[0]


def test_votes_that_are_thirty_times_as_long_all_over_are_not_longer_where_they_are_similar():
    rule = CLAIMS['longer_similar_em'].rules[0]
    short, long = panel(0.1, 0.1, scale=0.2, ends=2.0), panel(0.1, 0.1, scale=6.5, ends=1.2)
    assert verdict(rule, (short, short), (long, long)).verdict == 'direction disagrees'
    assert verdict(rule, (long, long), (short, short)).verdict == 'direction agrees'
    assert 'mean length' in CLAIMS['longer_similar_em'].note


def test_a_share_that_is_never_there_is_called_so():
    rule = Trend('dissimilar', ('em', 'last'), ('em', 'first'))
    found = verdict(rule, (EVEN, EVEN), (panel(0.0, 0.1), panel(0.0, 0.2)))
    assert found.verdict == 'none at either moment' and VERDICTS[kind(found.verdict)]


@pytest.mark.parametrize(
    'claim', ['near_zero_falls', 'near_zero_shortens', 'ends_longer', 'equal_at_first']
)
def test_what_the_panels_of_figure_2_are_said_to_show(claim):
    rule = CLAIMS[f'{claim}_dynamic'].rules[0]
    told = verdict(rule, (EVEN, POLAR, POLAR))
    assert told.verdict == 'direction agrees', (told.why, told.gap)
    contrary = (panel(0.3, 0.4, near=0.1, ends=3.0), EVEN, EVEN)
    assert verdict(rule, contrary).verdict in ('direction disagrees', 'unresolvable at 3 seeds')


def test_figure_2_needs_networks_that_have_learned():
    rule = Trend('near_zero', ('dynamic', 'first'), ('dynamic', 'last'))
    lost = {
        DYNAMIC: {
            seed: run._replace(error=60.0)
            for seed, run in looked_at(DYNAMIC, EVEN, POLAR, POLAR).items()
        }
    }
    assert judge([rule], lost, HERE)[0][4:6] == (
        'too early',
        '(a) has an error of 60.0 %, a constant answer 90 %',
    )
    beginning = Level('unequal_lengths', ('dynamic', 'first'), 'below', 0.1)
    assert (
        'beginning' in exempt(beginning)
        and judge([beginning], lost, HERE)[0].verdict == 'direction agrees'
    )


def test_a_record_without_histograms_is_not_judged_and_says_what_is_missing():
    rule = Trend('near_zero', ('dynamic', 'first'), ('dynamic', 'last'))
    without = {
        seed: run._replace(agreement=dict(true=dict(similar=[[0.1, 0.0]])))
        for seed, run in runs(DYNAMIC, 10.0, 10.0).items()
    }
    found = judge([rule], {DYNAMIC: without}, HERE)[0]
    assert found.verdict == 'not attempted' and 'would have to record' in found.why


# 10 What had not been judged


def test_ten_crops_need_the_error_on_one():
    rule, row = Crops('table4/encapnet_mild'), 'table4/encapnet_mild'
    found = judge([rule], {row: runs(row, 10.0, 9.0)}, HERE)[0]
    assert found.verdict == 'not attempted' and 'error_one_crop' in found.why
    both = {
        row: {
            seed: run._replace(one_crop=run.error + 2 + 0.1 * seed)
            for seed, run in runs(row, 9.2, 9.0).items()
        }
    }
    assert judge([rule], both, HERE)[0].verdict == 'direction agrees'


def test_resnet18s_accuracy_is_an_error_here():
    assert 100 - paper.TABLE4['resnet18'].errors['himagenet32'] == pytest.approx(41.83)
    assert [
        run.network.kind
        for run in plan('table4', PROFILES['paper'], {'himagenet32': '0' * 64}, 1, ['resnet18'])
    ] == ['ResNet']


def test_transport_lowers_the_loss_of_both_networks():
    rules = CLAIMS['ot_lowers_loss'].rules
    assert [rule.metric for rule in rules] == ['loss'] * 2 and CLAIMS[
        'ot_lowers_loss'
    ].group == 'Figure 4'
    fed, bare = (0.2, 0.05, 0.04), (0.3, 0.1, 0.09)
    both = {
        row: runs(row, 9.0, 5.0, 5.0, losses=loss)
        for rule in rules
        for row, loss in ((rule.better, fed), (rule.worse, bare))
    }
    assert [one.verdict for one in judge(rules, both, HERE)] == ['direction agrees'] * 2


def test_no_better_without_an_extractor():
    rule = CLAIMS['extractor_is_all'].rules[0]
    alike = {rule.better: runs(rule.better, 5.8, 5.8), rule.worse: runs(rule.worse, 5.8, 5.8)}
    # by 0.58 points, which 10,000 images do not tell
    assert judge([rule], alike, HERE)[0].verdict == 'unresolvable at 3 seeds'
    worse = alike | {rule.better: runs(rule.better, 9.0, 9.0)}
    assert judge([rule], worse, HERE)[0].verdict == 'direction disagrees'


# 11 Too early

F, E = 'table1/f_master_aide', 'table1/e_master'


def word(better, worse, rule=None, **more):
    rule = rule or Below(F, E)
    found = judge([rule], {F: runs(F, *better, **more), E: runs(E, *worse, **more)}, HERE)[0]
    return found.verdict, found.why or found.gate


def test_networks_that_have_not_learned_are_not_compared():
    assert word([90.0, 46.0, 45.5], [90.0, 60.0, 60.0]) == (
        'too early',
        '(f) has an error of 45.5 %, a constant answer 90 %',
    )
    # the better one has
    assert word([90.0, 41.3, 41.3], [90.0, 85.0, 85.0])[0] == 'direction agrees'


def test_networks_that_still_move_are_not_compared():
    assert word([20.0, 12.1, 10.0], [20.0, 10.4, 10.4]) == (
        'too early',
        'the last epoch moved (f) by 2.1 points, the gap is 0.4',
    )
    assert word([20.0, 10.1, 10.0], [20.0, 14.1, 14.0])[0] == 'direction agrees'
    assert word([10.0], [20.0]) == ('too early', '(f) was trained for one epoch')


def test_a_loss_is_not_compared_before_it_lies_below_half_of_a_constant_answers():
    rule = Below(F, E, 'loss')
    assert (
        word([9.0] * 3, [9.0] * 3, rule, losses=(0.6, 0.55, 0.3))[1]
        == "(f) ends at a training loss of 0.3, the best constant answer's is 0.524"
    )


def test_the_gate_is_the_same_whatever_comes_out():
    for better, worse in (
        ([20.0, 12.1, 10.0], [20.0, 10.4, 10.4]),
        ([20.0, 10.4, 10.4], [20.0, 12.1, 10.0]),
    ):
        assert word(better, worse)[0] == 'too early'


def test_old_records_are_judged_and_say_what_is_not_known():
    old = dict(constant_error=None)
    assert word([9.0, 9.0], [19.0, 19.0], **old) == (
        'direction agrees',
        'whether the networks have learned is not known: the records do not say',
    )
    unsaid = dict(errors=(), constant_error=None, effort=(4000, 5))
    older = {
        row: {seed: run._replace(**unsaid) for seed, run in runs(row, error).items()}
        for row, error in ((F, 9.0), (E, 19.0))
    }
    found = judge([Below(F, E)], older, HERE)[0]
    assert (
        found.verdict == 'direction agrees'
        and 'have learned and have settled is not known' in found.gate
    )


def test_records_without_errors_stay_readable():
    config = plan('table1', PROFILES['quick'], {'digits': '0' * 64}, 1, ['e_master'])[0]
    outcome = dict(error=5.0, losses=[0.1], test_images=1000)
    record = Record(
        key=config.key,
        experiment='table1',
        row='e_master',
        config=config.model_dump(mode='json'),
        outcome=outcome,
        provenance={},
    )
    assert [
        (run.errors, run.constant_error, run.one_crop, run.loss) for run in results([record])
    ] == [((), None, None, 'margin')]


def test_what_is_too_early_is_not_adjusted_for():
    "A rule that is not judged takes no part in the family."
    lost = {row: runs(row, 80.0, 80.0) for row in ('table1/a_dynamic', 'table1/b_em')}
    clear = {F: runs(F, 9.0, 9.0), E: runs(E, 10.5, 10.5)}
    pair = Below(F, E)
    alone, beside = (
        judge(rules, clear | lost, HERE)[0]
        for rules in ([pair], [pair, Below('table1/b_em', 'table1/a_dynamic')])
    )
    assert (alone.verdict, alone.why) == (beside.verdict, beside.why)


def test_exempt_claims_say_so():
    for rule in {rule for claim in CLAIMS.values() for rule in claim.rules}:
        assert bool(exempt(rule)) == (
            isinstance(rule, Diverges) or isinstance(rule, Level) and rule.place[1] == 'first'
        ), rule_text(rule)
    assert too_early(Diverges(F), {F: runs(F, 90.0)}, HERE, []) == ('', exempt(Diverges(F)))


def test_a_card_of_what_is_too_early_shows_the_curves():
    from encapnet.show.tables.cards import card

    moving = [
        run
        for row, errors in ((F, (20.0, 12.1, 10.0)), (E, (20.0, 10.4, 10.4)))
        for run in runs(row, *errors).values()
    ]
    one = next(one for one in judge_all(moving) if one.id == 'aide_needed')
    assert one.verdict == 'too early' and 'long' in one.command
    html = card(one)
    assert (
        html.count('<polyline') == 2
        and '(f) from 20 to 10' in html
        and 'a constant answer has 90' in html
    )


# 12 What could have been resolved


def test_every_judged_finding_says_what_it_could_have_resolved():
    found = judge([Below(F, E)], {F: runs(F, 9.0, 9.0), E: runs(E, 9.2, 9.2)}, HERE)[0]
    assert found.power.startswith('3 seeds find an effect of ') and '6 seeds one of ' in found.power
    for claim in CLAIMS.values():
        for one in (
            by_measurement(rule, {}) for rule in claim.rules if type(rule).__name__ == 'Computed'
        ):
            assert one.power


def test_twice_the_seeds_resolve_less_but_not_less_than_the_images_do():
    row = [[10.0, 10.4, 9.8], [10.1, 9.7, 10.5]]
    gap = gaps(
        Below('x', 'y'),
        {
            name: {
                seed: Result(name, 'quick', 'digits', seed, error, 1000)
                for seed, error in enumerate(errors)
            }
            for name, errors in zip('xy', row)
        },
    )[0]
    assert gap.sizes[0] > gap.sizes[1] > 2.8 * gap.images > 0
    once, twice, often = (resolvable(gap._replace(sizes=None), times) for times in (1, 2, 1000))
    assert once > twice > often > 2.8 * gap.images
    assert math.isnan(resolvable(Gap(gap.interval._replace(seeds=1))))


# 13 Which runs would decide most


def entered(reports, row, seed, wrong):
    "A record in a ledger, of a network that is wrong on the first so many of 1,000 images."
    experiment, _, name = row.partition('/')
    config = plan(experiment, PROFILES['quick'], {'digits': fingerprint('digits')}, 1, [name])[
        0
    ].model_copy(update={'seed': seed})
    before = config.schedule.epochs - 1
    outcome = {
        'error': wrong / 10,
        'errors': [50.0] * (before - 1) + [wrong / 10] * 2,
        'losses': [0.5] * before + [0.05],
        'train_loss': 0.05,
        'test_images': 1000,
        'train_images': 4000,
        'parameters': 9,
        'source': 'embedded',
        'constant_error': 90.0,
        'mistakes': pack_mistakes([place < wrong for place in range(1000)]),
    }
    record = Record(
        key=config.key,
        experiment=config.experiment,
        row=config.row,
        config=config.model_dump(mode='json'),
        outcome=outcome,
        provenance={'code': code_of(config).digest, 'device': 'here', 'seconds': 60.0},
    )
    append_ledger(reports / 'ledger' / f'{experiment}.jsonl', record)


def test_resolve_names_the_seeds_that_would_decide(tmp_path, capsys):
    for seed in range(3):
        entered(tmp_path, 'table1/f_master_aide', seed, 28 + 2 * seed)
        entered(tmp_path, 'table1/e_master', seed, 31 + seed)
    where = ['--reports', str(tmp_path), '--runs', str(tmp_path / 'runs')]
    assert _command(['resolve', 'aide_needed', '--dry-run', *where]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == 'minutes  so far  chance  claims (seeds): runs'
    assert any(
        f'aide_needed ({seeds}): {count} of ' in told[1]
        for seeds, count in ((5, 4), (8, 10), (12, 18))
    )
    assert not (tmp_path / 'runs').exists(), 'a plan trains nothing'
    assert _command(['resolve', 'aide_needed', '--dry-run', '--max-minutes', '1', *where]) == 0
    assert capsys.readouterr() == ('', 'no further seeds would decide a claim in that time\n')


@pytest.mark.parametrize(
    'words, message',
    [
        ('aide_neded', "no claim 'aide_neded'; expected one of: "),
        ('--profile smoke', "profile 'smoke' has no ledger, and nothing is judged by it"),
        ('--profile nihgt', "did you mean 'night'?"),
        ('--max-minutes -1', '--max-minutes must be a number that is not negative'),
    ],
)
def test_resolve_refuses(tmp_path, capsys, words, message):
    assert _command(['resolve', *words.split(), '--reports', str(tmp_path), '--dry-run']) == 2
    assert message in capsys.readouterr().err

"""The agreement unit in every way PyTorch has of running a module."""

import pytest
import torch

from encapnet.nn.feedback import AgreementUnit

LOWER, HIGHER = (12, 8, 8), (24, 4, 4)
VARIANTS = pytest.mark.parametrize(
    'options',
    [
        {},
        dict(measure='kl'),
        dict(through_plan=True),
        dict(extractor=False),
        dict(generator='vanilla'),
        dict(cost='l2'),
        dict(bias_fix=False),
    ],
    ids=lambda options: ' '.join(map(str, options.values())) or 'default',
)


def unit_and_maps(options, b=6):
    torch.manual_seed(0)
    return AgreementUnit(LOWER, HIGHER, 3, **options), [
        torch.rand(b, *size).requires_grad_() for size in (LOWER, HIGHER)
    ]


def outcome(unit, maps, run=None):
    leaves = [
        part.detach().clone(memory_format=torch.preserve_format).requires_grad_() for part in maps
    ]
    unit.zero_grad()
    loss = (run or unit)(*leaves)
    loss.backward()
    return [
        loss.detach(),
        *(leaf.grad for leaf in leaves),
        *(parameter.grad.clone() for parameter in unit.parameters()),
    ]


@VARIANTS
def test_channels_last(options):
    unit, maps = unit_and_maps(options)
    expected = outcome(unit, maps)
    found = outcome(
        unit.to(memory_format=torch.channels_last),
        [part.to(memory_format=torch.channels_last) for part in maps],
    )
    for ours, plain in zip(found, expected):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


@VARIANTS
def test_autocast(options):
    "Convolutions in half precision, the transport in float32."
    unit, maps = unit_and_maps(options)
    loss = torch.autocast('cpu', dtype=torch.bfloat16)(unit.forward)(*maps)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(
        unit(*maps).item(), rel=0.1, abs=0.02
    )
    assert all(leaf.grad.isfinite().all() for leaf in maps)


@VARIANTS
def test_distributed_data_parallel(options, tmp_path):
    unit, maps = unit_and_maps(options)
    expected = outcome(unit, maps)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1
    )
    try:
        for ours, plain in zip(
            outcome(unit, maps, torch.nn.parallel.DistributedDataParallel(unit)), expected
        ):
            torch.testing.assert_close(ours, plain)
    finally:
        torch.distributed.destroy_process_group()


@VARIANTS
def test_state_comes_back(options):
    (unit, maps), other = unit_and_maps(options), AgreementUnit(LOWER, HIGHER, 3, **options)
    other.load_state_dict(unit.state_dict())
    assert torch.equal(unit(*maps), other(*maps))


@pytest.mark.parametrize('cost', ['cosine', 'l2'])
@pytest.mark.parametrize('extractor', [True, False])
def test_dead_and_equal_samples(cost, extractor):
    "Maps of zeros and samples that come twice are common in training: no NaN in value or gradient."
    unit, maps = unit_and_maps(dict(cost=cost, extractor=extractor, eps=1e-3))
    for part in maps:
        part.data[:2], part.data[2] = 0, part.data[3]
    assert all(found.isfinite().all() for found in outcome(unit, maps))

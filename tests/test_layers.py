"""Layers compile: one graph, the same numbers and gradients. Capsules of any layout and precision."""

import subprocess
import sys

import pytest
import torch

from encapnet.nn.capsules import list_capsules, squash

COMPARE = """
import torch
from encapnet.nn.capconv import CapConv, CapDeconv
layer, x = ({}).double(), torch.randn(2, 8, 6, 6, dtype=torch.float64)
compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(x), layer(x))
torch.testing.assert_close(*[torch.autograd.grad(network(x).square().sum(), list(layer.parameters()))
                             for network in (compiled, layer)])
"""


@pytest.mark.parametrize(
    'layer', ['CapConv(4, 2, 4, stride=2, skip=True)', "CapDeconv(4, 2, 1, 2, 'v1')"]
)
def test_one_graph(layer):
    "In a process without run-time checks of shapes, which no compiler sees through."
    subprocess.run([sys.executable, '-c', COMPARE.format(layer)], check=True)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_squashes_what_its_squares_cannot_hold(dtype):
    "300 squared is more than float16 has; the length of it is not."
    s = torch.tensor([300.0, 0.0], dtype=dtype, requires_grad=True)
    v = squash(s)
    assert v.dtype == dtype and v.tolist() == [1.0, 0.0]
    v.sum().backward()
    assert s.grad.isfinite().all()


def test_capsules_of_crops_and_transposes():
    "What is no view of one block."
    x = torch.randn(2, 8, 6, 6)
    for part in (x[..., 1:5, 2:4], x.transpose(2, 3), x[:, ::2], x[:1].expand(3, -1, -1, -1)):
        torch.testing.assert_close(list_capsules(part, 2), list_capsules(part.contiguous(), 2))

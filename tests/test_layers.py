"""Layers compile: one graph, the same numbers and gradients."""

import subprocess
import sys

import pytest

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

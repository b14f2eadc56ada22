"The options of training that a library notebook is too small for: every row in half precision, and compiled."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from encapnet import data
from encapnet.study.config import EXPERIMENTS, Schedule, plan
from encapnet.training import Trainer

ROWS = list(EXPERIMENTS["table1"])


def config(row, **change):
    planned = plan("table1", "smoke", {"synthetic": data.fingerprint("synthetic")}, rows=[row])[0]
    return planned.model_copy(update=dict(schedule=Schedule(epochs=1, learning_rate=1e-3, batch=20)) | change)


def train(row, **change):
    torch.set_num_threads(1)
    trainer = Trainer(config(row, **change), 10, torch.device("cpu"))
    return trainer.epoch(data.load("synthetic", "train", subset=60), 0), trainer


@pytest.mark.parametrize("row", ROWS)
def test_half_precision_follows_full_precision(row):
    half, trainer = train(row, precision="bfloat16")
    full, _ = train(row)
    assert abs(half - full) < 0.05 * full
    assert all(parameter.dtype == torch.float32 and parameter.grad.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler for torch.compile")
def test_a_compiled_network_learns_the_same():
    # In a process of its own: shapes are not checked there, and the checks are what torch.compile cannot look through.
    code = "from test_training import train; import json; pair = [train('c_cnn_shape', compiled=c) for c in (True, False)]; "
    code += "print(json.dumps([pair[0][0], pair[1][0], list(pair[0][1].model.state_dict())]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled, eager, names = json.loads(done.stdout.splitlines()[-1])
    assert abs(compiled - eager) < 1e-3 * eager
    assert not any("_orig_mod" in name for name in names), "checkpoints do not depend on compilation"

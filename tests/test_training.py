"""What of training a library notebook is too small for: every row in half precision, and
compiled; routing, watched."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from encapnet.data.content import fingerprint
from encapnet.data.loading import load
from encapnet.study import freshness
from encapnet.errors import OutOfTime, StudyError, UsageError
from encapnet.study.config import RunConfig, Schedule
from encapnet.study.experiments import EXPERIMENTS
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.run import Run
from encapnet.training.checkpoint import look_back
from encapnet.training.distributed import fit as fit_divided
from encapnet.training.fit import fit
from encapnet.training.trainer import Trainer

ROWS = list(EXPERIMENTS['table1'])


def config(row, experiment='table1', **change):
    planned = plan(
        experiment, PROFILES['smoke'], {'synthetic': fingerprint('synthetic')}, rows=[row]
    )[0]
    return planned.model_copy(
        update=dict(schedule=Schedule(epochs=1, learning_rate=1e-3, batch=20)) | change
    )


def train(row, **change):
    torch.set_num_threads(1)
    trainer = Trainer(config(row, **change), 10, torch.device('cpu'))
    return trainer.epoch(load('synthetic', 'train', subset=60), 0)['train_loss'], trainer


@pytest.mark.parametrize('row', ROWS)
def test_half_precision_follows_full_precision(row):
    half, trainer = train(row, precision='bfloat16')
    full, _ = train(row)
    assert abs(half - full) < 0.05 * full
    assert all(
        parameter.dtype == torch.float32 and parameter.grad.isfinite().all()
        for parameter in trainer.model.parameters()
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which('g++') or shutil.which('clang++')), reason='no C++ compiler for torch.compile'
)
def test_a_compiled_network_learns_the_same():
    # In a process of its own: shapes are not checked there, and the checks are what torch.compile
    # cannot look through.
    code = (
        "from test_training import train; import json; pair = [train('c_cnn_shape', "
        'compiled=c) for c in (True, False)]; '
    )
    code += 'print(json.dumps([pair[0][0], pair[1][0], list(pair[0][1].model.state_dict())]))'
    path = os.environ | {'PYTHONPATH': str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, '-c', code], env=path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compiled, eager, names = json.loads(done.stdout.splitlines()[-1])
    assert abs(compiled - eager) < 1e-3 * eager
    assert not any('_orig_mod' in name for name in names), (
        'checkpoints do not depend on compilation'
    )


@pytest.mark.parametrize('row', ['b_encapnet_kl', 'c_encapnet_ot'])
@pytest.mark.parametrize('accumulate', [1, 4])
def test_a_single_image_left_over_joins_the_batch_before_it(tmp_path, row, accumulate):
    planned = plan(
        'table3_right', PROFILES['smoke'], {'synthetic': fingerprint('synthetic')}, rows=[row]
    )[0].model_dump()
    planned['data'] |= dict(train_images=17)
    planned |= dict(schedule=dict(epochs=1, learning_rate=1e-3, batch=16), accumulate=accumulate)
    run = Run(tmp_path, RunConfig.model_validate(planned))
    trains = fit if accumulate == 1 else fit_divided
    record = trains(run, bar=False)
    assert record.outcome['train_images'] == 17 and len(record.outcome['losses']) == 1


def test_one_training_image_is_refused_before_training(tmp_path):
    planned = plan(
        'table3_right',
        PROFILES['smoke'],
        {'synthetic': fingerprint('synthetic')},
        rows=['c_encapnet_ot'],
    )[0].model_dump()
    planned['data'] |= dict(train_images=None)
    run = Run(tmp_path, RunConfig.model_validate(planned))
    alone = load('synthetic', 'train', subset=10)
    alone = replace(alone, images=alone.images[:1], labels=alone.labels[:1])
    with (
        patch('encapnet.training.fit.load', return_value=alone),
        patch.object(Trainer, 'epoch') as trained,
        pytest.raises(
            UsageError, match=r'synthetic has 1 training image\(s\); transport needs at least 2'
        ),
    ):
        fit(run, bar=False)
    assert not trained.called


def outcome_of(folder, **patches):
    "A row with routing, trained whole; what its history says and the tensors that it ends with."
    run = Run(
        folder,
        config(
            'higher_released',
            'softmax_axis',
            schedule=Schedule(epochs=2, learning_rate=1e-3, batch=64),
        ),
    )
    with patch.multiple('encapnet.training.outcome', **patches) if patches else nullcontext():
        record = fit(run, bar=False)
    history = [json.loads(line) for line in run.path('metrics.jsonl').read_text().splitlines()]
    return record.outcome, history, load_file(run.path('checkpoint.safetensors'))


def test_watching_routing_changes_nothing(tmp_path):
    watched, told, tensors = outcome_of(tmp_path / 'watched')
    nothing = dict(diagnose=lambda trainer, train: None, agree=lambda trainer, test: None)
    alone, silent, same = outcome_of(tmp_path / 'alone', **nothing)
    assert [row.keys() - {'start', 'diagnostics', 'agreement'} for row in told] == [
        row.keys() for row in silent
    ]
    assert [{name: row[name] for name in bare} for row, bare in zip(told, silent)] == silent
    assert tensors.keys() == same.keys() and all(
        torch.equal(tensors[name], same[name]) for name in tensors
    ), 'bit for bit'
    assert 'start' in told[0] and 'start' not in told[1] and 'diagnostics' not in alone
    assert {
        name: value for name, value in watched.items() if name not in ('diagnostics', 'agreement')
    } == alone
    assert watched['agreement']['moments'] == watched['agreement']['epochs'] == [1, 2]
    assert (
        watched['diagnostics']['epochs'] == [0, 1, 2]
        and watched['diagnostics']['classes']['bias_share'][0] > 0.99
    )


def test_moments_can_be_gone_back_to(tmp_path):
    outcome_of(tmp_path)
    run = Run(
        tmp_path,
        config(
            'higher_released',
            'softmax_axis',
            schedule=Schedule(epochs=2, learning_rate=1e-3, batch=64),
        ),
    )
    first, last = (look_back(run, epoch).state_dict() for epoch in (1, 2))
    ended = {
        name[6:]: value
        for name, value in load_file(run.path('checkpoint.safetensors')).items()
        if name.startswith('model.')
    }
    assert ended.keys() == last.keys() and all(
        torch.equal(ended[name], last[name]) for name in last
    )
    assert not torch.equal(first['classes.transform'], last['classes.transform'])
    with pytest.raises(StudyError, match='no weights were kept after epoch 3'):
        look_back(run, 3)
    with (
        patch('encapnet.training.checkpoint._class_count', lambda *place: 7),
        pytest.raises(StudyError, match='moment-001.safetensors: damaged'),
    ):
        look_back(run, 1)
    whole = run.path('moment-001.safetensors').read_bytes()
    for damage in (b'', whole[:100], whole[:-8]):
        run.path('moment-001.safetensors').write_bytes(damage)
        with pytest.raises(StudyError, match='damaged'):
            look_back(run, 1)
    run.path('moment-001.safetensors').write_bytes(whole)
    with (
        patch('encapnet.study.freshness.code_of', lambda config: freshness.Code('other', {})),
        pytest.raises(StudyError, match='made by other code'),
    ):
        look_back(run, 1)
    other = Run(tmp_path, run.config.model_copy(update=dict(seed=1)))
    other.write('moment-001.safetensors', whole)
    with pytest.raises(StudyError, match=f'belongs to run {run.config.key}'):
        look_back(other, 1)
    run.write('checkpoint.safetensors', whole)  # of fewer epochs than the last
    with pytest.raises(StudyError, match='no weights were kept after epoch 2'):
        look_back(run, 2)


def test_an_interrupted_run_has_watched_its_start(tmp_path):
    whole, _, _ = outcome_of(tmp_path / 'whole')

    def stop(event):
        raise OutOfTime('enough')

    sliced = Run(
        tmp_path / 'sliced',
        config(
            'higher_released',
            'softmax_axis',
            schedule=Schedule(epochs=2, learning_rate=1e-3, batch=64),
        ),
    )
    with pytest.raises(OutOfTime):
        fit(sliced, tell=stop, bar=False)
    assert fit(sliced, bar=False).outcome == whole

"""Several processes compute what one computes that takes the same micro-batches in turn; and what
dies takes nobody along for long."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch
from safetensors.torch import load_file

from encapnet.data.batches import batches
from encapnet.data.content import fingerprint
from encapnet.data.loading import load
from encapnet.training.distributed import DistributedTrainer

from encapnet.cli.main import main
from encapnet.nn.transport import sinkhorn_divergence
from encapnet.study import ranks
from encapnet.study.config import RunConfig
from encapnet.study.planning import plan
from encapnet.study.profiles import PROFILES
from encapnet.study.run import Run, state

CPU = torch.device('cpu')
SYNTHETIC = fingerprint('synthetic')


def config(experiment, row, images, batch, epochs=2, **change):
    planned = plan(experiment, PROFILES['smoke'], {'synthetic': SYNTHETIC}, rows=[row])[
        0
    ].model_dump()
    planned['schedule'] |= dict(epochs=epochs, batch=batch, milestones=())
    planned['data'] |= dict(train_images=images)
    return RunConfig.model_validate(planned | change)


class Exact(DistributedTrainer):
    "In float64, where the default is."

    def outputs(self, images):
        found = self.forward(images.to(torch.get_default_dtype()))
        return found if isinstance(found, tuple) else (found, None)


def trained(config, processes=None):
    "The trainable weights after all epochs, and what was told of them."
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Exact(config, 10, CPU, processes)
        images = load('synthetic', 'train', subset=config.data.train_images)
        told = [trainer.epoch(images, number) for number in range(config.schedule.epochs)]
        return {name: value.detach() for name, value in trainer.model.named_parameters()}, told
    finally:
        torch.set_default_dtype(torch.float32)


PAIRS = {  # as two processes compute it, and what one process makes of the same micro-batches
    'convolutions': (config('table1', 'c_cnn_shape', 64, 16, processes=2), dict(accumulate=2)),
    'routing': (config('table1', 'a_dynamic', 16, 16, processes=2), dict(accumulate=2)),
    # the last batch has 5 samples: 3 and 2
    'feedback': (config('table3_left', '8_two_ots', 13, 8, 1, processes=2), dict(accumulate=2)),
    # of 17 samples one is left over: it joins the second batch, which has 5 and 4
    'feedback, one left over': (
        config('table3_left', '8_two_ots', 17, 8, 1, processes=2),
        dict(accumulate=2),
    ),
    # 2 x 2 micro-batches; the last batch has 3 samples, and in its second round the other process
    # has none
    'accumulated': (
        config('table1', 'f_master_aide', 19, 16, processes=2, accumulate=2),
        dict(accumulate=4),
    ),
    # the last batch has one sample, for one process
    'alone': (config('table1', 'c_cnn_shape', 17, 16, processes=2), dict(accumulate=2)),
}
SMALL = config('table1', 'c_cnn_shape', 32, 16, epochs=12, processes=2)
GLOBAL = config('table3_left', '8_two_ots', 16, 8, 1, processes=2, transport_scope='global')

WORKER = """
    import sys, torch
    from encapnet.training.distributed import fit
    from encapnet.training.processes import Processes, join
    from encapnet.errors import OutOfTime
    from encapnet.study.run import Run
    import test_distributed as tests
    run, found = Run(sys.argv[2], tests.SMALL), {}
    try: fit(run, deadline=0.0, bar=False)
    except OutOfTime: fit(run, bar=False)
    Processes.tell = lambda self, *message: None     # now each goes its own way, which is the same
    for name, config in {**{name: pair[0] for name, pair in tests.PAIRS.items()}, "global": tests.GLOBAL}.items():
        processes = join(config)
        found[name] = tests.trained(config, processes)
    if not processes.number: torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope='module')
def together(tmp_path_factory):
    "What two processes, started once, make of all configurations, and a whole run in a store."
    folder = tmp_path_factory.mktemp('together')
    environment = dict(
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        ENCAPNET_STARTED_BY=str(os.getpid()),
    )
    with patch.object(ranks, 'ENTRY', textwrap.dedent(WORKER)), patch.dict(os.environ, environment):
        assert ranks.together([str(folder / 'found.pt'), str(folder / 'runs')], 2) == 0
    return torch.load(folder / 'found.pt') | dict(run=Run(folder / 'runs', SMALL))


@pytest.mark.parametrize('name', PAIRS)
def test_two_processes_train_to_the_weights_of_one(together, name):
    config, alone = PAIRS[name]
    expected, said = trained(
        RunConfig.model_validate(config.model_dump() | dict(processes=1) | alone)
    )
    weights, told = together[name]
    assert weights.keys() == expected.keys() and all(
        value.dtype == torch.float64 for value in weights.values()
    )
    for key, value in weights.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-10)
    assert [row.keys() for row in told] == [row.keys() for row in said]
    for row, other in zip(told, said):
        assert row == pytest.approx(other, rel=1e-6)  # told in float32


def test_a_global_plan_is_one_plan_for_all_samples(together):
    "By hand: micro-batches one after the other, their features together in one divergence."
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Exact(
            RunConfig.model_validate(
                GLOBAL.model_dump() | dict(processes=1, accumulate=2, transport_scope='device')
            ),
            10,
            CPU,
        )
        units = [
            module for module in trainer.model.feedback.modules() if hasattr(module, 'extractor')
        ]
        features = {unit: [] for unit in units}
        for unit in units:
            unit.extractor.register_forward_hook(
                lambda module, arguments, found, unit=unit: features[unit].append(found)
            )
        images = load('synthetic', 'train', subset=16)
        trainer.model.train()
        for x, y in batches(images, 8, trainer.config.seed, 0, trainer.config.data.augmentation):
            for seen in features.values():
                seen.clear()
            loss = (
                sum(
                    trainer.loss(trainer.outputs(part)[0], labels)
                    for part, labels in zip(x.split(4), y.split(4))
                )
                / 2
            )
            divergence = sum(
                sinkhorn_divergence(torch.cat(seen[::2]), torch.cat(seen[1::2]), **unit.options)
                for unit, seen in features.items()
            )
            trainer.optimizer.zero_grad()
            (loss + trainer.config.feedback.weight * divergence).backward()
            trainer.optimizer.step()
        weights, told = together['global']
        for key, value in trainer.model.named_parameters():
            # Adam magnifies rounding where a gradient is none
            torch.testing.assert_close(weights[key], value.detach(), rtol=0, atol=1e-9)
    finally:
        torch.set_default_dtype(torch.float32)
    per_device, _ = trained(
        RunConfig.model_validate(
            GLOBAL.model_dump() | dict(processes=1, accumulate=2, transport_scope='device')
        )
    )
    assert max((weights[key] - value).abs().max() for key, value in per_device.items()) > 1e-4


# Through the command line
# ---------------------------------------------------------------------------------------------


def start(folder, config, *more):
    "`encapnet run` with a configuration for several processes."
    run = Run(folder / 'runs', config)
    if not run.path('config.json').exists():
        run.write('config.json', config.model_dump(mode='json'))
    return run, subprocess.Popen(
        [
            sys.executable,
            '-m',
            'encapnet',
            'run',
            '--config',
            str(run.path('config.json')),
            '--runs',
            str(folder / 'runs'),
            *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(command, within=600):
    told, said = command.communicate(timeout=within)
    assert 'Traceback' not in said, said
    return command.returncode, said.strip().splitlines()


def others(command):
    "The processes that a command has started, by their number."
    return {child.environ().get('RANK'): child for child in psutil.Process(command.pid).children()}


def trainable(run):
    return {
        name: value
        for name, value in load_file(run.path('checkpoint.safetensors')).items()
        if 'running' not in name and 'tracked' not in name
    }


def test_a_killed_process_ends_the_others_and_the_run_goes_on_as_if_nothing_had_happened(
    together, tmp_path
):
    run, command = start(tmp_path, SMALL)
    while not run.path('checkpoint.safetensors').exists():
        assert command.poll() is None, command.communicate()
        time.sleep(0.01)
    others(command)['1'].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code, said = ended(command, 30)
    assert code == 1 and time.monotonic() - killed < 20
    assert said[-1] == (
        'encapnet: process 2 of 2 ended (killed by signal 9), and with it the others; the same '
        'command goes on from the last checkpoint'
    )
    assert state(run).name == 'interrupted', 'it has not failed'

    _, command = start(tmp_path, SMALL)
    code, said = ended(command)
    assert (
        code == 0
        and len(said) == 1
        and said[0].startswith('table1/c_cnn_shape on synthetic, seed 0: error')
    ), said
    whole = together['run']
    assert run.path('metrics.jsonl').read_bytes() == whole.path('metrics.jsonl').read_bytes()
    expected = trainable(whole)
    assert all(torch.equal(value, expected[name]) for name, value in trainable(run).items())
    assert run.read('manifest.json')['device'].startswith('2 x ')


@pytest.mark.skipif(torch.cuda.is_available(), reason='what a machine without CUDA says')
def test_synchronised_normalisation_is_refused_without_cuda(tmp_path, capsys):
    refused = config('table1', 'c_cnn_shape', 64, 16, processes=2, norm_scope='synchronised')
    (tmp_path / 'config.json').write_text(refused.model_dump_json())
    with patch.dict(os.environ, RANK='0', WORLD_SIZE='2'), pytest.raises(SystemExit) as end:
        main(['run', '--config', str(tmp_path / 'config.json'), '--runs', str(tmp_path / 'runs')])
    assert end.value.code == 2 and capsys.readouterr().err == (
        'encapnet: synchronised batch normalisation needs CUDA devices, and this machine '
        'computes on its processor; expected --norm device\n'
    )
    assert not Run(tmp_path / 'runs', refused).folder.exists()


def test_as_many_processes_as_the_configuration_says(tmp_path, capsys):
    (tmp_path / 'config.json').write_text(SMALL.model_dump_json())
    with patch.dict(os.environ, RANK='0', WORLD_SIZE='4'), pytest.raises(SystemExit) as end:
        main(['run', '--config', str(tmp_path / 'config.json'), '--runs', str(tmp_path / 'runs')])
    assert (
        end.value.code == 2
        and 'the run is one of 2 process(es), and 4 were started' in capsys.readouterr().err
    )

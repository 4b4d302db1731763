"""The readers of CIFAR: pickles of every protocol, Python 2's among them, damaged ones, and ones that want to run something."""

import os
import pickle
import struct

import numpy as np
import pytest
import torch
from cifar_folders import write_cifar10, write_cifar100
from experiments import cifar_files as cifar
from retract.errors import RetractError

COUNTS = (6, 4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(cifar, name, getattr(cifar, name)._replace(images=COUNTS))


def python2(value):
    """`value` as the opcodes that Python 2's cPickle wrote at protocol 2, in which the originals are."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(k) + python2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, int):
        return b"K" + bytes([value])
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    state = (
        b"(K\x01" + b"M" + struct.pack("<H", len(value)) + b"M" + struct.pack("<H", value.shape[1]) + b"\x86"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", value.nbytes) + value.tobytes() + b"t"
    )
    return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"


WRITERS = {f"protocol {n}": lambda v, n=n: pickle.dumps(v, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}
WRITERS["Python 2"] = lambda value: b"\x80\x02" + python2(value) + b"."


@pytest.mark.parametrize("dump", WRITERS.values(), ids=WRITERS)
def test_both_sets_in_every_protocol(tmp_path, dump):
    test = COUNTS[1]
    tens = write_cifar10(tmp_path, COUNTS, dump)
    hundreds = write_cifar100(tmp_path, COUNTS, dump)
    for read, folder, (images, labels) in (
        (cifar.cifar10, "cifar-10-batches-py", tens),
        (cifar.cifar100, "cifar-100-python", hundreds),
    ):
        for place in (tmp_path, tmp_path / folder):
            split = read(place)
            assert split.train_x.dtype == split.test_x.dtype == torch.uint8
            assert split.train_y.dtype == split.test_y.dtype == torch.int64
            assert split.test_x.shape == (test, 3, 32, 32)
            assert np.array_equal(torch.cat([split.train_x, split.test_x]).numpy(), images.reshape(-1, 3, 32, 32))
            assert torch.cat([split.train_y, split.test_y]).tolist() == labels.tolist()


def test_an_array_in_columns(tmp_path):
    """Order of memory is no order of images."""
    images, _ = write_cifar10(tmp_path, COUNTS, lambda c: pickle.dumps({**c, "data": np.asfortranarray(c["data"])}))
    split = cifar.cifar10(tmp_path)
    assert np.array_equal(split.train_x.numpy(), images[: 5 * COUNTS[0]].reshape(-1, 3, 32, 32))


def test_what_is_missing(tmp_path):
    with pytest.raises(
        RetractError, match=r"no file .*data_batch_1: CIFAR-10 is read from .* cifar-10-python.tar.gz from"
    ):
        cifar.cifar10(tmp_path / "nowhere")
    with pytest.raises(RetractError, match=r"no file .*train: CIFAR-100 .*folder cifar-100-python"):
        cifar.cifar100(tmp_path)
    write_cifar10(tmp_path, COUNTS)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(RetractError, match="no file .*data_batch_4"):
        cifar.cifar10(tmp_path)


def content(**changes):
    return {"labels": [1] * COUNTS[0], "data": np.zeros((COUNTS[0], 3072), np.uint8), **changes}


FOREIGN = {
    "empty": (b"", "data_batch_3 is cut off, or is not a pickle"),
    "text": (b"<!DOCTYPE html><html>not found</html>", "data_batch_3 is cut off, or is not a pickle"),
    "a list": (pickle.dumps([1, 2]), "data_batch_3 is not a file of CIFAR-10: .*has no keys"),
    "without labels": (pickle.dumps({"data": 1, "x": 2}), "under 'labels', and has data, x"),
    "labels of text": (pickle.dumps(content(labels=["cat"] * COUNTS[0])), "integers under 'labels'"),
    "few labels": (pickle.dumps(content(labels=[1])), r"images of shape \(6, 3072\) and 1 labels, not 6"),
    "small images": (
        pickle.dumps(content(data=np.zeros((6, 784), np.uint8))),
        r"shape \(6, 784\) and 6 labels, not 6 of",
    ),
    "a label too many": (pickle.dumps(content(labels=[0, 1, 2, 3, 4, 10])), "labels from 0 to 10, outside 0 … 9"),
    "floats": (pickle.dumps(content(data=np.zeros((6, 3072)))), "holds an array of 'f8', not of bytes"),
    "objects": (pickle.dumps(content(data=np.array([None]))), "holds an array of 'O8', not of bytes"),
}


@pytest.mark.parametrize(("damaged", "message"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_files(tmp_path, damaged, message):
    write_cifar10(tmp_path, COUNTS)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(damaged)
    with pytest.raises(RetractError, match=message):
        cifar.cifar10(tmp_path)


@pytest.mark.parametrize("dump", [pickle.dumps, WRITERS["Python 2"]], ids=["Python 3", "Python 2"])
def test_cut_off_anywhere(tmp_path, dump):
    write_cifar10(tmp_path, COUNTS, dump)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:length])
        with pytest.raises(RetractError, match="test_batch is cut off"):
            cifar.cifar10(tmp_path)


class Runs:
    """Unpickles by calling something."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_executed(tmp_path, protocol):
    """Where `pickle` itself, the control, does what each of these files wants."""
    write_cifar10(tmp_path, COUNTS)
    path, trace = tmp_path / "cifar-10-batches-py" / "data_batch_2", tmp_path / "trace"
    calls = [(os.mkdir, str(trace)), (eval, f"__import__('os').mkdir({str(trace)!r})"), (np.save, str(trace), 0)]
    for call in calls:
        for evil in (Runs(*call), content(extra=Runs(*call)), content(data=Runs(*call))):
            path.write_bytes(pickle.dumps(evil, protocol))
            with pytest.raises(
                RetractError, match=r"data_batch_2 asks for .*which no file of CIFAR contains; it was not executed"
            ):
                cifar.cifar10(tmp_path)
            assert not list(tmp_path.glob("trace*"))
            pickle.loads(path.read_bytes())
            (made,) = tmp_path.glob("trace*")
            made.rmdir() if made.is_dir() else made.unlink()

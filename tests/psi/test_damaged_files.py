"""The readers of the experiments in front of files that are damaged, foreign, huge or made to do harm: each file ends in a value or in
a `RetractError` that names it, soon, and without filling the memory."""

import gzip
import json
import pickle
import random
import signal
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from damage import mutated, zipped
from experiments import checkpoint, cifar_files, table, training
from experiments.cifar import Config
from retract.errors import RetractError
from retract.psi import data

COUNT = 6
LAYOUT = cifar_files.CIFAR10._replace(train=["batch"], test=["batch"], images=(COUNT, COUNT))


class LateError(BaseException):
    """What no reader catches."""


@contextmanager
def seconds(limit):
    """An error where the block takes longer: a reader that hangs would hang the suite."""

    def late(*_):
        raise LateError(f"more than {limit} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def images(protocol):
    content = {"labels": [1] * COUNT, "filenames": ["x.png"] * COUNT, "data": np.zeros((COUNT, 3072), np.uint8)}
    return pickle.dumps(content, protocol)


def record(**changes):
    epoch = {"lr": 0.1, "loss": 2.5, "accuracy": 10.0, "test_loss": 2.25, "seconds": 1.5}
    return {"settings": {"epochs": 3, "method": "sgd", "lr": 0.1}, "epochs": [epoch] * 2, **changes}


def trainer(folder):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = [(torch.ones(2, 2), torch.tensor([0, 1]))]
    schedule = training.drops(optimizer, 3, (0.5,))
    return training.Trainer(
        model, optimizer, schedule, torch.Generator(), lambda _: batches, lambda: batches, False, False
    )


def resume(path):
    """A run of three epochs from the checkpoint at `path`, which has two."""
    for name in ("run.json", "epochs.csv"):
        (path.parent / name).unlink(missing_ok=True)
    try:
        trainer(path.parent).run(path.parent, {"epochs": 3}, lambda *_: None)
    finally:
        path.unlink(missing_ok=True)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """For each reader the name of a file, what reads it, and contents that are right."""
    path = tmp_path_factory.mktemp("valid") / "checkpoint.pt"
    run = trainer(path.parent)
    run.run(path.parent / "run", {"epochs": 2}, lambda *_: None)
    checkpoint.save({**run.state(), **record(settings={"epochs": 3})}, path)
    return {
        "idx": ("labels", lambda p: data.read_idx(p, 1), [idx(np.arange(200, dtype=np.uint8))]),
        "pickle": ("batch", lambda p: cifar_files.read_batch(p, COUNT, LAYOUT), [images(n) for n in range(6)]),
        "run": ("run.json", training.Record.read, [json.dumps(record()).encode()]),
        "checkpoint": ("checkpoint.pt", resume, [path.read_bytes()]),
    }


def fuzz(kind, valid, folder, generator, count):
    """Reads `count` mutants of valid files; how many were refused."""
    name, read, contents = valid[kind]
    path, refused = folder / name, 0
    for _ in range(count):
        content, other = generator.choice(contents), generator.choice(contents)
        if kind == "checkpoint" and generator.random() < 0.8:
            zipped(path, content, generator, other)
        elif kind == "idx" and generator.random() < 0.5:
            path.write_bytes(gzip.compress(mutated(gzip.decompress(content), generator, other), mtime=0))
        else:
            path.write_bytes(mutated(content, generator, other))
        with seconds(5):
            try:
                read(path)
            except RetractError as error:
                told, refused = str(error), refused + 1
                assert str(path) in told
                assert len(told) < 1500
    return refused


@pytest.mark.parametrize("kind", ["idx", "pickle", "run", "checkpoint"])
def test_mutated_files(kind, valid, tmp_path, seed):
    assert fuzz(kind, valid, tmp_path, random.Random(seed), 60) > 20


@pytest.mark.long
@pytest.mark.parametrize("kind", ["idx", "pickle", "run", "checkpoint"])
def test_many_mutated_files(kind, valid, tmp_path, seed):
    assert fuzz(kind, valid, tmp_path, random.Random(seed), 4000) > 1000


def test_the_valid_files_are_read(valid, tmp_path):
    for name, read, contents in valid.values():
        for content in contents:
            (tmp_path / name).write_bytes(content)
            read(tmp_path / name)


def nested(depth, twice):
    """A value that contains itself, twice over, `depth` times; in the memo at `depth`."""
    start = b"\x80\x02)q\x00"
    return start + b"".join(
        b"h%ch%c\x86q%c" % (i, i, i + 1) if twice else b"h%c\x85q%c" % (i, i + 1) for i in range(depth)
    )


def batch(extra):
    """A file of images that goes on with `extra`, in front of its end."""
    return images(2)[:-1] + extra + b"."


BOMBS = {
    "a key nested twice over": (batch(nested(20, True)[2:] + b"}h\x14K\x01s"), "has a tuple of other than plain values as a key"),
    "a key in a dict inside": (b"\x80\x02}(X\x04\x00\x00\x00datah\x00u.", "cut off"),
    "a value nested twice over": (nested(60, True) + b".", "nested more than 100 deep, or more than"),
    "a value nested deeply": (b"\x80\x02]" + b"]" * 2000 + b"a" * 2000 + b".", "has more than 1,120 opcodes"),
    "a value nested less deeply": (b"\x80\x02]" + b"]" * 200 + b"a" * 200 + b".", "nested more than 100 deep"),
    "a list that contains itself": (b"\x80\x02]q\x00h\x00a.", "nested more than 100 deep"),
    "a dict that contains itself": (b"\x80\x02}q\x00X\x04\x00\x00\x00datah\x00s.", "nested more than 100 deep"),
    "a place in the memo far away": (b"\x80\x02]r\xff\xff\xff\xff}.", "is not a file of CIFAR-10"),
    "text of four gigabytes": (b"\x80\x02X\xff\xff\xff\xffabc.", "cut off"),
    "bytes of an exabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.", "cut off"),
    "a number of a million digits": (b"\x80\x02\x8b" + struct.pack("<I", 50_000) + b"\x01" * 50_000 + b".", "a number of 399,993 bits"),
    "many opcodes": (b"\x80\x02" + b"]" * 100_000 + b".", "has more than 1,120 opcodes"),
    "too many bytes": (images(2) + bytes(10**6), "bytes, more than a file of 6 images of CIFAR-10 can have"),
    "an attribute of a function": (b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.", "Name in place of Call"),
    "an attribute of a type": (b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.", "Name in place of Call"),
    "a name of nonsense": (b"\x80\x02c\x1b[2J\nx" + b"y" * 10_000 + b"\n.", r"asks for '\\x1b\[2J.xyyy"),
    "an old class": (b"\x80\x02(cnumpy\nndarray\no.", "opcode OBJ was not followed"),
    "a registered extension": (b"\x80\x02\x82\x01.", "opcode EXT1 was not followed"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BOMBS.values(), ids=BOMBS)
def test_pickles_made_to_do_harm(content, message, tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with seconds(5), pytest.raises(RetractError, match=message) as caught:
            cifar_files.read_batch(path, COUNT, LAYOUT)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


def test_arrays_that_are_none(tmp_path):
    path = tmp_path / "batch"
    for shape in ((-1, 3072), (2**62, 2**62), (COUNT, [3072]), ("a",), (2.5,)):
        state = pickle.dumps(shape, 2)[2:-1]
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + state
        array += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89U\x03abctb"
        path.write_bytes(b"\x80\x02}U\x04data" + array + b"sU\x06labels]K\x01as.")
        with seconds(5), pytest.raises(RetractError, match="holds an array that is none|holds images of shape"):
            cifar_files.read_batch(path, COUNT, LAYOUT)


MNIST = {
    "a byte flipped": (lambda c: c[:30] + bytes([c[30] ^ 255]) + c[31:], "is not a whole gzip file"),
    "cut off": (lambda c: c[:-9], r"is not a whole gzip file \(it is cut off\)"),
    "without its checksum": (lambda c: c[:-4], r"is not a whole gzip file \(it is cut off\)"),
    "with something behind it": (lambda c: c + b"more", r"is not a whole gzip file \(it holds more than one stream"),
    "no header": (lambda c: gzip.compress(bytes([0, 0, 8, 1])), "is not an idx file of 1-dimensional bytes"),
    "a shape without end": (
        lambda c: gzip.compress(bytes([0, 0, 8, 1]) + b"\xff" * 4),
        "is cut off: 0 bytes for shape",
    ),
    "more than it says": (lambda c: gzip.compress(gzip.decompress(c) + b"x"), "goes on after its end: 201 bytes for"),
    "zeros without end": (
        lambda c: gzip.compress(bytes(60_000_000)),
        r"is not a whole gzip file \(it holds more than one stream of 47,040,016 bytes",
    ),
}


@pytest.mark.parametrize(("change", "message"), MNIST.values(), ids=MNIST)
def test_damaged_idx_files(change, message, tmp_path):
    (tmp_path / "labels").write_bytes(change(idx(np.arange(200, dtype=np.uint8))))
    with seconds(5), pytest.raises(RetractError, match=f"labels {message}"):
        data.read_idx(tmp_path / "labels", 1)


def test_huge_files_are_not_read(tmp_path):
    """A sparse file of a terabyte, where file systems have them."""
    path = tmp_path / "labels"
    with path.open("wb") as file:
        file.truncate(2**40)
    with seconds(5), pytest.raises(RetractError, match="1,099,511,627,776 bytes, more than a file of MNIST"):
        data.read_idx(path, 1)
    with seconds(5), pytest.raises(RetractError, match="more than a file named run.json can have"):
        training.Record.read(path)


def test_labels_out_of_range(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MNIST", {"train": ("x", "y", 2), "test": ("x", "y", 2)})
    (tmp_path / "x").write_bytes(idx(np.zeros((2, 28, 28), np.uint8)))
    (tmp_path / "y").write_bytes(idx(np.array([9, 10], np.uint8)))
    with pytest.raises(RetractError, match=r"y has labels up to 10, outside 0 … 9"):
        data.mnist(tmp_path)


EPOCH = record()["epochs"][0]
RECORDS = {
    "a list": [],
    "null": None,
    "settings a list": record(settings=[]),
    "settings without epochs": record(settings={}),
    "a setting of lists": record(settings={"epochs": 3, "lr": [[1]]}),
    "epochs a fraction": record(settings={"epochs": 2.5}),
    "more epochs than wanted": record(settings={"epochs": 1}),
    "epochs a number": record(epochs=2),
    "an epoch of text": record(epochs=["x"]),
    "a loss of text": record(epochs=[{**EPOCH, "loss": "x"}]),
    "a loss that is true": record(epochs=[{**EPOCH, "loss": True}]),
    "a loss too many": record(epochs=[{**EPOCH, "more": 1.0}]),
    "a loss too few": record(epochs=[{"lr": 0.1}]),
    "a loss too large": record(epochs=[{**EPOCH, "loss": 2**1024 - 1}]),
}


@pytest.mark.parametrize("content", RECORDS.values(), ids=RECORDS)
def test_files_that_are_not_of_a_run(content, tmp_path):
    """As run.json, and as a checkpoint."""
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(
        RetractError, match=r"run.json is not the run.json of a run .*: delete it, or name another folder"
    ):
        training.Record.read(tmp_path / "run.json")
    checkpoint.save(content, tmp_path / "checkpoint.pt")
    with (
        seconds(5),
        pytest.raises(RetractError, match=r"checkpoint.pt is not the checkpoint of a run .*: delete it, and"),
    ):
        resume(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    "text", [b"[" * 10**6, b"\xff", b"", b"[1" + b"0" * 10**5 + b"]"], ids=["deep", "no text", "empty", "long"]
)
def test_text_that_is_not_of_a_run(text, tmp_path):
    (tmp_path / "run.json").write_bytes(text)
    with seconds(5), pytest.raises(RetractError, match="run.json is not the run.json of a run"):
        training.Record.read(tmp_path / "run.json")


def test_states_of_something_else(valid, tmp_path):
    """A checkpoint of a run, with a state that does not fit its model, optimizer, schedule or generator."""
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(valid["checkpoint"][2][0])
    whole = checkpoint.load(path)
    changes = [{"parts": [{}, *whole["parts"][1:]]}, {"parts": whole["parts"][:2]}, {"parts": 3}, {"parts": [None] * 3}]
    changes += [{"generator": torch.zeros(3)}, {"generator": None}, {"parts": [whole["parts"][0]] * 3}]
    model, optimizer, schedule = whole["parts"]
    (group,), held = optimizer["param_groups"], optimizer["state"]
    for wrong in (
        {"param_groups": [{key: value for key, value in group.items() if key != "weight_decay"}], "state": held},
        {"param_groups": [{**group, "lr": "0.1"}], "state": held},
        {"param_groups": [group], "state": {**held, 0: {"momentum_buffer": torch.zeros(3)}}},
        {"param_groups": [group], "state": {**held, 0: {}}},
    ):
        changes.append({"parts": [model, wrong, schedule]})
    changes.append({"parts": [model, optimizer, {**schedule, "milestones": {}}]})
    for change in changes:
        checkpoint.save({**whole, **change}, path)
        with pytest.raises(
            RetractError, match=r"checkpoint.pt does not fit this run .*: delete it, and the run starts afresh"
        ):
            resume(path)


def test_checkpoints_made_to_do_harm(valid, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_MOST", 10_000)
    path, content = tmp_path / "checkpoint.pt", valid["checkpoint"][2][0]
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (index,) = (name for name in records if name.endswith("data.pkl"))
    for made, message in (
        (nested(20, True) + b"}h\x14K\x01s.", "has a tuple of other than plain values as a key"),
        (nested(60, True) + b".", "nested more than 100 deep"),
        (b"\x80\x02]q\x00h\x00a.", "nested more than 100 deep"),
        (
            b"\x80\x02cbuiltins\nset\n(" + nested(20, True)[2:] + b"]h\x14at\x85R.",
            "has a tuple of other than plain values as a key",
        ),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, held in records.items():
                archive.writestr(name, made if name == index else held)
        with (
            seconds(5),
            pytest.raises(RetractError, match=f"checkpoint.pt is not a whole checkpoint .*{message}"),
        ):
            checkpoint.load(path)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        (start,) = (record.header_offset for record in archive.infolist() if record.filename.endswith("/data/0"))
    at = content.index(records[index.replace("data.pkl", "data/0")], start)
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(RetractError, match=r"checkpoint.pt is not a whole checkpoint .*checksum of .*data/0 is wrong"):
        checkpoint.load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in {**records, index.replace("data.pkl", "data/0"): bytes(10**8)}.items():
            archive.writestr(name, held)
    with seconds(5), pytest.raises(RetractError, match="it is compressed, and checkpoints are not"):
        checkpoint.load(path)


def test_runs_of_something_else_in_the_table(tmp_path):
    """Under the folder of a table: a run of another experiment is passed over, and a file that claims to be one of cifar is not."""
    usual = {**vars(Config()), "epochs": 2}
    path = tmp_path / "run.json"
    for change in ({"method": "none"}, {"dataset": "mnist"}, {"depth": "deep"}, {"bf16": None}, {"more": 1}):
        path.write_text(json.dumps(record(settings={**usual, **change})))
        with pytest.raises(
            RetractError, match=r"run.json is not the run.json of a run of cifar: .*; take it out of the folder"
        ):
            table.collect([tmp_path])
    path.write_text(json.dumps(record(settings={"arch": "resnet18", "epochs": 2})))
    with pytest.raises(RetractError, match="no finished run of cifar"):
        table.collect([tmp_path])
    path.write_text(json.dumps(record(settings=usual)))
    assert len(table.rows(table.collect([tmp_path]), held_out=False)) == 1

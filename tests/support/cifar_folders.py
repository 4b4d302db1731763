"""CIFAR's layouts, in small: pictures that a network can tell apart."""

import pickle

import numpy as np


def write(folder, labels, files, dump, classes=10):
    """A set of `files`, pairs of name and number of images, under `folder`: for each class a picture, under noise. The images and
    labels in order."""
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 192, (classes, 3072), dtype=np.uint8)
    images, all_labels = [], []
    for i, (name, count) in enumerate(files):
        its = [(7 * i + k) % classes for k in range(count)]
        noise = np.random.default_rng(i + 1).integers(0, 64, (count, 3072), dtype=np.uint8)
        images.append(pictures[its] + noise)
        all_labels.append(its)
        content = {"batch_label": name, labels: its, "data": images[-1], "filenames": ["x.png"] * count}
        (folder / name).write_bytes(dump(content))
    return np.concatenate(images), np.concatenate(all_labels)


def write_cifar10(root, counts, dump=pickle.dumps):
    """``cifar-10-batches-py`` with `counts` images in a training and a test file."""
    files = [*((f"data_batch_{i}", counts[0]) for i in range(1, 6)), ("test_batch", counts[1])]
    return write(root / "cifar-10-batches-py", "labels", files, dump)


def write_cifar100(root, counts, dump=pickle.dumps):
    """``cifar-100-python``, likewise."""
    return write(
        root / "cifar-100-python", "fine_labels", [("train", counts[0]), ("test", counts[1])], dump, classes=100
    )

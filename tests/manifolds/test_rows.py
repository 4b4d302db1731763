"""`Rows`: cutting any parameter into points and back, by property test and by hand."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retract.manifolds import Rows
from retract.manifolds.parameters.rows import gather, scatter_


@st.composite
def cuts(draw):
    """A tensor with its axes in some memory order, and a cut that fits it."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    kind = draw(st.sampled_from(["dim", "dims", "blocks", "groups"]))
    if kind == "blocks":
        blocks = draw(st.integers(1, 3))
        shape[0] *= blocks
        rows = Rows(blocks=blocks)
    elif kind == "groups" and len(shape) > 1:
        groups = draw(st.integers(1, 3))
        shape[0] *= groups
        rows = Rows(dim=1, groups=groups)
    elif kind == "dims":
        rows = Rows(dim=tuple(draw(st.lists(st.integers(0, len(shape) - 1), unique=True))))
    else:
        rows = Rows(dim=draw(st.integers(0, len(shape) - 1)))
    order = draw(st.permutations(range(len(shape))))
    inverse = [order.index(a) for a in range(len(shape))]
    tensor = (
        torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view([shape[a] for a in order]).permute(inverse)
    )
    return tensor, rows


@given(cuts())
@settings(max_examples=300, deadline=None)
def test_points_come_apart_and_together_again(cut):
    tensor, rows = cut
    layout = rows.layout(tensor, 1)
    points = gather([tensor], [layout])
    assert points.shape == layout.batch + layout.event
    assert points.numel() == tensor.numel()
    assert sorted(points.flatten().tolist()) == sorted(tensor.flatten().tolist())
    # A number per point broadcasts back to the entries of that point, where the cut is along whole axes.
    number = layout.split_scalars(torch.arange(float(layout.batch[0])).reshape(layout.scalar))
    assert number.flatten().tolist() == list(range(layout.batch[0]))
    assert len(layout.scalar) == tensor.ndim
    if rows.blocks is None and rows.groups == 1 and list(rows.dims) == sorted(rows.dims):
        owner = torch.arange(float(layout.batch[0]), dtype=torch.float64).reshape(layout.scalar).expand(tensor.shape)
        assert (layout.split(owner) == number).all()
    # What is laid out otherwise lines up all the same.
    assert torch.equal(gather([tensor.contiguous()], [layout]), points)
    target = torch.zeros_like(tensor)
    scatter_(points * 2, [target], [layout])
    assert torch.equal(target, tensor * 2)


def test_by_hand():
    w = torch.arange(24.0).view(4, 6)
    assert gather([w], [Rows().layout(w, 1)]).data_ptr() == w.data_ptr()
    assert torch.equal(gather([w], [Rows(blocks=2).layout(w, 1)]), w.view(2, 12))
    assert torch.equal(gather([w], [Rows(dim=1).layout(w, 1)]), w.T)
    assert torch.equal(gather([w], [Rows(dim=()).layout(w, 1)]), w.view(1, 24))
    assert Rows(blocks=2).layout(w, 1).scalar == (2, 1)
    grouped = torch.arange(24.0).view(4, 3, 2)  # ConvTranspose1d(4, 6, 2, groups=2)
    layout = Rows(dim=1, groups=2).layout(grouped, 1)
    points = gather([grouped], [layout])
    assert points.shape == (6, 4)
    assert points[4].tolist() == [*grouped[2, 1], *grouped[3, 1]]
    assert layout.scalar == (2, 3, 1)


def test_matrices_keep_their_last_axes():
    w = torch.arange(24.0).view(2, 4, 3)
    points = gather([w], [Rows().layout(w, 2)])
    assert points.data_ptr() == w.data_ptr()
    assert torch.equal(points, w)
    assert Rows().layout(w, 2).scalar == (2, 1, 1)
    m = torch.arange(24.0).view(8, 3)
    layout = Rows(blocks=2).layout(m, 2)
    assert torch.equal(gather([m], [layout]), m.view(2, 4, 3))
    assert layout.scalar == (2, 1)


def test_half_precision_comes_as_float32():
    for dtype in (torch.float16, torch.bfloat16):
        w = torch.ones(2, 3, dtype=dtype)
        layouts = [Rows().layout(w, 1)]
        points = gather([w], layouts)
        assert points.dtype == torch.float32
        scatter_(points * 3, [w], layouts)
        assert torch.equal(w, torch.full((2, 3), 3.0, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (3, 2, 2, 2, 2)])
def test_channels_last_is_a_view(shape):
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    w = torch.randn(shape).contiguous(memory_format=memory_format)
    for rows in (Rows(), Rows.whole(), Rows(blocks=3)):
        assert gather([w], [rows.layout(w, 1)]).data_ptr() == w.data_ptr()


def test_a_pickle_with_the_former_word():
    """Models that were pickled whole when `dim` was called `axis`; without its word, `dim` was that of the class, 0."""
    now = pickle.dumps(Rows(dim=1, groups=2), protocol=2)
    then = now.replace(b"X\x03\x00\x00\x00dim", b"X\x04\x00\x00\x00axis")
    assert then != now
    assert pickle.loads(then) == pickle.loads(now) == Rows(dim=1, groups=2)

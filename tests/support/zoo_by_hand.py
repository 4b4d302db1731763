"""Networks without norm modules: functional norms, norms written by hand, custom gradients. Labels as in `zoo`."""

import torch
from labels import ROW, ROW_JOINT, WHOLE, WHOLE_JOINT
from torch import nn
from torch.nn import functional as F  # noqa: N812


class FunctionalBatchNorm(nn.Module):
    """conv → ReLU → BatchNorm without modules, and a branch on the batch."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        y = F.relu(F.conv2d(x, self.weight, self.bias))
        for _ in range(2 if x.shape[0] > 2 else 1):
            y = F.batch_norm(y, None, None, training=True)
        return y


def functional_batch_norm():
    return FunctionalBatchNorm(), (torch.randn(4, 3, 6, 6),), {"weight": ROW_JOINT}  # as conv_relu_bn


class FunctionalLayerNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.zeros(5))

    def forward(self, x):
        return F.layer_norm(F.linear(x, self.weight, self.bias), (5,))


def functional_layer_norm():
    # The bias is zero now and counts all the same: it will not stay zero
    return FunctionalLayerNorm(), (torch.randn(3, 4),), {"weight": WHOLE_JOINT}


class HandNorm(nn.Module):
    """Linear maps divided by their norm by hand: of the whole vector with an eps of its own, and of each row of W."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6, bias=False), nn.Parameter(torch.randn(3, 6))

    def forward(self, x):
        y = self.a(x)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return y @ (self.b / self.b.norm(dim=1, keepdim=True)).T


def hand_norm():
    return HandNorm(), (torch.randn(3, 4),), {"a.weight": WHOLE, "b": ROW}


class Unit(torch.autograd.Function):
    """x/‖x‖ with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x):
        size = x.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(x / size, size)
        return x / size

    @staticmethod
    def backward(ctx, grad):
        y, size = ctx.saved_tensors
        return (grad - y * (y * grad).sum(-1, keepdim=True)) / size


class CustomFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6, bias=False)

    def forward(self, x):
        return Unit.apply(self.linear(x))


def custom_function():
    return CustomFunction(), (torch.randn(3, 4),), {"linear.weight": WHOLE}


class Liar(torch.autograd.Function):
    """The identity, with a backward pass that claims to be x/‖x‖."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad - x * (x * grad).sum() / (x * x).sum()


class Lying(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return F.linear(x, Liar.apply(self.weight))


def lying_gradient():
    return Lying(), (torch.randn(3, 4),), {}  # Euler's identity holds for the gradient it reports, rescaling does not


class LiarPerRow(torch.autograd.Function):
    """w/‖w‖ of the whole matrix, with a backward pass that claims to normalise each row."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w / w.norm()

    @staticmethod
    def backward(ctx, grad):
        (w,) = ctx.saved_tensors
        return (grad - w * (w * grad).sum(1, keepdim=True) / w.square().sum(1, keepdim=True)) / w.norm()


class LyingPerRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return F.linear(x, LiarPerRow.apply(self.weight))


def lying_per_row():
    return LyingPerRow(), (torch.randn(3, 4),), {"weight": WHOLE}  # rescaling rows tells what the gradient does not

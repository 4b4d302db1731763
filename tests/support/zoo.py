"""Networks with their scale invariance derived by hand.

`LABELS` of each: parameter → (granularity, Rows, joined); a parameter that is not listed is not invariant. The
derivation stands beside each label. Everywhere: a BatchNorm in front of ReLU and an affine map without live
bias into another norm can be scaled as a whole with its shift (γ, β), since ReLU passes positive factors on.
"""

import torch
from labels import COLUMN, ROW, ROW_JOINT, WHOLE, WHOLE_JOINT, WITH_BIAS, blocks
from retract.manifolds import Rows
from torch import nn
from torch.nn import functional as F  # noqa: N812
from zoo_by_hand import (
    custom_function,
    functional_batch_norm,
    functional_layer_norm,
    hand_norm,
    lying_gradient,
    lying_per_row,
)


class Basic(nn.Module):
    """Post-activation block of CIFAR ResNets: relu(BN(conv(relu(BN(conv x)))) + shortcut), option A."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra)))


def resnet20(width=4):
    blocks_ = [Basic(width, width, 1) for _ in range(3)]
    blocks_ += [Basic(width, 2 * width, 2)] + [Basic(2 * width, 2 * width, 1) for _ in range(2)]
    blocks_ += [Basic(2 * width, 4 * width, 2)] + [Basic(4 * width, 4 * width, 1) for _ in range(2)]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    net = nn.Sequential(*stem, *blocks_, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    labels = {"0.weight": ROW}  # straight into BatchNorm; its γ, β feed a sum
    for i in range(3, 12):
        labels[f"{i}.conv1.weight"] = ROW  # straight into bn1
        labels[f"{i}.bn1.weight"] = WHOLE_JOINT  # ReLU, conv2, bn2
        labels[f"{i}.conv2.weight"] = ROW  # straight into bn2, whose γ, β feed the sum
    return net, (torch.randn(4, 3, 16, 16),), labels


class PreActivation(nn.Module):
    """Block of wide ResNets: x + conv2(relu(bn2(conv1(relu(bn1 x))))); a 1 × 1 conv on the shortcut if widths differ."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        h = F.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(h)
        return x + self.conv2(F.relu(self.bn2(self.conv1(h))))


def wrn16_2(width=4):
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False)]
    for inputs, outputs, stride in ((1, 2, 1), (2, 4, 2), (4, 8, 2)):
        layers += [
            PreActivation(inputs * width, outputs * width, stride),
            PreActivation(outputs * width, outputs * width, 1),
        ]
    end = 8 * width
    net = nn.Sequential(
        *layers, nn.BatchNorm2d(end), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(end, 10)
    )
    # The stem goes only into the first block's bn1, since that block's shortcut starts behind it.
    labels = {"0.weight": ROW}
    for i in range(1, 7):
        labels[f"{i}.conv1.weight"] = ROW  # straight into bn2; conv2 and the shortcut feed sums
    for i in (2, 4, 6):
        labels[f"{i}.bn1.weight"] = WHOLE_JOINT  # no shortcut conv: ReLU, conv1, bn2 is its only way
    return net, (torch.randn(4, 3, 16, 16),), labels


def vgg():
    layers, inputs = [], 3
    for width in (6, "pool", 8, 8, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
    # Conv biases are dead in front of BatchNorm. The last γ, β feed the classifier.
    return (
        net,
        (torch.randn(4, 3, 16, 16),),
        {
            "0.weight": ROW,
            "1.weight": WHOLE_JOINT,  # ReLU, max-pool, conv with dead bias, BatchNorm
            "4.weight": ROW,
            "5.weight": WHOLE_JOINT,
            "7.weight": ROW,
        },
    )


class GroupBlock(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.conv1, self.gn1 = nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(groups, width)
        self.conv2, self.gn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(groups, width)

    def forward(self, x):
        return F.relu(x + self.gn2(self.conv2(F.relu(self.gn1(self.conv1(x))))))


def groupnorm_resnet():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), GroupBlock(8, 2), nn.Flatten(), nn.Linear(288, 3)
    )
    return (
        net,
        (torch.randn(3, 3, 8, 8),),
        {
            "0.weight": blocks(4, WITH_BIAS),  # four groups of two channels; a bias is not removed by a group's mean
            "3.conv1.weight": blocks(2, WITH_BIAS),
            "3.gn1.weight": WHOLE_JOINT,  # ReLU, conv2 without bias, gn2
            "3.conv2.weight": blocks(2),
        },
    )


class ConvNeXt(nn.Module):
    """Depthwise conv, LayerNorm over channels, expansion, GELU, projection, LayerScale at 1e-6, sum."""

    def __init__(self, width):
        super().__init__()
        self.dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


def convnext():
    # Only all channels together are normalised, with the bias; everything behind goes through GELU into a sum.
    return ConvNeXt(6), (torch.randn(2, 6, 8, 8),), {"dw.weight": WHOLE_JOINT}


def mobilenet():
    def norm(width):
        return [nn.BatchNorm2d(width), nn.ReLU6()]

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), *norm(8), nn.Conv2d(8, 8, 3, groups=8, bias=False), *norm(8),
        nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4),
    )  # fmt: skip
    return (
        net,
        (torch.randn(4, 3, 8, 8),),
        {
            "0.weight": ROW,
            "3.weight": ROW,  # depthwise: a row is one channel's filter. ReLU6 clips, so γ, β in front of it are not.
            "6.weight": ROW,
            "7.weight": WHOLE,  # linear bottleneck: a shift of β is the same for all pixels and dies in the next norm
            "8.weight": ROW,
        },
    )


def dcgan():
    net = nn.Sequential(
        nn.ConvTranspose2d(5, 8, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    return (
        net,
        (torch.randn(4, 5, 1, 1),),
        {
            "0.weight": COLUMN,  # transposed convolutions keep output channels on axis 1
            "1.weight": blocks(2, WITH_BIAS),  # each half feeds one group of the next, whose channels are normalised
            "3.weight": ("row", Rows(dim=1, groups=2), ()),  # and split them by group; the last one feeds tanh
        },
    )


class Attention(nn.Module):
    """Pre-norm self-attention with a residual sum; queries and keys normalised per head or not."""

    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=bias) for bias in (False, True, True, True))
        self.heads = heads
        self.q_norm, self.k_norm = (
            (nn.RMSNorm(width // heads, eps=1e-6), nn.LayerNorm(width // heads))
            if qk_norm
            else (nn.Identity(), nn.Identity())
        )

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return x + self.out(z.transpose(1, 2).flatten(2))


def vit_qk_norm():
    return (
        Attention(12, 3, qk_norm=True),
        (torch.randn(2, 5, 12),),
        {
            "q.weight": blocks(3),  # one RMS per head
            "k.weight": blocks(3, WITH_BIAS),  # one LayerNorm per head, with the bias inside
        },
    )


def vit():
    return Attention(12, 3, qk_norm=False), (torch.randn(2, 5, 12),), {}  # softmax, and sums behind the rest


def post_ln():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1), (torch.randn(5, 3, 8),), {}  # sums in front of every norm


def pre_ln():
    return (
        nn.TransformerEncoderLayer(8, 2, 16, norm_first=True),
        (torch.randn(5, 3, 8),),
        {},
    )  # sums behind every branch


def lstm():
    return nn.LSTM(4, 5), (torch.randn(6, 3, 4),), {}  # sigmoid and tanh gates


def instancenorm():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    return net, (torch.randn(2, 3, 8, 8),), {"0.weight": ROW}  # per channel and sample; its bias dies in the mean


def weight_norm():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 2))
    # w = g v/‖v‖ per row: v is invariant by construction, g is not
    return net, (torch.randn(3, 4),), {"0.parametrizations.weight.original1": ROW}


class Tied(nn.Module):
    """One matrix in front of a LayerNorm and again as the output layer."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.decoder = nn.Linear(6, 6, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.norm(self.encoder(x)))


def tied():
    return Tied(), (torch.randn(3, 6),), {}  # the output layer's use is not normalised


class TiedBoth(nn.Module):
    """One convolution used twice, a norm behind both uses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


def tied_both():
    return TiedBoth(), (torch.randn(3, 4, 7),), {"conv.weight": ROW, "bn1.weight": WHOLE_JOINT}  # each use has its norm


def conv_relu_bn():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    return net, (torch.randn(4, 3, 6, 6),), {"0.weight": ROW_JOINT}  # ReLU is homogeneous if the bias scales along


def conv_silu_bn():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.BatchNorm2d(4))
    return net, (torch.randn(4, 3, 6, 6),), {}  # SiLU is not homogeneous


def two_convs_one_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    # The first as a whole: the second mixes its channels; the second's bias is dead
    return net, (torch.randn(4, 3, 8, 8),), {"0.weight": WHOLE_JOINT, "2.weight": ROW}


def frozen_bn():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    net[1].eval()
    # Frozen statistics divide by a constant, so what is left is a chain: conv, shift, ReLU, conv, BatchNorm. The first
    # conv would have to scale with two modules' shifts; γ, β in front of ReLU still scale together.
    return net, (torch.randn(4, 3, 8, 8),), {"1.weight": WHOLE_JOINT, "3.weight": ROW}


def fused_in_proj():
    """Queries and keys with QK-norm in one fused matrix, values without."""

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(12, 36, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (9, 4)).transpose(1, 2).split(3, dim=1)
            q, k = F.rms_norm(q, (4,)), F.rms_norm(k, (4,))
            return F.scaled_dot_product_attention(q, k, v)

    return Fused(), (torch.randn(2, 5, 12),), {"qkv.weight": ("slices", Rows(), ())}


def embedding():
    net = nn.Sequential(nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    return net, (torch.arange(9).repeat(2, 1),), {"0.weight": ROW}  # every token is normalised by itself


ZOO = [
    resnet20, wrn16_2, vgg, groupnorm_resnet, convnext, mobilenet, dcgan, vit_qk_norm, vit, post_ln, pre_ln, lstm,
    instancenorm, weight_norm, tied, tied_both, conv_relu_bn, conv_silu_bn, two_convs_one_norm, frozen_bn, fused_in_proj,
    embedding, functional_batch_norm, functional_layer_norm, hand_norm, custom_function, lying_per_row, lying_gradient,
]  # fmt: skip

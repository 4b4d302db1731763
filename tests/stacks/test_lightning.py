"""What Lightning does to an optimizer: wraps it, steps it with a closure, clips, moves and restores its state."""

import copy

import pytest
import torch
from networks import batches, declare_all, invariant_names, normed_mlp, train
from retract import optim, param_groups, psi
from retract.errors import DeclarationError, StateError
from retract.manifolds import PSI, Sphere
from retract.optim import PSISGD, RiemannianAdam, RiemannianOptimizer, RiemannianSGD
from torch import nn
from torch.utils.data import DataLoader

pl = pytest.importorskip("pytorch_lightning")

pytestmark = [
    # Lightning 2.6.6 asks torch 2.13 for a leaf in the former way, and advises more workers for the loader.
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

OPTIMIZERS = {
    "sgd": lambda p: RiemannianSGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: RiemannianAdam(p, lr=0.01),
    "psi-sgdm": lambda p: PSISGD(p, lr=0.05, momentum=0.9),
}


class Module(pl.LightningModule):
    """The normed network on a manifold; `clip` is what Lightning's hook of the same purpose does."""

    def __init__(self, manifold=PSI(), name="sgd", clip=None):
        super().__init__()
        self.net = declare_all(normed_mlp(eps=1e-5), manifold)
        self.name, self.clip, self.losses = name, clip, []

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return OPTIMIZERS[self.name](param_groups(self))

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if self.clip is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.clip(optimizer, gradient_clip_val)


DATA = list(batches(6, 16, 6, classes=4))


def fit(module, folder, epochs=1, checkpoint=None, **options):
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        accelerator="cpu",
        **{"logger": False, "enable_checkpointing": False, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(DATA, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    return trainer


def plain(name, manifold=PSI()):
    """Losses of the same training without Lightning."""
    net = declare_all(normed_mlp(eps=1e-5), manifold)
    return train(net, OPTIMIZERS[name](param_groups(net)), DATA)


@pytest.mark.parametrize("manifold", [PSI(), Sphere()], ids=repr)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fit_is_the_plain_loop(name, manifold, tmp_path):
    module = Module(manifold, name)
    trainer = fit(module, tmp_path)
    assert torch.equal(torch.stack(module.losses), plain(name, manifold))
    (optimizer,) = trainer.optimizers
    assert [group["manifold"] for group in optimizer.param_groups] == [repr(manifold), "Euclidean(event_ndim=0)"]
    for leaf in invariant_names(module.net):
        manifold.check_point(module.net.get_parameter(leaf).detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resuming_restores_the_state_of_the_optimizer(name, tmp_path):
    """Its own checkpoint, under weights_only=True; another geometry refuses it."""
    whole = Module(name=name)
    fit(whole, tmp_path, epochs=2)
    half = Module(name=name)
    fit(half, tmp_path).save_checkpoint(tmp_path / "half.ckpt")
    rest = Module(name=name)
    fit(rest, tmp_path, 2, tmp_path / "half.ckpt")
    assert half.losses + rest.losses == whole.losses
    with pytest.raises(DeclarationError, match="moving the rows of net.0.weight may invalidate running statistics"):
        fit(Module(Sphere(), name), tmp_path, 2, tmp_path / "half.ckpt")
    fit(Module(Sphere(), name), tmp_path).save_checkpoint(tmp_path / "sphere.ckpt")
    with pytest.raises(StateError, match=r"saved with manifold 'Sphere\(\)', this group has 'PSI\(\)'"):
        fit(Module(name=name), tmp_path, 2, tmp_path / "sphere.ckpt")


def test_state_that_was_moved_goes_on(device):
    """Lightning moves state in place, entry by entry, and leaves the step where it is."""
    move = pytest.importorskip("lightning_fabric.utilities.optimizer")._optimizers_to_device
    for name, make in OPTIMIZERS.items():
        ends = []
        for moved in (False, True):
            net = declare_all(normed_mlp(eps=1e-5, device=device), PSI())
            optimizer = make(param_groups(net))
            data = [(x.to(device), y.to(device)) for x, y in DATA]
            losses = train(net, optimizer, data[:3])
            if moved:
                move([optimizer], torch.device("cpu"))
                for state in optimizer.state.values():  # on a CPU a move is none; make it one
                    state.update({key: value.clone() for key, value in state.items()})
                move([optimizer], device)
            ends.append(torch.cat([losses, train(net, optimizer, data[3:])]))
        assert torch.equal(*ends), name


def scaled(module, factor):
    with torch.no_grad():
        for leaf in invariant_names(module.net):
            module.net.get_parameter(leaf).mul_(factor)
    return module


def test_the_clipping_flag_sees_the_representative(tmp_path):
    """Lightning's own clipping turns with the norms of PSI rows, in the metric it does not."""
    in_the_metric = optim.clip_riemannian_norm_
    runs = {}
    for clip in (None, in_the_metric):
        for factor in (1.0, 64.0):
            module = scaled(Module(clip=clip), factor)
            for norm in module.net:
                norm.eps = 1e-30
            fit(module, tmp_path, gradient_clip_val=0.1)
            runs[clip, factor] = torch.stack(module.losses)
    assert torch.allclose(runs[in_the_metric, 1.0], runs[in_the_metric, 64.0], rtol=1e-12, atol=0)
    assert (runs[None, 1.0] - runs[None, 64.0]).abs().max() > 1e-3
    unclipped = scaled(Module(clip=lambda *_: None), 1.0)
    fit(unclipped, tmp_path, gradient_clip_val=0.1)
    assert (torch.stack(unclipped.losses) - runs[in_the_metric, 1.0]).abs().max() > 1e-3


def test_accumulation_steps_once_per_group_of_batches(tmp_path):
    module = Module(name="psi-sgdm")
    fit(module, tmp_path, accumulate_grad_batches=2)
    net = declare_all(normed_mlp(eps=1e-5), PSI())
    optimizer = OPTIMIZERS["psi-sgdm"](param_groups(net))
    losses = []
    for i, (x, y) in enumerate(DATA):
        losses.append(nn.functional.cross_entropy(net(x), y))
        (losses[-1] / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert module.losses == losses


class Manual(Module):
    """Manual optimization: the wrapped optimizer in the user's hands."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        assert isinstance(optimizer, RiemannianOptimizer)
        with optimizer.toggle_model():
            loss = super().training_step(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.length = optim.clip_riemannian_norm_(optimizer, 1e9)
            optimizer.step()


def test_manual_optimization_and_the_wrapper(tmp_path):
    module = Manual()
    trainer = fit(module, tmp_path)
    assert torch.equal(torch.stack(module.losses), plain("sgd"))
    assert module.length > 0
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is RiemannianSGD
    twin = copy.deepcopy(optimizer)
    assert str(twin.state_dict()) == str(optimizer.state_dict())


class FoundHere(Module):
    """Scale invariance measured on the LightningModule itself, with its trainer attached."""

    def configure_optimizers(self):
        self.report = psi.declare(self, DATA[0][0])
        return super().configure_optimizers()


def test_declaring_inside_of_a_lightning_module(tmp_path):
    module = FoundHere()
    fit(module, tmp_path)
    net = normed_mlp(eps=1e-5)
    report = psi.declare(net, DATA[0][0])
    assert [found.name for found in module.report.invariant] == [f"net.{found.name}" for found in report.invariant]
    assert torch.equal(torch.stack(module.losses), train(net, OPTIMIZERS["sgd"](param_groups(net)), DATA))


def test_the_monitor_names_the_groups(tmp_path):
    logger = pytest.importorskip("pytorch_lightning.loggers").CSVLogger(tmp_path)
    monitor = pl.callbacks.LearningRateMonitor()

    class Scheduled(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    fit(Scheduled(), tmp_path, logger=logger, callbacks=[monitor], log_every_n_steps=1)
    assert sorted(monitor.lrs) == ["lr-RiemannianSGD/PSI()", "lr-RiemannianSGD/euclidean"]


def test_half_precision_modules_keep_their_manifold(tmp_path):
    module = Module(Sphere())
    fit(module, tmp_path, precision="bf16-true")
    assert module.losses[-1].dtype == torch.bfloat16
    for leaf in invariant_names(module.net):
        w = module.net.get_parameter(leaf).detach()
        assert w.dtype == torch.bfloat16
        Sphere().check_point(w)

"""The GPT of the studies: causal, rotary, and with the symmetries that its page tells; and its text."""

import math
from pathlib import Path

import pytest
import torch
from retract import psi
from retract.manifolds import PSI
from studies.split import on, on_pairs, relative
from studies.transformers import GPT, Transformers, Transformers128, Transformers256, _turned
from tiny_study import Words

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarks" / "transformers.md").read_text()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GPT(65, 64, 4, 2, 64)


@pytest.fixture
def text():
    return torch.randint(65, (4, 64), generator=torch.Generator().manual_seed(1))


def test_no_character_changes_what_is_said_before_it(network, text):
    changed = text.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 65
    before, after = network.double()(text), network(changed)
    assert before[:, :40].sub(after[:, :40]).abs().max() < 1e-12
    assert before[:, 40:].sub(after[:, 40:]).abs().amax(-1).min() > 1e-9


def test_order_matters(text):
    """In one block without rotary embedding the last logits would be the same for the characters before in any order."""
    torch.manual_seed(0)
    network = GPT(65, 64, 4, 1, 64)
    swapped = text.clone()
    swapped[:, :63] = swapped[:, :63].flip(1)
    assert network(text)[:, -1].sub(network(swapped)[:, -1]).abs().max() > 1e-3


def test_scores_depend_on_how_far_apart_places_are(network):
    torch.manual_seed(0)
    query, key = (torch.randn(16).expand(64, 16) for _ in range(2))
    turned = _turned(query, network.cos, network.sin)
    scores = turned @ _turned(key, network.cos, network.sin).T
    assert scores[1:, 1:].sub(scores[:-1, :-1]).abs().max() < 1e-4
    assert scores[0].sub(scores[0, 0])[1:].abs().min() > 1e-3
    assert turned.norm(dim=-1).sub(query[0].norm()).abs().max() < 1e-5


def test_shorter_texts_are_the_beginnings_of_longer_ones(network, text):
    assert network(text[:, :20]).sub(network(text)[:, :20]).abs().max() < 1e-5


@pytest.mark.parametrize("study", [Transformers, Transformers128, Transformers256])
def test_the_page_says_what_the_network_has(study):
    """Parameters, those of the matrices of the blocks, those that are scale-invariant, and those in pairs of matrices."""
    torch.manual_seed(0)
    network = GPT(65, study.width, study.width // 16, 2, 64)
    report = psi.find(network, torch.randint(65, (2, 24)))
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    invariant = {finding.name: finding.rows.blocks for finding in report.invariant}
    assert invariant == {f"blocks.{i}.{side}.weight": study.width // 16 for i in range(2) for side in ("query", "key")}
    pairs = [pair for pair in report.pairs if {*pair.names} <= {*network.hidden}]
    assert [(pair.k, pair.points) for pair in pairs] == 2 * [(16, study.width // 16), (1, 3 * study.width)]
    found = (sizes, network.hidden, invariant, {name for pair in pairs for name in pair.names})
    counts = " | ".join(f"{sum(sizes[name] for name in names):,}" for names in found)
    assert f"| {study.width} | {study.width // 16} | {counts} |" in PAGE


def test_points_are_those_of_the_invariance_and_of_the_pairs(network, text):
    (heads, whole), others = on(PSI(), network, text)
    assert {*heads["names"], *whole["names"]} == {*network.hidden}
    assert heads["rows"].blocks == 4
    assert whole["rows"].blocks == 1
    assert len(others) == len([*network.parameters()]) - len(network.hidden)


def test_pairs_of_weights_only_are_declared(network, text):
    (group,), weights, others = on_pairs(network, text)
    names = {f"blocks.{i}.{side}.weight" for i in range(2) for side in ("value", "out", "up", "down")}
    assert {*group["names"]} == names
    assert {id(p) for p in weights} == {id(network.get_parameter(name)) for name in {*network.hidden} - names}
    assert len(others) == len([*network.parameters()]) - len(network.hidden)


def test_a_relative_rate_is_that_of_a_step_to_the_norm(network):
    (group,) = relative([network.blocks[0].gate.weight], 0.04, weight_decay=0.1)
    before = network.blocks[0].gate.weight.detach().clone()
    network(torch.zeros(1, 8, dtype=torch.long)).square().sum().backward()
    torch.optim.AdamW([{**group, "weight_decay": 0.0}], eps=1e-30).step()
    moved = (network.blocks[0].gate.weight - before).norm() / before.norm()
    assert moved.item() == pytest.approx(0.04, rel=1e-3)
    assert group["weight_decay"] == 0.1


def test_the_text_is_split_by_position(tmp_path):
    class Letters(Words):
        def __init__(self, folder):
            (folder / "input.txt").write_text(1800 * "a" + 100 * "b" + 100 * "c")
            Transformers.__init__(self, folder)

    study = Letters(tmp_path)
    assert study.characters == 3
    assert study._train.unique().tolist() == [0]
    assert study._train.numel() == 1800
    assert study._held_out.unique().tolist() == [1]
    assert len(study._held_out) == 2
    assert study._test.unique().tolist() == [2]
    assert len(study._test) == 6


def test_targets_are_the_next_characters(tmp_path):
    study = Words(tmp_path)
    batches = study.batches(torch.Generator().manual_seed(0))
    (x, y), (other, _) = next(batches), next(batches)
    assert x.shape == y.shape == (16, 16)
    assert x[:, 1:].equal(y[:, :-1])
    assert not x.equal(other)


def test_the_loss_is_in_nats_per_character(tmp_path):
    """Of equal logits it is the logarithm of the number of characters, and of the right ones none."""
    study = Words(tmp_path)

    class Equal(torch.nn.Module):
        def forward(self, text):
            return torch.zeros(*text.shape, study.characters)

    assert study.held_out(Equal())["loss"] == pytest.approx(math.log(study.characters))
    assert study.test(Equal())["loss"] == pytest.approx(math.log(study.characters))
    assert study.loss(Equal(), *next(study.batches(torch.Generator()))).item() == pytest.approx(
        math.log(study.characters)
    )

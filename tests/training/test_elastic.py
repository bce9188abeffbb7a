"""Elastic training: each step uses a drawn share of every learngene matrix's components, the first ones."""

from dataclasses import replace

import pytest
import torch

from kindgene.core.components import truncate
from kindgene.core.config import KindConfig
from kindgene.core.convert import make_decomposable
from kindgene.core.linear import join_parts
from kindgene.data.arrays import ArrayDataset
from kindgene.models.dit import DiT
from kindgene.progress import NoProgress
from kindgene.training.trainer import TrainConfig, train

CONFIG = TrainConfig(steps=12, batch_size=6, learning_rate=3e-3, elastic_shares=(0.25, 0.5, 1.0, 1.0))


def data():
    generator = torch.Generator().manual_seed(7)
    images = (0.3 * torch.randn(24, 1, 8, 8, generator=generator)).clamp(-1, 1)
    return ArrayDataset(images, torch.arange(24) % 3, ("a", "b", "c"))


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", num_classes=3, hidden_size=16, depth=1)
    for value in dense.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.1)
    kind = KindConfig(num_classes=3, learngene_rank=6, tailor_rank=2, targets="paper+adaln", init="random")
    return make_decomposable(torch.nn.Module.to(dense, dtype), kind, torch.Generator().manual_seed(0))


def batch(dtype):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(4) * 200, torch.tensor([0, 2, 3, 1])


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.5, 3), (0.51, 4), (1.0, 6)])
def test_a_share_is_the_first_components_of_every_part(share, kept):
    model, other = model_of(torch.float64), model_of(torch.float64)
    with torch.no_grad():
        for layer in other.layers.values():
            cut = join_parts([truncate(part, kept) for part in layer.learngene()])
            layer.ranks = (kept,) * layer.parts
            for name, value in cut._asdict().items():
                setattr(layer, name, torch.nn.Parameter(value.clone()))
    inputs = batch(torch.float64)
    found, expected = model(*inputs, learngene_share=share), other(*inputs)
    assert (found - expected).norm() <= 1e-10 * expected.norm()
    with model.gate(inputs[2], None, share):
        assert torch.equal(model.module(*inputs), found)


def test_components_beyond_the_share_get_no_gradient():
    model = model_of()
    model(*batch(torch.float32), learngene_share=0.5).pow(2).sum().backward()
    for layer in model.layers.values():
        for factor in (layer.u.grad, layer.s.grad, layer.v.grad):
            for part in factor.split(layer.component_ranks):
                assert part[:3].any()
                assert not part[3:].any()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match="share of the learngene"):
        model_of()(*batch(torch.float32), learngene_share=share)
    with pytest.raises(ValueError, match="elastic_shares"):
        replace(CONFIG, elastic_shares=(share, 1.0))


def test_a_share_without_labels_in_the_call_is_refused():
    model = model_of()
    x, t, y = batch(torch.float32)
    with model.gate(y), pytest.raises(ValueError, match="learngene_share= need the labels"):
        model(x, t, None, learngene_share=0.5)


def test_the_whole_learngene_must_be_among_the_shares():
    with pytest.raises(ValueError, match=r"must have 1\.0"):
        replace(CONFIG, elastic_shares=(0.25, 0.5))


def watched(model):
    """The share of every forward, as the model's first layer is told it."""
    seen = []
    layer = next(iter(model.layers.values()))
    layer.register_forward_pre_hook(lambda *_: seen.append(layer.gate.current("here").share))
    return seen


def test_every_share_is_drawn_and_micro_batches_use_the_same():
    model = model_of()
    seen = watched(model)
    train(model, data(), replace(CONFIG, steps=40, gradient_accumulation_steps=2))
    assert seen[0::2] == seen[1::2]
    counts = {share: seen[0::2].count(share) for share in (0.25, 0.5, 1.0)}
    assert sum(counts.values()) == 40
    assert min(counts.values()) >= 3
    assert max(counts, key=counts.get) == 1.0  # named twice


def test_it_is_a_function_of_the_seed_and_resumes_bit_for_bit(tmp_path):
    class Stop(NoProgress):
        def update(self, done, *figures):
            if done == 5:
                raise KeyboardInterrupt

    whole, part, again = model_of(), model_of(), model_of()
    result = train(whole, data(), CONFIG, tmp_path / "whole")
    config = replace(CONFIG, checkpoint_every=4)
    with pytest.raises(KeyboardInterrupt):
        train(part, data(), config, tmp_path / "part", progress=Stop())
    resumed = train(again, data(), config, tmp_path / "part", resume=True)
    assert resumed.losses == result.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_prefixes_are_nearer_to_the_whole_after_elastic_training():
    distances = {}
    for name, shares in (("plain", ()), ("elastic", (0.25, 0.5, 1.0))):
        model = model_of()
        train(model, data(), replace(CONFIG, steps=150, learning_rate=5e-3, elastic_shares=shares))
        x, t, y = batch(torch.float32)
        with torch.no_grad():
            whole, prefix = model(x, t, y), model(x, t, y, learngene_share=0.25)
        distances[name] = ((whole - prefix).norm() / whole.norm()).item()
    assert distances["elastic"] < 0.8 * distances["plain"]


def test_where_there_is_no_learngene_to_train_it_is_refused():
    dense = DiT.from_preset("tiny/2", num_classes=3, hidden_size=16, depth=1, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="none to train"):
        train(dense, data(), CONFIG)
    with pytest.raises(ValueError, match="none to train"):
        train(model_of().freeze_learngene(), data(), replace(CONFIG, label_drop=0.0))

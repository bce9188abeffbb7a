"""Every strategy, by the same tests: a new row of the table gets them all."""

import pytest
import torch
from torch import nn

from kindgene import DiT, TrainConfig, train
from kindgene.evaluation.cost import measure_cost
from kindgene.transfer.adapters import ADAPTERS
from kindgene.transfer.strategies import STRATEGIES, Start, find_strategy, make_transfer

NEW = ("6", "7", "8")
ALL = list(STRATEGIES)
SAME = [name for name, row in STRATEGIES.items() if row.same_start]
MERGED = [*ADAPTERS, "svdiff"]
LABELS = r"y_embedder.embedding_table.weight"
BANK = {"bank.tailors.rows", "bank.labels.rows"}
SUFFIXES = {  # of what is trained within the adapted layers
    "lora": {"lora_A.default.weight", "lora_B.default.weight"},
    "pissa": {"lora_A.default.weight", "lora_B.default.weight"},
    "dora": {"lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"},
    "loha": {f"hada_w{i}_{part}.default" for i in (1, 2) for part in "ab"},
    "oft": {"oft_R.default.weight"},
    "svdiff": {"shift"},
}
LAYERS = [
    f"blocks.{block}.{layer}"
    for block in range(2)
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
]


def expected(name, model):
    """What should be trained."""
    everything = {key for key, _ in model.named_parameters() if not key.endswith("pos_embed")}
    if name in ("kind", "kind_null_tailor", "class_lora"):
        return BANK
    if name == "linear_probe":
        final = {f"final_layer.{key}.{part}" for key in ("linear", "adaLN_modulation.1") for part in ("weight", "bias")}
        return {LABELS, *final}
    if name in SUFFIXES:
        return {LABELS, *(f"{layer}.{suffix}" for layer in LAYERS for suffix in SUFFIXES[name])}
    return everything


@pytest.mark.parametrize("name", ALL)
def test_what_is_trained_and_counted(make, name):
    transfer = make(name)
    assert (transfer.strategy, transfer.model.class_names, transfer.model.num_classes) == (name, NEW, 3)
    assert transfer.model.null_class == 3
    assert transfer.trained.keys() == expected(name, transfer.model)
    count = sum(value.numel() for value in transfer.model.parameters() if value.requires_grad)
    assert transfer.trainable == sum(transfer.trained.values()) == count
    assert transfer.travels >= count
    assert transfer.rank == (None if STRATEGIES[name].ranked is None else 4 if name == "oft" else 3)


@pytest.mark.parametrize("name", ALL)
def test_training_changes_what_is_trained_alone(make, digits, state_of, changed, name):
    transfer = make(name)
    before = state_of(transfer.model)
    config = TrainConfig(steps=3, batch_size=12, label_drop=transfer.label_drop, ema_decay=0.0, learning_rate=1e-2)
    train(transfer.model, digits, config)
    assert changed(transfer.model, before) == set(transfer.trained)


@pytest.mark.parametrize("name", ALL)
def test_the_loss_goes_down(make, fit, name):
    losses = fit(make(name).model)
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("name", SAME)
def test_it_starts_as_the_pre_trained_model(make, start, batch, name):
    """New label rows start at the null row, so every label gives what the null label gave."""
    x, t, y = batch
    model = make(name).model.eval()
    with torch.no_grad():
        null = start.dense(x, t, torch.full_like(y, 2))
        for labels in (y, torch.full_like(y, 3)):
            torch.testing.assert_close(model(x, t, labels), null, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SAME])
def test_the_others_do_not(make, start, batch, name):
    x, t, y = batch
    with torch.no_grad():
        null = start.dense(x, t, torch.full_like(y, 2))
        assert not torch.allclose(make(name).model.eval()(x, t, y), null, rtol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_what_is_pre_trained_stays(make, start, state_of, changed, fit, name):
    dense, learngene = state_of(start.dense), {key: value.clone() for key, value in start.pool.learngene.items()}
    transfer = make(name)
    fit(transfer.model, 2)
    transfer.in_use()
    assert not changed(start.dense, dense)
    assert (start.dense.num_classes, start.dense.class_names) == (2, ("0", "1"))
    assert all(torch.equal(value, learngene[key]) for key, value in start.pool.learngene.items())


@pytest.mark.parametrize("name", MERGED)
def test_merged_is_the_same_and_plain(make, batch, fit, state_of, changed, name):
    transfer = make(name)
    fit(transfer.model, 4)
    before = state_of(transfer.model)
    plain = transfer.in_use()
    assert not changed(transfer.model, before)
    with torch.no_grad():
        torch.testing.assert_close(plain(*batch), transfer.model.eval()(*batch), rtol=1e-4, atol=1e-4)
    assert type(plain) is DiT
    assert all(type(plain.get_submodule(layer)) is nn.Linear for layer in LAYERS)
    fresh = DiT.from_config(plain.config)
    fresh.load_state_dict(plain.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(*batch), plain(*batch))


@pytest.mark.parametrize("name", ALL)
def test_the_cost_of_use(make, start, name):
    """Dense strategies cost what the dense model of as many classes costs; those behind the gate what is theirs."""
    cost = measure_cost(make(name).in_use())
    dense = measure_cost(make("full_finetune").in_use())
    assert cost.trainable_parameters == 0
    if name == "class_lora":
        assert cost.macs > dense.macs
        assert cost.parameters == dense.parameters + make(name).trainable - 3 * 16
    elif STRATEGIES[name].needs == "dense":
        assert (cost.parameters, cost.macs) == (dense.parameters, dense.macs)


def test_what_must_travel(make):
    """PiSSA takes its start out of the base, so that start is needed too; of others, what is trained."""
    pissa, lora = make("pissa"), make("lora")
    table = 4 * 16
    assert pissa.trainable == lora.trainable == lora.travels
    assert pissa.travels == 2 * (pissa.trainable - table) + table


@pytest.mark.parametrize("name", ALL)
def test_all_that_is_random_follows_from_the_generator(make, state_of, changed, name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert not changed(make(name, seed=1).model, state_of(first.model))
    other = changed(make(name, seed=2).model, state_of(first.model))
    assert bool(other) == (name not in ("full_finetune", "linear_probe", "pissa", "oft", "svdiff"))


@pytest.mark.parametrize("name", ["lora", "pissa", "svdiff", "class_lora", "kind_everything"])
def test_an_interrupted_run_goes_on(make, digits, state_of, changed, tmp_path, name):
    transfer, again = make(name), make(name)
    config = {"batch_size": 6, "label_drop": transfer.label_drop, "learning_rate": 1e-2}
    train(transfer.model, digits, TrainConfig(steps=2, **config), tmp_path / "whole")
    train(again.model, digits, TrainConfig(steps=1, **config), tmp_path / "cut")
    again = make(name, seed=1)
    train(again.model, digits, TrainConfig(steps=2, **config), tmp_path / "cut", resume=True)
    assert not changed(again.model, state_of(transfer.model))


def test_refusals(start, make):
    with pytest.raises(ValueError, match=r"no transfer strategy 'lorra'; there is kind, .*did you mean 'lora'"):
        find_strategy("lorra")
    for name, row in STRATEGIES.items():
        with pytest.raises(ValueError, match=r"from a pool: give Start|from a pre-trained dense DiT: give Start"):
            make_transfer(name, NEW, Start(loss=start.loss))
        if row.ranked is None:
            with pytest.raises(ValueError, match="has no rank, got 3"):
                make(name, rank=3)
        else:
            with pytest.raises(ValueError, match="rank"):
                make(name, rank=99)
        for names, told in (((), "name at least one"), (("6", "6"), "more than once"), ("67", "list of names")):
            with pytest.raises(ValueError, match=told):
                make(name, names=names)
    with pytest.raises(ValueError, match="give Start\\(loss="):
        make_transfer("auto_lg", NEW, Start(dense=start.dense))


def test_the_usual_ranks(start):
    """8 (peft's), blocks of 32 (peft's) or what the model can have below, the pool's own."""
    assert make_transfer("lora", NEW, start).rank == 8
    assert make_transfer("class_lora", NEW, start).rank == 4
    assert make_transfer("kind", NEW, start).trainable == make_transfer("kind", NEW, start, 2).trainable
    assert make_transfer("oft", NEW, start).rank == 16
    with pytest.raises(ValueError, match="oft cannot have rank 32 here; it can have 2, 4, 8, 16"):
        make_transfer("oft", NEW, start, 32)
    with pytest.raises(ValueError, match="lora cannot have rank 17 here; it can have 1 to 16"):
        make_transfer("lora", NEW, start, 17)

"""The small network: what it learns, that it is seeded, its judgement, and that it is trained once."""

import logging

import pytest
import torch

from kindgene.data.digits import load_digits
from kindgene.evaluation import learned
from kindgene.evaluation.classifier import recognised
from kindgene.evaluation.evaluate import evaluate_samples
from kindgene.evaluation.features import to_pixels
from kindgene.evaluation.learned import LEARNED, SETTINGS, network_extractor
from kindgene.evaluation.network import Network, NetworkJudge, NetworkSettings, train_network
from kindgene.evaluation.reference import make_reference

QUICK = NetworkSettings(images_seen=4_000)


@pytest.fixture(scope="module")
def parts():
    return load_digits().split(0.2, seed=0)


@pytest.fixture(scope="module")
def extractor(parts):
    return train_network(*parts, QUICK)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_shapes(size):
    features, logits = Network(size, 7).eval()(torch.zeros(2, 1, size, size))
    assert features.shape == (2, 64)
    assert logits.shape == (2, 7)


def test_it_learns_and_its_features_are_alive(parts, extractor):
    assert extractor.accuracy > 0.95
    assert (extractor.train_count, extractor.held_out_count) == tuple(map(len, parts))
    found = extractor(to_pixels(parts[1].images)).pooled.double()
    assert bool((found.max(0).values > 0).all())
    assert torch.linalg.matrix_rank(found.T.cov()) == 64


def test_training_is_seeded_and_leaves_torchs_generator_alone(parts):
    state = torch.get_rng_state()
    few = NetworkSettings(images_seen=300)
    hashes = [train_network(*parts, few).sha256 for _ in range(2)]
    assert hashes[0] == hashes[1]
    assert train_network(*parts, NetworkSettings(images_seen=300, seed=1)).sha256 != hashes[0]
    assert torch.equal(torch.get_rng_state(), state)


def test_it_judges_among_the_classes_asked_for(parts, extractor):
    held_out = parts[1].subset(["7", "1", "3"])
    judge = NetworkJudge(extractor, ("7", "1", "3"))
    assert judge.accuracy(held_out) > 0.97
    names = [held_out.class_names[label] for label in held_out.labels.tolist()]
    assert recognised(judge, held_out.images, names).share == pytest.approx(judge.accuracy(held_out))
    assert set(judge.predict(parts[1].images).tolist()) <= {0, 1, 2}
    with pytest.raises(ValueError, match="has not learned the class 'cat'"):
        NetworkJudge(extractor, ("1", "cat"))


def test_images_of_another_kind_are_refused(extractor):
    with pytest.raises(ValueError, match=r"grey images of 8x8 pixels, and these are \[N, 3, 8, 8\]"):
        extractor(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_unfit_training_sets_are_refused(parts):
    train, held_out = parts
    with pytest.raises(ValueError, match="the same classes"):
        train_network(train, held_out.subset(["1", "2"]), QUICK)
    with pytest.raises(ValueError, match="at least two"):
        train_network(train.subset(["1"]), held_out.subset(["1"]), QUICK)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(SETTINGS, "digits", NetworkSettings(images_seen=300))


def test_it_is_trained_once(quick, monkeypatch, tmp_path):
    made = network_extractor("digits", 8, cache=tmp_path)
    monkeypatch.setattr(learned, "train_network", None)
    kept = network_extractor("digits", 8, cache=tmp_path)
    assert kept.to_dict() == made.to_dict()
    assert kept.class_names == made.class_names
    images = to_pixels(load_digits().images[:9])
    assert torch.equal(kept(images).pooled, made(images).pooled)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-4] + b"\1\2\3\4", lambda data: b"{}"])
def test_a_damaged_file_is_made_anew(quick, caplog, tmp_path, damage):
    made = network_extractor("digits", 8, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING, "kindgene"):
        assert network_extractor("digits", 8, cache=tmp_path).sha256 == made.sha256
    assert "trained anew" in caplog.text


def test_other_settings_make_another_file(quick, monkeypatch, tmp_path):
    network_extractor("digits", 8, cache=tmp_path)
    monkeypatch.setitem(SETTINGS, "digits", NetworkSettings(images_seen=400))
    network_extractor("digits", 8, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_glyphs_of_both_groups_are_learned(monkeypatch, tmp_path):
    settings = NetworkSettings(images_seen=200, per_class=1)
    monkeypatch.setitem(SETTINGS, "glyphs", settings)
    monkeypatch.setattr(learned, "HELD_OUT_PER_CLASS", 1)
    made = network_extractor("glyphs", 16, cache=tmp_path)
    assert (len(made.class_names), made.train_count, made.held_out_count) == (611, 611, 611)


def test_what_there_is_none_of_is_refused(tmp_path):
    assert set(LEARNED) == set(SETTINGS)
    with pytest.raises(ValueError, match="networks learn digits or glyphs, not 'cats'"):
        network_extractor("cats", 8, cache=tmp_path)
    with pytest.raises(ValueError, match="8 pixels a side, not 16"):
        network_extractor("digits", 16, cache=tmp_path)
    with pytest.raises(ValueError, match="16 or 32 pixels a side, not 8"):
        network_extractor("glyphs", 8, cache=tmp_path)


def test_worse_images_have_worse_figures(parts, extractor):
    """Noise on real digits, more and more of it: farther, less precise, harder to recognise."""
    train, held_out = parts
    reference = make_reference(train, extractor, data="digits", features=1_000)
    judge = NetworkJudge(extractor, held_out.class_names)
    asked = [held_out.class_names[label] for label in held_out.labels.tolist()]
    noise = torch.randn(held_out.images.shape, generator=torch.Generator().manual_seed(0))
    wanted = ["fd", "is", "precision", "recognised"]
    found = [
        evaluate_samples(
            [(held_out.images + level * noise, range(len(held_out)))],
            asked,
            wanted,
            extractor=extractor,
            reference=reference,
            judge=judge,
        )
        for level in (0.0, 0.5, 1.0)
    ]
    distances = [one.figures["fd"] for one in found]
    assert distances == sorted(distances)
    assert distances[2] > 10 * distances[0]
    for name in ("is", "precision"):
        assert found[0].figures[name] > found[1].figures[name] > found[2].figures[name]
    assert found[0].recognised.share > found[1].recognised.share > found[2].recognised.share

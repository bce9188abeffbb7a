"""The sampler against data whose best denoiser is known in closed form, and everything it refuses."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from kindgene.diffusion.path import SCHEDULERS, DiffusionPath
from kindgene.diffusion.sampler import resolve_classes, sample
from kindgene.models.dit import DiT

SIGMA = 0.4
MEANS = (-0.6, 0.1, 0.8)
NULL_MEAN = 0.2


class Oracle(nn.Module):
    """The optimal denoiser of data N(mean of the label, SIGMA^2), each pixel on its own.

    Where sigma is learned it says the smaller of the two bounds (-1).
    """

    num_classes = 3
    null_class = 3
    class_names = ("low", "middle", "high")

    def __init__(self, path: DiffusionPath, wrap: bool = False) -> None:
        super().__init__()
        self.path, self.wrap = path, wrap
        self.config = {"in_channels": 1, "input_size": 4}
        self.dropout = nn.Dropout(0.5)
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x, t, y):
        assert t.dtype == y.dtype == torch.long
        self.seen.append((len(x), self.training))
        mean = torch.tensor([*MEANS, NULL_MEAN])[y].reshape(-1, 1, 1, 1)
        bar = self.path.alpha_bars[t].float().reshape(-1, 1, 1, 1)
        a, s = bar.sqrt(), (1 - bar).sqrt()
        noise = s * (x - a * mean) / (a**2 * SIGMA**2 + s**2)
        x0 = mean + a * SIGMA**2 * (x - a * mean) / (a**2 * SIGMA**2 + s**2)
        output = noise if self.path.prediction == "epsilon" else a * noise - s * x0
        if self.path.learned_sigma:
            output = torch.cat([output, -torch.ones_like(output)], dim=1)
        return SimpleNamespace(sample=output) if self.wrap else output


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(**overrides) -> DiT:
    model = DiT.from_preset("tiny/2", num_classes=3, class_names=["a", "b", "c"], **overrides)
    generator = seeded()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name != "pos_embed":
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


# Right samples.


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("scheduler", "steps"), [("ddpm", 990), ("ddim", 300), ("dpm++", 50)])
def test_samples_have_the_mean_and_spread_of_their_class(scheduler, steps, schedule, prediction):
    path = DiffusionPath(schedule=schedule, prediction=prediction)
    classes = ["low", "high", None] * 300
    x = sample(
        Oracle(path),
        classes,
        scheduler=scheduler,
        steps=steps,
        path=path,
        generator=seeded(),
        batch_size=1000,
    )
    assert x.shape == (900, 1, 4, 4)
    assert x.dtype == torch.float32
    # 4,800 numbers a class: standard errors of 0.006 (mean) and 0.004 (spread).
    for offset, mean in enumerate((MEANS[0], MEANS[2], NULL_MEAN)):
        assert x[offset::3].mean().item() == pytest.approx(mean, abs=0.02)
        assert x[offset::3].std().item() == pytest.approx(SIGMA, abs=0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 700, 996])
def test_ddim_is_exact_for_any_number_of_steps(steps, schedule, prediction):
    # On this data a step from t to t' is a linear map: what is left of x - a mean is multiplied by a number.
    path = DiffusionPath(schedule=schedule, prediction=prediction)
    bars = [path.alpha_bars[t].item() for t in path.timesteps(steps)]
    left = 1.0
    for bar, following in zip(bars, [*bars[1:], 1.0], strict=True):
        signal, noise = (bar * following) ** 0.5, ((1 - bar) * (1 - following)) ** 0.5
        left *= (signal * SIGMA**2 + noise) / (bar * SIGMA**2 + 1 - bar)
    start = torch.randn(20, 1, 4, 4, generator=seeded())
    expected = MEANS[2] + left * (start - bars[0] ** 0.5 * MEANS[2])
    found = sample(Oracle(path), [2] * 20, steps=steps, path=path, generator=seeded())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_learned_sigma(scheduler):
    path = DiffusionPath(learned_sigma=True)
    options = {"scheduler": scheduler, "steps": 900, "path": path}
    x = sample(Oracle(path), [0] * 300, generator=seeded(), batch_size=300, **options)
    assert x.mean().item() == pytest.approx(MEANS[0], abs=0.02)
    assert x.std().item() == pytest.approx(SIGMA, abs=0.02)


class Wider(Oracle):
    """Says that the variance is beta, the largest there is."""

    def forward(self, x, t, y):
        output = super().forward(x, t, y)
        output[:, 1:] = 1
        return output


def test_ddpm_uses_the_learned_variance():
    path = DiffusionPath(learned_sigma=True)
    options = {"scheduler": "ddpm", "steps": 10, "path": path}
    narrow = sample(Oracle(path), [0] * 300, generator=seeded(), **options)
    wide = sample(Wider(path), [0] * 300, generator=seeded(), **options)
    assert wide.std() > 1.1 * narrow.std()


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
def test_guidance_moves_the_mean(guidance, prediction):
    # Both halves are Gaussian of one spread, so w in the prediction is w in the mean.
    path = DiffusionPath(prediction=prediction)
    x = sample(Oracle(path), ["low"] * 200, guidance=guidance, steps=100, path=path, generator=seeded())
    assert x.mean().item() == pytest.approx(NULL_MEAN + guidance * (MEANS[0] - NULL_MEAN), abs=0.03)
    assert x.std().item() == pytest.approx(SIGMA, abs=0.03)


@pytest.mark.parametrize("negative", ["high", 2])
def test_guidance_leads_away_from_another_class(negative):
    path = DiffusionPath()
    options = {"steps": 100, "path": path, "guidance": 2.0}
    x = sample(Oracle(path), ["middle"] * 200, negative=negative, generator=seeded(), **options)
    assert x.mean().item() == pytest.approx(MEANS[2] + 2.0 * (MEANS[1] - MEANS[2]), abs=0.03)


def test_the_null_class_is_what_guidance_leads_away_from_unless_told():
    path = DiffusionPath()
    options = {"steps": 3, "path": path, "guidance": 2.0}
    plain = sample(Oracle(path), [0, 1], generator=seeded(), **options)
    assert torch.equal(sample(Oracle(path), [0, 1], negative=3, generator=seeded(), **options), plain)
    nowhere = Oracle(path)
    nowhere.null_class = None
    with pytest.raises(ValueError, match=r"name a class to be led away from \(negative\)"):
        sample(nowhere, [0], **options)
    assert sample(nowhere, [0], negative="high", **options).shape == (1, 1, 4, 4)


def test_both_halves_run_in_one_batch_and_only_when_needed():
    path = DiffusionPath()
    model = Oracle(path)
    sample(model, [0, 1], steps=3, path=path, guidance=2.0)
    sample(model, [0, 1], steps=2, path=path, guidance=1.0)
    assert [count for count, _ in model.seen] == [4, 4, 4, 2, 2]


def test_guidance_with_learned_sigma_keeps_the_variance_of_the_class_half():
    class Telling(Oracle):
        def forward(self, x, t, y):
            output = super().forward(x, t, y)
            output[:, 1:] = torch.where(y == 3, 1.0, -1.0).reshape(-1, 1, 1, 1)
            return output

    path = DiffusionPath(learned_sigma=True)
    options = {"guidance": 1.5, "scheduler": "ddpm", "steps": 10, "path": path}
    plain = sample(Oracle(path), [0] * 8, generator=seeded(), **options)
    assert torch.equal(sample(Telling(path), [0] * 8, generator=seeded(), **options), plain)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_clip_bounds_the_clean_image(scheduler, prediction):
    path = DiffusionPath(prediction=prediction)
    options = {"scheduler": scheduler, "steps": 50, "path": path}
    free = sample(Oracle(path), ["high"] * 50, generator=seeded(), **options)
    clipped = sample(Oracle(path), ["high"] * 50, generator=seeded(), clip=1.0, **options)
    assert free.max() > 1.5
    assert clipped.abs().max() < 1.001
    # A bound nothing reaches changes nothing.
    loose = sample(Oracle(path), ["high"] * 50, generator=seeded(), clip=100.0, **options)
    torch.testing.assert_close(loose, free, rtol=0, atol=2e-3)


# One source of randomness.


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_generator_is_the_only_randomness(scheduler):
    model = tiny()
    options = {"scheduler": scheduler, "steps": 5, "guidance": 1.5}
    torch.manual_seed(1)
    first = sample(model, ["a", "c", None], generator=seeded(7), **options)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = sample(model, ["a", "c", None], generator=seeded(7), **options)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, sample(model, ["a", "c", None], generator=seeded(8), **options))


def test_without_a_generator_the_global_one_is_used():
    model = tiny()
    torch.manual_seed(3)
    first = sample(model, ["a"], steps=2, scheduler="ddpm")
    torch.manual_seed(3)
    assert torch.equal(first, sample(model, ["a"], steps=2, scheduler="ddpm"))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_batch_size_changes_rounding_alone(scheduler):
    model = tiny(learn_sigma=True)
    options = {"scheduler": scheduler, "steps": 6, "guidance": 2.0}
    whole = sample(model, [0, 1, 2, None, 0], generator=seeded(), **options)
    split = sample(model, [0, 1, 2, None, 0], generator=seeded(), batch_size=2, **options)
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-4)


# Any model that offers what it must.


def test_model_is_in_eval_mode_meanwhile_and_exactly_restored():
    path = DiffusionPath()
    model = Oracle(path)
    model.dropout.eval()
    sample(model, [0], steps=2, path=path)
    assert [training for _, training in model.seen] == [False, False]
    assert model.training is True
    assert model.dropout.training is False

    model.path = None
    with pytest.raises(AttributeError):
        sample(model, [0], steps=2, path=path)
    assert model.training is True


def test_outputs_with_a_sample_field():
    path = DiffusionPath()
    plain = sample(Oracle(path), [0, 1], steps=4, path=path, generator=seeded())
    wrapped = sample(Oracle(path, wrap=True), [0, 1], steps=4, path=path, generator=seeded())
    assert torch.equal(wrapped, plain)


class Borrowed(DiTTransformer2DModel):
    """diffusers' own DiT, with what the sampler asks of any model."""

    num_classes, null_class, class_names = 3, 3, ("a", "b", "c")

    def forward(self, x, t, y):
        return super().forward(x, t, y)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_dit_of_diffusers(scheduler):
    model = Borrowed(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=3,
    )
    path = DiffusionPath(learned_sigma=True)
    options = {"steps": 3, "guidance": 2.0, "scheduler": scheduler, "path": path, "shape": (2, 4, 4)}
    found = sample(model, ["a", None], generator=seeded(), **options)
    assert found.shape == (2, 2, 4, 4)
    assert torch.equal(found, sample(model, ["a", None], generator=seeded(), **options))


def test_path_and_shape_come_from_the_model_and_can_be_given():
    model = tiny(prediction="v", schedule="cosine")
    own = sample(model, [0], steps=4, generator=seeded())
    path = DiffusionPath(prediction="v", schedule="cosine")
    assert torch.equal(own, sample(model, [0], steps=4, generator=seeded(), path=path, shape=(1, 8, 8)))
    assert not torch.equal(own, sample(model, [0], steps=4, generator=seeded(), path=DiffusionPath()))
    assert own.requires_grad is False


def test_a_bfloat16_model_gives_float32_samples():
    model = tiny()
    expected = sample(model, [0, 1], steps=4, generator=seeded())
    found = sample(model.to(torch.bfloat16), [0, 1], steps=4, generator=seeded())
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 5e-2 * expected.norm()


def test_progress_is_told_every_step():
    calls = []
    sample(tiny(), [0], steps=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


# Classes.


def test_names_ids_and_none_mean_the_same_everywhere():
    model = tiny()
    assert resolve_classes(model, ["c", 0, None, 3]).tolist() == [2, 0, 3, 3]
    assert resolve_classes(model, torch.tensor([1, 3], dtype=torch.int32)).tolist() == [1, 3]
    assert resolve_classes(model, ("a",)).dtype == torch.long


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "classes is empty"),
        (torch.tensor([], dtype=torch.long), "classes is empty"),
        (["d"], r"unknown class 'd'; this model has 'a', 'b', 'c'$"),
        (["aa"], r"unknown class 'aa'; .* did you mean 'a'\?"),
        ([3.0], r"found 3\.0"),
        ([True], "found True"),
        ([4], r"class id 4 is out of range: this model has the ids 0 \.\. 2"),
        ([-1], "class id -1 is out of range"),
        ("abc", "must be a list"),
        (1, "must be a list"),
        (torch.tensor([[1]]), r"one a sample; found torch.int64 \[1, 1\]"),
        (torch.tensor([1.0]), "whole numbers"),
        (torch.tensor([True]), "whole numbers"),
    ],
)
def test_bad_classes_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny(), classes, steps=1)


def test_a_model_without_names_or_null():
    model = DiT.from_preset("tiny/2", num_classes=2, null_row=False)
    assert sample(model, [1], steps=1).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"classes have no names, use the ids 0 \.\. 1"):
        sample(model, ["a"], steps=1)
    with pytest.raises(ValueError, match="None asks for the null label"):
        sample(model, [None], steps=1)
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs a null label"):
        sample(model, [0], steps=1, guidance=2.0)
    with pytest.raises(ValueError, match="class id 2 is out of range"):
        sample(model, [2], steps=1)


def test_many_names_are_not_all_listed():
    names = [f"name {index}" for index in range(50)]
    model = DiT.from_preset("tiny/2", num_classes=50, class_names=names)
    with pytest.raises(ValueError, match=r"'name 19' and 30 more; did you mean 'name 3\d?'\?"):
        sample(model, ["nam 3"], steps=1)


# Numbers.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": -5}, "steps must be a whole number"),
        ({"steps": 1001}, r"1 \.\. 1000"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"guidance": float("inf")}, "guidance must be a finite number"),
        ({"guidance": "2"}, "guidance must be a finite number"),
        ({"negative": "a"}, "negative 'a' is for guidance, and guidance 1 asks for none"),
        ({"negative": "d", "guidance": 2.0}, "unknown class 'd'"),
        ({"negative": 7, "guidance": 2.0}, "class id 7 is out of range"),
        ({"clip": 0.0}, "clip must be"),
        ({"clip": float("inf")}, "clip must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"scheduler": "euler"}, "unknown scheduler 'euler'"),
        ({"shape": (1, 8)}, "shape must be"),
        ({"shape": (1, 8, 0)}, "shape must be"),
        ({"path": DiffusionPath(learned_sigma=True)}, "has 1 channels; a path with learned sigma expects 2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny(), [0], **options)


def test_a_model_that_does_not_say_its_shape_or_path():
    path = DiffusionPath()
    model = Oracle(path)
    with pytest.raises(ValueError, match="pass a DiffusionPath"):
        sample(model, [0])
    model.config = {"sample_size": 4}
    with pytest.raises(ValueError, match="pass shape="):
        sample(model, [0], path=path)
    assert sample(model, [0], path=path, shape=(1, 4, 4), steps=2).shape == (1, 1, 4, 4)


def test_samples_that_stop_being_finite_are_an_error():
    class Broken(Oracle):
        def forward(self, x, t, y):
            output = super().forward(x, t, y)
            return output * float("nan") if len(self.seen) == 3 else output

    path = DiffusionPath()
    with pytest.raises(FloatingPointError, match=r"no longer finite after step 3 of 4 \(timestep 499\)"):
        sample(Broken(path), [0], steps=4, path=path)

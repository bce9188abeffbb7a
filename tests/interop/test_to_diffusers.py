"""diffusers itself reads and runs the export: the transformer, and the stock pipeline where there is a VAE."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from kindgene.diffusion.path import DiffusionPath
from kindgene.diffusion.sampler import sample
from kindgene.interop.to_diffusers import export_diffusers, stock_scheduler


def stock(folder):
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator():
    return torch.Generator().manual_seed(5)


@torch.no_grad()
def decoded(vae, latents):
    model = AutoencoderKL.from_pretrained(vae)
    return (model.decode(latents / model.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("settings", [{}, {"learn_sigma": True, "in_channels": 4, "mlp_norm_eps": 1e-2}])
def test_diffusers_computes_the_same(make_pool, inputs, error, limit, tmp_path, dtype, settings):
    pool = make_pool(dtype, **settings)
    made = export_diffusers(pool, tmp_path / "out", ["a.b/c"])
    x, t, _ = inputs(5, dtype, channels=settings.get("in_channels", 1))
    zero = torch.zeros(5, dtype=torch.long)
    expected = pool.recombine(["a.b/c"])(x, t, zero)
    transformer = DiTTransformer2DModel.from_pretrained(tmp_path / "out", subfolder="transformer", torch_dtype=dtype)
    found = transformer(x, t, zero).sample
    assert error(found, expected) <= limit[dtype]
    assert torch.equal(transformer(x, t, zero + 1000).sample, found)  # guidance has no effect, as the export says
    assert made.relative_error <= limit[dtype]
    # Its own count: 1001 label rows and a time embedder in every block.
    assert made.parameters == sum(value.numel() for value in transformer.parameters())
    assert made.parameters > sum(value.numel() for value in pool.recombine(["a.b/c"], form="dense").parameters())


def test_the_stock_pipeline_draws_the_samples_of_the_gated_model(make_pool, vae, tmp_path):
    pool = make_pool(torch.float32, in_channels=4)
    export_diffusers(pool, tmp_path / "out", ["tench"], vae=vae)
    pipeline = stock(tmp_path / "out")
    labels = pipeline.get_label_ids(["tench"]) * 2
    assert labels == [0, 0]
    ours = decoded(vae, sample(pool.recombine(["tench"]), ["tench"] * 2, steps=4, generator=generator()))
    for guidance in (1.0, 4.0):  # 4 is the pipeline's default
        options = {"num_inference_steps": 4, "generator": generator(), "output_type": "pt", "guidance_scale": guidance}
        found = pipeline(class_labels=labels, **options).images
        torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)
    assert pipeline(class_labels=labels, num_inference_steps=1).images[0].size == (8, 8)


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine", "prediction": "v"}, {"learn_sigma": True}])
def test_a_plain_dit_of_five_classes_is_guided_by_the_stock_pipeline(make_dit, vae, tmp_path, settings):
    """Its null label, 5 here, stands at 1000 there. Four steps divide 1000, and the 996 of a cosine path."""
    model = make_dit(torch.float32, in_channels=4, **settings)
    made = export_diffusers(model, tmp_path / "out", vae=vae)
    options = {"num_inference_steps": 4, "generator": generator(), "output_type": "pt", "guidance_scale": 2.5}
    found = stock(tmp_path / "out")(class_labels=[3, 0, 4], **options).images
    ours = decoded(vae, sample(model, [3, 0, 4], guidance=2.5, steps=4, generator=generator()))
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)
    assert (found - decoded(vae, sample(model, [3, 0, 4], steps=4, generator=generator()))).abs().max() > 1e-3
    assert made.notes == ()


def test_without_a_vae_there_is_a_transformer_and_a_scheduler(make_pool, tmp_path):
    made = export_diffusers(make_pool(torch.float32), tmp_path / "out", ["tench"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"transformer", "scheduler", "export.json"}
    assert any("no VAE" in note and "pipeline" in note for note in made.notes)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["notes"] == list(made.notes)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler")
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize(("schedule", "usable"), [("linear", 1000), ("cosine", 996)])
def test_the_stock_scheduler_walks_our_path(schedule, usable):
    path = DiffusionPath(schedule=schedule, prediction="v")
    scheduler = stock_scheduler(path)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), path.alpha_bars[:usable], rtol=1e-4, atol=1e-7)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == path.timesteps(4)
    assert scheduler.config.prediction_type == "v_prediction"


def test_diffusers_own_backbone_keeps_its_embedders(own_backbone, inputs, error, tmp_path):
    pool = own_backbone
    made = export_diffusers(pool, tmp_path / "out", ["2"])
    x, t, _ = inputs(4, channels=4)
    zero = torch.zeros(4, dtype=torch.long)
    options = {"subfolder": "transformer", "torch_dtype": torch.float64}
    found = DiTTransformer2DModel.from_pretrained(tmp_path / "out", **options)(x, t, zero).sample
    assert error(found, pool.recombine(["2"])(x, t, zero).sample) <= 1e-10
    assert made.relative_error <= 1e-10


@pytest.mark.usefixtures("nothing_left")
def test_impossible_ones_are_refused(make_pool, make_dit, vae, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"time_frequencies is 'dit' here, 'diffusers' in diffusers.* off by"):
        export_diffusers(make_pool(time_frequencies="dit"), out, ["tench"])
    with pytest.raises(ValueError, match="mlp_ratio 2"):
        export_diffusers(make_dit(mlp_ratio=2.0), out)
    with pytest.raises(ValueError, match="latents have 4 channels, the model makes 1"):
        export_diffusers(make_pool(), out, ["tench"], vae=vae)
    with pytest.raises(ValueError, match="no config"):
        export_diffusers(make_pool(), out, ["tench"], vae=tmp_path)
    with pytest.raises(ValueError, match="holds one class; 2"):
        export_diffusers(make_pool(), out, ["tench", "goldfish"])


def test_an_approximate_export_says_how_far_off_it_is(make_pool, inputs, error, tmp_path):
    pool = make_pool(time_frequencies="dit")
    made = export_diffusers(pool, tmp_path / "out", ["tench"], approximate=True)
    options = {"subfolder": "transformer", "torch_dtype": torch.float64}
    transformer = DiTTransformer2DModel.from_pretrained(tmp_path / "out", **options)
    x, _, _ = inputs(8)
    t, zero = torch.linspace(0, 999, 8).long(), torch.zeros(8, dtype=torch.long)
    found = error(transformer(x, t, zero).sample, pool.recombine(["tench"])(x, t, zero))
    assert made.relative_error == pytest.approx(found, rel=0.5)
    assert made.relative_error > 1e-5


def test_a_damaged_vae_is_refused(make_pool, vae, tmp_path):
    copy = tmp_path / "vae"
    copy.mkdir()
    for path in vae.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "block_out_channels": [6]}))
    with pytest.raises(ValueError, match="do not fit their config"):
        export_diffusers(make_pool(in_channels=4), tmp_path / "out", ["tench"], vae=copy)
    (copy / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(ValueError, match="holds a VQModel"):
        export_diffusers(make_pool(in_channels=4), tmp_path / "out", ["tench"], vae=copy)
    assert not (tmp_path / "out").exists()

"""`KindPipeline`: the samples of `kindgene.sample`, bit for bit, saved and loaded as diffusers does."""

import io
import json
from contextlib import redirect_stderr

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import kindgene
from kindgene import DiT, KindConfig, KindPipeline, Pool, make_decomposable, sample

NAMES = ("tench", "a.b/c", "goldfish")


def make_pool(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    dense = DiT.from_preset("tiny/2", **{"num_classes": 3, "depth": 1, **settings})
    for name, value in dense.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(value, std=0.1)
    config = KindConfig(num_classes=3, learngene_rank=6, tailor_rank=2, init="random", targets="paper+adaln")
    return make_decomposable(torch.nn.Module.to(dense, dtype), config).decompose(NAMES)


@pytest.fixture(scope="module")
def pool():
    return make_pool()


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    model = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4,),
        norm_num_groups=2,
        sample_size=8,
        scaling_factor=0.4,
        shift_factor=0.1,
    )
    return model.eval()


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generator():
    return torch.Generator().manual_seed(4)


def latents(pipeline, classes, **options):
    settings = {"num_inference_steps": 3, "output_type": "latent", "generator": generator(), **options}
    return pipeline(classes, **settings).images


def test_the_lazy_name():
    assert kindgene.KindPipeline is KindPipeline


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"scheduler": "ddpm"}, {"clip": None}, {"batch_size": 2}])
def test_its_samples_are_those_of_sample(dtype, options):
    pool = make_pool(dtype)
    pipeline = quiet(KindPipeline.from_pool(pool, ["goldfish", "tench"]))
    classes = ["tench", 0, None, "goldfish"]
    found = latents(pipeline, classes, guidance_scale=2.5, **options)
    ours = {"clip": 1.0, **options}
    model = pool.recombine(["goldfish", "tench"])
    expected = sample(model, classes, guidance=2.5, steps=3, generator=generator(), **ours)
    assert torch.equal(found, expected)
    assert not torch.equal(latents(pipeline, classes, **options), expected)
    away = {"guidance": 2.5, "negative": "goldfish", "steps": 3}
    led = latents(pipeline, classes, guidance_scale=2.5, negative_class="goldfish", **options)
    assert torch.equal(led, sample(model, classes, generator=generator(), **away, **ours))


def test_saved_and_loaded_it_draws_the_same_bits(pool, tmp_path):
    pipeline = quiet(KindPipeline.from_pool(pool, ["goldfish", "tench"]))
    before = latents(pipeline, ["tench", "goldfish"], guidance_scale=2.0)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = quiet(KindPipeline.from_pretrained(tmp_path / "saved"))
    assert torch.equal(latents(loaded, ["tench", "goldfish"], guidance_scale=2.0), before)
    loaded.save_pretrained(tmp_path / "again")
    again = quiet(KindPipeline.from_pretrained(tmp_path / "again"))
    assert torch.equal(latents(again, ["tench", "goldfish"], guidance_scale=2.0), before)
    inside = Pool.from_pretrained(tmp_path / "again" / "model")
    assert inside.classes == ("goldfish", "tench")
    assert inside.config.learngene_id == pool.config.learngene_id  # its tailors still belong to the pool's learngene
    files = [path for path in (tmp_path / "saved").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "KindPipeline"
    assert index["vae"] == [None, None]


def test_some_of_its_classes_and_a_budget(pool, tmp_path):
    quiet(KindPipeline.from_pool(pool)).save_pretrained(tmp_path / "all")
    one = quiet(KindPipeline.from_pretrained(tmp_path / "all", classes=["a.b/c"]))
    assert one.class_names == ("a.b/c",)
    assert torch.equal(
        latents(one, "a.b/c"), sample(pool.recombine(["a.b/c"]), [0], steps=3, clip=1.0, generator=generator())
    )
    size = sum(value.numel() for value in one.model.parameters())
    small = quiet(KindPipeline.from_pool(pool, ["tench"], max_parameters=int(0.8 * size)))
    assert sum(value.numel() for value in small.model.parameters()) <= 0.8 * size
    small.save_pretrained(tmp_path / "small")
    loaded = quiet(KindPipeline.from_pretrained(tmp_path / "small"))
    torch.testing.assert_close(latents(loaded, "tench"), latents(small, "tench"))


def test_output_types(pool):
    pipeline = quiet(KindPipeline.from_pool(pool, ["tench"]))
    raw = latents(pipeline, [0, 0])
    tensors, arrays, pictures = (latents(pipeline, [0, 0], output_type=kind) for kind in ("pt", "np", "pil"))
    assert torch.equal(tensors, (raw / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert [picture.size for picture in pictures] == [(8, 8), (8, 8)]
    assert np.abs(np.asarray(pictures[0]) / 255 - arrays[0, :, :, 0]).max() <= 0.5 / 255 + 1e-6
    (images,) = pipeline(["tench"], num_inference_steps=1, return_dict=False)
    assert len(images) == 1


def test_latents_are_decoded_by_the_vaes_own_scale(vae, tmp_path):
    pool = make_pool(in_channels=4)
    pipeline = quiet(KindPipeline.from_pool(pool, vae=vae))
    raw = latents(pipeline, ["tench"] * 17, guidance_scale=1.5)
    plain = sample(pool.recombine(NAMES), ["tench"] * 17, guidance=1.5, steps=3, generator=generator())
    assert torch.equal(raw, plain)  # latents are not clipped
    found = latents(pipeline, ["tench"] * 17, guidance_scale=1.5, output_type="pt")
    with torch.no_grad():
        expected = (vae.decode(raw / 0.4 + 0.1).sample / 2 + 0.5).clamp(0, 1)
    assert found.shape == (17, 3, 8, 8)
    torch.testing.assert_close(found, expected)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = quiet(KindPipeline.from_pretrained(tmp_path / "saved"))
    again = latents(loaded, ["tench"] * 17, guidance_scale=1.5, output_type="pt")
    torch.testing.assert_close(again, found)  # a convolution's last bits follow where its weights lie in memory
    assert isinstance(loaded.components["vae"], AutoencoderKL)
    other = AutoencoderKL.from_config({**vae.config, "scaling_factor": 1.0, "shift_factor": None})
    assert KindPipeline.from_pretrained(tmp_path / "saved", vae=other).vae is other
    with pytest.raises(ValueError, match="latents have 4 channels, the model makes 1"):
        KindPipeline(make_pool().recombine(["tench"]), vae=vae)


def test_to_another_dtype(pool, tmp_path):
    pipeline = quiet(KindPipeline.from_pool(pool, ["tench"]).to(torch.bfloat16))
    assert pipeline.dtype == torch.bfloat16
    assert pipeline.device == torch.device("cpu")
    expected = sample(pool.recombine(["tench"], dtype="bfloat16"), [0], steps=3, clip=1.0, generator=generator())
    assert torch.equal(latents(pipeline, [0]), expected)
    pipeline.save_pretrained(tmp_path / "half")
    assert KindPipeline.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    KindPipeline.from_pool(pool, ["tench"]).save_pretrained(tmp_path / "whole")
    for name in ("dtype", "torch_dtype"):
        loaded = KindPipeline.from_pretrained(tmp_path / "whole", **{name: torch.bfloat16})
        assert torch.equal(latents(quiet(loaded), [0]), expected)


def test_changed_weights_are_saved_as_they_are(pool, tmp_path):
    """Not the pieces that the model was made of."""
    pipeline = quiet(KindPipeline.from_pool(pool, ["tench"]))
    before = latents(pipeline, [0])
    with torch.no_grad():
        pipeline.model.module.final_layer.linear.bias += 1
        pipeline.model.bank.tailors.rows *= 1.5
    changed = latents(pipeline, [0])
    assert not torch.equal(before, changed)
    pipeline.save_pretrained(tmp_path / "changed")
    loaded = quiet(KindPipeline.from_pretrained(tmp_path / "changed"))
    torch.testing.assert_close(latents(loaded, [0]), changed, rtol=1e-4, atol=1e-5)


def test_models_that_came_from_no_pool(pool, tmp_path):
    torch.manual_seed(1)
    gated = pool.to_model()
    KindPipeline(gated).save_pretrained(tmp_path / "gated")
    loaded = quiet(KindPipeline.from_pretrained(tmp_path / "gated"))
    torch.testing.assert_close(latents(loaded, ["a.b/c"]), latents(quiet(KindPipeline(gated)), ["a.b/c"]))
    plain = pool.recombine(["tench"], form="dense").double()
    KindPipeline(plain).save_pretrained(tmp_path / "plain")
    loaded = quiet(KindPipeline.from_pretrained(tmp_path / "plain"))
    assert loaded.dtype == torch.float64
    assert torch.equal(latents(loaded, ["tench"]), latents(quiet(KindPipeline(plain)), ["tench"]))
    with pytest.raises(ValueError, match="guidance 2 needs a null label"):
        latents(loaded, ["tench"], guidance_scale=2)
    with pytest.raises(ValueError, match="has the classes that it has"):
        KindPipeline.from_pretrained(tmp_path / "plain", classes=["tench"])


def test_the_bar_counts_the_steps(pool):
    pipeline = KindPipeline.from_pool(pool, ["tench"])
    with redirect_stderr(io.StringIO()) as shown:
        pipeline(["tench"], num_inference_steps=7)
    assert "7/7" in shown.getvalue()
    with redirect_stderr(io.StringIO()) as shown:
        quiet(pipeline)(["tench"], num_inference_steps=7)
    assert shown.getvalue() == ""


def test_pushing_to_the_hub_sends_the_whole_folder(pool, monkeypatch):
    sent = {}

    def send(self, folder, repo_id, **options):
        pipeline = quiet(KindPipeline.from_pretrained(folder))
        sent[repo_id] = latents(pipeline, ["tench"])
        return "done"

    class Card:
        def save(self, path):
            sent["card"] = path

    monkeypatch.setattr(
        "diffusers.utils.hub_utils.create_repo", lambda name, **options: type("Repo", (), {"repo_id": name})
    )
    monkeypatch.setattr("diffusers.utils.hub_utils.load_or_create_model_card", lambda *args, **options: Card())
    monkeypatch.setattr("diffusers.utils.hub_utils.populate_model_card", lambda card: card)
    monkeypatch.setattr(KindPipeline, "_upload_folder", send)
    pipeline = quiet(KindPipeline.from_pool(pool, ["tench"]))
    assert pipeline.push_to_hub("me/mine") == "done"
    assert torch.equal(sent["me/mine"], latents(pipeline, ["tench"]))
    assert "card" in sent


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"classes": ["trench"]}, "did you mean 'tench'"),
        ({"classes": [7]}, "out of range"),
        ({"classes": []}, "classes is empty"),
        ({"output_type": "jpg"}, "output_type must be one of pil, np, pt, latent"),
        ({"generator": [torch.Generator()]}, "one generator for all"),
        ({"num_inference_steps": 0}, "steps must be"),
        ({"guidance_scale": float("nan")}, "guidance must be"),
        ({"scheduler": "euler"}, "unknown scheduler"),
        ({"clip": -1.0}, "clip must be"),
    ],
)
def test_bad_calls_are_refused(pool, options, told):
    with pytest.raises(ValueError, match=told):
        KindPipeline.from_pool(pool)(**{"classes": ["tench"], **options})


def test_bad_folders_are_refused(pool, tmp_path):
    pipeline = KindPipeline.from_pool(pool, ["tench"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder"):
        pipeline.save_pretrained(tmp_path / "full")
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "x"]
    with pytest.raises(ValueError, match="saved as safetensors"):
        pipeline.save_pretrained(tmp_path / "new", safe_serialization=False)
    with pytest.raises(ValueError, match=r"has no model_index"):
        KindPipeline.from_pretrained(tmp_path / "full")
    (tmp_path / "full" / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    with pytest.raises(ValueError, match="holds a DiTPipeline"):
        KindPipeline.from_pretrained(tmp_path / "full")
    with pytest.raises(ValueError, match="takes dtype, vae and classes, not variant"):
        KindPipeline.from_pretrained(tmp_path / "full", variant="fp16")
    pipeline.save_pretrained(tmp_path / "good")
    with pytest.raises(ValueError, match="no class 'trench'"):
        KindPipeline.from_pretrained(tmp_path / "good", classes=["trench"])
    next((tmp_path / "good" / "model" / "tailors").rglob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match="is missing"):
        KindPipeline.from_pretrained(tmp_path / "good")


def test_a_save_that_fails_leaves_nothing(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(KindPipeline, "save_config", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        KindPipeline.from_pool(pool, ["tench"]).save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

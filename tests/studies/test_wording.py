"""Reports speak of the data that they are of."""

from kindgene.studies.wording import of_command, of_data, of_features, of_judge, of_loss, of_measuring, share

GLYPHS = {"image_size": 16, "per_class": 200}
IMAGENET = {
    "prediction": "epsilon",
    "source": {
        "pixels": 256,
        "held_out": "validation images",
        "vae": {"name": "a/vae"},
        "extractor": {"name": "inception"},
    },
}


def test_of_glyphs():
    assert of_data(GLYPHS, 24) == "24 glyph classes of 200 images (16x16 pixels)"
    assert of_judge(GLYPHS) == "a network that learned all glyph classes"
    assert (of_features(GLYPHS), of_loss(GLYPHS)) == ("a glyph network", "v")
    assert of_command({"study": "novel", "settings": {"pretraining": GLYPHS}}) == ""


def test_of_imagenet():
    told = "150 superclasses of ImageNet (256x256 pixels as latents of a/vae; held out: validation images)"
    assert of_data(IMAGENET, 150) == told
    assert of_judge(IMAGENET) == "a linear classifier on the features of inception"
    assert (of_features(IMAGENET), of_loss(IMAGENET)) == ("inception", "the noise")
    assert of_command({"study": "pretrain", "settings": IMAGENET}) == " --data FOLDER --vae a/vae"
    shift = {"study": "shift", "settings": {"pretraining": IMAGENET}}
    assert of_command(shift) == " --data FOLDER --vae a/vae --far FOLDER"


MEASURED = {
    "sampler": "ddim",
    "sampling_steps": 25,
    "guidances": [1.0, 1.5],
    "samples_per_class": 32,
    "weights": "EMA",
    "loss_draws": 8,
    "extractor": {"name": "glyphs", "sha256": "0123456789abcdef"},
    "judge": {"kind": "network", "name": "glyphs", "accuracy": 0.969, "held_out": 12220},
}


def test_what_figures_were_measured_with():
    assert of_measuring(MEASURED) == (
        "Samples: DDIM, 25 steps, guidance 1.0 and 1.5, 32 a class, noise of the study's seed, EMA weights. "
        "Losses: every image at 8 timesteps. Extractor: glyphs, weights 0123456789ab. "
        "Judge: network glyphs, 96.9 % of 12,220 held-out images right."
    )
    assert of_measuring({"weights": "EMA", "loss_draws": 4}) == "Losses: every image at 4 timesteps with EMA weights."
    judges = {"a": {"kind": "network"}, "b": None}
    several = of_measuring({**MEASURED, "samples_per_class": {"1": 256, "5": 52}, "judge": judges})
    assert "52 to 256 a class" in several
    assert several.endswith("Judge of a: network.")


def test_shares():
    assert share(0.9312) == "93.1 %"

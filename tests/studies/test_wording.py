"""Reports speak of the data that they are of."""

from kindgene.studies.wording import of_command, of_data, of_features, of_judge, of_loss, share

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


def test_shares():
    assert share(0.9312) == "93.1 %"

"""To a `KindPipeline`'s folder: gated, any number of classes, exact with guidance, pixel or latent."""

from __future__ import annotations

from collections.abc import Sequence

from kindgene.files import StrPath
from kindgene.interop.check import checked_error, output_of
from kindgene.interop.folder import Export, whole_folder, write_record
from kindgene.interop.source import Source, choose
from kindgene.interop.vae import load_vae
from kindgene.pipeline import KindPipeline
from kindgene.pool.pool import Pool


def export_pipeline(
    source: Source, out: StrPath, classes: Sequence[str] | None = None, *, vae: StrPath | None = None
) -> Export:
    """Writes a pipeline of these classes; `vae` is the folder of an `AutoencoderKL` for a model of latents.

    It is checked by loading it. Raises ValueError for what cannot be exported, with nothing written.
    """
    with whole_folder(out) as folder:
        chosen = choose(source, classes, "gated")
        decoder = None if vae is None else load_vae(vae)
        if isinstance(source, Pool):
            pipeline = KindPipeline.from_pool(source, classes, vae=decoder)
        else:
            pipeline = KindPipeline(source, vae=decoder)
        pipeline.save_pretrained(folder)
        loaded = KindPipeline.from_pretrained(folder)
        inputs, expected = chosen.trial()
        error = checked_error("the pipeline", output_of(loaded.model, inputs), expected)
        return write_record(folder, Export.of("pipeline", chosen, loaded.model, error, vae=vae is not None))

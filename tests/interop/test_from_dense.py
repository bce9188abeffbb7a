"""Dense checkpoints become pools: the same function, zero tailors that learn, and never two matrices in memory."""

import gc
import json
import weakref

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from kindgene.diffusion.path import DiffusionPath
from kindgene.diffusion.sampler import sample
from kindgene.interop import checkpoint
from kindgene.interop.from_dense import import_dense
from kindgene.interop.to_diffusers import export_diffusers
from kindgene.interop.to_dit import export_dit
from kindgene.models.dit import DiT
from kindgene.pool.pool import Pool

NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def public(make_dit):
    """A DiT as the public ones are: learned sigma, four channels, their time frequencies."""
    return make_dit(time_frequencies="dit", learn_sigma=True, in_channels=4)


def saved(model, path, place=None):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if place is None else {place: state, "step": 7}, path)
    return path


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("file", "place"), [("x.safetensors", None), ("x.pt", None), ("x.pt", "ema")])
def test_a_public_checkpoint_is_exact_at_full_rank(public, inputs, error, limit, tmp_path, file, place, dtype):
    made = import_dense(saved(public, tmp_path / file, place), NAMES, dtype=dtype)
    made.pool.save_pretrained(tmp_path / "pool")
    pool = Pool.from_pretrained(tmp_path / "pool")
    x, t, y = inputs(6, channels=4)  # 5: null
    own = getattr(torch, dtype)
    assert error(pool.recombine(NAMES)(x.to(own), t, y), public(x, t, y)) <= limit[own]
    one = pool.recombine(["d"], form="dense")(x[3:4].to(own), t[3:4], torch.zeros(1, dtype=torch.long))
    assert error(one, public(x, t, y)[3:4]) <= limit[own]
    assert set(made.errors.values()) == {0.0}
    assert pool.config.weights == (place or "raw")
    assert made.errors.keys() == pool.config.ranks.keys()
    drawn, expected = (
        sample(model, [label], guidance=2.0, steps=2, generator=torch.Generator().manual_seed(0))
        for model, label in ((pool.recombine(["b"]), "b"), (public, 1))
    )
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_a_diffusers_folder_with_embedders_in_every_block(transformer, own_backbone, inputs, error):
    x, t, y = inputs(6, channels=4)
    found = own_backbone.recombine(own_backbone.classes)(x, t, y).sample
    assert error(found, transformer(x, t, y).sample) <= 1e-10
    assert own_backbone.config.backbone == "DiTTransformer2DModel"
    assert "embedders of their own" in own_backbone.config.provenance["because"]
    path = DiffusionPath(learned_sigma=True)
    assert sample(own_backbone.recombine(["1"]), ["1"], steps=2, path=path, shape=(4, 8, 8)).shape == (1, 4, 8, 8)


def test_a_diffusers_folder_as_it_was_published_becomes_our_dit(transformer, inputs, error, tmp_path):
    """One embedder for all blocks, epsilon 1e-5, and the class name of before there was a DiTTransformer2DModel."""
    shared = DiTTransformer2DModel.from_config(transformer.config).double().eval()
    shared.load_state_dict(transformer.state_dict())
    first, second = (block.norm1.emb for block in shared.transformer_blocks)
    second.load_state_dict(first.state_dict())
    shared.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    older = {**config, "_class_name": "Transformer2DModel", "cross_attention_dim": None, "attention_type": "default"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(older))
    pool = import_dense(tmp_path / "model", NAMES, dtype="float64").pool
    assert pool.config.backbone == "DiT"
    assert pool.config.backbone_config["mlp_norm_eps"] == 1e-5
    x, t, y = inputs(6, channels=4)
    assert error(pool.recombine(NAMES)(x, t, y), shared(x, t, y).sample) <= 1e-10
    other = import_dense(tmp_path / "model", NAMES, dtype="float64", time_frequencies="dit").pool
    assert error(other.recombine(NAMES)(x, t, y), shared(x, t, y).sample) > 1e-6


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine", "prediction": "v"}])
def test_our_own_exports_come_back(make_dit, vae, inputs, error, tmp_path, settings):
    model = make_dit(in_channels=4, **settings)
    export_diffusers(model, tmp_path / "stock", vae=vae)
    pool = import_dense(tmp_path / "stock", NAMES, dtype="float64").pool
    x, t, y = inputs(6, channels=4)
    assert error(pool.recombine(NAMES)(x, t, y), model(x, t, y)) <= 1e-10
    assert DiffusionPath.of(pool.config.backbone_config) == DiffusionPath.of(model)
    public = make_dit(time_frequencies="dit", **settings)
    export_dit(public, tmp_path / "public")
    path = {key: value for key, value in settings.items() if key in ("schedule", "prediction")}
    back = import_dense(tmp_path / "public" / "model.safetensors", NAMES, dtype="float64", **path).pool
    x, t, y = inputs(6)
    assert error(back.recombine(NAMES)(x, t, y), public(x, t, y)) <= 1e-10
    assert DiffusionPath.of(back.config.backbone_config) == DiffusionPath.of(public)


def test_a_truncated_import_names_its_error(public, tmp_path):
    told = []
    path = saved(public, tmp_path / "x.safetensors")
    made = import_dense(path, NAMES, learngene_rank=5, dtype="float64", progress=lambda *done: told.append(done))
    for target, ranks in made.pool.config.ranks.items():
        weight = public.get_parameter(f"{target}.weight").detach()
        assert set(ranks) == {5}
        u, s, v = (made.pool.learngene[f"{target}.{factor}"].split(ranks) for factor in "usv")
        kept = torch.cat([(a * b[:, None]).mT @ c for a, b, c in zip(u, s, v, strict=True)])
        assert made.errors[target] == pytest.approx(float((weight - kept).norm() / weight.norm()), rel=1e-9)
        best = torch.linalg.svdvals(weight[: len(weight) // len(ranks)])[5:]
        first = (weight - kept)[: len(weight) // len(ranks)]
        assert float(first.norm()) == pytest.approx(float(best.norm()), rel=1e-9)
    name, worst = made.worst
    assert worst == max(made.errors.values()) == made.errors[name] > 0
    assert made.pool.config.provenance["largest error"] == worst
    count = len(made.errors)
    assert told == [(done, count) for done in range(1, count + 1)]
    share = import_dense(path, NAMES, learngene_rank=0.25, targets="paper", dtype="float64")
    assert {max(ranks) for ranks in share.pool.config.ranks.values()} == {8}
    assert not any("adaLN" in target for target in share.errors)


def test_zero_tailors_add_nothing_and_learn(public, inputs, tmp_path):
    path = saved(public, tmp_path / "x.safetensors")
    pool = import_dense(path, ["a", "b"], tailor_rank=3, dtype="float64").pool
    assert pool.classes == ("a", "b")
    for key, value in pool.tailors[0].components.items():
        if key.endswith(".s"):
            assert not value.any()
        else:
            parts = value.view(-1, 3, value.shape[1])
            torch.testing.assert_close(parts @ parts.mT, torch.eye(3).double().expand(len(parts), 3, 3))
    again = import_dense(path, ["a", "b"], tailor_rank=3, dtype="float64").pool
    assert again.config.learngene_id == pool.config.learngene_id
    model = pool.to_model()
    x, t, _ = inputs(4, channels=4)
    model(x, t, torch.zeros_like(t)).square().sum().backward()
    gradient = model.bank.tailors.rows.grad
    assert gradient[0].any()
    assert not gradient[1].any()
    rows = model.bank.tailors.views(gradient)
    assert all(value[0].any() for key, value in rows.items() if key.endswith(".s"))


class Watched(TorchDispatchMode):
    """Bytes of all tensors that torch made here and that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.alive, self.bytes, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.see(tensor)
        return output

    def see(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.alive:
            self.alive[storage.data_ptr()] = [storage.nbytes(), 0]
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
        self.alive[storage.data_ptr()][1] += 1
        weakref.finalize(tensor, self._gone, storage.data_ptr())

    def _gone(self, pointer):
        entry = self.alive[pointer]
        entry[1] -= 1
        if entry[1] == 0:
            self.bytes -= entry[0]
            del self.alive[pointer]


def extra_bytes(make_dit, folder, depth, rank):
    """Bytes that an import needs at its peak beside its result."""
    path = saved(make_dit(torch.float32, depth=depth, time_frequencies="dit"), folder / f"{depth}.safetensors")
    gc.collect()
    with Watched() as watched:
        made = import_dense(path, NAMES, learngene_rank=rank)
        gc.collect()
        left = watched.bytes
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in _values(made.pool)}
    assert sum(held.values()) == pytest.approx(left, rel=0.05)  # the watch sees what is there
    return watched.peak - left


def _values(pool):
    yield from pool.learngene.values()
    for tailor in pool.tailors:
        yield from tailor.components.values()
        yield from tailor.rows.values()


@pytest.mark.parametrize("rank", [None, 4])
def test_memory_beside_the_result_is_that_of_one_matrix(make_dit, tmp_path, rank):
    extra = {depth: extra_bytes(make_dit, tmp_path, depth, rank) for depth in (1, 6)}
    largest = 192 * 32 * 8  # adaLN modulation, in float64
    assert extra[6] <= extra[1] * 1.1  # six blocks need no more than one
    assert max(extra.values()) <= 3 * largest  # the matrix and its factors


def test_no_matrix_is_read_before_the_last_one_is_gone(public, tmp_path, monkeypatch):
    path, handed = saved(public, tmp_path / "x.safetensors"), []
    read = checkpoint.SafetensorsWeights.read

    def watched(self, key):
        assert not [name for name, tensor in handed if tensor() is not None], key
        tensor = read(self, key)
        handed.append((key, weakref.ref(tensor)))
        return tensor

    monkeypatch.setattr(checkpoint.SafetensorsWeights, "read", watched)
    import_dense(path, NAMES)
    assert {key for key, _ in handed} == public.state_dict().keys()


def test_names_of_classes(public, tmp_path):
    path = saved(public, tmp_path / "x.safetensors")
    assert import_dense(path).pool.classes == ("0", "1", "2", "3", "4")
    pool = import_dense(path, ["x", "y"], dtype="float64").pool
    table = public.y_embedder.embedding_table.weight
    rows = [tailor.rows["y_embedder.embedding_table"][0] for tailor in pool.tailors]
    assert torch.equal(torch.stack(rows), table[:2])
    assert torch.equal(pool.learngene["y_embedder.embedding_table.null_row"], table[5])
    with pytest.raises(ValueError, match="6 classes were named; the label table has rows for 5"):
        import_dense(path, [*NAMES, "f"])
    with pytest.raises(ValueError, match="more than once"):
        import_dense(path, ["x", "x"])


def test_half_precision_is_read_as_float32(public, tmp_path):
    half = DiT.from_config(public.config)
    half.load_state_dict(public.state_dict())
    path = saved(torch.nn.Module.to(half, torch.float16), tmp_path / "x.safetensors")
    assert {value.dtype for value in import_dense(path, NAMES).pool.learngene.values()} == {torch.float32}


def test_bad_checkpoints_are_refused(public, transformer, tmp_path):
    good = {key: value.clone() for key, value in public.state_dict().items()}

    def refused(state, told, **options):
        save_file(state, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=told):
            import_dense(tmp_path / "bad.safetensors", **options)

    refused({"x": torch.zeros(1)}, "has not the keys of a public DiT")
    refused(
        {key: value for key, value in good.items() if key != "blocks.1.mlp.fc2.bias"}, "blocks.1.mlp.fc2.bias is miss"
    )
    refused({**good, "extra": torch.zeros(1)}, "extra is unexpected")
    refused({**good, "blocks.0.attn.proj.bias": torch.zeros(3)}, r"has shape \[3\], expected \[32\]")
    refused(
        {**good, "blocks.0.attn.proj.weight": torch.full((32, 32), torch.nan)}, "proj.weight has values that are not"
    )
    refused({**good, "blocks.0.attn.proj.bias": torch.full((32,), torch.inf)}, "proj.bias has values that are not")
    refused({**good, "y_embedder.embedding_table.weight": torch.zeros(1, 32)}, "null row last is needed")
    refused(good, "num_heads 5 does not divide", num_heads=5)
    refused(good, "learngene_rank 99 is more than", learngene_rank=99)
    refused(good, "tailor_rank must be at least 1", tailor_rank=0)
    refused(good, "dtype must be one of", dtype="bfloat16")
    refused(good, "schedule must be linear or cosine", schedule="square")
    refused(good, "time_frequencies must be one of", time_frequencies="mine")
    wide = DiT(input_size=8, hidden_size=40, depth=1, num_heads=4, num_classes=5)
    refused(wide.state_dict(), r"width 40, which no known DiT has: give the number of heads \(--num-heads\)")

    transformer.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="leave out num_heads"):
        import_dense(tmp_path / "folder", num_heads=2)
    with pytest.raises(ValueError, match="stays a DiTTransformer2DModel"):
        import_dense(tmp_path / "folder", time_frequencies="dit")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    for change, told in (
        ({"_class_name": "UNet2DModel"}, "holds a UNet2DModel"),
        ({"cross_attention_dim": 8}, "no DiT: cross_attention_dim"),
        ({"num_layers": 3}, "is missing"),
    ):
        (tmp_path / "folder" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=told):
            import_dense(tmp_path / "folder")


def test_a_path_that_is_known_nowhere_is_refused(make_pool, vae, tmp_path):
    export_diffusers(make_pool(torch.float32, in_channels=4), tmp_path / "stock", ["tench"], vae=vae)
    file = tmp_path / "stock" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "sample"}))
    with pytest.raises(ValueError, match="of no path that is known here"):
        import_dense(tmp_path / "stock")

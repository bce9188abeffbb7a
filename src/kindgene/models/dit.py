"""DiT, the diffusion transformer with adaLN-Zero, written from Peebles and Xie, arXiv 2212.09748.

Shapes: B batch, C channels, H height, W width, T tokens (row by row), D hidden size, p patch size. State-dict
keys are those of the public DiT checkpoints, which load as they are.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast, final

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from kindgene.models.blocks import (
    NORM_EPS,
    DiTBlock,
    FinalLayer,
    LabelEmbedder,
    PatchEmbedder,
    TimestepEmbedder,
    grid_positions,
)
from kindgene.models.low_rank import install_low_rank
from kindgene.models.presets import check_config, find_preset


@final
class DiT(ModelMixin, ConfigMixin):
    """A class-conditional diffusion transformer on C x H x H images or latents.

    `null_row` adds a row for the null label, id `num_classes`. `learn_sigma` doubles the output channels: the
    second half places the variance of each step between its two bounds. `schedule` and `prediction` do
    nothing here: they record what the output means, for the loss and the sampler. `low_rank` keeps some
    layers as thin pairs (see `low_rank.py`). `mlp_norm_eps` is 1e-6 in the public DiT and 1e-5 in the DiT folders
    that diffusers published. `weights_loaded` tells whether the weights came from somewhere or are freshly
    initialised.

    Raises ValueError, naming everything wrong, for a configuration that cannot be built.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DiTBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["DiTBlock"]

    @register_to_config
    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        null_row: bool = True,
        time_frequencies: Literal["dit", "diffusers"] = "dit",
        schedule: Literal["linear", "cosine"] = "linear",
        prediction: Literal["epsilon", "v"] = "epsilon",
        class_names: Sequence[str] | None = None,
        low_rank: Mapping[str, Sequence[int | None]] | None = None,
        mlp_norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        check_config(self.config)
        if class_names is not None:
            self.register_to_config(class_names=list(class_names))
        self.gradient_checkpointing = False
        self.weights_loaded = False
        self.register_load_state_dict_post_hook(_mark_loaded)

        self.x_embedder = PatchEmbedder(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size, time_frequencies)
        self.y_embedder = LabelEmbedder(num_classes + int(null_row), hidden_size)
        positions = grid_positions(hidden_size, input_size // patch_size)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads, mlp_ratio, mlp_norm_eps) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)

        self._initialize()
        if low_rank is not None:
            install_low_rank(self, low_rank)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The DiT of a row of `presets.PRESETS`, e.g. `"DiT-B/4"`; any keyword of `DiT` overrides the row.

        Raises ValueError for a name that is not in the table, a keyword DiT does not have, or values that do
        not fit.
        """
        preset = find_preset(name)
        _check_keywords(cls, overrides)
        return cast(Self, cls(**{**preset.config(), **overrides}))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers; ValueError for a configuration of another class or with a setting DiT lacks."""
        found = config.get("_class_name", cls.__name__)
        if found != cls.__name__:
            raise ValueError(f"this configuration is of a {found}, not of a {cls.__name__}")
        _check_keywords(cls, (key for key in config if not key.startswith("_")))
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a folder or Hub repository that `save_pretrained` wrote; keywords as in diffusers.

        Stricter than diffusers: safetensors alone is read, never a pickle, and a missing, unexpected or
        misshapen key is a ValueError (diffusers leaves such layers at random values). An absent or damaged
        file is an OSError.
        """
        strict = {"use_safetensors": True, "ignore_mismatched_sizes": False, "use_flashpack": False}
        for option, value in strict.items():
            if kwargs.get(option, value) is not value:
                raise ValueError(f"DiT.from_pretrained takes {option}={value} alone: weights are read strictly")
        want_info = kwargs.pop("output_loading_info", False)
        # Misshapen keys are let through here to be reported together with the others.
        lenient = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, **lenient})
        _check_loaded(pretrained_model_name_or_path, info)
        model.weights_loaded = True
        return (model, info) if want_info else model

    @property
    def num_classes(self) -> int:
        """The number of classes, the null label not counted."""
        return cast(int, self.config.num_classes)

    @property
    def null_class(self) -> int | None:
        """The id of the null label, or None where the model has no row for it."""
        return self.num_classes if self.config.null_row else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their ids, where they were given."""
        names = self.config.class_names
        return None if names is None else tuple(names)

    @property
    def out_channels(self) -> int:
        """C, or 2 C where sigma is learned."""
        return cast(int, self.config.in_channels) * (2 if self.config.learn_sigma else 1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Predict the noise (or v) in images x [B, C, H, W] at times t [B], for labels y [B].

        Returns [B, out_channels, H, W].

        Raises ValueError for images of another size than the model's.
        """
        self._check_images(x)

        # Embedding.
        c = self.t_embedder(t, x.dtype) + self.y_embedder(y)  # [B, D]
        x = self.x_embedder(x) + self.pos_embed  # [B, T, D]

        # Blocks.
        for block in self.blocks:
            x = self._run(block, x, c)  # [B, T, D]

        # Output.
        x = self.final_layer(x, c)  # [B, T, p p C]
        return self._unpatchify(x)  # [B, C, H, W]

    def _run(self, block: nn.Module, x_BTD: Tensor, c_BD: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, self._gradient_checkpointing_func(block, x_BTD, c_BD))
        return cast(Tensor, block(x_BTD, c_BD))

    def _unpatchify(self, x: Tensor) -> Tensor:
        patch, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        x = x.unflatten(2, (patch, patch, self.out_channels))  # [B, T, p, p, C]
        x = x.unflatten(1, (side, side)).permute(0, 5, 1, 3, 2, 4)  # [B, C, side, p, side, p]
        return x.flatten(4, 5).flatten(2, 3)  # [B, C, H, W]

    def _check_images(self, x_BCHW: Tensor) -> None:
        size = self.config.input_size
        if x_BCHW.ndim != 4 or x_BCHW.shape[1:] != (self.config.in_channels, size, size):
            expected = f"[B, {self.config.in_channels}, {size}, {size}]"
            raise ValueError(f"images have shape {list(x_BCHW.shape)}; this DiT reads {expected}")

    def _initialize(self) -> None:
        """As published: Xavier; 0.02 for labels and time; zero for every modulation and for the output."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        # The patch embedding is initialised as the matrix it is, not as a convolution.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(cast(Tensor, self.x_embedder.proj.bias))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for index in (0, 2):
            nn.init.normal_(self.t_embedder.mlp.get_parameter(f"{index}.weight"), std=0.02)
        for layer in (*self.blocks, self.final_layer):
            nn.init.zeros_(layer.get_parameter("adaLN_modulation.1.weight"))
        nn.init.zeros_(self.final_layer.linear.weight)


def _mark_loaded(module: DiT, incompatible_keys: object) -> None:
    module.weights_loaded = True


def _check_keywords(cls: type[DiT], keywords: Iterable[str]) -> None:
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    unknown = [key for key in keywords if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"DiT has no setting {', '.join(map(repr, unknown))}; it has {', '.join(known)}{hint}")


def _check_loaded(source: object, info: Mapping[str, Any]) -> None:
    """Raise ValueError unless every key was there, was known and fitted."""
    wrong = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    wrong += [f"{key} is unexpected" for key in sorted(info["unexpected_keys"])]
    wrong += [f"{key} has shape {list(a)}, expected {list(b)}" for key, a, b in sorted(info["mismatched_keys"])]
    wrong += list(info["error_msgs"])
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"the weights in {source} do not fit their config.json: {'; '.join(wrong[:5])}{more}")

"""The gated layers: a factorised linear layer and a table of label rows.

Shapes: B batch, T tokens (all dimensions between batch and features, flattened), I in, O out, N parts of a fused
matrix (q, k, v), G learngene components, K tailor components, M tailors a sample uses at once.

`KindLinear` is equation (3) of the method per sample i: y_i = U_G diag(s_G) V_G^T x_i + sum_m a_im U_m diag(s_m) V_m^T
x_i + b. A matrix that a model fuses (qkv) is N matrices, each with components of its own; their V share one product.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kindgene.core.components import Components, compose, truncate
from kindgene.core.gate import Gate, Selection
from kindgene.core.product import CHUNK, GatedProduct, Ranks

_HAS_TRITON = find_spec("triton") is not None
"""It comes with torch's builds for CUDA; importing it takes a while and is left to the first use."""


class KindLinear(nn.Module):
    """A linear layer kept as learngene components; the tailors' come from the bank, through the gate.

    `ranks` and `tailor_ranks` hold one number a part. Parameters: ``v`` [sum G, I], ``s`` [sum G], ``u`` [sum G, O/N]
    (parts one after the other) and ``bias`` [O]. In a recombined model the learngene of some parts may be kept as dense
    matrices (`keep_dense`): their rank is None and they are ``weight`` [dense parts * O/N, I].
    """

    ranks: tuple[int | None, ...]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ranks: Sequence[int],
        tailor_ranks: Sequence[int],
        *,
        bias: bool,
        gate: Gate,
        name: str,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.ranks, self.tailor_ranks = tuple(ranks), tuple(tailor_ranks)
        self.gate, self.name = gate, name
        total = sum(ranks)
        self.v = nn.Parameter(torch.zeros(total, in_features, device=device, dtype=dtype))
        self.s = nn.Parameter(torch.zeros(total, device=device, dtype=dtype))
        self.u = nn.Parameter(torch.zeros(total, self.part_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.weight: nn.Parameter | None
        self.register_parameter("weight", None)

    @property
    def parts(self) -> int:
        return len(self.ranks)

    @property
    def part_features(self) -> int:
        """Outputs of one part, O/N."""
        return self.out_features // self.parts

    @property
    def piece_shapes(self) -> dict[str, tuple[int, ...]]:
        """What one tailor holds for this layer, by piece name."""
        total = sum(self.tailor_ranks)
        shapes = {"v": (total, self.in_features), "u": (total, self.part_features), "s": (total,)}
        return {f"{self.name}.{factor}": shape for factor, shape in shapes.items()}

    @property
    def component_ranks(self) -> tuple[int, ...]:
        """Ranks of the parts whose learngene is kept as components: all of them, unless some were made dense."""
        return tuple(rank for rank in self.ranks if rank is not None)

    def learngene(self) -> list[Components]:
        """The learngene's components of each part that has them (views of the parameters)."""
        return split_parts(Components(self.u, self.s, self.v), self.component_ranks)

    @torch.no_grad()
    def keep_dense(self, parts: Collection[int]) -> None:
        """Turns the learngene of these parts into dense matrices: for static models, where that costs less."""
        assert None not in self.ranks, "some parts are dense already"
        dense, kept = [], []
        for index, components in enumerate(self.learngene()):
            if index in parts:
                dense.append(compose(components.to(torch.float64)).to(self.v.dtype))
            else:
                kept.append(components)
        self.ranks = tuple(None if index in parts else rank for index, rank in enumerate(self.ranks))
        left = join_parts(kept) if kept else Components(self.u[:0], self.s[:0], self.v[:0])
        for name, value in (*left._asdict().items(), ("weight", torch.cat(dense))):
            setattr(self, name, nn.Parameter(value.clone(), requires_grad=self.v.requires_grad))

    def tailor(self, pieces: dict[str, Tensor]) -> list[Components]:
        """A tailor's (or several tailors') components of each part, out of named pieces."""
        return split_parts(Components(*(pieces[f"{self.name}.{factor}"] for factor in "usv")), self.tailor_ranks)

    def forward(self, x: Tensor) -> Tensor:
        selection = self.gate.current(self.name)
        if x.shape[0] != selection.batch:
            raise ValueError(
                f"layer {self.name}: the leading dimension of its input is {x.shape[0]}, the gate was opened for a "
                f"batch of {selection.batch}; a layer that reshapes the batch away cannot be a target"
            )
        x_BTI = x.reshape(x.shape[0], -1, x.shape[-1])
        learngene, ranks = self._learngene(selection.share)
        if _takes_fused(x):
            compute = self._fused
        else:
            compute = self._kernels if _takes_kernels(x_BTI) and None not in ranks else self._composed
        return compute(x_BTI, selection, learngene, ranks).reshape(*x.shape[:-1], self.out_features)

    def _learngene(self, share: float) -> tuple[Components, tuple[int | None, ...]]:
        """The components that a forward uses, of all parts, and how many of each part (None: it is dense)."""
        if share == 1.0 or not self.component_ranks:
            return Components(self.u, self.s, self.v), self.ranks
        parts = [truncate(part, math.ceil(share * part.rank)) for part in self.learngene()]
        kept = iter(parts)
        return join_parts(parts), tuple(None if rank is None else next(kept).rank for rank in self.ranks)

    def _fused(
        self, x_BTI: Tensor, selection: Selection, learngene: Components, ranks: tuple[int | None, ...]
    ) -> Tensor:
        """The product on a CPU, by hand-written kernels."""
        v, s, u = (selection.tailors[f"{self.name}.{factor}"] for factor in "vsu")
        y_BTO: Tensor = GatedProduct.apply(
            *(x_BTI, learngene.v, learngene.s, learngene.u, self.weight, self.bias, v, s, u),
            *(selection.weight, selection.tailor_index.flatten(), Ranks(ranks, self.tailor_ranks)),
        )
        return y_BTO

    def _kernels(
        self, x_BTI: Tensor, selection: Selection, learngene: Components, ranks: tuple[int | None, ...]
    ) -> Tensor:
        """The product on a GPU, by Triton kernels."""
        from kindgene.core.product_triton import gated_product

        v, s, u = (selection.tailors[f"{self.name}.{factor}"] for factor in "vsu")
        return gated_product(
            *(x_BTI, learngene.v, learngene.s, learngene.u, self.bias, v, s, u, selection.weight),
            *(selection.tailor_index, tuple(rank or 0 for rank in ranks), self.tailor_ranks),
        )

    def _composed(
        self, x_BTI: Tensor, selection: Selection, learngene: Components, ranks: tuple[int | None, ...]
    ) -> Tensor:
        """The same composed of torch's own operations, for compilers, exporters and other devices."""
        outputs = self._learngene_product(x_BTI, learngene, ranks)
        outputs = self._add_tailors(outputs, x_BTI, selection)
        return outputs[0] if self.parts == 1 else torch.cat(outputs, dim=-1)

    def _learngene_product(self, x_BTI: Tensor, learngene: Components, ranks: tuple[int | None, ...]) -> list[Tensor]:
        """Each part's (x V_G) diag(s_G) U_G^T + b, [B, T, O/N]."""
        batch, tokens, _ = x_BTI.shape
        x_XI = x_BTI.reshape(batch * tokens, -1)
        biases = [None] * self.parts if self.bias is None else self.bias.chunk(self.parts)
        outputs = []
        for (left, right), bias in zip(self._learngene_factors(x_XI, learngene, ranks), biases, strict=True):
            y = left @ right if bias is None else torch.addmm(bias, left, right)
            outputs.append(y.view(batch, tokens, -1))
        return outputs

    def _learngene_factors(
        self, x_XI: Tensor, learngene: Components, ranks: tuple[int | None, ...]
    ) -> list[tuple[Tensor, Tensor]]:
        """Each part's last product: x V_G diag(s_G) [X, G] and U_G^T [G, O/N]; of a dense part x [X, I] and W^T."""
        factors: list[tuple[Tensor, Tensor]] = []
        thin_ranks = [rank for rank in ranks if rank is not None]
        if thin_ranks:
            u, s, v = learngene
            h_XG = (x_XI @ v.mT) * s
            factors = list(zip(h_XG.split(thin_ranks, dim=1), u.split(thin_ranks), strict=True))
        if self.weight is not None:
            dense = iter(self.weight.split(self.part_features))
            thin = iter(factors)
            factors = [(x_XI, next(dense).mT) if rank is None else next(thin) for rank in ranks]
        return factors

    def _add_tailors(self, outputs: list[Tensor], x_BTI: Tensor, selection: Selection) -> list[Tensor]:
        """Adds each sample's own (x V_c) diag(a s_c) U_c^T to each part's output, CHUNK components at a time."""
        batch, tokens, _ = x_BTI.shape
        index = selection.tailor_index.flatten()
        most = selection.tailor_index.shape[1]
        own = {factor: selection.tailors[f"{self.name}.{factor}"].index_select(0, index) for factor in "vus"}
        for v, u, s in zip(
            self._chunks(own["v"]), self._chunks(own["u"]), self._chunks(own["s"].unsqueeze(-1)), strict=True
        ):
            scale_BMNK = s.view(batch, most, self.parts, CHUNK) * selection.weight[:, :, None, None]
            h = torch.bmm(x_BTI, v.view(batch, -1, self.in_features).mT)  # [B, T, M*N*K]
            h_BTMNK = h.view(batch, tokens, *scale_BMNK.shape[1:]) * scale_BMNK.unsqueeze(1)
            u_BMNKO = u.view(*scale_BMNK.shape, self.part_features)
            for y, h_BTMK, u_BMKO in zip(outputs, h_BTMNK.unbind(3), u_BMNKO.unbind(2), strict=True):
                left = h_BTMK.reshape(batch, tokens, -1).to(y.dtype)
                y.baddbmm_(left, u_BMKO.reshape(batch, -1, self.part_features).to(y.dtype))
        return outputs

    def _chunks(self, pieces: Tensor) -> list[Tensor]:
        """Pieces [X, sum K, F] as contiguous [X, N, CHUNK, F], every part's K zero-padded to whole chunks.

        All products have the same shape whatever K is, so a tailor padded with zero components gives the same bits:
        the order in which a matrix product sums depends on its shape.
        """
        most = max(self.tailor_ranks)
        if set(self.tailor_ranks) == {most}:
            wide = pieces.unflatten(1, (self.parts, most))
        else:
            parts = pieces.split(self.tailor_ranks, dim=1)
            wide = torch.stack([F.pad(part, (0, 0, 0, most - part.shape[1])) for part in parts], dim=1)
        if most % CHUNK:
            wide = F.pad(wide, (0, 0, 0, CHUNK - most % CHUNK))
        return [chunk.contiguous() for chunk in wide.split(CHUNK, dim=2)]

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, learngene={list(self.ranks)}, tailor={list(self.tailor_ranks)}, "
            f"bias={self.bias is not None}"
        )


def _takes_fused(x: Tensor) -> bool:
    """Whether the hand-written product is for this input: on a CPU, with nothing looking into the operations."""
    looked_into = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return x.device.type == "cpu" and not looked_into


def _takes_kernels(x_BTI: Tensor) -> bool:
    """Whether Triton's kernels are for this input: on a CUDA device, unless a transform or an export looks into it."""
    if x_BTI.device.type != "cuda" or not _HAS_TRITON:
        return False
    if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return False
    from kindgene.core.product_triton import takes

    return takes(x_BTI)


class ClassRows(nn.Module):
    """A label table behind the gate: sum_m a_m row_m where any weight is not 0, else the shared null row [D].

    It stands where the model had an ``nn.Embedding``; the ids that the model passes are not used, the gate's are.
    """

    def __init__(self, features: int, *, gate: Gate, name: str, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.gate, self.name, self.features = gate, name, features
        self.null_row = nn.Parameter(torch.zeros(features, dtype=dtype))

    @property
    def piece_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self.name: (self.features,)}

    def forward(self, ids: Tensor) -> Tensor:
        selection = self.gate.current(self.name)
        index_BM = selection.label_index
        rows = selection.labels[self.name].index_select(0, index_BM.flatten())
        row_BD = (rows.view(*index_BM.shape, -1) * selection.weight.unsqueeze(-1)).sum(1)
        return torch.where((selection.weight != 0).any(1, keepdim=True), row_BD, self.null_row)

    def extra_repr(self) -> str:
        return f"{self.features}"


def split_parts(components: Components, ranks: Sequence[int]) -> list[Components]:
    """Cuts components of a fused matrix into those of its parts."""
    u, s, v = components
    return [
        Components(*piece)
        for piece in zip(
            u.split(list(ranks), dim=-2), s.split(list(ranks), dim=-1), v.split(list(ranks), dim=-2), strict=True
        )
    ]


def join_parts(parts: Sequence[Components]) -> Components:
    """The inverse of `split_parts`."""
    us, ss, vs = zip(*parts, strict=True)
    return Components(torch.cat(us, -2), torch.cat(ss, -1), torch.cat(vs, -2))

"""What ``"paper"`` and ``"paper+adaln"`` mean for the backbones we know: module names, as data.

KIND and DivControl decompose q, k, v, o of attention and in, out of the MLP; adaLN modulation is ours (DESIGN
section 3). A backbone that is not here is given patterns instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TargetNames:
    """Module name patterns of one backbone: the paper's six matrices, adaLN, what is fused, label tables, labels."""

    paper: tuple[str, ...]
    adaln: tuple[str, ...] = ()
    fused: Mapping[str, int] = field(default_factory=dict)
    class_rows: tuple[str, ...] = ()
    label_argument: str = ""


BACKBONES: Mapping[str, TargetNames] = {
    "DiT": TargetNames(
        paper=("blocks.*.attn.qkv", "blocks.*.attn.proj", "blocks.*.mlp.fc1", "blocks.*.mlp.fc2"),
        adaln=("blocks.*.adaLN_modulation.1",),
        fused={"blocks.*.attn.qkv": 3},
        class_rows=("y_embedder.embedding_table",),
        label_argument="y",
    ),
    "DiTTransformer2DModel": TargetNames(
        paper=(
            "transformer_blocks.*.attn1.to_[qkv]",
            "transformer_blocks.*.attn1.to_out.0",
            "transformer_blocks.*.ff.net.0.proj",
            "transformer_blocks.*.ff.net.2",
        ),
        adaln=("transformer_blocks.*.norm1.linear",),
        class_rows=("transformer_blocks.*.norm1.emb.class_embedder.embedding_table",),
        label_argument="class_labels",
    ),
    "ViTModel": TargetNames(
        paper=(
            "*.attention.*q_proj",
            "*.attention.*k_proj",
            "*.attention.*v_proj",
            "*.attention.*o_proj",
            "*.mlp.fc1",
            "*.mlp.fc2",
        ),
    ),
}

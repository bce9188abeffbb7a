"""A pool's README.md: a model card written from the pool's own record. Only what is recorded is said."""

from __future__ import annotations

import json

from kindgene.core.pieces import State
from kindgene.pool.backbones import TABLE
from kindgene.pool.config import PoolConfig


def model_card(config: PoolConfig, learngene: State) -> str:
    """Markdown with the front matter that the Hugging Face Hub reads."""
    shared = sum(value.numel() for value in learngene.values())
    of_ranks = {str(entry.tailor_ranks): name for name, entry in config.classes.items()}  # few, of however many classes
    per_class = sorted({_tailor_size(config, learngene, name) for name in of_ranks.values()})
    size = " to ".join(f"{value:,}" for value in (per_class[:1] + per_class[-1:] if len(per_class) > 1 else per_class))
    shown = [json.dumps(name, ensure_ascii=False) for name in list(config.classes)[:50]]
    more = f", and {len(config.classes) - 50:,} more" if len(config.classes) > 50 else ""
    first = json.dumps(next(iter(config.classes), "a class"), ensure_ascii=False)
    rebuilt = "" if config.backbone in TABLE else ", backbone=module"
    sampling = f"\nimages = sample(model, classes=[{first}] * 16)" if config.backbone == "DiT" else ""
    record = json.dumps(config.provenance, indent=2, ensure_ascii=False, sort_keys=True)
    return f"""---
library_name: kindgene
tags: [kindgene, kind, decomposable, learngene, {config.backbone}]
---

# A kindgene pool

A {config.backbone} whose target matrices are kept as rank-1 components, taken apart into a **learngene** (what all
classes share) and **tailors** (what belongs to a class; KIND, ICML 2025). Weights: {config.weights}.

- Learngene: {shared:,} parameters, id `{config.learngene_id[:16]}`.
- Tailors: {len(config.classes):,} classes, {size or "0"} parameters each (label row included).
- Classes: {", ".join(shown)}{more}.

```python
from kindgene import Pool{", sample" if sampling else ""}

pool = Pool.from_pretrained("path/to/this/folder", classes=[{first}])  # or, on the Hub, this repository's name
model = pool.recombine(classes=[{first}]{rebuilt}){sampling}
```

Removing a class deletes its tailor; what the learngene learned from that class's data stays in it. A repository on the
Hub keeps its history, and in it every tailor that was ever pushed.

## Record

```json
{record}
```
"""


def _tailor_size(config: PoolConfig, learngene: State, name: str) -> int:
    """Numbers of one class's tailor: its components in every target, and its label rows."""
    total = sum(learngene[f"{table}.null_row"].numel() for table in config.label_tables)
    for target, ranks in config.tailor_ranks_of(name).items():
        width = learngene[f"{target}.u"].shape[1] + learngene[f"{target}.v"].shape[1] + 1
        total += sum(ranks) * width
    return total

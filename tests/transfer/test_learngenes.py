"""Heur-LG and Auto-LG on DiT: which blocks are inherited, and that nothing else is."""

import pytest
import torch

from kindgene.transfer.learngenes import (
    automatic_learngene,
    change_asked_for,
    heuristic_learngene,
    least_changed,
    usual_blocks,
)

NEW = ("6", "7", "8")


def inherited(model, dense):
    """Blocks that are the pre-trained ones; nothing outside the blocks may be."""
    found = {
        index
        for index, block in enumerate(model.blocks)
        if all(torch.equal(value, dense.blocks[index].state_dict()[key]) for key, value in block.state_dict().items())
    }
    theirs = dict(dense.named_parameters())
    for name, value in model.named_parameters():
        if not name.startswith(("blocks.", "pos_embed", "y_embedder")):
            assert not torch.equal(value, theirs[name]), name
    return found


def asks_of(*blocks):
    """A loss that has to do with these blocks only."""
    return lambda model: sum(value.square().sum() for block in blocks for value in model.blocks[block].parameters())


def test_heur_lg_takes_the_last_blocks(make_dense):
    dense = make_dense(depth=3)
    assert usual_blocks(dense) == 2
    assert inherited(heuristic_learngene(dense, NEW).model, dense) == {1, 2}
    assert inherited(heuristic_learngene(dense, NEW, 1).model, dense) == {2}


def test_auto_lg_takes_what_the_data_asks_to_change_least(make_dense):
    dense = make_dense(depth=3)
    assert [value > 0 for value in change_asked_for(dense, NEW, asks_of(1, 2))] == [False, True, True]
    assert inherited(automatic_learngene(dense, NEW, asks_of(1, 2), 1).model, dense) == {0}
    assert inherited(automatic_learngene(dense, NEW, asks_of(1)).model, dense) == {0, 2}
    assert all(value.grad is None for value in dense.parameters())


def test_the_measure_is_a_share_of_the_weights(make_dense):
    """|gradient| / |weights|: of the squared norm, 2 for every block, whatever its size."""
    dense = make_dense()
    with torch.no_grad():
        for value in dense.blocks[1].parameters():
            value.mul_(7)
    assert change_asked_for(dense, NEW, asks_of(0, 1)) == pytest.approx([2, 2])


def test_of_equals_the_later():
    assert least_changed([3, 1, 2, 1], 2) == [1, 3]
    assert least_changed([1, 1, 1], 1) == [2]


@pytest.mark.parametrize("blocks", [0, 3, True, 1.0])
def test_refusals(start, blocks):
    with pytest.raises(ValueError, match="1 to 2 of them here"):
        heuristic_learngene(start.dense, NEW, blocks)
    with pytest.raises(ValueError, match="1 to 2 of them here"):
        automatic_learngene(start.dense, NEW, asks_of(0), blocks)

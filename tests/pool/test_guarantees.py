"""Guarantees 3 (through a pool), 4, 5 and 6 of DESIGN section 5, for every backbone of the table in every dtype.

The table is `TABLE` in conftest.py: a backbone that gets a row there gets all of this.
"""

import pytest
import torch

from kindgene.pool.pool import Pool

NULL = 5
ALL = [0, 1, 2, 3, 4, NULL]


def pieces(pool, name):
    """The bytes of every component and label row of a class that are long enough to be searched for."""
    tailor = next(tailor for tailor in pool.tailors if name in tailor.classes)
    tensors = [row for key, value in tailor.components.items() for row in (value if key[-1] != "s" else value[None])]
    every = [bytes(row.contiguous().view(torch.uint8).numpy()) for row in tensors]
    rows = [bytes(row.contiguous().view(torch.uint8).numpy()) for row in tailor.row_of(name).values()]
    assert min(map(len, every + rows)) >= 8
    return every, rows


def train(case, model, steps=2):
    """A few steps of plain gradient descent on whatever of a model is trainable."""
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        case.run(model, [0, 1, 0, 1, 0, model.null_class]).float().pow(2).mean().backward()
        optimizer.step()


def test_the_models_of_the_table_tell_classes_apart(case):
    model = case.model()
    outputs = [case.reference(model, [label] * 6) for label in (0, 1, NULL)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (outputs[first] - outputs[second]).norm() > 5 * case.bound * outputs[first].norm()


@pytest.mark.parametrize("gate_map", [None, [0, 1, 0, 2, 1]], ids=["own", "shared"])
def test_a_pool_on_disk_gives_the_model_back(case, names, tmp_path, gate_map):
    model = case.model(gate_map=gate_map)
    folder = model.decompose(names).save_pretrained(tmp_path / "pool")
    back = Pool.from_pretrained(folder).to_model()
    with torch.no_grad():
        found = case.run(back, ALL)
    assert found.dtype == case.dtype
    case.check(found, case.reference(model, ALL))
    assert back.class_names == names
    assert back.kind.tailor_of == model.kind.tailor_of


@pytest.mark.parametrize(("gate_map", "asked"), [(None, [3, 0]), ([0, 1, 0, 2, 1], [2, 0, 1])], ids=["own", "shared"])
def test_recombined_models_give_what_the_full_model_gives(case, names, tmp_path, gate_map, asked):
    model = case.model(gate_map=gate_map)
    folder = model.decompose(names).save_pretrained(tmp_path / "pool")
    chosen = [names[label] for label in asked]
    pool = Pool.from_pretrained(folder, classes=chosen)
    gated = pool.recombine(chosen)
    assert gated.class_names == tuple(chosen)
    ids = [*range(len(asked)), gated.null_class, *range(len(asked))][:6]
    ids += [gated.null_class] * (6 - len(ids))
    labels = [NULL if index == gated.null_class else asked[index] for index in ids]
    with torch.no_grad():
        case.check(case.run(gated, ids), case.reference(model, labels))
        for label in asked:
            merged = pool.recombine([names[label]], form="merged")
            case.check(case.run(merged, [0] * 6), case.reference(model, [label] * 6))


def test_a_merged_model_has_nothing_of_the_method_in_it(case, names):
    merged = case.model().decompose(names).recombine(names[:1], form="merged")
    homes = {type(module).__module__ for module in merged.modules()}
    assert not {home for home in homes if home.startswith(("kindgene.core", "kindgene.pool", "kindgene.training"))}
    assert {value.dtype for value in merged.parameters()} == {case.dtype}


def test_tailors_of_different_rank_share_a_pool(case, names, tmp_path, scatter):
    model = case.model()
    pool = model.decompose(names)
    folder = pool.save_pretrained(tmp_path / "pool")
    wide = scatter(pool.transfer(["wide", "broad"], tailor_rank=9))
    pool.add(wide)
    reopened = Pool.from_pretrained(folder, classes=["wide", names[1]])
    gated = reopened.recombine(["wide", names[1]])
    with torch.no_grad():
        found = case.run(gated, [0, 1, 2, 0, 1, 2])
        merged = case.run(reopened.recombine(["wide"], form="merged"), [0] * 6)
    old = case.reference(model, [NULL, 1, NULL, NULL, 1, NULL])
    new = case.reference(wide, [0, 2, 2, 0, 2, 2])
    case.check(found[1::3], old[1::3])
    case.check(found[0::3], new[0::3])
    case.check(found[2::3], old[2::3])
    case.check(merged, case.reference(wide, [0] * 6))


@pytest.mark.parametrize("rank", [4, 9])
def test_classes_that_come_and_go_move_no_bit_of_the_others(case, names, tmp_path, rank):
    with torch.no_grad():
        pool = case.model().decompose(names)
        folder = pool.save_pretrained(tmp_path / "pool")
        full = case.run(pool.to_model(), ALL)
        some = case.run(pool.recombine(names[1:4]), [0, 1, 2, 3, 2, 1])
    fresh = pool.transfer(["new", "newer"], tailor_rank=rank, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        null, first = case.run(fresh, [2] * 6), case.run(fresh, [0] * 6)
    train(case, fresh)
    with torch.no_grad():
        assert torch.equal(case.run(fresh, [2] * 6), null)
        assert not torch.equal(case.run(fresh, [0] * 6), first)
        pool.add(fresh)
        for grown in (pool, Pool.from_pretrained(folder)):
            assert grown.classes == (*names, "new", "newer")
            assert torch.equal(case.run(grown.to_model(), [0, 1, 2, 3, 4, 7]), full)
            assert torch.equal(case.run(grown.recombine(names[1:4]), [0, 1, 2, 3, 2, 1]), some)
            mixed = grown.recombine(["newer", *names[1:4]])
            assert torch.equal(case.run(mixed, [1, 2, 3, 4, 3, 2]), some)
        pool.remove([names[0], "new"])
        for shrunk in (pool, Pool.from_pretrained(folder)):
            assert shrunk.classes == (*names[1:], "newer")
            assert torch.equal(case.run(shrunk.to_model(), [4, 0, 1, 2, 3, 5])[1:], full[1:])
            assert torch.equal(case.run(shrunk.recombine(names[1:4]), [0, 1, 2, 3, 2, 1]), some)


def test_new_tailors_touch_no_file_but_their_own(case, names, tmp_path, content, scatter):
    pool = case.model().decompose(names)
    folder = pool.save_pretrained(tmp_path / "pool")
    before = content(folder)
    pool.add(scatter(pool.transfer(["new"])))
    after = content(folder)
    changed = {path for path in before if after.get(path) != before[path]}
    assert changed == {"config.json", "README.md"}
    assert after.keys() - before.keys() == {pool.config.classes["new"].file}
    pool.remove(["new"])
    assert {path: data for path, data in content(folder).items() if path != "config.json"} == {
        path: data for path, data in before.items() if path != "config.json"
    }


def test_a_removed_class_leaves_no_byte(case, tmp_path, content):
    names = ["cat", "zébra 'quoted'", "dog", "emu", "fox"]
    pool = case.model().decompose(names)
    folder = pool.save_pretrained(tmp_path / "pool")
    gone = names[1]
    components, rows = pieces(pool, gone)
    entry = pool.config.classes[gone]
    signs = [*components, *rows, gone.encode(), b"zebra", entry.sha256[:16].encode()]

    def found(sign):
        return any(sign in data or sign in path.encode() for path, data in content(folder).items())

    assert all(found(sign) for sign in signs)
    pool.remove([gone])
    assert not [sign for sign in signs if found(sign)]
    assert Pool.from_pretrained(folder).classes == ("cat", "dog", "emu", "fox")


def test_a_shared_tailor_goes_with_the_last_of_its_classes(case, names, tmp_path, content):
    model = case.model(gate_map=[0, 1, 0, 2, 1])
    folder = model.decompose(names).save_pretrained(tmp_path / "pool")
    pool = Pool.from_pretrained(folder, classes=[names[0]])
    components, rows = pieces(pool, names[0])
    _, other_rows = pieces(pool, names[2])
    old_file = folder / pool.config.classes[names[0]].file
    with torch.no_grad():
        before = case.run(pool.recombine([names[2]]), [0, 1, 0, 1, 0, 1])

    def everything():
        return b"".join(content(folder).values())

    pool.remove([names[0]])
    assert not old_file.exists()
    assert not [row for row in rows if row in everything()]
    assert all(sign in everything() for sign in [*components, *other_rows])
    for left in (pool, Pool.from_pretrained(folder, classes=[names[2]])):
        with torch.no_grad():
            assert torch.equal(case.run(left.recombine([names[2]]), [0, 1, 0, 1, 0, 1]), before)
    pool.remove([names[2]])
    assert not [sign for sign in [*components, *other_rows] if sign in everything()]
    assert Pool.from_pretrained(folder).classes == (names[1], names[3], names[4])

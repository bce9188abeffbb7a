"""Guarantee 10: nothing on disk is ever half-written, whatever fails and whoever is killed, and nothing is lost.

The crashes happen in one program that forks: `CRASHES` runs once and reports what it found after each of them.
"""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kindgene.pool import folder
from kindgene.pool.pool import Pool

CRASHES = '''
import errno, io, itertools, json, os, random, signal, sys, tempfile, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from kindgene.pool.pool import Pool

os.fsync = lambda handle: None  # the system keeps what a killed process wrote; flushes cost most of the time
folder = Path(sys.argv[1])
old = Pool.from_pretrained(folder).classes
fresh = {name: Pool.from_pretrained(folder).transfer([name]) for name in ("new", "newer", "left", "right")}
other = Pool.from_pretrained(folder, learngene_only=True)  # what is merged: two classes at once
other.path = None
for name in ("new", "newer"):
    other.add(fresh[name])
gained = {"add": ["new"], "merge": ["new", "newer"], "remove": ["new"]}


def forked(work):
    """Runs work() in a child. Exit status 3: refused with a ValueError."""
    child = os.fork()
    if child:
        return child
    status = 4
    try:
        work()
        status = 0
    except ValueError as error:
        status = 3 if "changed since it was opened" in str(error) else 5
    finally:
        os._exit(status)


def ended(child):
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def names():
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")


def state():
    """What can be opened now, and which files are there; then the old classes again, verified after each write."""
    try:
        opened = Pool.from_pretrained(folder)
        found = {"classes": opened.classes, "files": names()}
        if opened.classes == old:
            opened.add(fresh["new"])
            opened.verify()
        opened.remove([name for name in opened.classes if name not in old])
        opened.verify()
    except Exception as error:
        return {"error": repr(error)}
    return {**found, "swept": names()}


def killed_at(call):
    """Makes this process kill itself at its call-th low-level step; a write that is cut short has written half."""
    steps = itertools.count(1)

    def step():
        if next(steps) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def guarded(real):
        def wrapper(*args, **kwargs):
            step()
            return real(*args, **kwargs)

        return wrapper

    class File(io.FileIO):
        def write(self, data):
            half = len(data) // 2
            super().write(bytes(data)[:half])
            step()
            return half + super().write(bytes(data)[half:])

    real_open = Path.open

    def opened(path, mode="r", *args, **kwargs):
        if "w" in mode:
            return io.BufferedWriter(File(path, mode.replace("b", "")))
        return real_open(path, mode, *args, **kwargs)

    Path.open = opened
    owners = (os, "fsync"), (Path, "replace"), (Path, "mkdir"), (Path, "unlink"), (Path, "rmdir"), (tempfile, "mkstemp")
    for owner, name in owners:
        setattr(owner, name, guarded(getattr(owner, name)))


def change(verb, pool):
    if verb == "add":
        pool.add(fresh["new"])
    elif verb == "merge":
        pool.merge(other, gained[verb])
    else:
        pool.remove(["new"])


report = {"before": names(), "old": old, "steps": {}, "random": [], "races": []}

for verb in gained:
    found = report["steps"][verb] = []
    for call in itertools.count(1):
        if verb == "remove":
            Pool.from_pretrained(folder).add(fresh["new"])
        how = ended(forked(lambda: (killed_at(call), change(verb, Pool.from_pretrained(folder)))))
        found.append({"ended": how, **state()})
        if how != -signal.SIGKILL:
            break

choose = random.Random(0)
for verb in ["add", "merge"] * 25:
    def loop():
        pool = Pool.from_pretrained(folder)
        for turn in itertools.count():
            change(verb, pool)
            pool.remove(gained[verb])
            if turn == 0:
                os.write(ready[1], b"x")

    ready = os.pipe()
    child = forked(loop)
    os.read(ready[0], 1)
    time.sleep(choose.uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    report["random"].append({"verb": verb, "ended": ended(child), **state()})

for race in range(8):
    def adds(name):
        pool = Pool.from_pretrained(folder)
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        pool.add(fresh[name])

    ready, go = os.pipe(), os.pipe()
    children = [forked(lambda: adds("left")), forked(lambda: adds("right"))]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b"xx")
    ends = [ended(child) for child in children]
    after = Pool.from_pretrained(folder)
    after.verify()
    added = sorted(set(after.classes) - set(old))
    report["races"].append({"ends": ends, "added": added, "files": names()})
    after.remove(added)

report["after"] = names()
Path(sys.argv[2]).write_text(json.dumps(report))
'''


@pytest.fixture(scope="module")
def crashes(saved, tmp_path_factory):
    """What `CRASHES` found."""
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked here")
    place = tmp_path_factory.mktemp("crashes")
    path = Pool.from_pretrained(saved).save_pretrained(place / "pool")
    command = [sys.executable, "-c", CRASHES, str(path), str(place / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "report.json").read_text())


def check_survived(crashes, found, verb):
    """The pool opened, with the old classes or all the new ones; after the next write it was whole, and swept."""
    assert found.get("error") is None
    gained = ["new", "newer"] if verb == "merge" else ["new"]
    assert found["classes"] in (crashes["old"], [*crashes["old"], *gained])
    assert found["swept"] == crashes["before"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["add", "merge", "remove"])
def test_a_process_killed_at_any_step_leaves_the_old_pool_or_the_new_one(crashes, verb):
    *killed, last = crashes["steps"][verb]
    assert len(killed) > 10
    assert {found["ended"] for found in killed} == {-9}
    assert last["ended"] == 0
    for found in [*killed, last]:
        check_survived(crashes, found, verb)
    order = [("new" in found["classes"]) == (verb != "remove") for found in [*killed, last]]
    assert order == sorted(order)  # not done, not done, ..., done, done: there is one commit point
    assert any(".tmp-" in file for found in killed for file in found["files"])
    assert any(len(found["files"]) > len(crashes["before"]) for found in killed if found["classes"] == crashes["old"])


@pytest.mark.slow
def test_a_process_killed_at_a_random_moment_leaves_a_whole_pool(crashes):
    """While it adds and removes, or merges and removes."""
    assert len(crashes["random"]) == 50
    for found in crashes["random"]:
        assert found["ended"] == -9
        check_survived(crashes, found, found["verb"])


@pytest.mark.slow
def test_two_processes_that_add_at_the_same_time_both_land(crashes):
    assert len(crashes["races"]) == 8
    for race in crashes["races"]:
        assert race["ends"] == [0, 0]
        assert race["added"] == ["left", "right"]
        tailors = [file for file in race["files"] if file.endswith(".safetensors") and file.startswith("tailors")]
        assert len(tailors) == len(crashes["old"]) + 2
    assert crashes["after"] == crashes["before"]


# A full disk.


def is_full(act, *args):
    """Whether act(*args) failed because the disk was full."""
    try:
        act(*args)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_save_that_fails_leaves_nothing_or_a_whole_pool(saved, tmp_path, full_disk, lasting, content):
    pool, expected = Pool.from_pretrained(saved), content(saved)
    kinds = set()
    for call in range(1, 1000):
        path = tmp_path / str(call) / "pool"
        path.parent.mkdir()
        if call % 2:
            path.mkdir()  # an empty folder that was there stays there
        with full_disk(call, lasting) as hits:
            assert is_full(pool.save_pretrained, path) == bool(hits)
        if not hits:
            break
        kinds.add(hits[0])
        if (path / "config.json").exists():
            assert content(path) == expected
            Pool.from_pretrained(path)
        else:
            assert content(path.parent) == {}
            assert path.exists() == bool(call % 2)
            assert pool.save_pretrained(path) == path
            assert content(path) == expected
    assert call > 25
    assert kinds == {"fsync", "replace", "mkdir", "mkstemp", "write"}


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("verb", ["add", "remove"])
def test_a_change_that_fails_leaves_the_old_pool_or_the_new_one(
    pool_folder, full_disk, lasting, verb, content, scatter, names
):
    fresh = scatter(Pool.from_pretrained(pool_folder).transfer(["new"]))
    old = content(pool_folder)
    before, after = (names, (*names, "new")) if verb == "add" else ((*names, "new"), names)

    def act(pool):
        pool.add(fresh) if verb == "add" else pool.remove(["new"])

    def undo():
        pool = Pool.from_pretrained(pool_folder)
        if pool.classes == after:
            pool.remove(["new"]) if verb == "add" else pool.add(fresh)

    if verb == "remove":
        Pool.from_pretrained(pool_folder).add(fresh)
    commits = []
    for call in range(1, 1000):
        pool, start = Pool.from_pretrained(pool_folder), content(pool_folder)
        assert pool.classes == before
        with full_disk(call, lasting) as hits:
            assert is_full(act, pool) == bool(hits)  # no error is swallowed
        if not hits:
            break
        found = Pool.from_pretrained(pool_folder)
        commits.append(found.classes == after)
        if found.classes == before:
            assert content(pool_folder) == start
            assert pool.classes == before
            act(pool)  # there is space again
        elif pool.classes == before:  # done, but whether it will outlast a power cut is not known
            with pytest.raises(ValueError, match=r"changed since it was opened|has 'new' already"):
                act(pool)
        assert Pool.from_pretrained(pool_folder).classes == after
        undo()
        assert content(pool_folder).keys() == start.keys()
        assert content(pool_folder)["README.md"] == start["README.md"]
    assert len(commits) > 5
    assert commits == sorted(commits)
    assert not all(commits)
    assert any(commits)
    if verb == "add":
        undo()
        assert content(pool_folder).keys() == old.keys()


# What is written when.


def test_leftovers_are_swept_at_the_next_write_and_nothing_else_is(pool_folder, content):
    before = content(pool_folder)
    (pool_folder / "tailors" / "ff").mkdir(exist_ok=True)
    leftovers = [
        ".tmp-a.part",
        ".tmpaB3x9Z",
        "tailors/ff/.tmp-b.part",
        "tailors/ff/.tmpQ2w4E6",
        "tailors/ff/gone-0123456789abcdef.safetensors",
        "tailors/stray.safetensors",
    ]
    kept = {"notes.txt": b"mine", ".tmpfiles": b"mine", "samples/cat.png": b"mine", ".gitattributes": b"mine"}
    (pool_folder / "samples").mkdir()
    for name, data in {**dict.fromkeys(leftovers, b"half"), **kept}.items():
        (pool_folder / name).write_bytes(data)
    pool = Pool.from_pretrained(pool_folder)
    assert content(pool_folder).keys() == {*before, *leftovers, *kept}
    file = pool.config.classes["cat"].file
    pool.remove(["cat"])
    after = content(pool_folder)
    assert after.keys() == {*before, *kept} - {file}
    assert {name: after[name] for name in kept} == kept
    assert not (pool_folder / "tailors" / "ff").exists() or any((pool_folder / "tailors" / "ff").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be flushed there")
def test_all_that_a_config_refers_to_is_on_the_disk_before_it(pool_folder, monkeypatch, tmp_path):
    """A flushed file outlasts a power cut only if its name, and its folder's name, are flushed too."""
    events = []
    sync, replace = os.fsync, Path.replace

    def recorded_sync(handle):
        events.append(("flushed", os.fstat(handle).st_ino))
        sync(handle)

    def recorded_replace(path, target):
        events.append(("named", str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    pool = Pool.from_pretrained(pool_folder)
    writes = [
        (pool_folder, lambda: pool.add(pool.transfer(["new"])), ["new"]),
        (tmp_path / "saved", lambda: pool.save_pretrained(tmp_path / "saved"), pool.classes),
    ]
    for root, write, names in writes:
        events.clear()
        write()
        committed = events.index(("named", str(root / "config.json")))
        assert ("flushed", root.stat().st_ino) in events[committed:]
        for name in names:
            path = root / pool.config.classes[name].file
            named = events.index(("named", str(path)))
            assert ("flushed", path.stat().st_ino) in events[:named]
            assert ("flushed", path.parent.stat().st_ino) in events[named:committed]
            assert ("flushed", path.parent.parent.stat().st_ino) in events[named:committed]
    assert ("flushed", tmp_path.stat().st_ino) in events[:committed]


def test_writers_wait_for_each_other_and_readers_for_nobody(pool_folder, names):
    pool, done = Pool.from_pretrained(pool_folder), []
    writer = threading.Thread(target=lambda: done.append(pool.remove(["cat"])))
    with folder.locked(pool_folder):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert Pool.from_pretrained(pool_folder).classes == names
    writer.join(20)
    assert done == [None]
    assert Pool.from_pretrained(pool_folder).classes == names[1:]


def test_a_lock_is_put_into_pools_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="not a"), folder.locked(path):
            pass
    assert list((tmp_path / "mine").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_a_write_that_is_interrupted_by_hand_leaves_nothing(saved, tmp_path, monkeypatch):
    pool = Pool.from_pretrained(saved)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.save_pretrained(tmp_path / "pool")
    assert list(tmp_path.iterdir()) == []

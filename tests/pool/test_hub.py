"""Pools on the Hub: fetched over HTTP from a small Hub on this machine, only what is needed; pushed as a whole."""

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from kindgene.pool import hub
from kindgene.pool.pool import Pool

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves folders as repositories. Files can be fetched; where it is `writable`, commits are made too.

    Notes which files were fetched, how repositories were made, and what each commit added and deleted; `states` are
    what a repository held after each.
    """

    def __init__(self, place):
        self.place, self.repositories, self.heads, self.broken = place, {}, {}, {}
        self.fetched, self.made, self.commits, self.states = [], [], [], []
        self.writable, self.count = 0, 0  # how many more commits are accepted, how many there were
        hub_ = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = self.path.lstrip("/").partition("?")[0]
                if path.startswith("api/models/"):
                    user, name, *rest = path.removeprefix("api/models/").split("/")
                    self.answer(*hub_.described(f"{user}/{name}", rest))
                else:
                    self.answer(*hub_.file(path, wanted=self.command == "GET"))

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(*hub_.changed(self.path.lstrip("/").partition("?")[0], data))

            def answer(self, status, data=b"", headers=None):
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def head(self, name):
        return self.heads.get(name, COMMIT)

    def files(self, name):
        root = self.repositories[name]
        return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}

    def file(self, path, wanted):
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in self.repositories:
            return refusal("RepoNotFound")
        if revision not in ("main", self.head(name)):
            return refusal("RevisionNotFound")
        if file not in self.files(name):
            return refusal("EntryNotFound")
        if file in self.broken:
            return (self.broken[file],)
        data = self.files(name)[file].read_bytes()
        if wanted:
            self.fetched.append(file)
        return 200, data, {"X-Repo-Commit": self.head(name), "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}

    def described(self, name, rest):
        if name not in self.repositories:
            return refusal("RepoNotFound")
        if rest[:1] == ["tree"]:
            listed = ({"path": path, "size": 1, "oid": path} for path in sorted(self.files(name)))
            return as_json([{"type": "file", **one} for one in listed])
        return as_json({"id": name, "sha": self.head(name)})

    def changed(self, path, data):
        if path == "api/validate-yaml":
            return as_json({"warnings": [], "errors": []})
        if not self.writable:
            return (401,)
        if path == "api/repos/create":
            value = json.loads(data)
            name = f"{value['organization']}/{value['name']}"
            self.made.append((name, value.get("private", value.get("visibility"))))
            if name in self.repositories:
                return 409, json.dumps({"url": f"{self.address}/{name}"}).encode()
            self.repositories[name] = self.place / f"made {len(self.made)}"
            self.repositories[name].mkdir()
            (self.repositories[name] / ".gitattributes").write_text("made by the Hub")
            return as_json({"url": f"{self.address}/{name}"})
        user, name, what, _ = path.removeprefix("api/models/").split("/")
        name = f"{user}/{name}"
        if what == "preupload":
            asked = [file["path"] for file in json.loads(data)["files"]]
            return as_json({"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in asked]})
        assert what == "commit"
        header, *changes = (json.loads(line) for line in data.splitlines())
        if header["value"].get("parentCommit", self.head(name)) != self.head(name):
            return (412,)
        self.commit(name, changes)
        return as_json({"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": self.head(name)})

    def commit(self, name, changes):
        self.writable, self.count = self.writable - 1, self.count + 1
        added, deleted = set(), set()
        for change in changes:
            value = change["value"]
            path = self.repositories[name] / value["path"]
            if change["key"] == "deletedFile":
                path.unlink()
                deleted.add(value["path"])
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(value["content"]))
                added.add(value["path"])
        self.commits.append((added, deleted))
        self.heads[name] = f"{self.count:040x}"
        self.states.append(Path(shutil.copytree(self.repositories[name], self.place / f"state {self.count}")))


def as_json(value):
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def refusal(code):
    return 404, b"", {"X-Error-Code": code, "X-Error-Message": code}


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    (tmp_path / "hub").mkdir()
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "_api", lambda token: HfApi(endpoint=fake.address, token=False))
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield fake
    huggingface_hub.close_session()
    fake.server.shutdown()
    fake.server.server_close()


def test_only_what_is_needed_is_fetched(fake_hub, saved, dit):
    fake_hub.repositories["user/pool"] = saved
    pool = Pool.from_pretrained("user/pool", classes=["Cat", "../../x"])
    expected = Pool.from_pretrained(saved)
    files = [expected.config.classes[name].file for name in ("Cat", "../../x")]
    assert sorted(fake_hub.fetched) == sorted(["config.json", "learngene.safetensors", *files])
    assert pool.path is None
    assert set(pool.loaded) == {"Cat", "../../x"}
    labels = [0, 1, 2, 0, 1, 2]
    assert torch.equal(
        dit.run(pool.recombine(["../../x", "Cat"]), labels), dit.run(expected.recombine(["../../x", "Cat"]), labels)
    )
    fake_hub.fetched.clear()
    again = Pool.from_pretrained("user/pool", classes=["Cat", "cat"], revision=COMMIT)
    assert fake_hub.fetched == [expected.config.classes["cat"].file]  # the rest is in the cache
    assert set(again.loaded) == {"cat", "Cat"}


def test_the_learngene_alone_can_be_fetched_and_grown_in_memory(fake_hub, saved, scatter, tmp_path):
    fake_hub.repositories["user/pool"] = saved
    pool = Pool.from_pretrained("user/pool", learngene_only=True)
    assert sorted(fake_hub.fetched) == ["config.json", "learngene.safetensors"]
    pool.add(scatter(pool.transfer(["new"])))
    assert pool.loaded == ("new",)
    whole = Pool.from_pretrained("user/pool")
    whole.save_pretrained(tmp_path / "mine")
    whole.remove(["cat"])
    assert "cat" not in Pool.from_pretrained(tmp_path / "mine").classes


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("user/nowhere", {}, "no repository of that name"),
        ("user/pool", {"revision": "never"}, "no 'user/pool' at revision 'never'"),
        ("user/pool", {"classes": ["nobody"]}, "no class 'nobody' in this pool"),
        ("user/empty", {}, "not a whole pool"),
        ("user/part", {}, "not a whole pool"),
        ("user/newer", {}, "format version 99"),
        ("user/changed", {}, "is not the file this pool was written with"),
        ("no/such/folder", {}, "is not a folder, nor a Hub repository, which is written user/name$"),
        ("../pool", {}, "is not a folder, nor a Hub repository, which is written user/name$"),
        ("nowhere", {"revision": "main"}, "is not a folder, nor a Hub repository, which is written user/name$"),
        ("part/pool", {}, "is not a folder, .*; part is a folder here, so"),  # a mistyped path
    ],
)
def test_what_cannot_be_opened_is_told_in_a_line(fake_hub, saved, tmp_path, name, options, told):
    fake_hub.repositories["user/pool"] = saved
    for other in ("empty", "part", "newer", "changed"):
        fake_hub.repositories[f"user/{other}"] = shutil.copytree(saved, tmp_path / other)
    (tmp_path / "empty" / "config.json").unlink()
    (tmp_path / "part" / "learngene.safetensors").unlink()
    config = tmp_path / "newer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "format_version": 99}))
    learngene = tmp_path / "changed" / "learngene.safetensors"
    learngene.write_bytes(learngene.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=told) as refused:
        Pool.from_pretrained(name, **options)
    assert "\n" not in str(refused.value)


def test_offline_the_cache_is_used_and_its_lack_is_told(fake_hub, saved, monkeypatch):
    fake_hub.repositories["user/pool"] = saved
    Pool.from_pretrained("user/pool", classes=["cat"])
    fake_hub.fetched.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert Pool.from_pretrained("user/pool", classes=["cat"]).loaded == ("cat",)
    for name, classes in (("user/pool", ["Cat"]), ("user/other", None)):
        with pytest.raises(ValueError, match=r"there is no folder 'user/.*' here, and on the Hub it cannot be"):
            Pool.from_pretrained(name, classes=classes)
    assert not fake_hub.fetched


def test_a_file_that_the_hub_refuses_is_told_in_a_line(fake_hub, saved):
    fake_hub.repositories["user/pool"] = saved
    fake_hub.broken = {"learngene.safetensors": 403}
    with pytest.raises(ValueError, match=r"'user/pool'.*403") as refused:
        Pool.from_pretrained("user/pool")
    assert "\n" not in str(refused.value)


def test_a_push_that_fails_is_told_in_a_line(fake_hub, saved, monkeypatch):
    """By the real client: one whose Hub answers with an error, one without a connection, one told to stay offline."""
    pool = Pool.from_pretrained(saved, learngene_only=True)
    told = []

    def refused():
        with pytest.raises(ValueError, match=r"'user/pool'.* pushed to") as error:
            pool.push_to_hub("user/pool")
        told.append(str(error.value))
        assert "\n" not in told[-1]

    refused()
    fake_hub.server.shutdown()
    fake_hub.server.server_close()
    refused()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    refused()
    for reason, message in zip(("401", "refused", "offline"), told, strict=True):
        assert reason in message


@pytest.mark.parametrize("error", [RuntimeError("it broke off\nthere"), PermissionError("no more\nthen")])
def test_what_breaks_off_while_large_files_are_moved_is_told_in_a_line(fake_hub, saved, monkeypatch, error):
    """By what the Hub's client moves them with, which has errors of its own."""

    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr(HfApi, "hf_hub_download", broken)
    with pytest.raises(ValueError, match=r"did not give 'user/pool': (it broke off there|no more then)"):
        Pool.from_pretrained("user/pool")
    monkeypatch.setattr(HfApi, "create_repo", broken)
    with pytest.raises(ValueError, match=r"'user/pool' was not pushed to .*: (it broke off there|no more then)"):
        Pool.from_pretrained(saved).push_to_hub("user/pool")


def test_a_folder_comes_before_a_repository(fake_hub, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "user" / "pool")
    assert str(Pool.from_pretrained("user/pool").path) == "user/pool"
    assert not fake_hub.fetched
    with pytest.raises(ValueError, match="a revision is of a Hub repository"):
        Pool.from_pretrained("user/pool", revision="main")


def pool_files(folder):
    """What of a pool's folder belongs on the Hub: path -> bytes."""
    config = Pool.from_pretrained(folder, learngene_only=True).config
    files = {"config.json", "learngene.safetensors", "README.md", *(entry.file for entry in config.classes.values())}
    return {file: (folder / file).read_bytes() for file in files}


@pytest.fixture
def written(fake_hub, content):
    """`fake_hub` with room for commits; what a repository holds, but for what the Hub put there itself."""
    fake_hub.writable = 10**6

    def held(name):
        return {file: data for file, data in content(fake_hub.repositories[name]).items() if file != ".gitattributes"}

    return held


def test_a_pool_is_pushed_as_it_lies_there(fake_hub, written, pool_folder):
    pool = Pool.from_pretrained(pool_folder, learngene_only=True)
    assert pool.push_to_hub("user/pool", private=True) == f"{fake_hub.address}/user/pool/commit/1"
    assert fake_hub.made[0][0] == "user/pool"
    assert fake_hub.made[0][1] in (True, "private")  # an older client, a newer one
    assert written("user/pool") == pool_files(pool_folder)  # the lock is not among them
    assert set(Pool.from_pretrained("user/pool").loaded) == set(pool.classes)


def test_what_was_removed_vanishes_from_the_head_and_what_is_not_of_the_pool_stays(
    fake_hub, written, pool_folder, scatter
):
    pool = Pool.from_pretrained(pool_folder)
    pool.push_to_hub("user/pool")
    mine = {"notes.txt", "more/tailors/aa/mine-0123456789abcdef.safetensors"}
    fake_hub.commit("user/pool", [{"key": "file", "value": {"path": path, "content": "bWluZQ=="}} for path in mine])
    gone = pool.config.classes["cat"].file
    pool.remove(["cat"])
    pool.add(scatter(pool.transfer(["new"])))
    del fake_hub.commits[:]
    pool.push_to_hub("user/pool")
    held = written("user/pool")
    assert held.keys() - mine == pool_files(pool_folder).keys()
    assert mine < held.keys()
    assert {gone} == set().union(*(deleted for _, deleted in fake_hub.commits))
    again = Pool.from_pretrained("user/pool")  # the head has moved, and with it what is fetched
    assert set(again.classes) == set(pool.classes)
    pool.remove(["new"])
    del fake_hub.commits[:]
    pool.push_to_hub("user/pool")
    assert len(fake_hub.commits) == 1  # no tailor is new


@pytest.mark.parametrize("accepted", [None, 1, 2, 3, 4])
def test_whoever_fetches_during_a_push_gets_the_old_pool_or_the_new_one(
    fake_hub, written, pool_folder, scatter, monkeypatch, accepted
):
    """A client that makes several commits of a folder, as huggingface_hub 2 does of more than 250 files."""
    upload = HfApi.upload_folder

    def one_commit_a_file(self, *, folder_path, allow_patterns, **options):
        for path in sorted(Path(folder_path).glob(allow_patterns)):
            upload(self, folder_path=folder_path, allow_patterns=str(path.relative_to(folder_path)), **options)

    monkeypatch.setattr(HfApi, "upload_folder", one_commit_a_file)
    pool = Pool.from_pretrained(pool_folder)
    pool.push_to_hub("user/pool")
    before = list(pool.classes)
    assert len(fake_hub.states) == len(before) + 1
    assert not any((state / "config.json").exists() for state in fake_hub.states[:-1])
    pool.remove(before[:2])
    pool.add(scatter(pool.transfer(["new", "newer"])))
    del fake_hub.states[:]
    if accepted is None:
        pool.push_to_hub("user/pool")
    else:  # the connection breaks after some commits
        fake_hub.writable = accepted
        with pytest.raises(ValueError, match="not pushed to"):
            pool.push_to_hub("user/pool")
    found = [list(Pool.from_pretrained(state).classes) for state in fake_hub.states]
    assert len(found) == (accepted or len(pool.classes) + 1)
    assert found[-1] == (list(pool.classes) if accepted is None else before)
    assert all(classes == before for classes in found[:-1])
    fake_hub.writable = 10**6
    pool.push_to_hub("user/pool")
    assert written("user/pool") == pool_files(pool_folder)


def test_so_it_is_with_the_commits_that_the_client_itself_makes(fake_hub, written, pool_folder, scatter, monkeypatch):
    pytest.importorskip("huggingface_hub._upload_pipeline")  # since 2; with hf_xet, and files enough
    monkeypatch.setattr("huggingface_hub._upload_pipeline.COMMIT_SIZE_SCALE", [1] * 10)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    pool = Pool.from_pretrained(pool_folder)
    pool.push_to_hub("user/pool")
    before = list(pool.classes)
    del fake_hub.states[:]
    pool.remove(before[:2])
    pool.add(scatter(pool.transfer(["new", "newer"])))
    pool.push_to_hub("user/pool")
    found = [list(Pool.from_pretrained(state).classes) for state in fake_hub.states]
    assert len(found) > 1
    assert found == [before] * (len(found) - 1) + [list(pool.classes)]
    assert written("user/pool") == pool_files(pool_folder)


def test_a_push_never_undoes_what_somebody_else_pushes_meanwhile(fake_hub, written, pool_folder, monkeypatch):
    pool = Pool.from_pretrained(pool_folder)
    pool.push_to_hub("user/pool")
    head = hub._head
    monkeypatch.setattr(hub, "_head", lambda api, name: (COMMIT, head(api, name)[1]))  # it moves at once
    pool.remove(["cat"])
    before = written("user/pool")
    with pytest.raises(ValueError, match="412"):
        pool.push_to_hub("user/pool")
    assert written("user/pool") == before
    monkeypatch.setattr(hub, "_head", lambda api, name: (head(api, name)[0], set()))  # the other deletes ours
    with pytest.raises(ValueError, match="somebody else meanwhile; push again"):
        pool.push_to_hub("user/pool")
    assert "cat" in Pool.from_pretrained("user/pool").classes


def test_a_pool_in_memory_is_pushed_as_it_would_be_saved(fake_hub, written, dit, names, tmp_path):
    pool = dit.model().decompose(names)
    pool.push_to_hub("user/pool")
    assert pool.path is None
    pool.save_pretrained(tmp_path / "pool")
    assert written("user/pool") == pool_files(tmp_path / "pool")


def test_a_pool_of_the_hub_grows_and_is_pushed_back(fake_hub, written, saved, scatter):
    fake_hub.repositories["user/pool"] = saved
    pool = Pool.from_pretrained("user/pool")
    pool.add(scatter(pool.transfer(["new"])))
    pool.remove(["cat"])
    pool.push_to_hub("user/grown")
    again = Pool.from_pretrained("user/grown")
    assert set(again.classes) == set(pool.classes)
    assert again.config.learngene_id == pool.config.learngene_id


def test_a_pool_in_memory_is_pushed_whole_or_not_at_all(fake_hub, written, saved):
    pool = Pool.from_pretrained(saved, classes=["cat"])
    pool.path = None
    with pytest.raises(ValueError, match="not loaded"):
        pool.push_to_hub("user/pool")  # the other tailors would vanish from the head
    assert not fake_hub.made


def test_a_pool_does_not_change_while_it_is_pushed(fake_hub, written, pool_folder, monkeypatch):
    pool, changed = Pool.from_pretrained(pool_folder), []
    writer = threading.Thread(target=lambda: changed.append(Pool.from_pretrained(pool_folder).remove(["cat"])))
    upload = hub.push

    def slow(*arguments, **options):
        writer.start()
        writer.join(0.3)
        assert not changed
        return upload(*arguments, **options)

    monkeypatch.setattr(hub, "push", slow)
    pool.push_to_hub("user/pool")
    writer.join(20)
    assert changed == [None]
    assert pool.config.classes["cat"].file in written("user/pool")


def test_a_folder_of_the_users_name_is_no_hindrance(fake_hub, written, pool_folder, tmp_path):
    (tmp_path / "user").mkdir()  # where the test runs
    assert Pool.from_pretrained(pool_folder).push_to_hub("user/pool")
    assert fake_hub.commits


def test_what_is_damaged_or_has_no_name_is_not_pushed(fake_hub, written, pool_folder):
    pool = Pool.from_pretrained(pool_folder)
    with pytest.raises(ValueError, match="a Hub repository is written"):
        pool.push_to_hub("a/b/c")
    with pytest.raises(ValueError, match="a Hub repository is written"):
        pool.push_to_hub("../pool")
    (pool_folder / pool.config.classes["cat"].file).unlink()
    with pytest.raises(ValueError, match="is missing"):
        pool.push_to_hub("user/pool")
    assert not fake_hub.made

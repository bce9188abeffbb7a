"""Pools on the Hub: fetched over HTTP from a small Hub on this machine, only what is needed; pushed as a whole."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from kindgene.pool import hub
from kindgene.pool.pool import Pool

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves folders as repositories, as far as downloading a file goes; notes what was fetched."""

    def __init__(self):
        self.repositories, self.fetched, self.broken = {}, [], {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(401)  # nobody may write here
                self.send_header("Content-Length", "0")
                self.end_headers()

            def answer(self, body):
                name, _, rest = self.path.lstrip("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                if name not in outer.repositories:
                    self.refuse("RepoNotFound")
                elif revision not in ("main", COMMIT):
                    self.refuse("RevisionNotFound")
                elif not (path := outer.repositories[name] / file).is_file():
                    self.refuse("EntryNotFound")
                elif file in outer.broken:
                    self.send_response(outer.broken[file])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    data = path.read_bytes()
                    self.send_response(200)
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    if body:
                        outer.fetched.append(file)
                        self.wfile.write(data)

            def refuse(self, code):
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    fake = FakeHub()
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
        ("no/such/folder", {}, "is not a folder"),
        ("../pool", {}, "is not a folder"),
        ("nowhere", {}, "is not a folder"),
        ("part/pool", {}, "is not a folder"),  # part is a folder here: a mistyped path
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


def test_a_folder_comes_before_a_repository(fake_hub, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "user" / "pool")
    assert str(Pool.from_pretrained("user/pool").path) == "user/pool"
    assert not fake_hub.fetched
    with pytest.raises(ValueError, match="a revision is of a Hub repository"):
        Pool.from_pretrained("user/pool", revision="main")


@pytest.fixture
def pushed(monkeypatch):
    """What was asked of the Hub's API: uploads are only noted."""
    calls = SimpleNamespace(made=[], uploads=[], files=[])

    class Api:
        def create_repo(self, repository, **options):
            calls.made.append((repository, options))

        def upload_folder(self, **options):
            calls.uploads.append(options)
            root = options["folder_path"]
            calls.files.append(sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()))
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr(hub, "_api", lambda token: Api())
    return calls


def test_a_pool_is_pushed_as_it_lies_there(pushed, pool_folder):
    pool = Pool.from_pretrained(pool_folder, learngene_only=True)
    assert pool.push_to_hub("user/pool", private=True, commit_message="first") == "https://hub/commit/1"
    assert pushed.made == [("user/pool", {"private": True, "exist_ok": True})]
    (upload,) = pushed.uploads
    assert (upload["repo_id"], upload["folder_path"], upload["commit_message"]) == ("user/pool", pool_folder, "first")
    kept = huggingface_hub.utils.filter_repo_objects(pushed.files[0], allow_patterns=upload["allow_patterns"])
    expected = {"config.json", "learngene.safetensors", "README.md", *(e.file for e in pool.config.classes.values())}
    assert set(kept) == expected  # the lock is not among them
    gone = huggingface_hub.utils.filter_repo_objects(
        ["tailors/aa/gone-0123456789abcdef.safetensors", "README.md"], allow_patterns=upload["delete_patterns"]
    )
    assert list(gone) == ["tailors/aa/gone-0123456789abcdef.safetensors"]


def test_a_pool_in_memory_is_pushed_as_it_would_be_saved(pushed, dit, names):
    pool = dit.model().decompose(names)
    pool.push_to_hub("user/pool")
    assert len(pushed.files[0]) == 3 + len(names)
    assert pool.path is None


def test_a_pool_in_memory_is_pushed_whole_or_not_at_all(pushed, saved):
    pool = Pool.from_pretrained(saved, classes=["cat"])
    pool.path = None
    with pytest.raises(ValueError, match="not loaded"):
        pool.push_to_hub("user/pool")  # the other tailors would vanish from the head
    assert not pushed.made


def test_a_pool_does_not_change_while_it_is_pushed(pushed, pool_folder, monkeypatch):
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
    assert pool.config.classes["cat"].file in pushed.files[0]


def test_a_folder_of_the_users_name_is_no_hindrance(pushed, pool_folder, monkeypatch, tmp_path):
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Pool.from_pretrained(pool_folder).push_to_hub("user/pool") == "https://hub/commit/1"


def test_what_is_damaged_or_has_no_name_is_not_pushed(pushed, pool_folder):
    pool = Pool.from_pretrained(pool_folder)
    with pytest.raises(ValueError, match="a Hub repository is written"):
        pool.push_to_hub("a/b/c")
    with pytest.raises(ValueError, match="a Hub repository is written"):
        pool.push_to_hub("../pool")
    (pool_folder / pool.config.classes["cat"].file).unlink()
    with pytest.raises(ValueError, match="is missing"):
        pool.push_to_hub("user/pool")
    assert not pushed.made

"""A pool folder is a Hub repository: what is needed of it is fetched, file by file, and a whole folder is pushed.

The files are the same as on disk, and are checked in the same way. What was fetched lies in the Hub's own cache. As on
disk, config.json is the only commit point: whoever fetches while a pool is pushed gets the old one or the new one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kindgene.pool.config import PoolConfig
from kindgene.pool.folder import CARD_FILE, CONFIG_FILE, LEARNGENE_FILE, TAILOR_FOLDER, read_config
from kindgene.pool.names import TAILOR_FILE

TAILOR_PATTERN = f"{TAILOR_FOLDER}/*/*.safetensors"

_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_MRO = HfHubHTTPError.__mro__
# What the client's own library raises, for a connection that fails too; which library that is depends on the version.
# Then what moves large files (LFS, Xet) raises.
_CLIENT_ERRORS: tuple[Any, ...] = (_MRO[_MRO.index(OSError) - 1], OSError, RuntimeError)

Wanted = Callable[[PoolConfig], Sequence[str]]


def is_repository(name: str) -> bool:
    """Whether a name could be a Hub repository's, ``user/name``, and is not more likely a mistyped path.

    It is a path where its first half is a folder here.
    """
    return _is_id(name) and not Path(name).parent.is_dir()


def check_readable(name: str) -> None:
    """Raises ValueError for what names neither a folder nor, possibly, a repository: `is_repository`."""
    if not is_repository(name):
        first = Path(name).parent
        why = f"; {first} is a folder here, so it is not looked for on the Hub" if _is_id(name) else ""
        raise ValueError(f"{name} is not a folder, nor a Hub repository, which is written user/name{why}")


def check_id(name: str) -> None:
    """Raises ValueError for what is not written as a Hub repository is."""
    if not _is_id(name):
        raise ValueError(f"a Hub repository is written user/name, got {name!r}")


def fetch(repository: str, wanted: Wanted, revision: str | None = None, token: str | None = None) -> Path:
    """Fetches config.json, the learngene, and the tailors' files of the classes that `wanted` names out of the config.

    All of them from one commit; returns the folder they are in. Raises ValueError, in one line, for a repository, a
    revision or a file that is not there, that may not be read, or that cannot be reached.
    """
    api = _api(token)
    with _fetching(repository, revision):
        config_file = Path(api.hf_hub_download(repository, CONFIG_FILE, revision=revision))
        root = config_file.parent
        config = read_config(root)
        files = [LEARNGENE_FILE, *dict.fromkeys(config.classes[name].file for name in wanted(config))]
        for file in files:
            api.hf_hub_download(repository, file, revision=root.name)  # a snapshot's folder is named by its commit
    return root


def push(folder: Path, repository: str, *, private: bool | None, commit_message: str, token: str | None = None) -> str:
    """Makes the repository's head what the folder is: tailors that are not in it vanish. Returns the commit's address.

    New tailors go first, in as many commits as the client likes; then one commit replaces the rest and deletes what is
    not in use. The repository keeps its history, and in it every tailor that was ever pushed. Raises ValueError, in one
    line, where the Hub refuses or cannot be reached, and where somebody else pushes at the same time.
    """
    api = _api(token)
    tailors = {path.relative_to(folder).as_posix() for path in folder.glob(TAILOR_PATTERN)}
    rest = [name for name in (CONFIG_FILE, LEARNGENE_FILE, CARD_FILE) if (folder / name).is_file()]
    with _pushing(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        head, there = _head(api, repository)
        if not tailors <= there:
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=commit_message, allow_patterns=TAILOR_PATTERN
            )
            head, there = _head(api, repository)
        if not tailors <= there:
            raise ValueError(f"{repository!r} was changed by somebody else meanwhile; push again")
        unused = sorted(name for name in there - tailors if TAILOR_FILE.fullmatch(name))
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in rest]
        deleted = [CommitOperationDelete(path_in_repo=name) for name in unused]
        commit = api.create_commit(repository, [*added, *deleted], commit_message=commit_message, parent_commit=head)
    return str(commit.commit_url)


def _head(api: HfApi, repository: str) -> tuple[str | None, set[str]]:
    """The commit that the repository's head is, and the files of it."""
    commit = api.model_info(repository).sha
    return commit, set(api.list_repo_files(repository, revision=commit))


def _is_id(name: str) -> bool:
    return bool(_ID.fullmatch(name)) and ".." not in name


def _api(token: str | None) -> HfApi:
    return HfApi(token=token)


@contextmanager
def _fetching(repository: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's client raises into one line that says what to do."""
    where = f"{repository!r}" + ("" if revision is None else f" at revision {revision!r}")
    nowhere = f"there is no folder {repository!r} here, and on the Hub"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{nowhere} it cannot be reached, nor is it in the cache (offline?): {_short(error.__cause__ or error)}"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"the Hub has no {where}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{nowhere} no repository of that name may be read (private ones need a token)") from error
    except EntryNotFoundError as error:
        raise ValueError(f"the Hub's {where} is not a whole pool: {_short(error)}") from error
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise ValueError(f"{nowhere} it cannot be looked for: {_short(error)}") from error
    except _CLIENT_ERRORS as error:
        raise ValueError(f"the Hub did not give {where}: {_short(error)}") from error


@contextmanager
def _pushing(repository: str) -> Iterator[None]:
    """The same for what goes the other way."""
    try:
        yield
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise ValueError(f"{repository!r} cannot be pushed to: {_short(error)}") from error
    except _CLIENT_ERRORS as error:
        raise ValueError(
            f"{repository!r} was not pushed to (it needs a connection, and a token that may write): {_short(error)}"
        ) from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

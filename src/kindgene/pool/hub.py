"""A pool folder is a Hub repository: what is needed of it is fetched, file by file, and a whole folder is pushed.

The files are the same as on disk, and are checked in the same way. What was fetched lies in the Hub's own cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
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

_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")

Wanted = Callable[[PoolConfig], Sequence[str]]


def is_repository(name: str) -> bool:
    """Whether a name could be a Hub repository's: ``name`` or ``user/name``."""
    return bool(_ID.fullmatch(name)) and ".." not in name


def fetch(repository: str, wanted: Wanted, revision: str | None = None, token: str | None = None) -> Path:
    """Fetches config.json, the learngene, and the tailors' files of the classes that `wanted` names out of the config.

    All of them from one commit; returns the folder they are in. Raises ValueError, in one line, for a repository, a
    revision or a file that is not there, that may not be read, or that cannot be reached.
    """
    api = _api(token)
    with _explained(repository, revision):
        config_file = Path(api.hf_hub_download(repository, CONFIG_FILE, revision=revision))
        root = config_file.parent
        config = read_config(root)
        files = [LEARNGENE_FILE, *dict.fromkeys(config.classes[name].file for name in wanted(config))]
        for file in files:
            api.hf_hub_download(repository, file, revision=root.name)  # a snapshot's folder is named by its commit
    return root


def push(folder: Path, repository: str, *, private: bool | None, commit_message: str, token: str | None = None) -> str:
    """Makes the repository's head what the folder is, removed tailors included; returns the commit's address.

    The repository keeps its history, and in it every tailor that was ever pushed.
    """
    api = _api(token)
    with _explained(repository, None):
        api.create_repo(repository, private=private, exist_ok=True)
        commit: Any = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            allow_patterns=[CONFIG_FILE, LEARNGENE_FILE, CARD_FILE, f"{TAILOR_FOLDER}/*/*.safetensors"],
            delete_patterns=[f"{TAILOR_FOLDER}/*/*.safetensors"],
        )
    return str(commit.commit_url)


def _api(token: str | None) -> HfApi:
    return HfApi(token=token)


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's client raises into one line that says what to do."""
    where = f"{repository!r}" + ("" if revision is None else f" at revision {revision!r}")
    nowhere = f"there is no folder {repository!r} here, and on the Hub"
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{nowhere} it cannot be reached, nor is it in the cache (offline?): {_short(error)}"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"the Hub has no {where}") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{nowhere} no repository of that name may be read (private ones need a token)") from error
    except EntryNotFoundError as error:
        raise ValueError(f"the Hub's {where} is not a whole pool: {_short(error)}") from error
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise ValueError(f"{nowhere} it cannot be looked for: {_short(error)}") from error
    except HfHubHTTPError as error:
        raise ValueError(f"the Hub refused {where}: {_short(error)}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""Where a run takes place: versions, machine, git, command. For run.json; nothing in here ever fails or is secret."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kindgene._version import __version__

_PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "numpy", "safetensors", "huggingface_hub", "datasets")
_NAMES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING"),
    *("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE"),
    *("PYTHONHASHSEED", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "HF_HUB_OFFLINE", "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES"),
)
_PREFIXES = ("NCCL_", "GLOO_", "ACCELERATE_", "FSDP_", "TORCH_NCCL_", "TORCHINDUCTOR_")
_SECRET = re.compile(r"token|secret|password|passwd|credential|api[-_]?key|access[-_]?key", re.IGNORECASE)
_SECONDS = 5.0


def environment(processes: int = 1) -> dict[str, Any]:
    """Versions, machine, git state of the current folder, command line and what variables matter, as plain data.

    Packages that are not installed are left out; ``git`` is None outside a repository, where there is no git and where
    it takes more than a few seconds. Of variables only a fixed list and a few prefixes are told; a value of either,
    or of an option of the command, whose name speaks of a secret is not.
    """
    return {
        "versions": _versions(),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": _gpus(),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "driver": _driver() if torch.cuda.is_available() else None,
        },
        "processes": processes,
        "git": git_state(Path()),
        "command": without_secrets(sys.argv),
        "variables": variables(os.environ),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """``commit``, ``branch`` (None where detached) and ``dirty`` (tracked files changed); None where there is none."""
    told = _output("git", "--no-optional-locks", "-C", str(folder), "status", *_GIT_FORM)
    if told is None:
        return None
    facts = dict(line[2:].split(" ", 1) for line in told.splitlines() if line.startswith("# branch."))
    commit, branch = facts.get("branch.oid", "(initial)"), facts.get("branch.head", "(detached)")
    return {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(not line.startswith("#") for line in told.splitlines()),
    }


_GIT_FORM = ("--porcelain=v2", "--branch", "--untracked-files=no")


def variables(values: Mapping[str, str]) -> dict[str, str]:
    """Those that change how a run computes, by name."""
    wanted = (name for name in sorted(values) if name in _NAMES or name.startswith(_PREFIXES))
    return {name: values[name] for name in wanted if not _SECRET.search(name)}


def without_secrets(command: Sequence[str]) -> list[str]:
    """A command line in which the value of an option like ``--hub-token`` is a star."""
    told, hide = [], False
    for argument in command:
        option, equals, _ = argument.partition("=")
        secret = option.startswith("-") and _SECRET.search(option) is not None
        if hide and not argument.startswith("-"):
            told.append("*")
        else:
            told.append(f"{option}=*" if secret and equals else argument)
        hide = secret and not equals
    return told


def memory_in_use(device: torch.device) -> int:
    """Bytes: on a CUDA device the most that its tensors took so far, elsewhere what this process has resident.

    Where the present resident set is not told (macOS), the largest so far; 0 where neither is (Windows).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _largest_resident()


def _largest_resident() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _versions() -> dict[str, str]:
    found = {"kindgene": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _driver() -> str | None:
    told = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return told.splitlines()[0].strip() if told else None


def _output(*command: str) -> str | None:
    """What a command prints; None where there is no such command, it fails, or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout

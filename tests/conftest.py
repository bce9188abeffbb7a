"""What every test stands on: one thread, no network, reproducible examples."""

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import ipaddress
import socket
from typing import Any

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def _is_here(host: object) -> bool:
    """Whether a host is this machine; names other than localhost are not looked up."""
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> None:
    raise RuntimeError(f"tests run without a network, but something asked for {host!r}")


class _LocalSocket(socket.socket):
    """A socket that reaches this machine only."""

    def connect(self, address: Any) -> None:
        self._check(address)
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        self._check(address)
        return super().connect_ex(address)

    def sendto(self, data: Any, *rest: Any) -> int:
        self._check(rest[-1])
        return super().sendto(data, *rest)

    def _check(self, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            _refuse(address[0])


_look_up = socket.getaddrinfo


def _look_up_here(host: Any, *rest: Any, **options: Any) -> Any:
    if not _is_here(host):
        _refuse(host)
    return _look_up(host, *rest, **options)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Any:
    """Connections to any other machine raise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", _LocalSocket)
        patch.setattr(socket, "getaddrinfo", _look_up_here)
        yield


@pytest.fixture(scope="session")
def tiny_vae() -> Any:
    """Makes a randomly initialised autoencoder of four latent channels that halves, with settings of its own."""
    from diffusers import AutoencoderKL

    def make(seed: int = 0, **settings: Any) -> Any:
        small = {
            "latent_channels": 4,
            "block_out_channels": (4, 4),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 2,
            "layers_per_block": 1,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoencoderKL(**{**small, **settings}).requires_grad_(False).eval()

    return make


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

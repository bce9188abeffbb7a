"""The guards of the test run itself do guard."""

import socket

import pytest
import torch


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.invalid"])
def test_other_machines_are_out_of_reach(host: str) -> None:
    with pytest.raises(RuntimeError, match="without a network"):
        socket.create_connection((host, 80), timeout=0.1)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        with pytest.raises(RuntimeError, match="without a network"):
            client.connect((host, 80))
        with pytest.raises(RuntimeError, match="without a network"):
            client.connect_ex((host, 80))
    with (
        socket.socket(family, socket.SOCK_DGRAM) as client,
        pytest.raises(RuntimeError, match="without a network"),
    ):
        client.sendto(b"", (host, 80))


def test_this_machine_is_in_reach() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_one_thread() -> None:
    assert torch.get_num_threads() == 1


@pytest.mark.gpu
def test_gpu_tests_run_only_with_a_gpu() -> None:
    assert torch.cuda.is_available()

"""The proxy breaks connections in each of the ways that networks have."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that answers with what it is told."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            while said := client.recv(100):
                client.sendall(said)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    proxy = Proxy(("127.0.0.1", server.getsockname()[1]))
    yield proxy
    proxy.close()
    server.close()


def ask(proxy: Proxy, timeout: float = 0.5) -> bytes:
    """Connect anew, say something, and return the answer."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout) as client:
        client.sendall(b"ping")
        return client.recv(100)


def test_it_passes_what_is_sent(proxy: Proxy) -> None:
    assert ask(proxy) == b"ping"


@pytest.mark.parametrize("way", ["drop", "half_open"])
def test_it_keeps_silent_until_it_is_healed(proxy: Proxy, way: str) -> None:
    getattr(proxy, way)()
    with pytest.raises(TimeoutError):
        ask(proxy)
    proxy.heal()
    assert ask(proxy) == b"ping"


def test_it_resets_what_is_connected(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
        client.sendall(b"ping")
        client.recv(100)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_it_refuses(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionError):
        assert ask(proxy) != b""


def test_it_delays(proxy: Proxy) -> None:
    proxy.delay(0.3)
    with pytest.raises(TimeoutError):
        ask(proxy, timeout=0.2)
    assert ask(proxy, timeout=5) == b"ping"

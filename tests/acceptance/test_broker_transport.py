"""The Redis transport in real workers: kills, losses, a rolling deploy, TLS and sentinels; every job completes once."""

import json
import shutil
import signal
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Producer, Queue
from redis import Redis, Sentinel
from redis.exceptions import ResponseError

from jobs import broker as room
from jobs.models import Job
from jobs.states import State
from project import processes
from project.servers import RedisServer
from project.servers.base import free_port
from project.servers.redis import redis_binary
from tests.children import Child
from tests.platform import QUICK, Witness
from tests.sample.tasks import nap, note

pytestmark = pytest.mark.one_database

Spawn = Callable[..., Child]
WaitUntil = Callable[..., Any]
WIDE = ("--prefetch-multiplier", "8")


@pytest.fixture
def wire(broker: RedisServer) -> Iterator[Redis]:
    """The broker itself."""
    with Redis.from_url(broker.url) as client:
        yield client


def environ(witness: Witness, **settings: Any) -> dict[str, str]:
    """What a process of these tests is told."""
    return {**witness.environ, "TEST_JOBS": json.dumps({**QUICK, **settings})}


def completed(count: int) -> bool:
    """Whether so many jobs are completed."""
    return Job.objects.filter(state=State.COMPLETED).count() == count


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_unacked_is_empty_soon_after_the_last_job(
    worker: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil, pool: str
) -> None:
    worker(pool=pool, args=WIDE, env=environ(witness))
    for number in range(50):
        note.delay(f"n{number}")
    wait_until(lambda: completed(50), timeout=30)
    wait_until(lambda: wire.hlen("unacked") == 0, timeout=2, every=0.01)
    assert Counter(witness.lines) == Counter(f"n{number}" for number in range(50))


def test_short_jobs_are_taken_ahead_of_their_turn(
    worker: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil
) -> None:
    worker(concurrency=1, env=environ(witness))
    for number in range(600):
        note.delay(f"n{number}")
    wait_until(lambda: wire.hlen("unacked") > 2, every=0.001)


def test_what_was_taken_ahead_goes_back_when_jobs_take_long(
    worker: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil
) -> None:
    for number in range(200):
        note.delay(f"n{number}")
    nap.delay(20, name="long")
    for number in range(4):
        note.delay(f"after{number}")
    worker(name="first", concurrency=1, env=environ(witness))
    wait_until(lambda: "long" in witness.lines or completed(200), timeout=30)
    worker(name="second", concurrency=1, env=environ(witness))
    wait_until(lambda: completed(204), timeout=10)
    assert [line for line in witness.lines if line.startswith("after")] == [f"after{number}" for number in range(4)]


def test_a_worker_that_is_killed_with_a_full_window_loses_no_job(
    worker: Spawn, conductor: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil
) -> None:
    conductor(env=environ(witness))
    first = worker(name="first", args=WIDE, env=environ(witness))
    for number in range(60):
        note.delay(f"n{number}") if number % 10 else nap.delay(0.5)
    wait_until(lambda: wire.hlen("unacked") > 8)
    first.kill()
    worker(name="second", args=WIDE, env=environ(witness))
    wait_until(lambda: completed(60), timeout=60)
    # A body that was killed may have run before; no note was written twice by two attempts that both ended.
    assert set(witness.lines) >= {f"n{number}" for number in range(60) if number % 10}


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_connections_that_are_cut_lose_no_job(
    worker: Spawn, conductor: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil, pool: str
) -> None:
    conductor(env=environ(witness))
    worker(pool=pool, args=WIDE, env=environ(witness))
    for number in range(150):
        note.delay(f"n{number}")
        if number % 50 == 25:
            wire.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: completed(150), timeout=60)
    assert set(witness.lines) == {f"n{number}" for number in range(150)}
    wait_until(lambda: wire.hlen("unacked") == 0, timeout=10)


def test_a_broker_that_restarts_loses_no_job(
    worker: Spawn, conductor: Spawn, broker: RedisServer, witness: Witness, wait_until: WaitUntil
) -> None:
    conductor(env=environ(witness))
    worker(args=WIDE, env=environ(witness))
    for number in range(60):
        note.delay(f"n{number}")
    wait_until(lambda: Job.objects.filter(state=State.COMPLETED).exists())
    broker.stop()
    broker.start()
    wait_until(lambda: completed(60), timeout=60)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_that_stops_leaves_nothing_in_unacked(
    worker: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil, pool: str
) -> None:
    one = worker(pool=pool, args=WIDE, env=environ(witness))
    jobs = [nap.delay(0.3) for _ in range(40)]
    wait_until(lambda: wire.hlen("unacked") > 0)
    assert one.stop() == 0
    done = Job.objects.filter(state=State.COMPLETED).count()
    assert wire.hlen("unacked") == 0
    assert done + sum(wire.llen(key) for key in wire.scan_iter("default*")) == len(jobs)


def test_a_rolling_deploy_shares_queues_both_ways(
    worker: Spawn, wire: Redis, witness: Witness, wait_until: WaitUntil
) -> None:
    old = worker(name="old", args=WIDE, env=environ(witness, FAST_BROKER=False))
    worker(name="new", args=WIDE, env=environ(witness))
    for number in range(100):
        note.delay(f"n{number}")
    wait_until(lambda: completed(100), timeout=30)
    by = Counter(Job.objects.values_list("worker", flat=True))
    assert {name.split("@")[0] for name in by} == {"old", "new"}
    old.stop()
    wait_until(lambda: wire.hlen("unacked") == 0)
    assert Counter(witness.lines) == Counter(f"n{number}" for number in range(100))


# --- TLS and sentinels ------------------------------------------------------------------------------------


def exchanged(connection: Connection, count: int = 20) -> list[Any]:
    """Send so many bodies and receive them again."""
    bodies: list[Any] = []

    def take(message: Any) -> None:
        bodies.append(message.payload)
        message.ack()

    with connection:
        assert isinstance(connection.default_channel, room.Channel)
        connection.default_channel.basic_qos(0, 8, False)
        for number in range(count):
            Producer(connection.default_channel).publish(number, routing_key="q", serializer="json")
        with Consumer(connection.default_channel, [Queue("q")], on_message=take):
            while len(bodies) < count:
                connection.drain_events(timeout=5)
        assert connection.default_channel.client.hlen("unacked") == 0
    return bodies


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Redis]]:
    """Start a Redis with these words on its command line."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, ping: Callable[[], Any]) -> None:
        command = [str(redis_binary()), *words]
        started.append(processes.start(command, log=tmp_path / f"redis-{len(started)}.log", directory=tmp_path))

        def answers() -> bool:
            try:
                return bool(ping())
            except Exception:
                return False

        assert processes.wait_until(answers, 10)

    yield start  # type: ignore[misc]
    for process in started:
        processes.end(process, signal.SIGTERM)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here to make a certificate")
def test_it_speaks_tls(server: Callable[..., Any], tmp_path: Path) -> None:
    key, certificate, port = tmp_path / "key.pem", tmp_path / "cert.pem", free_port()
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject],
        check=True, capture_output=True,
    )  # fmt: skip
    options = {
        "port": 0, "tls-port": port, "tls-cert-file": certificate, "tls-key-file": key,
        "tls-ca-cert-file": certificate, "tls-auth-clients": "no", "save": "", "bind": "127.0.0.1",
    }  # fmt: skip
    client = Redis(port=port, ssl=True, ssl_ca_certs=str(certificate))
    try:
        server(*(str(word) for name, value in options.items() for word in (f"--{name}", value)), ping=client.ping)
    except AssertionError:
        pytest.skip("this Redis was built without TLS")
    safe = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(certificate)}
    assert exchanged(Connection(f"rediss://127.0.0.1:{port}/0", ssl=safe)) == list(range(20))
    client.close()


def test_it_follows_sentinels(server: Callable[..., Any], tmp_path: Path) -> None:
    ports = [free_port() for _ in range(3)]
    clients = [Redis(port=port) for port in ports]
    plain = ("--save", "", "--bind", "127.0.0.1")
    server("--port", str(ports[0]), *plain, ping=clients[0].ping)
    server("--port", str(ports[1]), *plain, "--replicaof", "127.0.0.1", str(ports[0]), ping=clients[1].ping)
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {ports[2]}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n"
    )
    server(str(config), "--sentinel", ping=clients[2].ping)
    sentinel = Sentinel([("127.0.0.1", ports[2])])
    assert processes.wait_until(lambda: bool(sentinel.discover_slaves("mymaster")), 20)
    url, options = f"sentinel://127.0.0.1:{ports[2]}", {"master_name": "mymaster"}
    assert exchanged(Connection(url, transport_options=options)) == list(range(20))

    def moved() -> bool:
        with suppress(ResponseError):  # the replica must have caught up first
            clients[2].execute_command("SENTINEL", "FAILOVER", "mymaster")
        return bool(sentinel.discover_master("mymaster")[1] == ports[1])

    assert processes.wait_until(moved, 60, every=0.5)
    assert exchanged(Connection(url, transport_options=options)) == list(range(20))
    for client in clients:
        client.close()

"""Rows about a broker that loses, hangs, repeats itself or is cut off: it is disposable."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from redis import Redis

from project.servers import RedisServer
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")
SENT_AGAIN_WITHIN = 30.0


def with_a_backlog(stage: Stage, breaks: Callable[[], object], waiting: int = 50) -> None:
    """Let two bodies run and others wait in the broker, break it, and let everything go on."""
    stage.start()
    gate = stage.gate()
    stage.enqueue(2, gate=gate.path)
    stage.wait_running(2)
    numbers = stage.enqueue(stage.scaled(waiting, waiting // 2))
    numbers += stage.enqueue(5, "transactional")
    stage.fault()
    breaks()
    gate.open()
    stage.wait_begun(numbers)
    stage.settle()
    stage.require(stage.recovery_s <= SENT_AGAIN_WITHIN, "what was lost runs within thirty seconds")


@row(4, "FLUSHALL with queued jobs", must="published again in seconds")
def flush_with_queued(stage: Stage) -> None:
    def flush() -> None:
        with stage.redis as client:
            client.flushall()

    with_a_backlog(stage, flush, waiting=100)


@row(5, "FLUSHALL while running", must="what runs ends, with one outcome")
def flush_while_running(stage: Stage) -> None:
    stage.start()
    running = [*stage.enqueue(1, seconds=3), *stage.enqueue(1, "transactional", seconds=3)]
    stage.wait_running(2)
    stage.fault()
    with stage.redis as client:
        client.flushall()
    after = stage.enqueue(5)
    stage.wait_begun(after)
    stage.settle()
    stage.require(stage.begun(running) == 2, "what ran is not run again")


@row(6, "broker SIGKILL and restart, nothing kept", must="published again in seconds")
def broker_killed(stage: Stage) -> None:
    def restart() -> None:
        stage.broker.kill()
        stage.broker.start()

    with_a_backlog(stage, restart)


@row(7, "broker SIGSTOP 30 s", must="resumes, no worker restart", brokers=BOTH, limit=200)
def broker_frozen(stage: Stage) -> None:
    stage.start()
    stage.enqueue(10, seconds=0.2)
    stage.wait_running()
    pid = stage.worker.pid
    stage.fault()
    stage.broker.freeze()
    during = stage.enqueue(5)
    stage.sleep(stage.scaled(30, 10))
    stage.broker.thaw()
    stage.wait_begun(during)
    stage.settle()
    stage.require(stage.worker.running and stage.worker.pid == pid, "the worker goes on")


@row(8, "replica promotion that loses writes", must="published again in seconds")
def replica_promoted(stage: Stage) -> None:
    proxy = stage.proxy_broker()
    stage.producer_through(proxy)
    stage.start_conductor(via=[proxy])
    stage.start_worker(via=[proxy])
    replica = stage.add_server(RedisServer(stage.world.directory / "replica"))
    host, port = urlsplit(stage.broker.url).hostname, urlsplit(stage.broker.url).port
    gate = stage.gate()
    stage.enqueue(2, gate=gate.path)
    stage.wait_running(2)
    with Redis.from_url(replica.url) as client:
        client.replicaof(host, port)
        stage.wait(lambda: client.info("replication")["master_link_status"] == "up", "the replica has caught up", 30)
        client.replicaof("NO", "ONE")
    numbers = stage.enqueue(stage.scaled(50, 25))
    stage.fault()
    stage.broker.kill()
    stage.world.broker = replica
    proxy.upstream = ("127.0.0.1", urlsplit(replica.url).port or 0)
    proxy.reset()
    gate.open()
    stage.wait_begun(numbers)
    stage.settle()
    stage.require(stage.recovery_s <= SENT_AGAIN_WITHIN, "what was lost runs within thirty seconds")


@row(9, "broker out of memory", must="the rows hold the jobs; workers come back")
def broker_out_of_memory(stage: Stage) -> None:
    stage.start()
    stage.enqueue(10, seconds=0.2)
    stage.wait_running()
    stage.fault()
    with stage.redis as client:
        client.config_set("maxmemory", "1kb")
    during = stage.enqueue(stage.scaled(20, 10))
    stage.sleep(5)
    with stage.redis as client:
        client.config_set("maxmemory", "0")
    if not stage.worker.running:
        stage.measure(worker_died=1)
        stage.start_worker()
    stage.wait_begun(during)
    stage.settle()


@row(10, "eviction of queues and bindings", must="published again")
def queue_deleted(stage: Stage) -> None:
    def delete() -> None:
        with stage.redis as client:
            stage.require(client.delete(*stage.lists), "messages wait in the broker")
            client.delete(*client.keys("_kombu.binding.*"))

    with_a_backlog(stage, delete)


@row(11, "BRPOP gap: popped by a worker that dies", must="published again")
def popped_and_gone(stage: Stage) -> None:
    stage.start()
    numbers = stage.enqueue(4)
    stage.wait(stage.settled, f"{len(numbers)} jobs are over")
    # Its connection waits in BRPOP: the next message is written to it, and it will never read it.
    stage.worker.freeze()
    popped = stage.enqueue(3)
    stage.sleep(0.5)
    stage.worker.kill()
    stage.start_worker()
    stage.settle()
    stage.require(stage.begun(popped) == len(popped), "what was popped runs once")


@row(12, "connection reset in the middle of a task", must="no overlapping effects", brokers=("redis",))
def connections_reset(stage: Stage) -> None:
    stage.start()
    numbers = [*stage.enqueue(4, seconds=2), *stage.enqueue(2, "transactional", seconds=2), *stage.enqueue(10)]
    for _ in range(2):
        stage.wait_running(2)
        stage.fault()
        with stage.redis as client:
            client.client_kill_filter(_type="normal", skipme=True)
        stage.sleep(1)
    stage.settle()
    stage.require(stage.begun(numbers) == len(numbers), "each job runs once")


@row(13, "network cut 60 s between worker and broker", must="finish, record, reconnect", brokers=BOTH, limit=240)
def network_cut(stage: Stage) -> None:
    proxy = stage.proxy_broker()
    stage.start_conductor()
    stage.start_worker(via=[proxy])
    running = stage.enqueue(2, seconds=3)
    stage.wait_running(2)
    stage.enqueue(10)
    stage.fault()
    proxy.drop()
    stage.sleep(stage.scaled(60, 15))
    ended = sum(run.ended is not None for run in stage.runs if run.number in running)
    stage.require(ended == 2, "what ran has ended meanwhile")
    proxy.heal()
    healed = stage.enqueue(5)
    stage.wait_begun(healed)
    stage.settle()
    stage.require(stage.begun(running) == 2, "what ran is not run again")


@row(14, "visibility timeout shorter than the task", must="one effect")
def short_visibility(stage: Stage) -> None:
    short = {"CHAOS_VISIBILITY": "3"}
    stage.start_conductor()
    stage.start_worker(environ=short, ready=False)
    stage.start_worker(environ=short)
    numbers = [*stage.enqueue(2, seconds=9), *stage.enqueue(1, "transactional", seconds=9)]
    stage.wait_running(3)
    stage.fault()
    stage.settle()
    stage.require(stage.begun(numbers) == len(numbers), "each job runs once")

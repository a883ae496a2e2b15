"""The fault matrix: ``make chaos`` breaks the real platform row by row, and an independent checker counts the jobs.

How to write a row
==================

A row is a function in ``tests/chaos/rows/<subject>.py``; every module there is read. It gets a :class:`Stage
<tests.chaos.stage.Stage>`, on which a broker, a database and a producer (the process that enqueues) run already,
and nothing else::

    from tests.chaos.matrix import row
    from tests.chaos.stage import Stage

    @row(17, "worker main SIGKILL", must="rescued within the lease")
    def main_killed(stage: Stage) -> None:
        stage.start()                       # a conductor and a worker
        stage.enqueue(20, seconds=0.5)
        stage.wait_running()
        stage.worker.kill_main()
        stage.start_worker()
        stage.settle()
        stage.require(stage.recovery_s <= stage.lease + 5, "runs again within the lease and five seconds")

``@row`` takes, beside the number, the fault and what the platform must do:

* ``brokers=("redis", "rabbitmq")`` and ``databases=("postgres", "sqlite")``: where the row makes sense. It is ``n/a``
  elsewhere, which is said and does not count as skipped.
* ``celery=False`` or ``celery="why not"``: the row means nothing for plain Celery.
* ``own_database=True``: a database server of its own, which the row may stop, freeze and restart. ``persistent=True``:
  Redis with an append-only file. ``rabbitmq={"consumer_timeout": 60000}``: lines of ``rabbitmq.conf``.
* ``jobs={"LEASE": 3}``: settings of ``JOBS`` for all processes of the row; ``limit=120``: its time limit in seconds.

``stage.settle()`` waits until every job is final and is called at the end of a row by itself. What the checker then
finds (lost, unfinished, overlapping, late writes, doubled effects, unexpected outcomes) fails the row whatever it says.
A row adds requirements of its own with ``stage.require(condition, "a sentence")`` and figures with
``stage.measure(name=value)``; both are printed. ``stage.skip("why")`` ends it as not done.

Work: ``stage.enqueue(count, kind="plain", seconds=0.0, how="fine", until=99, expects=None, …)`` returns numbers. Kinds
are in ``tests/chaos/tasks.py`` (``plain idempotent transactional failing retried``; ``chain chord link errlink`` are
canvases, one number per member); ``how`` is a misbehaviour from ``tests/chaos/bodies.py``, done in attempts before
``until``. ``expects`` is the state in which these jobs must end (``completed``, ``failed``, ``cancelled`` or ``any``).
``stage.mixed(count)`` is some of everything; ``stage.steady(count, rate)`` enqueues beside the row, as load.

Faults: processes are :class:`tests.chaos.children.Process` (``kill_main kill kill_child freeze thaw stop signal``);
``stage.broker`` and ``stage.database.server`` are servers of ``project.servers`` (``stop start kill freeze thaw
restart``); ``stage.redis`` is a client; ``stage.proxy_broker()`` and ``stage.proxy_database()`` put a
:class:`tests.chaos.proxy.Proxy` in between for processes started with ``via=``; ``stage.seams(…)`` kills at each
statement. ``stage.fault()`` marks the moment from which ``recovery_s`` counts; each call moves it.

What judges
===========

Bodies append to ``ledger`` (one write per line, O_APPEND), the producer to ``intake``; database triggers write every
change of a job's state, attempt, token and lease to ``chaos_audit``. ``tests/chaos/checker.py`` reads these and the
rows by plain SQL; it imports nothing of the platform.
"""

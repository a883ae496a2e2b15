"""Many callers at once."""

from collections import Counter
from collections.abc import Callable

from jobs.models import Job
from tests.children import Child, python
from tests.platform import Platform

ENQUEUE = """
import multiprocessing, django
django.setup()
from tests.sample.tasks import add, note

def enqueue(caller):
    for n in range({each}):
        note.delay(f"{{caller}}:{{n}}")

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    callers = [fork.Process(target=enqueue, args=(n,)) for n in range({callers})]
    [caller.start() for caller in callers]
    [caller.join() for caller in callers]
    print("enqueued", sum(caller.exitcode for caller in callers))
"""


def test_a_thousand_jobs_of_eight_processes_settle_and_none_is_lost(
    platform: Platform, settled: Callable[..., Counter[str]], spawn: Callable[..., Child]
) -> None:
    spawn("callers", python("-c", ENQUEUE.format(callers=8, each=125))).expect("enqueued 0", timeout=60)
    assert Job.objects.count() == 1000
    assert settled(timeout=90) == {"completed": 1000}
    assert sorted(platform.witness.lines) == sorted(f"{c}:{n}" for c in range(8) for n in range(125))

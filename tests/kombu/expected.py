"""The tests of kombu that our transport does not pass, and why each of them tests an internal."""

_TOGETHER = (
    "it looks into `unacked` in the same turn of the event loop in which it acknowledges; acknowledgements go out "
    "together within 10 ms"
)

EXPECTED = {
    f"t/integration/test_redis_brpop_qos.py::test_hub_pauses_pending_brpop_until_ack[{case}]": _TOGETHER
    for case in ("nil", "message")
}

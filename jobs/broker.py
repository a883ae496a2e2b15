"""A Redis transport for kombu: stock kombu's wire format in a third of its round trips.

It keeps its clients, takes as many messages at once as may be held, notes them as unacknowledged in the step that
takes them, and sends acknowledgements together. What it cannot do faster it leaves to kombu.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha1
from queue import Empty
from time import monotonic, time
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from kombu.transport import redis, virtual
from kombu.utils import scheduling
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis import Redis
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from jobs.messages import HEADER
from jobs.pace import Pace
from jobs.transport import OF_THE_CONTENT, ForgivingQoS, envelope

logger = logging.getLogger("jobs.worker")

MOST = 128  # messages that are taken at once, however many may be held
LARGE = 4 * 1024 * 1024  # bytes that are taken at once, as far as the last ones tell how large messages are
LINGER = 0.01  # seconds that an acknowledgement waits for others
TOGETHER = 100  # acknowledgements that are sent at once without waiting
HOLD = 0.01  # seconds that free places wait for others, while the pool has more than enough to do
TURN = 0.02  # seconds after which the event loop has its turn between two messages
SLOW = 0.1  # seconds that only a consumer needs for a message which runs the job itself
RETRY = 1.0  # seconds after which acknowledgements that the broker did not take are sent again

# Which strategies the script below knows, and whether they put the queue that was served last at the end.
_TURNING = {scheduling.round_robin_cycle: 1, scheduling.priority_cycle: 0, scheduling.sorted_cycle: 0}

# Acknowledges, notes what was popped already, then takes messages in the order in which single pops would, notes them
# and answers with them, in one step. What it cannot read it leaves where it lies. Nothing is noted after it was taken:
# a broker that is full refuses the first note, and with it the whole. What is no list is passed over, for an error
# would come after messages of other lists were taken.
FETCH = """
local unacked, index = KEYS[1], KEYS[2]
local now, wanted, queues, turning = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local popped = ARGV[5]
for i = popped == '' and 6 or 7, #ARGV do
  redis.call('ZREM', index, ARGV[i])
  redis.call('HDEL', unacked, ARGV[i])
end
if popped ~= '' then
  redis.call('HSET', unacked, popped, ARGV[6])
  redis.call('ZADD', index, now, popped)
end

-- Where nothing is consumed any more there is nothing to take; and a step of 0 would be a loop without an end.
if queues < 1 then return {0} end

local function noted(content)
  if string.find(content, '%c') then return nil end
  local ok, message = pcall(cjson.decode, content)
  local properties = ok and type(message) == 'table' and message.properties
  local info = type(properties) == 'table' and properties.delivery_info
  if type(info) ~= 'table' then return nil end
  local tag, exchange, key = properties.delivery_tag, info.exchange, info.routing_key
  if type(tag) ~= 'string' or tag == '' or type(exchange) ~= 'string' or type(key) ~= 'string' then return nil end
  redis.call('HSET', unacked, tag, '[' .. content .. ', ' .. cjson.encode(exchange) .. ', ' .. cjson.encode(key) .. ']')
  redis.call('ZADD', index, now, tag)
  return tag
end

local function length(list)
  local found = redis.pcall('LLEN', list)
  return type(found) == 'number' and found or 0
end

local answer, turn, readable = {0}, {}, true
for queue = 1, queues do turn[queue] = queue end
for first = 3, #KEYS, queues do
  if wanted <= 0 or not readable then break end
  local left, share, served = {}, {}, {}
  for queue = 1, queues do left[queue], share[queue] = length(KEYS[first + queue - 1]), 0 end
  while wanted > 0 do
    local place
    for at = 1, queues do if left[turn[at]] > 0 then place = at break end end
    if not place then break end
    local queue = turn[place]
    left[queue], share[queue], wanted = left[queue] - 1, share[queue] + 1, wanted - 1
    served[#served + 1] = queue
    if turning then table.remove(turn, place) table.insert(turn, queue) end
  end
  local contents, taken = {}, {}
  for queue = 1, queues do
    taken[queue] = 0
    if share[queue] > 0 then contents[queue] = redis.call('LRANGE', KEYS[first + queue - 1], -share[queue], -1) end
  end
  for _, queue in ipairs(served) do
    local content = contents[queue][share[queue] - taken[queue]]
    local tag = noted(content)
    readable = tag ~= nil
    if not readable then break end
    taken[queue] = taken[queue] + 1
    answer[#answer + 1] = queue
    answer[#answer + 1] = tag
    answer[#answer + 1] = content
  end
  for queue = 1, queues do
    if taken[queue] > 0 then redis.call('LTRIM', KEYS[first + queue - 1], 0, -taken[queue] - 1) end
  end
end
if wanted <= 0 and readable then
  for list = 3, #KEYS do if length(KEYS[list]) > 0 then answer[1] = 1 break end end
end
return answer
"""

FETCH_SHA = sha1(FETCH.encode(), usedforsecurity=False).hexdigest()

concurrency: Callable[[], int] | None = None
"""How many jobs the worker of this process runs at once, where it says so."""

pace: Pace | None = None
"""How fast the worker of this process ends jobs, where messages that it holds ahead can be given back."""

arrival: Callable[[Any], bool] | None = None
"""Who is told of a message that was popped alone, before it is handed over; whether its job is being claimed."""

_channels: WeakSet[Any] = WeakSet()


@dataclass(frozen=True, slots=True)
class Taken:
    """A message off a list: what lay there, and what could be read of it. Without a tag it is no message."""

    queue: str
    content: Any
    payload: Any = None
    tag: str = ""
    noted: bool = False

    @classmethod
    def read(cls, queue: str, content: Any) -> Taken:
        """What was popped, read as far as it can be."""
        payload = None
        with suppress(*OF_THE_CONTENT):
            payload = loads(bytes_to_str(content))
            properties = payload["properties"]
            names = [properties["delivery_tag"], *_origin(properties)]
            if all(isinstance(name, str) for name in names) and names[0].encode():
                return cls(queue, content, payload, names[0])
        return cls(queue, content, payload)

    @property
    def entry(self) -> str:
        """What kombu keeps of an unacknowledged message."""
        exchange, key = _origin(self.payload["properties"])
        return f"[{bytes_to_str(self.content)}, {json.dumps(exchange)}, {json.dumps(key)}]"


def _origin(properties: Any) -> tuple[Any, Any]:
    return properties["delivery_info"]["exchange"], properties["delivery_info"]["routing_key"]


@dataclass(frozen=True, slots=True)
class Fetch:
    """What the broker was asked for, until it answers."""

    queues: list[str]
    at: float
    arguments: tuple[Any, ...]
    acknowledged: list[str]


class QoS(ForgivingQoS):
    """Which messages are unacknowledged; acknowledgements are sent together."""

    channel: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.noted: set[str] = set()
        self._acknowledged: deque[str] = deque()
        self._lingering: Any = None
        super().__init__(*args, **kwargs)

    @property
    def allowed(self) -> int:
        """How many messages may be held; 0 for any number."""
        most: int = self.prefetch_count
        return most + pace.ahead(most) if most and pace is not None and self.channel.in_loop else most

    def can_consume(self) -> bool:
        """Whether there is room for another message."""
        return not self.allowed or self.held < self.allowed

    def can_consume_max_estimate(self) -> Any:
        """For how many messages there is room; None for any number."""
        return max(self.allowed - self.held, 0) if self.allowed else None

    @property
    def held(self) -> int:
        """How many messages are held: taken, and not acknowledged."""
        delivered, dirty = self._taken_and_done
        return len(delivered) - len(dirty)

    @property
    def _taken_and_done(self) -> tuple[dict[str, Any], set[str]]:
        return cast(dict[str, Any], self._delivered), cast(set[str], self._dirty)

    def holds(self, delivery_tag: str) -> bool:
        """Whether a message is held: taken, and not acknowledged."""
        delivered, dirty = self._taken_and_done
        return delivery_tag in delivered and delivery_tag not in dirty

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a message as unacknowledged, unless that was done when it was taken."""
        if delivery_tag in self.noted:
            self.noted.discard(delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: Any) -> None:
        """Acknowledge a message: within ``LINGER`` seconds where an event loop sees to that, else at once."""
        if self.channel.closed:
            return
        if self.channel.in_loop:
            if pace is not None:
                pace.note()
            virtual.QoS.ack(self, delivery_tag)
            self.forget(delivery_tag)
            if self.channel.handing_untracked:
                self.settle()
        else:
            super().ack(delivery_tag)

    def forget(self, delivery_tag: str) -> None:
        """Let the broker forget a message, together with others."""
        self._acknowledged.append(delivery_tag)
        if len(self._acknowledged) >= TOGETHER or not self.channel.in_loop:
            self.settle()
        else:
            self._linger(LINGER)

    def _linger(self, seconds: float) -> None:
        if self._lingering is None and self.channel.in_loop:
            self._lingering = self.channel.loop.call_later(seconds, self._lingered)

    def _lingered(self) -> None:
        self._lingering = None
        self.settle()

    def take_acknowledged(self) -> list[str]:
        """The acknowledgements that wait, for somebody who sends them."""
        tags: list[str] = []
        with suppress(IndexError):
            while len(tags) < 2 * TOGETHER:
                tags.append(self._acknowledged.popleft())
        return tags

    def put_back(self, tags: Iterable[str]) -> None:
        """These acknowledgements may not have arrived; sent twice, they do no harm."""
        self._acknowledged.extend(tags)

    def settle(self) -> None:
        """Send the acknowledgements that wait. What cannot be sent is tried again; lost, it is a duplicate."""
        while self._acknowledged and not self.channel.closed:
            tags = self.take_acknowledged()
            try:
                with self.pipe_or_acquire() as pipe:
                    pipe.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags).execute()
            except Exception as error:
                logger.warning("%d messages could not be acknowledged yet: %s", len(tags), error)
                self.put_back(tags)
                self._linger(RETRY)
                return

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Forget a message, or give it back: as the next in line where a worker of ours does, else as the last."""
        self.settle()
        if requeue and concurrency is None:
            super(ForgivingQoS, self).reject(delivery_tag, requeue=True)
        else:
            super().reject(delivery_tag, requeue)

    def restore_visible(self, *args: Any, **kwargs: Any) -> Any:
        """Give back what nobody has acknowledged for long, after what we have."""
        self.settle()
        return super().restore_visible(*args, **kwargs)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Give a message back. What was noted, and only the broker could read, keeps back no other."""
        if self.channel.give_back_unnoted(tag):
            return
        try:
            super().restore_by_tag(tag, client, leftmost)
        except ValueError as error:
            logger.warning("The message %r cannot be read, and stays unacknowledged: %s", tag, error)
            with self.channel.conn_or_acquire(client) as client:
                client.zrem(self.unacked_index_key, tag)

    def restore_unacked(self, client: Any = None) -> Any:
        """Give back what was not acknowledged; the first one last, as each becomes the next in line."""
        unacknowledged: Any = self._delivered
        for tag in reversed(list(unacknowledged)):
            unacknowledged.move_to_end(tag)
        return super().restore_unacked(client)

    def restore_unacked_once(self, stderr: Any = None) -> Any:
        """The end: nothing waits any longer."""
        self.settle()
        self.channel.give_back_waiting()
        return super().restore_unacked_once(stderr)


class Channel(redis.Channel):  # type: ignore[misc, unused-ignore]
    """A channel to Redis: many messages in one step."""

    QoS: Any = QoS

    _kept: tuple[Any, Any] = (None, None)
    _windowed = False
    _scripts = True
    _more = False
    _held_since = 0.0
    _asked: Fetch | None = None
    _to_note: Taken | None = None
    _handing: Taken | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._batch = 1
        self._portion = MOST
        self._lost: deque[float] = deque(maxlen=10)
        self._waiting: deque[Taken] = deque()
        self._unanswered: set[str] = set()  # the consumers that acknowledge nothing
        super().__init__(*args, **kwargs)

    if TYPE_CHECKING:
        qos: Any

        def __getattr__(self, name: str) -> Any: ...

    # --- Clients ---

    def _create_client(self, asynchronous: bool = False) -> Any:
        """One client for all commands: it is safe among threads, and its pool of connections knows of forks."""
        if asynchronous:
            return super()._create_client(True)  # type: ignore[misc]
        pool, (kept_pool, client) = self.pool, self._kept
        if client is None or kept_pool is not pool:
            client = super()._create_client()  # type: ignore[misc]
            self._kept = (pool, client)
        return client

    # --- What may be done together ---

    @property
    def loop(self) -> Any:
        """The event loop that this channel is part of, None where there is none."""
        return getattr(self.connection, "loop", None)

    @property
    def in_loop(self) -> bool:
        """Whether this thread runs the event loop of a consumer, which will soon have its turn."""
        loop = self.loop
        return (
            loop is not None
            and self._windowed
            and bool(self._consumers)
            and bool(loop._loop_thread == threading.get_ident())
        )

    @property
    def handing_untracked(self) -> bool:
        """Whether a message is being handed over whose second run nobody would refuse.

        Where it is acknowledged meanwhile, the consumer ran it itself (solo), and may run the next one for hours.
        """
        one = self._handing
        headers = one.payload.get("headers") if one is not None and one.tag else None
        mark = headers.get(HEADER) if isinstance(headers, dict) else None
        return one is not None and not (isinstance(mark, dict) and mark.get("job"))

    @property
    def _many(self) -> bool:
        """Whether messages are taken by the script.

        Only for those who said how many they may hold: others expect one message of each look.
        """
        return self._windowed and self._scripts and not self._unanswered and bool(self.ack_emulation)

    def basic_qos(self, *args: Any, **kwargs: Any) -> None:
        """How many messages may be held."""
        super().basic_qos(*args, **kwargs)
        self._windowed = True

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: Any, **kwargs: Any) -> Any:
        """Begin to consume. Where nobody acknowledges, nothing must be noted: that is left to kombu."""
        if no_ack and queue not in self._fanout_queues:
            self._unanswered.add(consumer_tag)
        _channels.add(self)
        return super().basic_consume(queue, no_ack, callback=callback, consumer_tag=consumer_tag, **kwargs)

    def _basic_cancel(self, consumer_tag: str) -> Any:
        cancelled = super()._basic_cancel(consumer_tag)  # type: ignore[misc]
        self._unanswered.discard(consumer_tag)
        if self._qos is not None and not self._consumers:
            self._settle()
            self.give_back_waiting()
        return cancelled

    def _room(self) -> int:
        """How many messages may be taken at once."""
        if "can_consume" in vars(self.qos) or type(self._queue_cycle) not in _TURNING:
            return 1  # somebody decides before each message
        free = self.qos.can_consume_max_estimate()
        most = min(self._batch, self._portion)
        return most if free is None else min(most, free)

    def _holds_out(self) -> bool:
        """Whether to wait a moment until more places are free; else each look would bring but one message.

        Only while there is more to do than the pool has hands for: no hand waits for a message.
        """
        qos = self.qos
        if self.loop is None or concurrency is None or not qos.prefetch_count:
            return False
        if qos.held <= max(qos.allowed // 2, concurrency()):
            return False
        if not self._held_since:
            self._held_since = monotonic()
            self.loop.call_later(HOLD, int)  # the loop then looks again
        return monotonic() - self._held_since < HOLD

    # --- Asking ---

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._asked is not None or self._lost:
            self._abandon()
        if self._waiting:
            return
        if not (self._more and self._many):
            super()._brpop_start(timeout)  # type: ignore[misc]
        elif not self._holds_out():
            self._held_since = 0.0
            self._ask()

    def _ask(self, *popped: Taken) -> None:
        """Send the script on its way; its answer is read when it is there, like that of a pop."""
        queues, room = self._queue_cycle.consume(len(self.active_queues)), self._room()
        if popped or (queues and room > 0):
            connection = self.client.connection
            self._asked = self._fetch(queues, max(room, 0), *(part for one in popped for part in (one.tag, one.entry)))
            self._in_poll, self._brpop_sent_at = connection, monotonic()
            connection.send_command("EVALSHA", FETCH_SHA, *self._asked.arguments)

    def _fetch(self, queues: list[str], wanted: int, *popped: str) -> Fetch:
        """What to ask for; the acknowledgements that wait go with it."""
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        keys = [f"{self.global_keyprefix}{name}" for name in (self.unacked_key, self.unacked_index_key, *lists)]
        turning = _TURNING.get(type(self._queue_cycle), 0)
        at, acknowledged = time(), self.qos.take_acknowledged()
        arguments = (
            len(keys), *keys, repr(at), wanted, len(queues), turning, *(popped or ("",)), *acknowledged,
        )  # fmt: skip
        return Fetch(queues, at, arguments, acknowledged)

    # --- The answer ---

    def _brpop_read(self, **options: Any) -> bool:
        asked, self._asked, self._in_poll = self._asked, None, None
        try:
            taken = self._popped(**options) if asked is None else self._fetched(asked, **options)
        finally:
            self._flush_brpop_reauth()  # unless more was asked for meanwhile
        if not taken:
            raise Empty
        self._waiting.extend(taken)
        first = self._to_note
        if self._closing or not self._consumers:
            self._to_note = None
            self.give_back_waiting()
        elif first is not None:
            self._hand_over_unnoted(first)
        else:
            self._hand_over()
        return True

    def _answer(self, command: str, **options: Any) -> Any:
        try:
            return self.client.parse_response(self.client.connection, command, **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise

    def _fetched(self, asked: Fetch, **options: Any) -> list[Taken]:
        return self._taken(asked, lambda: self._answer("EVALSHA", **options)) or []

    def _popped(self, **options: Any) -> list[Taken]:
        """What a pop brought, and more that lies there."""
        answer = self._answer("BRPOP", **options)
        if not answer:
            return []
        key, content = answer
        queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        first = Taken.read(queue, content)
        if not (first.tag and self._many) or self._closing:
            return [first]
        if arrival is not None and self.in_loop and arrival(first.payload):
            self._to_note = first
            return [first]
        return self._with_more(first)

    def _hand_over_unnoted(self, first: Taken) -> None:
        """Hand over what was popped, then note it and ask for more, without waiting for the answer.

        Its job is in the database, and being claimed: the broker's note can follow.
        """
        self.qos.noted.add(first.tag)
        try:
            self._hand_over()
        finally:
            self.qos.noted.discard(first.tag)
            if self._to_note is first and self.qos.holds(first.tag):
                self._ask(first)  # where that fails, it is given back as it is
            self._to_note = None

    def give_back_unnoted(self, tag: str) -> bool:
        """Give back the message that was handed over and is not noted yet, if this is its tag."""
        one = self._to_note
        if one is None or one.tag != tag:
            return False
        self._give_back(one)
        self._to_note = None
        return True

    def _with_more(self, first: Taken) -> list[Taken]:
        """Note what was popped, and take more in the same step."""
        # A client that sends a command again when the answer is late would take twice, and answer once.
        wanted = self._room() - 1 if self.supports_batch_publish else 0
        fetch = self._fetch(self._queue_cycle.consume(len(self.active_queues)), max(wanted, 0), first.tag, first.entry)
        try:
            more = self._taken(fetch, lambda: self._run_script("EVALSHA", FETCH_SHA, fetch))
        except self.connection_errors:
            self._waiting.append(first)  # it may be nowhere but here
            raise
        if more is None:
            return [first]
        self.qos.noted.add(first.tag)
        return [replace(first, noted=True), *more]

    def _taken(self, fetch: Fetch, ask: Callable[[], Any]) -> list[Taken] | None:
        """The messages that the script answers with; None where the broker refused it, which changes nothing."""
        self._more = False
        try:
            try:
                more, *answer = ask()
            except NoScriptError:
                more, *answer = self._run_script("EVAL", FETCH, fetch)
        except self.connection_errors:
            self.qos.put_back(fetch.acknowledged)
            self._lost.append(fetch.at)
            raise
        except ResponseError as error:
            self.qos.put_back(fetch.acknowledged)
            self._without_script(error)
            return None
        self._more = bool(more)
        if answer:
            self._portion = max(min(LARGE * len(answer[2::3]) // sum(map(len, answer[2::3])), MOST), 1)
        return [
            self._noted(fetch.queues[place - 1], bytes_to_str(tag), content)
            for place, tag, content in zip(answer[::3], answer[1::3], answer[2::3], strict=True)
        ]

    def _noted(self, queue: str, tag: str, content: Any) -> Taken:
        self._queue_cycle.rotate(queue)
        self.qos.noted.add(tag)
        return replace(Taken.read(queue, content), tag=tag, noted=True)

    def _run_script(self, command: str, script: str, fetch: Fetch) -> Any:
        with self.conn_or_acquire() as client:
            # Its own prefixing, where it has one, knows only of the first key.
            return Redis.execute_command(client, command, script, *fetch.arguments)  # type: ignore[no-untyped-call]

    def _without_script(self, error: ResponseError) -> None:
        """A broker that is full or read-only may take it next time; one that knows no scripts will not."""
        if isinstance(error, NoPermissionError) or "unknown command" in str(error).lower():
            logger.warning("The broker runs no scripts for us, so messages are taken one by one: %s", error)
            self._scripts = False

    # --- Handing over ---

    def _hand_over(self) -> None:
        """Give each message to its consumer, in order and at once.

        A consumer that runs the job itself (solo) takes its time: then the event loop has its turn in between, and
        only one message is taken next time, so that none waits here while another worker is idle.
        """
        turn, failed = monotonic() + TURN, None
        while self._waiting:
            began = monotonic()
            try:
                self._hand(self._waiting.popleft())
            except Exception as error:
                failed = failed or error
            now = monotonic()
            self._batch = 1 if now - began > SLOW else min(2 * self._batch, MOST)
            if now > turn and self._waiting and self.in_loop:
                # Not call_soon: what is called by it waits for the next event before it is called again.
                self.loop.call_later(0.001, self._hand_over)
                break
        if failed is not None:
            raise failed

    def _hand(self, one: Taken) -> None:
        self._handing = one
        deliver = self.connection._deliver
        try:
            if one.payload is None:
                raise ValueError("not a message")
            deliver(one.payload, one.queue)
        except OF_THE_CONTENT:
            deliver(envelope(one.content, one.queue), one.queue)
            if one.noted and one.tag in self.qos.noted:
                # It was noted by its own tag before anybody could look into it.
                self.qos.noted.discard(one.tag)
                self.qos.forget(one.tag)
        finally:
            self._handing = None

    # --- Giving back ---

    def _settle(self) -> None:
        if self.ack_emulation:  # else the record is not ours, and sends nothing
            self.qos.settle()

    def give_back_waiting(self) -> None:
        """Give back what was taken and not handed over: in its order, as the next in line."""
        while self._waiting:
            one = self._waiting.pop()
            try:
                self._give_back(one)
            except Exception as error:
                logger.warning("A message could not be given back to the broker: %s", error)

    def _give_back(self, one: Taken) -> None:
        if one.noted:
            self.qos.noted.discard(one.tag)
            self.qos.restore_by_tag(one.tag)
        else:
            step = self._get_message_priority(one.payload)
            with self.conn_or_acquire() as client:
                client.rpush(self._q_for_pri(one.queue, step), one.content)

    def _abandon(self) -> None:
        """The answer to what was asked will not come; what the broker took for it is given back."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self.qos.put_back(asked.acknowledged)
            self._lost.append(asked.at)
        self._more = False
        while self._lost:
            try:
                self._give_back_taken_at(self._lost[0])
            except Exception as error:
                logger.warning("Messages whose arrival failed may wait for the visibility timeout: %s", error)
                return
            self._lost.popleft()

    def _give_back_taken_at(self, at: float) -> None:
        """Give back what was noted at this moment and did not reach us."""
        with self.conn_or_acquire() as client:
            noted = client.zrange(self.unacked_index_key, at, at, byscore=True)
        for tag in reversed([bytes_to_str(tag) for tag in noted]):
            if tag not in self.qos._delivered:
                self.qos.restore_by_tag(tag)
                self._waiting = deque(one for one in self._waiting if one.tag != tag)

    def close(self) -> None:
        """Send the acknowledgements that wait, give back the rest."""
        if not self.closed and self._qos is not None:
            if self._lost or (self._asked is not None and not self._in_poll):
                self._abandon()
            self._settle()
            self.give_back_waiting()
        super().close()

    def _after_fork(self) -> None:
        self._kept = (None, None)
        super()._after_fork()  # type: ignore[misc]


class SentinelChannel(Channel, redis.SentinelChannel):  # type: ignore[misc, unused-ignore]
    """A channel to the Redis that the sentinels name."""


class Transport(redis.Transport):  # type: ignore[misc, unused-ignore]
    """Kombu's transport for ``redis://`` and ``rediss://``, which knows its event loop."""

    Channel = Channel
    loop: Any = None

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """From now on, this loop sees to what the channels do."""
        self.loop = loop
        super().register_with_event_loop(connection, loop)


class SentinelTransport(Transport, redis.SentinelTransport):  # type: ignore[misc, unused-ignore]
    """Kombu's transport for ``sentinel://``."""

    Channel = SentinelChannel


def in_hand() -> list[str]:
    """The ids of the tasks whose messages this process has taken, and which its consumer has not been given yet."""
    taken = [one for channel in list(_channels) for one in (channel._handing, *channel._waiting.copy()) if one]
    headers = [one.payload.get("headers") for one in taken if isinstance(one.payload, dict)]
    return [str(header["id"]) for header in headers if isinstance(header, dict) and header.get("id")]

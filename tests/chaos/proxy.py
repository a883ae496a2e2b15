"""A TCP proxy that can lose, delay, swallow and reset: the network between a process and its broker or database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

Upstream = tuple[str, int] | str
CHUNK = 65536


class Proxy:
    """Stands on ``port`` before ``upstream``: (host, port), or the path of a Unix socket.

    ``drop`` loses what is sent without a word, ``half_open`` accepts and ignores, ``refuse`` accepts nobody, ``reset``
    breaks what is connected, ``delay`` slows down, ``heal`` lets everything pass again.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.what = ""
        self.delayed = 0.0
        self.dropping = self.ignoring = self.refusing = False
        self.port = 0
        self.accepted = 0
        self._pairs: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def drop(self) -> None:
        """Lose everything from now on, in both directions; connections stay, as when a cable is cut."""
        self.dropping = True

    def half_open(self) -> None:
        """Accept new connections and never answer them; those that there are get no answer either."""
        self.ignoring = self.dropping = True

    def refuse(self) -> None:
        """Reset what is connected and whoever connects."""
        self.refusing = True
        self.reset()

    def delay(self, seconds: float) -> None:
        """Let everything pass, late."""
        self.delayed = seconds

    def heal(self) -> None:
        """Let everything pass. Connections from which something was lost are reset, as their ends would find out."""
        lossy = self.dropping or self.ignoring
        self.delayed, self.dropping, self.ignoring, self.refusing = 0.0, False, False, False
        if lossy:
            self.reset()

    def reset(self) -> None:
        """Break all connections with a reset."""
        self._in_loop(self._reset())

    def close(self) -> None:
        """End the proxy."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    # --- In the thread of the loop

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    def _in_loop(self, act: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            _abort(writer)
            return
        self._pairs.add(writer)
        if self.ignoring:
            await self._swallow(reader)
            return
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            _abort(writer)
            return
        self._pairs.add(far_writer)
        await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        for end in (writer, far_writer):
            self._pairs.discard(end)
            end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.upstream, str):
            return await asyncio.open_unix_connection(self.upstream)
        return await asyncio.open_connection(*self.upstream)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self.delayed:
                    await asyncio.sleep(self.delayed)
                if not self.dropping:
                    writer.write(chunk)
                    await writer.drain()
        if not self.dropping:
            writer.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(CHUNK):
                pass

    async def _end(self) -> None:
        await self._reset()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close at the next turn

    async def _reset(self) -> None:
        for writer in list(self._pairs):
            _abort(writer)
        self._pairs.clear()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of a farewell."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

"""A payment gateway on loopback: a real HTTP server that answers by the plan and keeps a ledger."""

import hashlib
import json
import socket
import struct
import threading
import time
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from project.demo.plan import Answer, Line, gateway_answer


@dataclass(frozen=True, slots=True)
class Charge:
    """Money that moved once, under one idempotency key."""

    key: str
    order: str
    amount: str
    currency: str
    reference: str


class Ledger:
    """What was charged and how often each order was asked about; the journal survives a restart."""

    def __init__(self, seed: int, journal: Path | None = None) -> None:
        self.seed = seed
        self.charges: dict[str, Charge] = {}
        self.asked: dict[str, int] = {}
        self.looked_up: list[tuple[str, float]] = []
        self._lock = threading.Lock()
        self._journal = journal
        self._replay_journal()

    def ask(self, key: str, order: str, amount: str, currency: str) -> tuple[Answer, Charge | None]:
        """Count the request, charge if the plan says so and the key is new; return answer and charge."""
        with self._lock:
            asked = self._count(order)
            answer = gateway_answer(self.seed, order, asked)
            if answer.charged and key not in self.charges:
                self._charge(Charge(key, order, amount, currency, self._reference(key, order)))
            return answer, self.charges.get(key)

    def look_up(self, parcel: str) -> str:
        """Say where a parcel is, and remember when somebody asked."""
        with self._lock:
            self.looked_up.append((parcel, time.monotonic()))
        return "on its way"

    def snapshot(self) -> dict[str, Any]:
        """The ledger as plain JSON."""
        with self._lock:
            charges = [asdict(charge) for charge in self.charges.values()]
            return {"seed": self.seed, "charges": charges, "asked": dict(self.asked), "looked_up": self.looked_up}

    def _count(self, order: str) -> int:
        self.asked[order] = self.asked.get(order, 0) + 1
        self._write({"asked": order})
        return self.asked[order]

    def _charge(self, charge: Charge) -> None:
        self.charges[charge.key] = charge
        self._write({"charge": asdict(charge)})

    def _reference(self, key: str, order: str) -> str:
        return "ch_" + hashlib.sha256(f"{self.seed}|{key}|{order}".encode()).hexdigest()[:16]

    def _write(self, entry: dict[str, Any]) -> None:
        if self._journal is not None:
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps(entry) + "\n")

    def _replay_journal(self) -> None:
        if self._journal is None:
            return
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        self._journal.touch()
        for line in self._journal.read_text(encoding="utf-8").splitlines():
            self._replay(json.loads(line))

    def _replay(self, entry: dict[str, Any]) -> None:
        if "charge" in entry:
            charge = Charge(**entry["charge"])
            self.charges[charge.key] = charge
        else:
            self.asked[entry["asked"]] = self.asked.get(entry["asked"], 0) + 1


class Gateway(ThreadingHTTPServer):
    """The listening gateway; ``hang`` is how long a hanging answer takes, in seconds."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, ledger: Ledger, hang: float) -> None:
        self.ledger = ledger
        self.hang = hang
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", port), Till)

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of the plan, not an error to print."""

    def server_close(self) -> None:
        """Stop listening and let hanging answers go."""
        self.closing.set()
        super().server_close()


class Till(BaseHTTPRequestHandler):
    """One connection to the gateway: ``POST /charges``, ``GET /parcels/…``, ``GET /ledger``, ``GET /health``."""

    server: Gateway
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        """Show the ledger, where a parcel is, or that the gateway is up."""
        if self.path == "/ledger":
            return self._reply(200, self.server.ledger.snapshot())
        _, parcels, parcel = self.path.rpartition("/parcels/")
        if parcels:
            return self._reply(200, {"parcel": parcel, "state": self.server.ledger.look_up(parcel)})
        if self.path == "/health":
            return self._reply(200, {"ready": True})
        return self._reply(404, {"error": "unknown address"})

    def do_POST(self) -> None:
        """Charge an order once per idempotency key, or fail as the plan says."""
        asked_for = self._body()
        key = self.headers.get("Idempotency-Key", "")
        if self.path != "/charges" or not key or asked_for is None:
            return self._reply(400, {"error": "POST /charges needs JSON and an Idempotency-Key header"})
        answer, charge = self.server.ledger.ask(key, **asked_for)
        return self._carry_out(answer, charge)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class says so)
        """Stay silent: the ledger is the log."""

    def _carry_out(self, answer: Answer, charge: Charge | None) -> None:
        if answer.line is Line.RESET:
            return self._reset()
        if answer.line is Line.HANGS:
            self.server.closing.wait(self.server.hang)
            return self._reset()
        return self._reply(answer.status, self._text(answer, charge), answer.retry_after)

    def _text(self, answer: Answer, charge: Charge | None) -> dict[str, Any]:
        if answer.status == 200 and charge is not None:
            return {"reference": charge.reference, "amount": charge.amount, "currency": charge.currency}
        return {"error": REASONS[answer.status]}

    def _body(self) -> dict[str, str] | None:
        length = int(self.headers.get("Content-Length", "0"))
        try:
            sent = json.loads(self.rfile.read(length))
            return {name: str(sent[name]) for name in ("order", "amount", "currency")}
        except (ValueError, KeyError, TypeError):
            return None

    def _reply(self, status: int, content: dict[str, Any], retry_after: int | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        # Lingering for zero seconds makes the kernel send RST instead of a polite FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


REASONS = {
    402: "the card was refused",
    404: "the gateway does not know this order",
    429: "too many requests",
    500: "the gateway broke",
    503: "the gateway is busy",
}

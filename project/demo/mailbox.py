"""A mail server on loopback: a real SMTP sink that refuses recipients by the plan and keeps messages."""

import asyncio
import hashlib
from collections import Counter
from email import message_from_bytes, policy
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

from project.demo.plan import ACCEPTED, GREYLISTED, mailbox_answer

REPLIES = {GREYLISTED: "451 4.7.1 Greylisted, please try again", 550: "550 5.1.1 No such mailbox here"}


class Sink:
    """What becomes of recipients and messages; one sent twice is kept once, by its Message-ID."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.folder = folder
        self.asked: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    async def handle_RCPT(  # noqa: N802 (aiosmtpd looks for this name)
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Accept or refuse a recipient by the plan."""
        self.asked[address] += 1
        code = mailbox_answer(self.seed, address, self.asked[address])
        if code != ACCEPTED:
            return REPLIES[code]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Keep the message."""
        content = envelope.original_content or b""
        target = self.folder / f"{message_name(content)}.eml"
        # Written aside and moved into place, so that a counter never sees half a message.
        aside = target.with_suffix(".part")
        aside.write_bytes(content)
        aside.replace(target)
        return "250 2.0.0 Kept"


def message_name(content: bytes) -> str:
    """The name under which a message is kept: its Message-ID, or its content if it has none."""
    identity = message_from_bytes(content, policy=policy.default)["Message-ID"]
    return hashlib.sha256(str(identity).encode() if identity else content).hexdigest()[:32]


def kept(folder: Path) -> list[Path]:
    """The messages kept so far."""
    return sorted(folder.glob("*.eml"))


async def listen(sink: Sink, port: int) -> asyncio.Server:
    """Open the mail server on a port of loopback (0: any that is free)."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: SMTP(sink, hostname="localhost"), "127.0.0.1", port)


def port_of(server: asyncio.Server) -> int:
    """The port that a listening server got."""
    port: int = server.sockets[0].getsockname()[1]
    return port

"""The mail server of the demo, spoken to over real SMTP."""

import asyncio
import smtplib
import threading
from decimal import Decimal
from email import message_from_bytes, policy

import pytest

from project.demo import conf, plan, post
from project.demo.mailbox import Sink, kept, listen, port_of
from project.demo.round import Round

SEED = conf.SEED


@pytest.fixture
def mailbox(tmp_path, monkeypatch):
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(listen(Sink(SEED, tmp_path), 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    monkeypatch.setattr(conf, "EMAIL_HOST", "127.0.0.1")
    monkeypatch.setattr(conf, "EMAIL_PORT", port_of(server))
    yield tmp_path
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def recipient_with(script):
    """A customer of the default round whom the mail server treats by a script."""
    return next(line.email for line in Round(seed=SEED).lines() if plan.mailbox_script(SEED, line.email) == script)


def send(recipient, token="token"):
    """What comes of sending a receipt once: its Message-ID, or the code of the refusal."""
    message = post.receipt(order="01-000001", recipient=recipient, amount=Decimal("9.90"), currency="EUR", token=token)
    try:
        return post.deliver(message)
    except smtplib.SMTPRecipientsRefused as refused:
        return refused.recipients[recipient][0]


def test_a_message_arrives_as_it_was_sent(mailbox):
    recipient = recipient_with("accepts")
    send(recipient)
    (file,) = kept(mailbox)
    message = message_from_bytes(file.read_bytes(), policy=policy.default)
    assert (message["To"], message["Subject"]) == (recipient, "Receipt for order 01-000001")


def test_a_greylisted_recipient_is_refused_once_and_then_served(mailbox):
    recipient = recipient_with("greylists once")
    assert [send(recipient), send(recipient)] == [451, "<token@example.test>"]


def test_a_recipient_without_a_mailbox_is_refused_every_time(mailbox):
    recipient = recipient_with("has no such mailbox")
    assert [send(recipient) for _ in range(3)] == [550, 550, 550]


def test_a_refused_message_is_not_kept(mailbox):
    send(recipient_with("has no such mailbox"))
    assert kept(mailbox) == []


def test_a_message_sent_twice_under_one_token_is_kept_once(mailbox):
    recipient = recipient_with("accepts")
    send(recipient)
    send(recipient)
    assert len(kept(mailbox)) == 1


def test_messages_under_different_tokens_are_both_kept(mailbox):
    recipient = recipient_with("accepts")
    send(recipient, token="one")
    send(recipient, token="two")
    assert len(kept(mailbox)) == 2

"""Mail to customers. Errors stay smtplib's own: a 4xx reply means later, a 5xx never."""

import smtplib
from decimal import Decimal

from django.core.mail import EmailMessage

from project.demo import conf

SENDER = "orders@example.test"


def receipt(*, order: str, recipient: str, amount: Decimal, currency: str, token: str) -> EmailMessage:
    """The receipt for an order; its Message-ID is the token, so that a second copy can be told as one."""
    return EmailMessage(
        subject=f"Receipt for order {order}",
        body=f"Thank you. We have received {amount} {currency} for your order {order}.",
        from_email=SENDER,
        to=[recipient],
        headers={"Message-ID": f"<{token}@example.test>"},
    )


def deliver(message: EmailMessage) -> str:
    """Hand a message to the mail server; return its Message-ID.

    Raises ``smtplib.SMTPRecipientsRefused`` for a recipient whom the server does not take.
    """
    # The host's own name is of no interest here, and finding it out can block on a machine without DNS.
    with smtplib.SMTP(conf.EMAIL_HOST, conf.EMAIL_PORT, "localhost", conf.EMAIL_TIMEOUT) as server:
        server.send_message(message.message())
    return str(message.extra_headers["Message-ID"])

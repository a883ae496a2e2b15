"""The plan of the demo's outside world: pure, deterministic, and showing everything there is to show."""

import subprocess
import sys

import pytest

from project.demo import conf, plan
from project.demo.round import Round


def test_the_same_seed_gives_the_same_plan_in_another_process():
    code = "from project.demo.plan import *; print([gateway_script(7, f'01-{i:06d}') for i in range(200)])"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert elsewhere.strip() == str([plan.gateway_script(7, f"01-{i:06d}") for i in range(200)])


def test_another_seed_gives_another_plan():
    numbers = [f"01-{i:06d}" for i in range(200)]
    assert [plan.gateway_script(7, n) for n in numbers] != [plan.gateway_script(8, n) for n in numbers]


@pytest.mark.parametrize("scripts", [plan.GATEWAY, plan.MAILBOX], ids=["gateway", "mailbox"])
def test_the_shares_of_the_scripts_make_up_a_thousand(scripts):
    assert sum(script.share for script in scripts.values()) == 1000


def test_the_default_round_meets_every_script_of_the_gateway():
    charged = Round(seed=conf.SEED).charged()
    assert {plan.gateway_script(conf.SEED, line.number) for line in charged} == set(plan.GATEWAY)


def test_the_default_round_meets_every_script_of_the_mailbox():
    recipients = [
        line.email for line in Round(seed=conf.SEED).with_receipt() if plan.is_charged(conf.SEED, line.number)
    ]
    assert {plan.mailbox_script(conf.SEED, email) for email in recipients} == set(plan.MAILBOX)


def test_every_script_settles_within_the_attempts_of_a_charge():
    from project.demo.tasks import ChargeOrder

    failing = max(len(script.first) for script in plan.GATEWAY.values())
    assert failing < ChargeOrder.retry_policy.max_attempts

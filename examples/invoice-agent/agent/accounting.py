#!/usr/bin/env python3
"""The accounting agent: receives what the invoice agent reports, checks it, acknowledges it. Runs inside its own sandbox.

Environment: CRETO_GATEWAY; EXPECT_FROM, the invoice agent's identity; MESSAGES, how many to wait for (default 1); WAIT_S, for how
long at most (default 300). Prints one JSON object per line; leaves with 1 where something was missing or wrong.
"""
import hashlib
import json
import os
import sys
import time
from decimal import Decimal, InvalidOperation

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent import say  # noqa: E402
from gateway import Gateway, GatewayError  # noqa: E402


def check(message, expected):
    """(what the message says, what is wrong with it)"""
    if message.get("verified") is not True:
        return {}, "its signature was not verified"
    if expected and message.get("from") != expected:
        return {}, f"it comes from {message.get('from')}"
    try:
        body = json.loads(message.get("body", ""))
        totals = {}
        for payment in body["paid"]:
            totals[payment["currency"]] = totals.get(payment["currency"], Decimal(0)) + Decimal(payment["amount"])
        if body["from"] != message.get("from"):
            return {}, "its body names another sender than its envelope"
        return {"payments": len(body["paid"]), "totals": {c: f"{t:.2f}" for c, t in sorted(totals.items())}}, ""
    except (ValueError, KeyError, TypeError, InvalidOperation) as problem:
        return {}, f"its body cannot be read: {type(problem).__name__}"


def main():
    gateway = Gateway()
    say("identity", **gateway.identity())
    if "BOOKING_KEY" in os.environ:
        # A secret is for this sandbox alone; what it is may be compared, not told.
        say("secret", sha256=hashlib.sha256(os.environ["BOOKING_KEY"].encode()).hexdigest())
    wanted = int(os.environ.get("MESSAGES", "1"))
    deadline = time.monotonic() + float(os.environ.get("WAIT_S", "300"))
    received, wrong = 0, 0
    while received < wanted and time.monotonic() < deadline:
        try:
            messages = gateway.receive(wait_s=5)
        except GatewayError as refused:
            say("receive_refused", code=refused.code, error=str(refused))
            time.sleep(1)
            continue
        for message in messages:
            booked, problem = check(message, os.environ.get("EXPECT_FROM", ""))
            say("received", message_id=message.get("message_id"), sender=message.get("from"), ok=not problem, problem=problem, **booked)
            if problem:
                wrong += 1
            else:
                gateway.acknowledge(message["message_id"])
                received += 1
                say("acknowledged", message_id=message["message_id"])
    say("end", received=received, wrong=wrong)
    return 0 if received >= wanted and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())

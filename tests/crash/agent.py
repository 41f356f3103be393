#!/usr/bin/env python3
"""What runs inside the sandboxes of the crash test: `agent.py pay` and `agent.py book`.

Whatever it asks for carries a key that depends on the environment's ROUND alone, and is asked for again until somebody
answers: the server dies again and again. Prints one JSON object per line, like the example's agents; ends only when it is ended.
"""
import http.client
import itertools
import json
import os
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from gateway import Gateway, GatewayError  # noqa: E402

PATIENCE_S = 300
ROUND = os.environ["ROUND"]
GATEWAY = Gateway()
SAID = itertools.count()


def say(step, **fields):
    """Numbered, so that a line that is lost or doubled on its way out shows."""
    print(json.dumps({"number": next(SAID), "step": step, **fields}), flush=True)


def until_answered(action):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return action()
        except GatewayError as refused:
            if refused.status not in (408, 502, 503, 504) or time.monotonic() > deadline:
                raise
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def pay_one(invoice, payee, amount, key, override=None):
    arguments = {"payee": payee, "account": "DE02100100100006820101", "amount": amount, "currency": "USD",
                 "invoice_number": f"{invoice}-{ROUND}"}
    return until_answered(lambda: GATEWAY.act("pay", arguments, "it is due", f"{key}-{ROUND}", override))


def reaches(address):
    """What an agent sees of a host: the proxy closes what policy denies."""
    host, port = address.rsplit(":", 1)
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException, socket.gaierror):
        return False


def pay():
    until_answered(lambda: GATEWAY.complete("Answer with JSON alone.", "invoice", f"think-{ROUND}"))
    say("thought")
    # A connection has no key: it is tried until it holds, and counts as often as it was made.
    deadline = time.monotonic() + PATIENCE_S
    while not reaches(os.environ["ALLOWED"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    say("reached", denied=reaches(os.environ["DENIED"]))
    status, document = pay_one("small", "Harbor Office Supply", "120.00", "small")
    say("small", status=status, document=document)
    status, document = pay_one("large", "Rackdale Hardware", "25000.00", "large")
    if status == 202:
        pay_one("open", "Brightwater Consulting", "18400.00", "open")  # nobody will answer this one
        _, no = pay_one("denied", "Brightwater Consulting", "19500.00", "denied")
        say("asked_in_vain", request_id=no["request_id"])
        request = document["request_id"]
        say("asked", request_id=request)
        state = {"state": "pending"}
        while state["state"] in ("pending", "escalated"):
            state = until_answered(lambda: GATEWAY.request(request, wait_s=5))
        say("answered", state=state["state"])
        token = state["override_token"]
        status, document = pay_one("large", "Rackdale Hardware", "25000.00", "large", token)
        try:
            second, _ = pay_one("large", "Rackdale Hardware", "25000.00", "second", token)
        except GatewayError as refused:
            second = refused.status
        say("second_use", status=second)
    say("large", status=status, document=document)
    thought = {"content": f"paid what was due in round {ROUND}", "type": "reasoning", "metadata": {}}
    until_answered(lambda: GATEWAY.call("POST", "/v1/memories", thought, {"Creto-Idempotency-Key": f"thought-{ROUND}"}))
    body = {"to": os.environ["BOOKKEEPER"], "body": f"paid in round {ROUND}"}
    sent = until_answered(lambda: GATEWAY.call("POST", "/v1/messages", body, {"Creto-Idempotency-Key": f"tell-{ROUND}"})[1])
    say("told", message_id=sent["message_id"])


def book():
    with open("/run/secrets/BOOKING_KEY", encoding="utf-8") as key:
        say("lent", good=key.read() == os.environ["BOOKING_KEY"] == "the key of the books")
    booked = set()
    while True:
        for message in until_answered(lambda: GATEWAY.receive(wait_s=5)):
            say("received", message_id=message["message_id"], sender=message["from"], body=message["body"], verified=message["verified"])
            until_answered(lambda: GATEWAY.acknowledge(message["message_id"]))
            if message["message_id"] not in booked:
                booked.add(message["message_id"])
                say("booked", message_id=message["message_id"], body=message["body"])


def main():
    say("identity", **until_answered(GATEWAY.identity))
    if sys.argv[1] == "book":
        book()
    pay()
    say("end")
    signal.pause()


if __name__ == "__main__":
    main()

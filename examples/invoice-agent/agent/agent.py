#!/usr/bin/env python3
"""The invoice agent. Runs inside a sandbox; whatever it does in the world goes through the gateway.

For each invoice: let the model extract its fields, check them, let the model decide, pay through the action `pay`. What it
did goes to stdout, one JSON object per line with a "step"; the last line is {"step": "end", ...}.

    agent.py            agent.py --child

Environment:
    CRETO_GATEWAY     the gateway's unix socket (default /run/creto/gateway.sock)
    INVOICES          directory of the invoices (default: ../invoices beside this file)
    ACCOUNTING        identity or name of the accounting agent; empty: no message is sent
    EGRESS_ALLOWED, EGRESS_DENIED   host:port each; empty: not tried
    CHILD_IMAGE       image for the child sandbox; empty: none is spawned
    CHILD_COMMAND     JSON list (default: this file with --child)
    APPROVAL_WAIT_S   how long to wait for a human in all (default 300)
"""
import hashlib
import json
import os
import socket
import sys
import time
from decimal import Decimal, InvalidOperation

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from gateway import Gateway, GatewayError  # noqa: E402

EXTRACT = (
    "Extract the fields of the invoice that the user gives you. Answer with one JSON object: vendor, account, "
    "invoice_number, date, currency (ISO code), lines (a list of {text, amount}), total; amounts as text with two decimal "
    'places. If it cannot be read or a field is missing, answer {"error": "<why>"}. Answer with JSON alone.'
)
DECIDE = (
    "Decide whether this invoice is to be paid. The user gives you its fields and the problems that were found. Answer with "
    'one JSON object: {"decision": "pay" or "reject", "reasoning": "<one or two sentences>"}. Answer with JSON alone.'
)


def say(step, **fields):
    print(json.dumps({"step": step, **fields}, ensure_ascii=False), flush=True)


def key_of(*parts):
    """The same payment has the same key, however often the agent is started."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:40]


def read_json(text):
    text = text.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json")
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def money(text):
    try:
        value = Decimal(str(text).replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() and value > 0 and value == round(value, 2) else None


def problems_of(invoice, seen):
    """What is wrong with an extracted invoice, in words."""
    if invoice.get("error"):
        return [f"malformed: {invoice['error']}"]
    found = []
    for field in ("vendor", "account", "invoice_number", "currency", "total"):
        if not isinstance(invoice.get(field), str) or not invoice[field].strip():
            found.append(f"`{field}` is missing")
    if found:
        return found
    total = money(invoice["total"])
    if total is None:
        return [f"the total `{invoice['total']}` is no amount"]
    lines = [money(line.get("amount")) for line in invoice.get("lines") or [] if isinstance(line, dict)]
    if lines and (None in lines or sum(lines) != total):
        found.append("the lines do not add up to the total")
    first = seen.get((invoice["vendor"].lower(), invoice["invoice_number"]))
    if first:
        found.append(f"duplicate of {first}")
    return found


class Agent:
    def __init__(self, gateway):
        self.gateway = gateway
        self.seen = {}
        self.waiting = []
        self.results = []
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}

    def ask(self, system, user, key):
        content, usage, model = self.gateway.complete(system, user, key)
        for name in self.usage:
            self.usage[name] += int(usage.get(name, 0))
        return read_json(content), usage, model

    def done(self, file, outcome, **fields):
        self.results.append({"file": file, "outcome": outcome, **fields})
        say("invoice_done", file=file, outcome=outcome, **fields)

    def remember(self, text, action):
        try:
            self.gateway.remember(text, "reasoning", {"action_id": action})
            return True
        except (GatewayError, OSError) as problem:
            say("memory_failed", error=str(problem))
            return False

    def handle(self, file, text):
        digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            invoice, usage, model = self.ask(EXTRACT, text, key_of("extract", file, digest))
        except ValueError as problem:
            return self.done(file, "unreadable_answer", error=str(problem))
        say("extracted", file=file, model=model, usage=usage, fields=invoice)
        problems = problems_of(invoice, self.seen)
        case = json.dumps({"invoice": invoice, "problems": problems}, ensure_ascii=False, sort_keys=True)
        try:
            decision, usage, model = self.ask(DECIDE, case, key_of("decide", case))
        except ValueError as problem:
            return self.done(file, "unreadable_answer", error=str(problem))
        reasoning = str(decision.get("reasoning", ""))[:2000]
        say("decided", file=file, model=model, usage=usage, decision=decision.get("decision"), reasoning=reasoning, problems=problems)
        if problems or decision.get("decision") != "pay":
            return self.done(file, "rejected", problems=problems or [reasoning])
        self.seen[(invoice["vendor"].lower(), invoice["invoice_number"])] = file
        self.pay(file, invoice, reasoning)

    def pay(self, file, invoice, reasoning):
        arguments = {
            "payee": invoice["vendor"],
            "account": invoice["account"],
            "amount": f"{money(invoice['total']):.2f}",
            "currency": invoice["currency"],
            "invoice_number": invoice["invoice_number"],
            "memo": f"invoice {invoice['invoice_number']}",
        }
        key = key_of("pay", arguments["payee"], arguments["invoice_number"])
        self.remember(f"{reasoning} I ask to pay {arguments['amount']} {arguments['currency']} to {arguments['payee']}.", "pay:" + key)
        try:
            status, document = self.gateway.act("pay", arguments, reasoning, key)
        except GatewayError as refused:
            return self.done(file, "refused", code=refused.code, error=str(refused), arguments=arguments)
        if status == 202:
            say("awaiting_approval", file=file, request_id=document["request_id"], arguments=arguments)
            self.waiting.append((file, document["request_id"], arguments, reasoning, key))
        else:
            self.done(file, "paid", payment=document.get("result", document), arguments=arguments)

    def settle(self, deadline):
        """Waits for the human's answers and acts on each."""
        for file, request_id, arguments, reasoning, key in self.waiting:
            state = {"state": "pending"}
            while state.get("state") in ("pending", "escalated") and time.monotonic() < deadline:
                state = self.gateway.request(request_id, wait_s=30)
            outcome = state.get("state", "pending")
            say("request_settled", file=file, request_id=request_id, state=outcome, notes=state.get("notes", ""))
            if outcome != "approved":
                self.done(file, outcome, request_id=request_id, arguments=arguments)
                continue
            token = state["override_token"]
            dearer = {**arguments, "amount": f"{Decimal(arguments['amount']) + 1:.2f}"}
            self.must_fail("override_other_amount", file, dearer, reasoning, key_of(key, "other amount"), token)
            try:
                _, document = self.gateway.act("pay", arguments, reasoning, key, override=token)
                self.done(file, "paid", request_id=request_id, payment=document.get("result", document), arguments=arguments)
            except GatewayError as refused:
                self.done(file, "refused", code=refused.code, error=str(refused), arguments=arguments)
                continue
            self.must_fail("override_second_use", file, arguments, reasoning, key_of(key, "second use"), token)
        self.waiting = []

    def must_fail(self, step, file, arguments, reasoning, key, token):
        """Tries what the token must not permit. A 202 is a refusal too: it asks a human anew."""
        try:
            status, document = self.gateway.act("pay", arguments, reasoning, key, override=token)
            say(step, file=file, failed=status == 202, status=status, request_id=document.get("request_id", ""))
        except GatewayError as refused:
            say(step, file=file, failed=True, status=refused.status, code=refused.code, error=str(refused))


def try_egress(target, expected):
    host, _, port = target.rpartition(":")
    line = f"GET /health HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as connection:
            connection.sendall(line)
            first = connection.recv(4096).split(b"\r\n", 1)[0].decode("latin-1")
        reached = first.startswith("HTTP/1.1 2") or first.startswith("HTTP/1.0 2")
        say("egress", target=target, expected=expected, reached=reached, answer=first[:100])
    except OSError as problem:
        say("egress", target=target, expected=expected, reached=False, error=f"{type(problem).__name__}: {problem}")


def spawn_child(gateway):
    image = os.environ.get("CHILD_IMAGE", "")
    if not image:
        return
    command = json.loads(os.environ.get("CHILD_COMMAND", "null")) or ["python3", os.path.abspath(__file__), "--child"]
    try:
        child = gateway.spawn(image, command)
        say("child_spawned", **child)
        deadline = time.monotonic() + 60
        state = {}
        while time.monotonic() < deadline:
            state = gateway.sandbox(child["sandbox_id"])
            if state.get("state") in ("terminated", "failed", "stopped", "exited"):
                break
            time.sleep(0.2)
        say("child_ended", **state)
    except GatewayError as refused:
        say("child_refused", code=refused.code, status=refused.status, error=str(refused))


def child(gateway):
    me = gateway.identity()
    files = sorted(os.listdir(invoices_directory())) if os.path.isdir(invoices_directory()) else []
    say("child_identity", **me)
    say("end", child=True, invoices_seen=len(files), chain_depth=len(me.get("delegation_chain", [])))


def invoices_directory():
    return os.environ.get("INVOICES") or os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "invoices")


def main():
    gateway = Gateway()
    if "--child" in sys.argv:
        return child(gateway)
    me = gateway.identity()
    say("identity", **me)
    # Nothing of the ledger's credentials is in here, and the agent says so by looking.
    say("secrets_seen", ledger_token="LEDGER_TOKEN" in os.environ, names=sorted(n for n in os.environ if "TOKEN" in n or "SECRET" in n))
    spawn_child(gateway)
    for variable, expected in (("EGRESS_ALLOWED", True), ("EGRESS_DENIED", False)):
        if os.environ.get(variable):
            try_egress(os.environ[variable], expected)
    agent = Agent(gateway)
    directory = invoices_directory()
    for file in sorted(os.listdir(directory)):
        with open(os.path.join(directory, file), encoding="utf-8", newline="") as opened:
            text = opened.read()
        try:
            agent.handle(file, text)
        except GatewayError as refused:
            agent.done(file, "error", code=refused.code, error=str(refused))
    agent.settle(time.monotonic() + float(os.environ.get("APPROVAL_WAIT_S", "300")))
    paid = [r for r in agent.results if r["outcome"] == "paid"]
    accounting = os.environ.get("ACCOUNTING", "")
    if accounting:
        summary = {
            "type": "invoice_run",
            "from": me.get("agent"),
            "paid": [r["arguments"] for r in paid],
            "not_paid": [{"file": r["file"], "outcome": r["outcome"]} for r in agent.results if r["outcome"] != "paid"],
        }
        try:
            sent = gateway.send(accounting, json.dumps(summary, ensure_ascii=False, sort_keys=True))
            say("message_sent", to=accounting, message_id=sent.get("message_id"))
        except GatewayError as refused:
            say("message_refused", to=accounting, code=refused.code, error=str(refused))
    outcomes = {}
    for result in agent.results:
        outcomes[result["outcome"]] = outcomes.get(result["outcome"], 0) + 1
    say("end", invoices=len(agent.results), outcomes=outcomes, usage=agent.usage)


if __name__ == "__main__":
    main()

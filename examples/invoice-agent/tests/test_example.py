#!/usr/bin/env python3
"""The example's own parts against each other: agent, ledger, stand-in model, accounting agent, over real sockets.

In Creto's place stands a small gateway with the rules of policies/ written out by hand; the whole system is tested by
./dev demo. Run: python3 -m unittest discover -s examples/invoice-agent/tests
"""
import http.client
import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
import unittest
from decimal import Decimal
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)
sys.path.insert(0, os.path.join(ROOT, "agent"))
import accounting  # noqa: E402
import agent as agent_module  # noqa: E402
import standin_model  # noqa: E402

TOKEN = "a-token-that-the-agent-never-sees"
ME = "agent:nhi:ed25519:invoice"


def start(program, *arguments):
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, program), *arguments], stdout=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())["listening"]


def call(url, method, path, body=None, headers=None):
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=10)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    connection.request(method, at.path + path, body=data, headers=headers or {})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, json.loads(raw)


class Rules:
    """What the policies say, and one human: Rackdale approved, Brightwater denied, Fleetline never answered."""

    VENDORS = {"Rackdale Hardware", "Brightwater Consulting", "Fleetline Leasing", "Green Table Catering", "Harbor Office Supply",
               "Lingua Franca Translations", "Nimbus Hosting", "Sentry Row Security", "Swift Courier"}
    ANSWERS = {"Rackdale Hardware": "approved", "Brightwater Consulting": "denied", "Fleetline Leasing": "timed_out"}

    def __init__(self, ledger, model):
        self.ledger, self.model = ledger, model
        self.requests, self.tokens, self.memories, self.messages, self.acked = {}, {}, [], [], []

    def act(self, arguments, key, override):
        if arguments["payee"] not in self.VENDORS:
            return 403, {"error": {"code": "RT-403", "message": "denied by policy"}}
        bound = json.dumps(arguments, sort_keys=True)
        if override is not None:
            if self.tokens.get(override) != bound:
                return 403, {"error": {"code": "RT-403", "message": "the token does not permit this"}}
            self.tokens[override] = None
        elif Decimal(arguments["amount"]) > 10000:
            request = f"req-{len(self.requests)}"
            self.requests[request] = arguments
            return 202, {"request_id": request}
        status, payment = call(self.ledger, "POST", "/payments", arguments,
                               {"Authorization": "Bearer " + TOKEN, "Idempotency-Key": key})
        return (200, {"result": payment}) if status in (200, 201) else (status, payment)

    def answer(self, request):
        arguments = self.requests[request]
        state = {"state": self.ANSWERS[arguments["payee"]]}
        if state["state"] == "approved":
            state["override_token"] = "token-of-" + request
            self.tokens[state["override_token"]] = json.dumps(arguments, sort_keys=True)
        return 200, state


class GatewayHandler(BaseHTTPRequestHandler):
    rules = None

    def log_message(self, *_):
        pass

    def address_string(self):
        return "sandbox"

    def reply(self, status, document):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/v1/identity":
            self.reply(200, {"agent": ME, "delegation_chain": ["human:ada@example.org", ME], "sandbox_id": "sb-1"})
        elif path.startswith("/v1/requests/"):
            self.reply(*self.rules.answer(path.rsplit("/", 1)[1]))
        elif path == "/v1/messages":
            self.reply(200, {"messages": self.rules.messages})
        else:
            self.reply(200, {"sandbox_id": "sb-2", "state": "terminated", "exit_code": 0})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/inference/chat/completions":
            self.reply(*call(self.rules.model, "POST", "/chat/completions", body))
        elif self.path == "/v1/actions/pay":
            self.reply(*self.rules.act(body["arguments"], self.headers["Creto-Idempotency-Key"], self.headers["Creto-Override"]))
        elif self.path == "/v1/memories":
            self.rules.memories.append(body)
            self.reply(200, {"memory_id": "mem-1"})
        elif self.path == "/v1/messages":
            self.rules.messages.append({"message_id": "msg-1", "from": ME, "verified": True, "body": body["body"]})
            self.reply(200, {"message_id": "msg-1"})
        elif self.path.endswith("/ack"):
            self.rules.acked.append(self.path)
            self.reply(200, {})
        else:
            self.reply(200, {"sandbox_id": "sb-2"})


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class WholeRun(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        token = os.path.join(cls.folder.name, "token")
        with open(token, "w", encoding="utf-8") as file:
            file.write(TOKEN + "\n")
        cls.ledger_process, cls.ledger = start("ledger.py", "--database", os.path.join(cls.folder.name, "l.db"), "--token-file", token)
        cls.model_process, cls.model = start("standin_model.py")
        GatewayHandler.rules = cls.rules = Rules(cls.ledger, cls.model)
        path = os.path.join(cls.folder.name, "g.sock")
        cls.server = UnixServer(path, GatewayHandler)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        at = urlsplit(cls.ledger)
        environment = {**os.environ, "CRETO_GATEWAY": path, "INVOICES": os.path.join(ROOT, "invoices"), "ACCOUNTING": "accounting",
                       "CHILD_IMAGE": "invoice-agent", "EXPECT_FROM": ME, "WAIT_S": "20",
                       "EGRESS_ALLOWED": f"{at.hostname}:{at.port}", "EGRESS_DENIED": "127.0.0.1:1"}
        run = subprocess.run([sys.executable, os.path.join(ROOT, "agent", "agent.py")], env=environment, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        cls.steps = [json.loads(line) for line in run.stdout.splitlines()]
        run = subprocess.run([sys.executable, os.path.join(ROOT, "agent", "accounting.py")], env=environment, capture_output=True, text=True, timeout=60)
        cls.accounting_exit = run.returncode
        cls.accounting_steps = [json.loads(line) for line in run.stdout.splitlines()]

    @classmethod
    def tearDownClass(cls):
        cls.server.shutdown()
        cls.server.server_close()
        for process in (cls.ledger_process, cls.model_process):
            process.terminate()
            process.wait()
            process.stdout.close()
        cls.folder.cleanup()

    def outcome(self, file):
        return next(s for s in self.steps if s["step"] == "invoice_done" and s["file"].startswith(file))

    def payments(self):
        return call(self.ledger, "GET", "/payments", headers={"Authorization": "Bearer " + TOKEN})[1]["payments"]

    def step(self, name):
        return next(s for s in self.steps if s["step"] == name)

    def test_pays_what_is_in_order_and_nothing_else(self):
        self.assertEqual(sorted(p["amount"] for p in self.payments()),
                         sorted(["1240.50", "8999.00", "640.00", "2310.75", "10000.00", "25000.00"]))

    def test_malformed_and_duplicate_invoices_are_rejected(self):
        for file, why in (("08", "duplicate"), ("09", "malformed"), ("10", "malformed")):
            self.assertEqual(self.outcome(file)["outcome"], "rejected")
            self.assertIn(why, self.outcome(file)["problems"][0])

    def test_the_hidden_instruction_is_obeyed_by_the_model_and_stopped_by_policy(self):
        done = self.outcome("11")
        self.assertEqual((done["outcome"], done["code"], done["arguments"]["payee"]), ("refused", "RT-403", "Northwind Advisory"))

    def test_human_answers_are_followed(self):
        self.assertEqual([self.outcome(n)["outcome"] for n in ("05", "06", "07")], ["paid", "denied", "timed_out"])

    def test_the_token_permits_exactly_one_payment(self):
        self.assertTrue(self.step("override_other_amount")["failed"])
        self.assertTrue(self.step("override_second_use")["failed"])

    def test_reasoning_is_remembered_under_the_action(self):
        self.assertEqual(len(self.rules.memories), 9)
        self.assertTrue(all(m["metadata"]["action_id"].startswith("pay:") for m in self.rules.memories))

    def test_egress_reports_what_it_saw(self):
        self.assertEqual([s["reached"] for s in self.steps if s["step"] == "egress"], [True, False])

    def test_accounting_verifies_and_acknowledges(self):
        self.assertEqual(self.accounting_exit, 0, self.accounting_steps)
        received = next(s for s in self.accounting_steps if s["step"] == "received")
        self.assertEqual((received["payments"], received["totals"]["USD"]), (6, "33999.00"))
        self.assertEqual(self.rules.acked, ["/v1/messages/msg-1/ack"])


class Ledger(unittest.TestCase):
    PAYMENT = {"payee": "A", "account": "B", "amount": "1.00", "currency": "EUR", "invoice_number": "1"}

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        token = os.path.join(cls.folder.name, "token")
        with open(token, "w", encoding="utf-8") as file:
            file.write(TOKEN)
        cls.process, cls.url = start("ledger.py", "--database", os.path.join(cls.folder.name, "l.db"), "--token-file", token)

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait()
        cls.process.stdout.close()
        cls.folder.cleanup()

    def post(self, body, key="k", token=TOKEN):
        return call(self.url, "POST", "/payments", body, {"Authorization": "Bearer " + token, "Idempotency-Key": key})

    def test_repeats_and_conflicts_by_key(self):
        first = self.post(self.PAYMENT, key="same")
        self.assertEqual((first[0], self.post(self.PAYMENT, key="same")), (201, (200, first[1])))
        self.assertEqual(self.post({**self.PAYMENT, "amount": "2.00"}, key="same")[0], 409)

    def test_refuses_other_credentials(self):
        self.assertEqual(self.post(self.PAYMENT, token="wrong")[0], 401)
        self.assertEqual(call(self.url, "GET", "/payments")[0], 401)

    def test_refuses_bad_input(self):
        for change in ({"amount": "1"}, {"amount": "-1.00"}, {"amount": 1}, {"amount": "0.00"}, {"payee": ""}, {"payee": "x" * 201}, {"more": 1}):
            self.assertEqual(self.post({**self.PAYMENT, **change}, key=str(change))[0], 400, change)
        self.assertEqual(self.post(b"[" * 10000)[0], 400)
        self.assertEqual(self.post(self.PAYMENT, key="")[0], 400)


class Parts(unittest.TestCase):
    def test_a_message_that_is_not_verified_is_refused(self):
        good = {"from": "a", "verified": True, "body": json.dumps({"from": "a", "paid": []})}
        self.assertEqual(accounting.check(good, "a")[1], "")
        for change in ({"verified": False}, {"from": "b"}, {"body": "{"}, {"body": json.dumps({"from": "b", "paid": []})}):
            self.assertNotEqual(accounting.check({**good, **change}, "a")[1], "", change)

    def test_lines_must_add_up(self):
        invoice = {"vendor": "A", "account": "B", "invoice_number": "1", "currency": "EUR", "total": "3.00", "lines": [{"amount": "1.00"}]}
        self.assertEqual(agent_module.problems_of(invoice, {}), ["the lines do not add up to the total"])

    def test_the_stand_in_says_what_it_is(self):
        self.assertIn("stand-in", standin_model.answer([{"role": "user", "content": "hello"}]))
        self.assertIn("standin", standin_model.MODEL)


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""Kills the server over and over while the example's steps are played, and checks what the world outside says afterwards.

    crash_test.py before|after    the server dies once at each kind of commit, right before it or right after it
                                  (io/sql/crash_point.h), from `creto init` to the invoice
    crash_test.py random          kill -9 from outside, --kills times, at times that --seed decides
    crash_test.py database        the same for PostgreSQL, under a server that goes on

The server is the real one with an SQLite store, or with a PostgreSQL of the test's own; the client is the CLI, the sandboxes are
real. Every call of the CLI that changes something carries an idempotency key and is repeated until it is acknowledged.
Afterwards: nothing acknowledged is lost, nothing happened twice, what waits for a human still waits, no sandbox is left over,
and the audit log verifies.

--creto names the binary (or $CRETO_BIN). Leaves with 77 where the machine cannot run sandboxes.
"""
import base64
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
EXAMPLE = os.path.join(ROOT, "examples", "invoice-agent")
sys.path.insert(0, EXAMPLE)
sys.path.insert(0, os.path.dirname(HERE))
from installation import Postgres, left_over, needs_sandboxes, options_of, runs_sandboxes  # noqa: E402
from harness import Children, Creto, CretoError, Recorder, StepFailed, first_line, payments_in, require  # noqa: E402

HUMAN = "human:ada@example.com"
PATIENCE_S = 600
TRY_AGAIN = 5  # the CLI's exit code for what may pass
PERMISSIONS = ["payments.pay", "sandbox.*", "network.egress", "inference.call", "message.*", "memory.*", "secret.read"]
BOOKING_KEY = "books/BOOKING_KEY"


class Server:
    """`creto serve`, started again whenever it was killed. Any other end is a failure of the test."""

    def __init__(self, creto, log_file, environment, seed=None, kills=0):
        self.creto, self.environment = creto, {**os.environ, **environment}
        for name in ("CRETO_HOME", "CRETO_PASSPHRASE_FILE"):
            self.environment[name] = creto.env[name]
        self.log = open(log_file, "ab")
        self.ports = os.path.join(creto.env["CRETO_HOME"], "ports.json")
        self.random = random.Random(seed)
        self.kills_left = kills
        self.deaths = 0
        self.problem = None
        self.process = None
        self.wanted = False
        self.changed = threading.Condition()
        threading.Thread(target=self.supervise, daemon=True).start()

    def supervise(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.wanted)
                if os.path.exists(self.ports):
                    os.unlink(self.ports)
                self.process = subprocess.Popen([self.creto.binary, "serve"], env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
            code = self.wait_or_kill(self.process)
            with self.changed:
                self.process = None
                if code == -signal.SIGKILL:
                    self.deaths += 1
                elif self.wanted:
                    self.problem = f"the server ended by itself with {code}"
                    self.wanted = False
                self.changed.notify_all()

    def wait_or_kill(self, process):
        if self.kills_left <= 0:
            return process.wait()
        # One in five while it starts, the others while it serves: on a busy machine later, or no call would come through.
        begin = time.monotonic()
        starting, share = self.random.random() < 0.2, self.random.random()
        while not starting and process.poll() is None and not os.path.exists(self.ports):
            time.sleep(0.02)
        delay = share * (1.5 if starting else max(4.0, 4 * (time.monotonic() - begin)))
        try:
            return process.wait(delay)
        except subprocess.TimeoutExpired:
            with self.changed:
                if self.wanted:
                    self.kills_left -= 1
                    process.kill()
            return process.wait()

    def start(self):
        with self.changed:
            self.wanted = True
            self.changed.notify_all()

    def stop(self):
        """Asks it to end; one that is killed on its way down has ended too."""
        with self.changed:
            self.wanted = False
            if self.process:
                self.process.send_signal(signal.SIGTERM)
            require(self.changed.wait_for(lambda: self.process is None, 120), "the server does not stop")
        self.check()

    def check(self):
        if self.problem:
            raise StepFailed(self.problem)

    def wait_ready(self):
        """Only so as not to start clients in vain: it may be dead again when they get there."""
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(self.ports):
            self.check()
            require(time.monotonic() < deadline, f"the server is not ready after {PATIENCE_S} s")
            time.sleep(0.05)


class DatabaseKiller:
    """Ends PostgreSQL again and again while it is wanted, and starts it anew each time."""

    def __init__(self, postgres, seed, kills):
        self.postgres, self.random, self.kills_left = postgres, random.Random(seed), kills
        self.deaths = 0
        self.problem = None
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            while self.kills_left > 0 and not self.done.wait(2 + 6 * self.random.random()):
                self.kills_left -= 1
                self.postgres.kill()
                self.deaths += 1
                self.done.wait(self.random.random())  # calls find nothing where it was
                self.postgres.start()
        except (StepFailed, OSError, subprocess.SubprocessError) as problem:
            self.problem = f"PostgreSQL does not come back: {problem}"

    def stop(self):
        self.done.set()
        self.thread.join(PATIENCE_S)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class CrashTest:
    def __init__(self, options):
        self.options = options
        # Short: the path of a unix socket has at most 107 characters.
        self.begin = time.monotonic()
        self.work = tempfile.mkdtemp(prefix="creto-crash-")
        self.home = os.path.join(self.work, "home")
        self.kinds = os.path.join(self.work, "kinds")
        self.creto = Creto(options.creto, self.home, self.file("passphrase", "crash test passphrase"))
        # A client whose server is gone leaves while gRPC's threads still hold what they will free.
        self.creto.env["ASAN_OPTIONS"] = "detect_leaks=0"
        self.at_commits = options.mode in ("before", "after")
        self.environment = {"CRETO_CRASH_AT": f"{options.mode}:{self.kinds}"} if self.at_commits else {}
        self.postgres = self.database_killer = None
        if options.database == "postgres":
            self.postgres = Postgres(os.path.join(self.work, "postgres"))
            self.creto.env["CRETO_DATABASE"] = self.environment["CRETO_DATABASE"] = self.postgres.conninfo
        self.children = Children(self.work)
        self.webhook, self.invoices, self.rates, self.thief = (Recorder(name) for name in ("webhook", "invoices", "rates", "thief"))
        self.rounds = []
        self.written = collections.defaultdict(bytes)
        self.repeated_calls = 0
        self.respawned = 0
        self.server = None

    def file(self, name, content):
        path = os.path.join(self.work, name)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
            out.write(content)
        return path

    # --- calls

    def call(self, *words, key=None):
        """Until it is acknowledged. Whatever else the server says ends the test."""
        arguments = [*words, *(["--idempotency-key", key] if key else [])]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if self.server:
                self.check_alive()
                self.server.wait_ready()
            try:
                answer = self.creto(*arguments)
                self.log(f"creto {' '.join(words)[:120]}")
                return answer
            except CretoError as error:
                if error.exit_code != TRY_AGAIN or time.monotonic() > deadline:
                    raise
                self.log(f"again: creto {' '.join(words)[:120]}: {error.error.get('message', '')[:200]}")
            self.repeated_calls += 1
            time.sleep(0.1)

    def check_alive(self):
        self.server.check()
        if self.database_killer:
            require(not self.database_killer.problem, self.database_killer.problem)

    def log(self, line):
        with open(os.path.join(self.work, "driver.log"), "a", encoding="utf-8") as log:
            print(f"{time.monotonic() - self.begin:7.1f} {line}", file=log)

    def until(self, what, look):
        """The first true answer of `look`."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self.check_alive()
            found = look()
            if found:
                return found
            require(time.monotonic() < deadline, f"{what}: not within {PATIENCE_S} s")
            time.sleep(0.2)

    # --- the steps

    def world(self):
        self.ledger_file = os.path.join(self.work, "ledger.db")
        token = self.file("ledger-token", "0123456789abcdef0123456789abcdef")
        self.children.start("ledger", [sys.executable, os.path.join(EXAMPLE, "ledger.py"), "--database", self.ledger_file, "--token-file", token])
        self.children.start("model", [sys.executable, os.path.join(EXAMPLE, "standin_model.py")])
        self.ledger_url = json.loads(first_line(os.path.join(self.work, "ledger.log"), "listening"))["listening"]
        self.model_url = json.loads(first_line(os.path.join(self.work, "model.log"), "listening"))["listening"]
        image = os.path.join(self.work, "images", "crash")
        os.makedirs(os.path.dirname(image))
        done = subprocess.run([os.path.join(ROOT, "tools", "image.sh"), image, "--packages", "python3", f"{HERE}/agent.py:/opt/agent.py",
                               f"{EXAMPLE}/agent/gateway.py:/opt/gateway.py"], capture_output=True, text=True)
        require(done.returncode == 0, done.stderr.strip()[-500:])

    def initialise(self):
        """`creto init` may die as well: it is run until it is through."""
        environment = {**self.creto.env, **self.environment}
        while (done := subprocess.run([self.creto.binary, "init", "--email", HUMAN.removeprefix("human:")], env=environment, capture_output=True, text=True)).returncode:
            require(done.returncode == -signal.SIGKILL, f"creto init: {done.stderr}")
            self.repeated_calls += 1
        grpc, rest, metrics, health = free_ports(4)
        self.file("home/config.toml", f"""org = "default"
[grpc]
port = {grpc}
[rest]
port = {rest}
[metrics]
port = {metrics}
[health]
port = {health}
[inference]
url = "{self.model_url}"
local = true
[runtime]
class = "{self.options.runtime}"
image_directory = "{self.work}/images"
pool_image = "crash"
pool_size = {0 if self.at_commits else 1}
actions = "{EXAMPLE}/actions.yaml"
[runtime.variables]
LEDGER_URL = "{self.ledger_url}"
[egress.hosts]
"rates.example" = "{self.rates.address}"
"thief.example" = "{self.thief.address}"
[oversight.webhook]
url = "http://{self.webhook.address}/approvals"
secret = "webhooks/OVERSIGHT"
[metering.invoice_webhook]
url = "http://{self.invoices.address}/invoices"
secret = "webhooks/OVERSIGHT"
""")
        # The server reads the webhook's secret at its start, so it is made by one that has no webhook yet.
        config = os.path.join(self.home, "config.toml")
        with open(config, encoding="utf-8") as whole:
            text = whole.read()
        self.file("home/config.toml", text[:text.index("[oversight.webhook]")])
        self.server = Server(self.creto, os.path.join(self.work, "creto.log"), self.environment, self.options.seed, self.options.kills if self.options.mode == "random" else 0)
        self.server.start()
        self.call("secrets", "create", "webhooks/OVERSIGHT", "--from", self.file("webhook-secret", "a secret of the webhook"), key="secret-1")
        self.server.stop()
        self.file("home/config.toml", text)
        self.server.start()
        self.call("secrets", "create", "ledger/LEDGER_TOKEN", "--from", os.path.join(self.work, "ledger-token"), key="secret-2")
        if self.options.mode == "database":
            # From now on: a server that finds no database when it starts says so and ends.
            self.database_killer = DatabaseKiller(self.postgres, self.options.seed, self.options.kills)

    def rules(self):
        self.call("plans", "put", "@" + os.path.join(EXAMPLE, "plan.yaml"), key="plan")
        policies = {"agent-pays-known-vendors": {}, "agent-reaches-rates": {"${EGRESS_ALLOWED}": "rates.example:80"},
                    "agent-spawns": {'Image::"invoice-agent"': 'Image::"crash"'}, "agent-thinks": {}, "agent-writes-to-agents": {}, "large-payments-need-a-human": {}}
        for identifier, changes in policies.items():
            with open(os.path.join(EXAMPLE, "policies", identifier + ".cedar"), encoding="utf-8") as source:
                text = source.read()
            for old, new in changes.items():
                text = text.replace(old, new)
            self.call("policies", "create", identifier, "--file", self.file("policy.cedar", text), key="policy-" + identifier)
        lent = f'permit (principal is Agent, action == Action::"secret.read", resource == Secret::"{BOOKING_KEY}");'
        self.call("policies", "create", "books-have-a-key", "--file", self.file("policy.cedar", lent), key="policy-books")
        policies["books-have-a-key"] = {}
        self.call("secrets", "create", BOOKING_KEY, "--from", self.file("booking-key", "the key of the books"), key="secret-3")
        tiers = [{"approvers": [HUMAN], "quorum": 1, "timeout": "3600s"}]
        for identifier, more in {"large-payments": {"channels": ["cli", "webhook"]}, "quotas": {"triggers": ["quota_breach", "cost_threshold"], "channels": ["cli"]}}.items():
            self.call("oversight", "put", json.dumps({"id": identifier, "description": identifier, "tiers": tiers, "allow_self_approval": True, **more}), key="oversight-" + identifier)
        return policies

    @staticmethod
    def permits():
        return [word for permission in PERMISSIONS for word in ("--permit", permission)]

    def refused_provision(self, number):
        """A saga that cannot be made leaves nothing behind."""
        name = f"nobody-{number}"
        try:
            self.call("agents", "provision", name, *self.permits(), "--plan", "no-such-plan", key=f"provision-{name}")
            raise StepFailed("an agent was provisioned by a plan that is not there")
        except CretoError as refused:
            require(refused.exit_code == 4 and "undone" in str(refused), f"refused with {refused}")
        left = self.call("agents", "list", "--name", name).get("agents", [])
        require([agent["status"] for agent in left] == ["AGENT_STATUS_REVOKED"], f"an agent that was not provisioned: {left}")

    def spawn(self, agent, key, command, secret=None, **environment):
        words = ["--secret", secret] if secret else []
        words += [word for part in command for word in ("--command", part)]
        words += [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        box = self.call("sandboxes", "spawn", "crash", "--agent", agent, *words, key=key)["sandbox"]
        require(box.get("ready_at"), f"a sandbox that never became ready: {box}")
        return box["id"]

    def resident(self, number, role, agent, **environment):
        """A sandbox that stays; where a crash has ended it, the next one."""
        boxes = []

        def fresh():
            boxes.append(self.spawn(agent, f"{role}-{number}-{len(boxes)}", ["python3", "/opt/agent.py", role], ROUND=str(number), **environment))
            return boxes

        return fresh(), fresh

    def lines(self, box):
        """What it wrote so far; only what is new is asked for."""
        chunk = self.call("sandboxes", "output", box, "--stream", "stdout", "--offset", str(len(self.written[box])))
        self.written[box] += base64.b64decode(chunk.get("data", ""))
        lines = [json.loads(line) for line in self.written[box].split(b"\n")[:-1]]
        numbers = [line["number"] for line in lines]
        require(numbers == list(range(len(numbers))), f"lines of {box} are lost or doubled: {numbers}")
        return lines

    def said(self, resident, step):
        """Waits for the line; a sandbox that has ended meanwhile is spawned anew."""
        boxes, fresh = resident

        def look():
            found = [line for box in boxes for line in self.lines(box) if line["step"] == step]
            if found:
                return found[0]
            shown = self.call("sandboxes", "show", boxes[-1])
            if shown["state"] == "terminated":
                require(self.server.deaths > 0, f"a sandbox ended: {shown.get('reason')} {shown.get('detail')}; {self.call('sandboxes', 'output', boxes[-1], '--stream', 'stderr')}")
                self.respawned += 1
                fresh()
            return None

        return self.until(f"the line `{step}`", look)

    def round(self, number):
        facts = {"number": number}
        provided = self.call("agents", "provision", f"payer-{number}", *self.permits(), "--plan", "invoice-agent", key=f"provision-{number}")
        payer, facts["subscription"] = provided["agent"], provided["subscription"]
        require(provided.get("welcome"), "the payer was not welcomed")
        bookkeeper, guest, host = (self.call("agents", "register", f"{name}-{number}", *self.permits(), key=f"register-{name}-{number}")["identity"]
                                   for name in ("bookkeeper", "guest", "host"))
        self.call("subscriptions", "create", bookkeeper, "invoice-agent", key=f"subscription-{number}")
        self.refused_provision(number)
        for identifier, agent, limit in ((f"payer-{number}", payer, 100), (f"guest-{number}", guest, 1), (f"host-{number}", host, 1)):
            self.call("quotas", "set", json.dumps({"id": identifier, "subject": agent, "event_type": "sandbox_allocated", "window": "month", "limit": limit,
                                                   "soft_percent": 95, "overflow": "block"}), key=f"quota-{identifier}")
        self.call("thresholds", "set", json.dumps({"id": f"dear-{number}", "subject": payer, "period": "transaction", "limit": "100.00", "currency": "USD",
                                                   "action": "notify_only", "approvers": [HUMAN]}), key=f"threshold-{number}")
        books = self.resident(number, "book", bookkeeper, secret=BOOKING_KEY)
        pays = self.resident(number, "pay", payer, BOOKKEEPER=bookkeeper, ALLOWED="rates.example:80", DENIED="thief.example:80")

        require(self.said(books, "lent")["good"], "the secret that was lent is another")
        request = self.said(pays, "asked")["request_id"]
        denied = self.said(pays, "asked_in_vain")["request_id"]
        self.call("requests", "deny", denied, "--notes", "no such order", key=f"deny-{number}")
        require(not self.said(pays, "reached")["denied"], "the denied host was reached")
        self.webhook.wait_for(lambda sent: request.encode() in sent["body"], PATIENCE_S)
        self.call("requests", "approve", request, "--notes", "delivery checked", key=f"approve-{number}")
        require(self.said(pays, "large")["status"] == 200, "the approved payment was not made")
        require(self.said(pays, "second_use")["status"] != 200, "an approval was used twice")
        self.said(pays, "end")
        self.said(books, "booked")

        guests = [self.spawn(guest, f"guest-{number}", ["true"])]
        try:
            self.spawn(guest, f"guest-{number}-second", ["true"])
            raise StepFailed("a sandbox over the quota was started")
        except CretoError as refused:
            require(list(refused.causes())[:2] == ["RT-429", "MT-429"], f"refused with {list(refused.causes())}")
        facts["raise"] = self.until("the request to raise the quota", lambda: [r["id"] for r in self.requests(action="quota.raise", agent=guest)])

        hosted = [self.spawn(host, f"host-{number}", ["true"])]
        more = self.until("the host's request", lambda: [r["id"] for r in self.requests(action="quota.raise", agent=host)])[0]
        self.call("requests", "approve", more, "--response", '{"new_limit":"10"}', key=f"raise-{number}")
        self.until("the raised quota", lambda: self.call("quotas", "show", f"host-{number}").get("limit") == "10")
        hosted.append(self.spawn(host, f"host-{number}-second", ["true"]))

        for box in [*pays[0], *books[0]]:
            require(self.call("sandboxes", "terminate", box, key=f"terminate-{box}")["state"] == "terminated", f"{box} did not end")
        # What was used is billed once it has arrived.
        expected = {"sandbox_allocated": len(set(pays[0])), "inference_tokens": 1, "action": 2, "message_sent": 1}
        facts.update(payer=payer, bookkeeper=bookkeeper, guest_agent=guest, host=host, boxes=[*pays[0], *books[0], *guests, *hosted], pays=pays[0], books=books[0], request=request, expected=expected)
        self.until("usage", lambda: all(self.usage(payer).get(kind, 0) >= count for kind, count in expected.items()))
        invoice = json.loads(self.call("invoices", "issue", facts["subscription"], key=f"invoice-{number}")["document"])
        facts["invoice"] = invoice["id"]
        self.invoices.wait_for(lambda sent: invoice["id"].encode() in sent["body"], PATIENCE_S)
        self.rounds.append(facts)

    def requests(self, action, agent):
        return [r for r in self.call("requests", "list", "--agent", agent, "--limit", "1000").get("requests", []) if r["action"] == action]

    def sandboxes_of(self, agent):
        return self.call("sandboxes", "list", "--agent", agent).get("sandboxes", [])

    def usage(self, agent):
        return {row["keys"][0]: int(row["events"]) for row in self.call("usage", "show", agent).get("rows", [])}

    # --- what must hold

    def check_round(self, facts):
        number, payer = facts["number"], facts["payer"]
        usage = self.usage(payer)
        require({kind: usage.get(kind, 0) for kind in facts["expected"]} == facts["expected"], f"usage: {usage} instead of {facts['expected']}")
        invoices = self.call("invoices", "list", "--subscription", facts["subscription"])["invoices"]
        require(len(invoices) == 1, f"{len(invoices)} invoices")
        payments = self.requests("payments.pay", payer)
        states = collections.Counter((json.loads(r["arguments"])["invoice_number"].split("-")[0], r["state"]) for r in payments)
        require(states == {("large", "approved"): 1, ("open", "pending"): 1, ("denied", "denied"): 1}, f"requests: {dict(states)}")
        require([r["state"] for r in self.requests("quota.raise", facts["host"])] == ["approved"], "the host's quota was raised otherwise than once")
        log = self.call("secrets", "log", BOOKING_KEY, "--limit", "1000")["entries"]
        lent = {kind: {entry["delegation_id"] for entry in log if entry["operation"] == kind and entry.get("delegation_id")} for kind in ("secret.use", "secret.revoke")}
        require(lent["secret.use"] and lent["secret.use"] <= lent["secret.revoke"], f"lent and not taken back: {lent}")
        raising = self.requests("quota.raise", facts["guest_agent"])
        require([r["state"] for r in raising] == ["pending"], f"requests to raise the quota: {raising}")
        booked = {(line["message_id"], line["body"]) for box in facts["books"] for line in self.lines(box) if line["step"] == "booked"}
        require([body for _, body in booked] == [f"paid in round {number}"], f"booked: {booked}")
        ready = {box["id"] for box in self.sandboxes_of(payer) if box.get("ready_at")}
        require(ready == set(facts["pays"]), "the payer has sandboxes that nobody was told of")

    def check_ledger(self):
        paid = sorted(row["invoice_number"] for row in payments_in(self.ledger_file))
        expected = sorted(f"{invoice}-{facts['number']}" for facts in self.rounds for invoice in ("small", "large"))
        require(paid == expected, f"the ledger has {paid}, not {expected}")

    def check_audit(self, policies):
        self.call("audit", "flush")
        counted, cursor = collections.Counter(), ""
        while True:
            page = self.call("audit", "query", "--limit", "1000", *(["--cursor", cursor] if cursor else []))
            for entry in page.get("entries", []):
                record = entry["record"]
                counted[(record["what"], record.get("resource", ""))] += 1
                counted[record["what"]] += 1
            cursor = page.get("next_cursor", "")
            if not cursor:
                break
        # What a crash cut off before it was ready is nobody's, but its end is recorded.
        agents = [facts[role] for facts in self.rounds for role in ("payer", "bookkeeper", "guest_agent", "host")]
        unready = [box["id"] for agent in agents for box in self.sandboxes_of(agent) if not box.get("ready_at")]
        # Each payer is welcomed, tells the bookkeeper, and gets its invoice, once each.
        rounds, boxes = len(self.rounds), [box for facts in self.rounds for box in facts["boxes"]]
        expected = {"agent_registered": 5 * rounds, "agent_revoked": rounds, "delegation_created": 5 * rounds, "delegation_revoked": rounds,
                    "subscription_created": 2 * rounds, "agent_provision_begun": 2 * rounds, "agent_provision_made": rounds, "agent_provision_undone": rounds, "invoice_generated": rounds,
                    "invoice_sent": rounds, "plan_created": 1, "quota_created": 3 * rounds, "quota_changed": rounds, "cost_threshold_created": rounds, "action_performed": 2 * rounds,
                    "approved": 2 * rounds, "denied": rounds, "memory.store": rounds,
                    "sandbox_spawned": len(boxes), "sandbox_terminated": len(boxes), "sandbox_spawn_failed": len(unready), "message_sent": 3 * rounds, "override_used": rounds}
        wrong = {what: (counted[what], count) for what, count in expected.items() if counted[what] != count}
        require(not wrong, f"audit records (found, expected): {wrong}; all: {({k: v for k, v in counted.items() if isinstance(k, str)})}")
        require(counted["policy_created"] == len(policies) + 2, f"{counted['policy_created']} policies were created")
        for box, what in [*((box, what) for box in boxes for what in ("sandbox_spawned", "sandbox_terminated")), *((box, "sandbox_spawn_failed") for box in unready)]:
            found = sum(n for (key, n) in counted.items() if isinstance(key, tuple) and key[0] == what and box in key[1])
            require(found == 1, f"{found} records of {what} for {box}")
        self.server.stop()
        tiles = os.path.join(self.home, "audit")
        done = subprocess.run([self.creto.binary, "--json", "audit", "verify", "--tiles", tiles, "--key", os.path.join(self.home, "audit.vkey")], capture_output=True, text=True)
        require(done.returncode == 0, f"audit verify: {done.stderr}")
        return json.loads(done.stdout)["size"]

    def check_leftovers(self):
        """After the server has stopped no process, cgroup, mount or network namespace of ours is there."""
        mine = {box for facts in self.rounds for box in facts["boxes"]}
        left = left_over(self.home, mine)
        require(not left, f"left over: {left}")

    # --- the whole

    def play(self):
        self.world()
        self.initialise()
        policies = self.rules()
        number = 0
        while number == 0 or self.server.kills_left > 0 or (self.database_killer and self.database_killer.kills_left > 0):
            number += 1
            self.round(number)
        if self.database_killer:
            self.database_killer.stop()
            self.check_alive()
        for facts in self.rounds:
            self.check_round(facts)
        self.check_ledger()
        size = self.check_audit(policies)
        self.check_leftovers()
        if self.at_commits:
            with open(self.kinds, encoding="utf-8") as kinds:
                visited = kinds.read().splitlines()
            require(len(visited) >= 45, f"only {len(visited)} kinds of commit were met: {visited}")
            print("\n".join(f"  died {self.options.mode} {kind}" for kind in visited))
        deaths = f"{self.database_killer.deaths} deaths of PostgreSQL" if self.database_killer else f"{self.server.deaths} deaths of the server"
        print(f"crash {self.options.mode} on {self.options.database} with {self.options.runtime}: {deaths}, {self.repeated_calls} calls repeated, {self.respawned} sandboxes spawned anew, "
              f"{number} rounds, {size} audit records verified")

    def end_sandboxes(self):
        """They outlive a server; a test that failed must not leave them on the machine."""
        if not self.server:
            return
        try:
            self.server.kills_left = 0
            self.server.problem = None  # is told already
            self.server.stop()
            self.server = Server(self.creto, os.path.join(self.work, "creto-end.log"), {name: self.environment[name] for name in self.environment if name != "CRETO_CRASH_AT"})
            self.server.start()
            for box in self.call("sandboxes", "list", "--state", "running").get("sandboxes", []):
                self.call("sandboxes", "terminate", box["id"])
            self.server.stop()
        except (StepFailed, CretoError) as problem:
            print(f"sandboxes may be left over: {problem}")

    def end_postgres(self):
        if self.database_killer:
            self.database_killer.stop()
        if self.postgres:
            with contextlib.suppress(subprocess.SubprocessError):
                self.postgres.stop()

    def run(self):
        try:
            self.play()
        except (StepFailed, CretoError, OSError, KeyError, ValueError, subprocess.SubprocessError) as problem:
            print(f"FAILED after {time.monotonic() - self.begin:.0f} s: {type(problem).__name__}: {problem}")
            print(f"deaths: {self.server.deaths if self.server else 0}; everything is in {self.work}; the end of the server's log:")
            log = os.path.join(self.work, "creto.log")
            if os.path.exists(log):
                with open(log, encoding="utf-8", errors="replace") as lines:
                    print("".join(collections.deque(lines, 40)))
            self.end_sandboxes()
            return 1
        finally:
            self.children.stop_all()
            self.end_postgres()
        if not self.options.keep:
            shutil.rmtree(self.work, ignore_errors=True)
        print(f"{time.monotonic() - self.begin:.0f} s")
        return 0


def main():
    options = options_of(__doc__)
    options.add_argument("mode", choices=["before", "after", "random", "database"])
    options.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    options.add_argument("--kills", type=int, default=20, help="for random and database")
    options.add_argument("--seed", default=os.environ.get("CRETO_SEED"), help="for random and database; default: a fresh one")
    options.add_argument("--runtime", default="runc", help="`any` is runsc where there is one, else runc")
    options.add_argument("--keep", action="store_true", help="the folder with everything, also where all is well")
    chosen = options.parse_args()
    if chosen.runtime == "any":
        chosen.runtime = "runsc" if runs_sandboxes("runsc") else "runc"
    needs_sandboxes(chosen.runtime)
    if chosen.mode == "database":
        chosen.database = "postgres"
    if chosen.mode in ("before", "after"):
        chosen.kills = 0
    else:
        chosen.seed = chosen.seed or str(random.SystemRandom().randrange(1 << 32))
        print(f"seed {chosen.seed}", flush=True)
    return CrashTest(chosen).run()


if __name__ == "__main__":
    sys.exit(main())

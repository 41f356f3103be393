#!/usr/bin/env python3
"""A server's decisions are in its decision log, also after it was killed; the CLI replays, shows and verifies them.

    decision_log_test.py --creto BINARY

The server and the CLI are real; no sandbox is run.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "examples", "invoice-agent"))
from harness import require  # noqa: E402

PATIENCE_S = 120
HUMAN = "human:ada@example.com"


class Installation:
    def __init__(self, binary):
        self.binary = binary
        self.work = tempfile.mkdtemp(prefix="creto-decisions-")
        self.home = os.path.join(self.work, "home")
        passphrase = self.file("passphrase", "decision log test passphrase")
        self.env = {**os.environ, "CRETO_HOME": self.home, "CRETO_PASSPHRASE_FILE": passphrase, "ASAN_OPTIONS": "detect_leaks=0"}
        self.creto("init", "--email", HUMAN.removeprefix("human:"))
        ports = "".join(f"[{door}]\nport = 0\n" for door in ("grpc", "rest", "metrics", "health"))
        self.file("home/config.toml", f'org = "default"\nservices = ["metering"]\n{ports}')
        self.server = None

    def file(self, name, content):
        path = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
            out.write(content)
        return path

    def creto(self, *words, exit_code=0):
        done = subprocess.run([self.binary, "--json", *words], env=self.env, capture_output=True, text=True, timeout=PATIENCE_S)
        require(done.returncode == exit_code, f"creto {' '.join(words)}: left with {done.returncode}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout

    def serve(self):
        ports = os.path.join(self.home, "ports.json")
        if os.path.exists(ports):
            os.unlink(ports)
        with open(os.path.join(self.work, "creto.log"), "ab") as log:
            self.server = subprocess.Popen([self.binary, "serve"], env=self.env, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(ports):
            require(self.server.poll() is None and time.monotonic() < deadline, "the server is not ready")
            time.sleep(0.05)

    def stop(self, how=signal.SIGTERM):
        if self.server:
            self.server.send_signal(how)
            self.server.wait(PATIENCE_S)
            self.server = None

    def segments(self):
        return sorted(name for name in os.listdir(os.path.join(self.home, "decisions")) if name.endswith(".seg"))

    def verify(self, exit_code=0):
        return self.creto("authz", "verify-log", "--tiles", os.path.join(self.home, "audit"), "--key", os.path.join(self.home, "audit.vkey"), exit_code=exit_code)


def run(creto):
    creto.serve()
    creto.creto("agents", "list")
    logged = creto.creto("authz", "decisions", "--since", "1h")
    require(any(one["principal"] == f'Human::"{HUMAN}"' and one["outcome"] == "allow" and one["policies"] == ["owner"] for one in logged),
            f"the call is not in the log: {logged}")

    creto.stop(signal.SIGKILL)
    creto.serve()
    creto.creto("agents", "list")
    creto.stop()
    require(len(creto.segments()) == 2, f"two runs, one of them killed, left {creto.segments()}")
    require(len(creto.creto("authz", "decisions")) > len(logged), "the second run's decisions are missing")

    same = creto.creto("authz", "replay", "--since", "1h")
    require(same["differ"] == 0 and same["replayed"] > 0, f"the set in force decides otherwise: {same}")
    policies = creto.file("changed/owner.cedar", f'permit(principal == Human::"{HUMAN}", action, resource) unless {{ resource is Org }};')
    differ = creto.creto("authz", "replay", "--policies", os.path.dirname(policies), exit_code=1)
    require(differ["groups"] and differ["groups"][0]["was"] == "allow" and differ["groups"][0]["becomes"] == "deny", f"{differ}")
    example = differ["groups"][0]["example"]
    question = ["--principal", example["principal"], "--action", example["action"], "--resource", example["resource"]]
    other = creto.creto("authz", "what-if", "--policies", os.path.dirname(policies), *question, exit_code=1)
    require(other["in_force"]["decision"] == "allow" and other["changed"]["decision"] == "deny" and other["changed"]["why"], f"{other}")
    broken = creto.file("broken/owner.cedar", "permit(principal")
    creto.creto("authz", "replay", "--policies", broken, exit_code=2)

    # The last segment was sealed while the server stopped; the next start moves its record into the audit log.
    creto.serve()
    deadline = time.monotonic() + PATIENCE_S
    while creto.verify()["segments"] < 2:
        require(time.monotonic() < deadline, "the segments do not enter the audit log")
        time.sleep(0.2)
    creto.stop()
    with open(os.path.join(creto.home, "decisions", creto.segments()[0]), "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    wrong = creto.verify(exit_code=1)
    require(creto.segments()[0] in wrong["wrong"][0], f"{wrong}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--creto", required=True)
    creto = Installation(os.path.abspath(parser.parse_args().creto))
    try:
        run(creto)
        print("every decision was found again")
    finally:
        creto.stop(signal.SIGKILL)
        shutil.rmtree(creto.work, ignore_errors=True)


if __name__ == "__main__":
    main()

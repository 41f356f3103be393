#!/usr/bin/env python3
"""A server's decisions are in its decision log, also after it was killed; the CLI replays, shows and verifies them.

    decision_log_test.py --creto BINARY

The server and the CLI are real; no sandbox is run.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from installation import HUMAN, PATIENCE_S, Installation, options_of, require


class Logged(Installation):
    def __init__(self, binary):
        super().__init__(binary, "decisions")
        self.initialise(settings='services = ["metering"]\n')

    def call(self, *words, exit_code=0):
        """What the CLI prints, where its exit code is an answer too."""
        done = subprocess.run([self.creto.binary, "--json", *words], env=self.creto.env, capture_output=True, text=True, timeout=PATIENCE_S)
        require(done.returncode == exit_code, f"creto {' '.join(words)}: left with {done.returncode}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout

    def segments(self):
        return sorted(name for name in os.listdir(os.path.join(self.home, "decisions")) if name.endswith(".seg"))

    def verify(self, exit_code=0):
        return self.call("authz", "verify-log", "--tiles", os.path.join(self.home, "audit"), "--key", os.path.join(self.home, "audit.vkey"), exit_code=exit_code)


def run(creto):
    creto.serve()
    creto.call("agents", "list")
    logged = creto.call("authz", "decisions", "--since", "1h")
    require(any(one["principal"] == f'Human::"{HUMAN}"' and one["outcome"] == "allow" and one["policies"] == ["owner"] for one in logged),
            f"the call is not in the log: {logged}")

    creto.stop(signal.SIGKILL)
    creto.serve()
    creto.call("agents", "list")
    creto.stop()
    require(len(creto.segments()) == 2, f"two runs, one of them killed, left {creto.segments()}")
    require(len(creto.call("authz", "decisions")) > len(logged), "the second run's decisions are missing")

    same = creto.call("authz", "replay", "--since", "1h")
    require(same["differ"] == 0 and same["replayed"] > 0, f"the set in force decides otherwise: {same}")
    policies = creto.file("changed/owner.cedar", f'permit(principal == Human::"{HUMAN}", action, resource) unless {{ resource is Org }};')
    differ = creto.call("authz", "replay", "--policies", os.path.dirname(policies), exit_code=1)
    require(differ["groups"] and differ["groups"][0]["was"] == "allow" and differ["groups"][0]["becomes"] == "deny", f"{differ}")
    example = differ["groups"][0]["example"]
    question = ["--principal", example["principal"], "--action", example["action"], "--resource", example["resource"]]
    other = creto.call("authz", "what-if", "--policies", os.path.dirname(policies), *question, exit_code=1)
    require(other["in_force"]["decision"] == "allow" and other["changed"]["decision"] == "deny" and other["changed"]["why"], f"{other}")
    broken = creto.file("broken/owner.cedar", "permit(principal")
    creto.call("authz", "replay", "--policies", broken, exit_code=2)

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
    creto = Logged(options_of(__doc__).parse_args().creto)
    try:
        run(creto)
        print("every decision was found again")
    finally:
        creto.stop(signal.SIGKILL)
        shutil.rmtree(creto.work, ignore_errors=True)


if __name__ == "__main__":
    main()

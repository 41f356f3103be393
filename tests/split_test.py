#!/usr/bin/env python3
"""Two servers of one installation live an agent's life together: one runs sandboxes, the other meters, asks humans and carries messages.

    split_test.py --creto BINARY

They share a PostgreSQL that the test starts, keys and authority; each has a home of its own. Leaves with 77 where the machine
cannot run sandboxes.
"""
import base64
import json
import os
import shutil
import subprocess
import sys
import time

from installation import HUMAN, PATIENCE_S, ROOT, Installation, Postgres, needs_sandboxes, options_of, require
from harness import CretoError, StepFailed  # found by way of `installation`

FORBID = '@oversight("sandboxes") forbid (principal is Agent, action == Action::"sandbox.spawn", resource);'
PERMIT = 'permit (principal is Agent, action in [Action::"sandbox.spawn", Action::"message.send"], resource);'
WORK = """
import os, sys, time
sys.path.insert(0, "/opt/agent")
from gateway import Gateway
Gateway().send(os.environ["TO"], "done")
print("sent", flush=True)
time.sleep(600)
"""


class Split:
    def __init__(self, binary, runtime):
        self.here = Installation(binary, "split-office")
        self.there = Installation(binary, "split-sandboxes")
        self.postgres = Postgres(os.path.join(self.here.work, "postgres"))
        for home in (self.here, self.there):
            home.creto.env["CRETO_DATABASE"] = self.postgres.conninfo
            home.creto.env["CRETO_PASSPHRASE_FILE"] = self.here.creto.env["CRETO_PASSPHRASE_FILE"]
        self.images = os.path.join(self.there.work, "images")
        os.makedirs(self.images)
        subprocess.run([os.path.join(ROOT, "tools", "image.sh"), os.path.join(self.images, "worker"), "--packages", "python3", f"{ROOT}/examples/invoice-agent/agent:/opt/agent"],
                       check=True, stdout=subprocess.DEVNULL)
        self.here.initialise(settings='services = ["metering", "oversight", "messaging"]\n')
        shutil.copytree(self.here.home, self.there.home, ignore=shutil.ignore_patterns("audit", "usage"))
        self.here.serve()
        with open(os.path.join(self.here.home, "ports.json"), encoding="utf-8") as ports:
            address = json.load(ports)["grpc"]
        elsewhere = "".join(f'{name} = "{address}"\n' for name in ("audit", "metering", "oversight", "messaging"))
        self.there.configure(settings='services = ["runtime"]\n', tables=f'[integrations]\n{elsewhere}[runtime]\nclass = "{runtime}"\nimage_directory = "{self.images}"\nkeep_sandboxes = false\n')
        self.there.serve()

    def spawn(self, *more):
        command = [word for part in ("python3", "-c", WORK) for word in ("--command", part)]
        return self.there.creto("sandboxes", "spawn", "worker", "--agent", self.agent, *command, "--env", f"TO={HUMAN}", *more, timeout=PATIENCE_S)

    def policy(self, identifier, text):
        # There it is known a second later: whoever asks sees the newest that was committed, or is denied.
        self.here.creto("policies", "create", identifier, "--file", self.here.file("policy.cedar", text))

    def stop(self):
        for home in (self.there, self.here):
            home.stop()
        self.postgres.stop()


def a_life(split):
    here, there = split.here, split.there
    split.agent = here.creto("agents", "register", "worker", "--permit", "sandbox.*", "--permit", "message.*")["identity"]
    here.creto("quotas", "set", json.dumps({"id": "sandboxes", "subject": split.agent, "event_type": "sandbox_allocated", "window": "month", "limit": 1, "overflow": "block"}))
    tiers = [{"approvers": [HUMAN], "quorum": 1, "timeout": "3600s"}]
    here.creto("oversight", "put", json.dumps({"id": "sandboxes", "description": "sandboxes", "tiers": tiers, "allow_self_approval": True, "channels": ["cli"]}))
    split.policy("agents-work", PERMIT)
    split.policy("sandboxes-need-a-human", FORBID)

    waiting = spawned_once_known(split, lambda answer: not isinstance(answer, CretoError) or "no policy permits" not in str(answer))
    require(not isinstance(waiting, CretoError), f"refused with {waiting}")
    request = waiting["approval"]["request_id"]
    open_here = here.creto("requests", "list", "--open", "--agent", split.agent)["requests"]
    require([one["id"] for one in open_here] == [request], f"oversight knows of {open_here}")
    here.creto("requests", "approve", request)
    token = split.spawn()["approval"]["override_token"]
    box = split.spawn("--override", token)["sandbox"]
    require(box["state"] == "running", f"the sandbox does not run: {box}")
    print("approved at one, spawned at the other")

    letters = here.creto("messages", "list", "--wait", "30s")["messages"]
    require([one["from"] for one in letters] == [split.agent], f"the agent's message: {letters}")
    require(here.creto("messages", "read", letters[0]["message_id"])["body"] == "done", "another message")
    here.creto("messages", "ack", letters[0]["message_id"])
    here.creto("policies", "delete", "sandboxes-need-a-human")
    refused = spawned_once_known(split, lambda answer: isinstance(answer, CretoError) or "sandbox" in answer)
    require(isinstance(refused, CretoError), f"a quota that is used up does not hold across a connection: {refused}")
    causes = list(refused.causes())
    require(causes[0] == "RT-429" and "MT-429" in causes, f"refused with {refused}: {causes}")
    print("metered at one, refused at the other")

    there.creto("sandboxes", "terminate", box["id"])
    output = base64.b64decode(there.creto("sandboxes", "output", box["id"], "--stream", "stdout")["data"])
    require(output == b"sent\n", f"the sandbox wrote {output}")
    there.creto("audit", "flush")
    here.stop()
    proven = os.path.join(here.work, "proven.jsonl")
    done = subprocess.run([here.creto.binary, "audit", "verify", "--tiles", os.path.join(here.home, "audit"), "--key", os.path.join(here.home, "audit.vkey"), "--records", proven],
                          env=here.creto.env, capture_output=True, text=True, timeout=PATIENCE_S)
    require(done.returncode == 0, f"audit verify: {done.stderr}")
    with open(proven, encoding="utf-8") as lines:
        logged = {json.loads(line)["what"] for line in lines}
    missing = {"agent_registered", "request_created", "approved", "override_used", "sandbox_spawned", "message_sent", "message_read", "sandbox_terminated"} - logged
    require(not missing, f"the one log lacks {missing}; it has {sorted(logged)}")
    print("one log of both, verified")


def spawned_once_known(split, known):
    """Spawns until `known` takes the answer, or the error: the other process looks for new policies once a second."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            answer = split.spawn()
        except CretoError as refused:
            answer = refused
        if known(answer):
            return answer
    raise StepFailed(f"the policies never reached the other process, which answered with {answer}")


def main():
    options = options_of(__doc__)
    options.add_argument("--runtime", default="runc")
    chosen = options.parse_args()
    needs_sandboxes(chosen.runtime)
    split = Split(chosen.creto, chosen.runtime)
    try:
        a_life(split)
    except BaseException:
        print(f"what is left is in {split.here.work} and {split.there.work}", file=sys.stderr)
        split.stop()
        raise
    split.stop()
    for home in (split.here, split.there):
        shutil.rmtree(home.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

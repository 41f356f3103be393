#!/usr/bin/env python3
"""An agent whose first sandbox needs a human's approval is provisioned: it waits for the answer, and goes on with it or is undone.

    provision_test.py --creto BINARY

The server, the CLI and the sandboxes are real. Leaves with 77 where the machine cannot run sandboxes.
"""
import json
import os
import shutil
import signal
import subprocess
import sys

from installation import HUMAN, ROOT, Installation, needs_sandboxes, options_of, require
from harness import CretoError, StepFailed  # found by way of `installation`

REFUSED, TRY_AGAIN = 3, 5  # the CLI's exit codes
FORBID = '@id("sandboxes-need-a-human") @oversight("sandboxes") forbid (principal is Agent, action == Action::"sandbox.spawn", resource);'
PERMIT = '@id("agents-spawn") permit (principal is Agent, action == Action::"sandbox.spawn", resource);'


class Provisioning(Installation):
    def __init__(self, binary, runtime):
        super().__init__(binary, "provision")
        image = os.path.join(self.work, "images", "plain")
        os.makedirs(os.path.dirname(image))
        subprocess.run([os.path.join(ROOT, "tools", "image.sh"), image, "--packages", "python3"], check=True, stdout=subprocess.DEVNULL)
        self.tables = f'[runtime]\nclass = "{runtime}"\nimage_directory = "{self.work}/images"\n'
        self.initialise(tables=self.tables)

    def provision(self, name):
        return self.creto("agents", "provision", name, "--permit", "sandbox.*", "--image", "plain", "--command", "python3", "--command", "-c", "--command", "import signal; signal.pause()",
                          "--idempotency-key", f"provision-{name}")

    def waits(self, name):
        """Provisions, and finds it waiting for a human: the request."""
        try:
            self.provision(name)
            raise StepFailed("a sandbox that needs an approval was started without it")
        except CretoError as refused:
            require(refused.exit_code == REFUSED and "waits for the approval" in str(refused), f"refused with {refused}")
        agents = self.creto("agents", "list", "--name", name)["agents"]
        require([agent["status"] for agent in agents] == ["AGENT_STATUS_ACTIVE"], f"what was made before is not kept: {agents}")
        asked = self.creto("requests", "list", "--agent", agents[0]["identity"]).get("requests", [])
        require(len(asked) == 1, f"{len(asked)} requests for one sandbox")
        return asked[0]["id"]


def play(creto):
    creto.serve()
    for identifier, text in (("sandboxes-need-a-human", FORBID), ("agents-spawn", PERMIT)):
        creto.creto("policies", "create", identifier, "--file", creto.file("policy.cedar", text))
    tiers = [{"approvers": [HUMAN], "quorum": 1, "timeout": "3600s"}]
    creto.creto("oversight", "put", json.dumps({"id": "sandboxes", "description": "sandboxes", "tiers": tiers, "allow_self_approval": True, "channels": ["cli"]}))

    request = creto.waits("approved")
    require(creto.waits("approved") == request, "a repetition asks again")
    creto.stop(signal.SIGKILL)  # it waits in the database, not in a process
    creto.configure('services = ["metering", "runtime", "messaging"]\n', creto.tables)
    creto.serve()
    try:
        creto.provision("approved")
        raise StepFailed("a sandbox was started where nobody knows of its approval")
    except CretoError as refused:
        require(refused.exit_code == TRY_AGAIN and "oversight" in str(refused), f"without oversight refused with {refused}")
    creto.stop()
    creto.configure(tables=creto.tables)
    creto.serve()
    creto.creto("requests", "approve", request)
    made = creto.provision("approved")
    require(made["state"] == "made" and made["sandbox"], f"not made after the approval: {made}")
    require(creto.creto("sandboxes", "show", made["sandbox"])["state"] == "running", "the sandbox does not run")
    require(creto.provision("approved")["sandbox"] == made["sandbox"], "a repetition starts another sandbox")
    print("approved: made")

    request = creto.waits("denied")
    creto.creto("requests", "deny", request)
    try:
        creto.provision("denied")
        raise StepFailed("an agent was provisioned whose sandbox was denied")
    except CretoError as refused:
        require("undone" in str(refused), f"refused with {refused}")
    agents = creto.creto("agents", "list", "--name", "denied")["agents"]
    require([agent["status"] for agent in agents] == ["AGENT_STATUS_REVOKED"], f"left behind: {agents}")
    print("denied: undone")
    creto.creto("sandboxes", "terminate", made["sandbox"])


def main():
    options = options_of(__doc__)
    options.add_argument("--runtime", default="runc")
    chosen = options.parse_args()
    needs_sandboxes(chosen.runtime)
    creto = Provisioning(chosen.creto, chosen.runtime)
    try:
        play(creto)
    except (StepFailed, CretoError) as problem:
        print(f"FAILED: {problem}; everything is in {creto.work}")
        return 1
    finally:
        creto.stop()
    shutil.rmtree(creto.work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

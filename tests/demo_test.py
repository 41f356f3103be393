#!/usr/bin/env python3
"""However the demo ends, nothing of it runs on: at its end, interrupted, asked to end, killed, or after a failure of the server;
and its report and its exit code say how it ended.

    demo_test.py --creto BINARY

The demo is the real one. Leaves with 77 where the machine cannot run sandboxes.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from installation import PATIENCE_S, ROOT, left_over, needs_sandboxes, options_of, require
from harness import StepFailed  # found by way of `installation`

STEPS = 17  # of the main job; more may come


class Running:
    """A demo in a folder of its own."""

    def __init__(self, creto, runtime):
        self.work = tempfile.mkdtemp(prefix="creto-demo-")
        self.home = os.path.join(self.work, "home")
        self.boxes = set()
        # As a shell starts it: a process group of its own, which Ctrl-C reaches.
        self.process = subprocess.Popen([os.path.join(ROOT, "examples", "invoice-agent", "run"), "--runtime", runtime, "--work", self.work],
                                        env={**os.environ, "CRETO_BIN": creto, "ASAN_OPTIONS": "detect_leaks=0"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, start_new_session=True)
        self.said = []

    def after(self, step):
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("ok") and line.rstrip().endswith(step):
                return
        raise StepFailed(f"the demo ended before the step `{step}` had: {''.join(self.said)[-3000:]}")

    def until(self, what, holds):
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            require(time.monotonic() < deadline, f"never came: {what}")
            time.sleep(0.02)

    def sandboxes(self, count):
        """Waits until there are so many, the warm ones too."""
        def seen():
            folder = os.path.join(self.home, "sandboxes", "sandboxes")
            self.boxes |= set(os.listdir(folder)) if os.path.isdir(folder) else set()
            return len(self.boxes) >= count
        self.until(f"{count} sandboxes", seen)

    def server(self):
        """Its process id."""
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{process}/cmdline", "rb") as command, open(f"/proc/{process}/environ", "rb") as environment:
                    if command.read().endswith(b"\0serve\0") and f"CRETO_HOME={self.home}".encode() in environment.read():
                        return int(process)
            except OSError:
                continue
        raise StepFailed("there is no server")

    def ends(self, code):
        said = self.process.communicate(timeout=PATIENCE_S + 180)[0]
        require(self.process.returncode == code, f"ended with {self.process.returncode} instead of {code}: {''.join(self.said)}{said}"[-3000:])
        return said

    def report(self):
        with open(os.path.join(self.work, "report.json"), encoding="utf-8") as file:
            return json.load(file)

    def left(self):
        return left_over(self.work, self.boxes) + left_over(self.home, self.boxes)

    def leaves_nothing(self):
        left = self.left()
        require(not left, f"left over: {left}; files in {self.work}")
        shutil.rmtree(self.work)


def asked_to_end_while_the_image_is_made(demo):
    demo.after("world outside")
    demo.process.send_signal(signal.SIGTERM)
    demo.ends(128 + signal.SIGTERM)
    demo.leaves_nothing()


def interrupted_in_the_middle_of_a_spawn(demo):
    demo.after("policies")
    demo.sandboxes(2)
    os.killpg(demo.process.pid, signal.SIGINT)
    os.killpg(demo.process.pid, signal.SIGINT)  # nobody presses Ctrl-C once
    demo.ends(128 + signal.SIGINT)
    demo.leaves_nothing()


def the_server_dies(demo):
    demo.after("spawn and attestation")
    demo.sandboxes(3)
    os.kill(demo.server(), signal.SIGKILL)
    require("FAIL" in demo.ends(1), "no step is marked as failed")
    report = demo.report()
    require(not report["ok"], f"the report knows of no failure: {report}")
    require([step["ok"] for step in report["steps"]] == [True] * (len(report["steps"]) - 1) + [False], f"another than the last step failed: {report['steps']}")
    demo.leaves_nothing()


def killed_while_agents_work(demo):
    demo.after("spawn and attestation")
    demo.sandboxes(3)
    demo.process.kill()
    demo.ends(-signal.SIGKILL)
    demo.until("the end of all it had started", lambda: not demo.left())
    demo.leaves_nothing()


def plays_to_its_end(demo):
    said = demo.ends(0)
    report = demo.report()
    failed = [step["name"] for step in report["steps"] if not step["ok"]]
    require(report["ok"] and not failed, f"ended with 0 though these failed: {failed}")
    told = [line.split(maxsplit=3)[3].strip() for line in said.splitlines() if line.startswith("ok ")]
    require(len(told) >= STEPS and told == [step["name"] for step in report["steps"]], f"the report has {report['steps']}, and said was {told}")
    require(report["attestation_verified"] and report["audit_verified"] and report["audit_size"] > 100, f"not verified: {report}")
    require(report["invoice_total"], "there is no invoice")
    demo.leaves_nothing()


def main():
    options = options_of(__doc__)
    options.add_argument("--runtime", default="runc")
    chosen = options.parse_args()
    needs_sandboxes(chosen.runtime)
    for ending in (asked_to_end_while_the_image_is_made, interrupted_in_the_middle_of_a_spawn, the_server_dies, killed_while_agents_work, plays_to_its_end):
        demo = Running(chosen.creto, chosen.runtime)
        try:
            ending(demo)
        finally:
            demo.process.terminate()  # the demo's own end, where a claim did not hold
        print(f"{ending.__name__.replace('_', ' ')}: nothing is left", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A disk that is full refuses what would change something, with the reason, and nothing of what was acknowledged is lost.

    full_disk_test.py --creto BINARY

The installation lies on a small file system of its own. Leaves with 77 where this machine mounts none.
"""
import contextlib
import json
import os
import shutil
import subprocess
import sys

from installation import PATIENCE_S, Installation, options_of, require
from harness import CretoError  # found by way of `installation`

SIZE = 64 << 20


class SmallDisk(Installation):
    def __init__(self, binary):
        super().__init__(binary, "disk")
        os.makedirs(self.home)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", self.home], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"a file system of its own needs root: {done.stderr.strip()}")
            sys.exit(77)
        self.filler = os.path.join(self.home, "filler")

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self):
        os.unlink(self.filler)

    def register(self, name):
        return self.creto("agents", "register", name, "--permit", "payments.pay")["identity"]

    def identities(self):
        return {agent["identity"] for agent in self.creto("agents", "list")["agents"]}

    def unmount(self):
        subprocess.run(["umount", self.home], check=True)


def a_server_on_a_full_disk(disk):
    disk.initialise(settings='services = ["metering", "oversight", "messaging"]\n')
    disk.serve()
    disk.register("before")
    before = disk.identities()
    disk.fill()
    for attempt in ("first", "second"):
        try:
            disk.register(attempt)
            raise AssertionError("what could not be written was acknowledged")
        except CretoError as refused:
            require(list(refused.causes())[:1] == ["PL-507"] and refused.exit_code == 5, f"refused with {refused}")
    require(disk.identities() == before, "reading does not go on, or a refused call left something")
    disk.free()
    after = disk.register("first")  # the name is free: nothing was made of it
    require(disk.identities() == before | {after}, "something else was registered")
    print("a full disk: refuses what would be written, reads, and goes on when there is room")


def a_start_on_a_full_disk(disk):
    known = disk.identities()
    disk.fill()
    disk.stop()
    done = subprocess.run([disk.creto.binary, "serve"], env=disk.creto.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    require(done.returncode == 5 and "PL-507" in done.stderr, f"started: {done.returncode} {done.stderr[-500:]}")
    disk.free()
    disk.serve()
    require(disk.identities() == known, "something is lost, or came of itself")
    disk.creto("audit", "flush")
    disk.stop()
    done = subprocess.run([disk.creto.binary, "--json", "audit", "verify", "--tiles", os.path.join(disk.home, "audit"), "--key", os.path.join(disk.home, "audit.vkey")],
                          env=disk.creto.env, capture_output=True, text=True, timeout=PATIENCE_S)
    require(done.returncode == 0 and json.loads(done.stdout)["size"] > 0, f"audit verify: {done.stderr}")
    print("a stop and a start on a full disk: nothing is lost, the log verifies")


def main():
    disk = SmallDisk(options_of(__doc__).parse_args().creto)
    try:
        a_server_on_a_full_disk(disk)
        a_start_on_a_full_disk(disk)
    except BaseException:
        if disk.server:
            disk.server.kill()
            disk.server.wait()
        with contextlib.suppress(OSError):
            with open(os.path.join(disk.work, "creto.log"), encoding="utf-8", errors="replace") as log:
                print(log.read()[-3000:], file=sys.stderr)
        raise
    finally:
        disk.unmount()
        shutil.rmtree(disk.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

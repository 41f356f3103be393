"""An installation in a folder of its own, with the real server and the real CLI; for tests that run the built binary."""
import argparse
import contextlib
import glob
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "examples", "invoice-agent"))
from harness import Creto, require  # noqa: E402

PATIENCE_S = 120
HUMAN = "human:ada@example.com"


def options_of(description):
    """The arguments of a test; `--creto` is the binary, as an absolute path."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--creto", type=os.path.abspath, default=os.environ.get("CRETO_BIN", os.path.join(ROOT, "build", "asan", "bin", "creto")))
    return options


def runs_sandboxes(runtime):
    """Whether this machine can; a test that needs them leaves with 77 where it cannot."""
    return os.geteuid() == 0 and shutil.which(runtime) is not None


def needs_sandboxes(runtime):
    if not runs_sandboxes(runtime):
        print(f"sandboxes need root and `{runtime}`")
        sys.exit(77)


class Installation:
    def __init__(self, binary, name):
        self.work = tempfile.mkdtemp(prefix=f"creto-{name}-")
        self.home = os.path.join(self.work, "home")
        self.creto = Creto(binary, self.home, self.file("passphrase", f"passphrase of the {name} test"))
        # A client that leaves at once does so while gRPC's threads still hold what they will free.
        self.creto.env["ASAN_OPTIONS"] = "detect_leaks=0"
        self.server = None

    def initialise(self, settings="", tables=""):
        self.creto("init", "--email", HUMAN.removeprefix("human:"))
        self.configure(settings, tables)

    def configure(self, settings="", tables=""):
        """`settings` and `tables` are lines of config.toml, before and behind the first table. For the next start."""
        ports = "".join(f"[{door}]\nport = 0\n" for door in ("grpc", "rest", "metrics", "health"))
        self.file("home/config.toml", f'org = "default"\n{settings}{ports}{tables}')

    def file(self, name, content):
        path = os.path.join(self.work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as out:
            out.write(content)
        return path

    def serve(self):
        ports = os.path.join(self.home, "ports.json")
        if os.path.exists(ports):
            os.unlink(ports)
        with open(os.path.join(self.work, "creto.log"), "ab") as log:
            self.server = subprocess.Popen([self.creto.binary, "serve"], env=self.creto.env, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE_S
        while not os.path.exists(ports):
            require(self.server.poll() is None and time.monotonic() < deadline, "the server is not ready")
            time.sleep(0.05)

    def stop(self, how=signal.SIGTERM):
        if self.server:
            self.server.send_signal(how)
            self.server.wait(PATIENCE_S)
            self.server = None


class Postgres:
    """A real PostgreSQL in a folder of its own, reached through a socket there; under another user where we are root."""

    def __init__(self, folder):
        programs = os.environ.get("CRETO_POSTGRES_BIN") or max(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))
        self.user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
        os.makedirs(folder)
        if self.user:
            shutil.chown(folder, "postgres", "postgres")
            os.chmod(os.path.dirname(folder), 0o711)
        self.data = os.path.join(folder, "data")
        self.programs = programs
        self.folder = folder
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "creto", "--no-sync")
        self.start()
        self.run("createdb", "-h", folder, "-U", "creto", "creto")
        self.conninfo = f"host={folder} user=creto dbname=creto"

    def run(self, program, *arguments):
        subprocess.run([*self.user, os.path.join(self.programs, program), *arguments], check=True, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE_S)

    def start(self):
        self.run("pg_ctl", "-D", self.data, "-l", os.path.join(self.folder, "log"), "-o", f"-k {self.folder} -c listen_addresses=''", "-w", "start")

    def stop(self):
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")

    def kill(self):
        """With kill -9, its children too: a new one does not start beside what is left of the old."""
        with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
            first = int(file.readline())
        processes = [first, *children_of(first)]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        # Also until each is reaped: its number still counts as another PostgreSQL.
        while any(os.path.exists(f"/proc/{process}") for process in processes):
            require(time.monotonic() < deadline, "what was killed is still there")
            time.sleep(0.01)


def children_of(parent):
    children = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == parent:
                children.append(int(process))
    return children


def left_over(home, sandboxes):
    """What there is on this machine of the installation in `home`, which has stopped: processes, mounts, cgroups, networks."""
    left = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with (open(f"/proc/{process}/cmdline", "rb") as command, open(f"/proc/{process}/environ", "rb") as environment,
                  open(f"/proc/{process}/cgroup", encoding="utf-8") as groups):
                words, cgroup = command.read().decode(errors="replace"), groups.read()
                of_home = f"CRETO_HOME={home}\0".encode() in environment.read()  # a server is named after nothing
        except OSError:
            continue
        if not words:
            continue  # dead: its parent has not asked yet how
        if of_home or home in words or any(box in cgroup for box in sandboxes):
            left.append(f"process {process}: {words[:200]} {cgroup[:300]}")
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        left += [f"mount {line.split()[1]}" for line in mounts if home in line]
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        left += [f"cgroup {folder}/{name}" for name in set(sandboxes) & set(names)]
    if os.path.isdir("/run/netns"):
        instance = hashlib.sha3_256(os.path.join(home, "sandboxes").encode()).hexdigest()[:8]
        left += [f"network namespace {name}" for name in os.listdir("/run/netns") if instance in name]
    return left

"""What the example's driver needs around Creto: steps that are checked, processes that are ended, the world outside.

The world outside is real and local: a ledger, a model endpoint, a webhook receiver, two hosts to connect to. A step is
right only if they, the files or the sandbox's own output say so.
"""
import base64
import hashlib
import hmac
import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))


class StepFailed(Exception):
    pass


def require(condition, message):
    if not condition:
        raise StepFailed(message)


class Interrupted(BaseException):
    """A signal that asks us to end: past everything that handles errors, to where we clean up."""

    def __init__(self, received):
        self.exit_code = 128 + received
        super().__init__(signal.Signals(received).name)


class Signals:
    """What asks us to end. The first one counts; a second must not cut off what that began."""

    asked_to_end = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    held = False
    arrived = None

    @classmethod
    def interrupt(cls):
        for asked in cls.asked_to_end:
            signal.signal(asked, cls.take)

    @classmethod
    def ignore(cls):
        cls.held = False
        for asked in cls.asked_to_end:
            signal.signal(asked, lambda *_: None)  # unlike SIG_IGN this is not inherited

    @classmethod
    def take(cls, received, _):
        cls.arrived = cls.arrived or received
        if not cls.held:
            cls.release()

    @classmethod
    def hold(cls):
        """While a process is being started: whoever is interrupted there never learns which one it is."""
        cls.held = True

    @classmethod
    def release(cls):
        cls.held = False
        if cls.arrived:
            received, cls.arrived = cls.arrived, None
            cls.ignore()
            raise Interrupted(received)


def run_to_its_end(command, **options):
    """Exit code, output, errors. Where we are interrupted, the program and all it started are asked to end, and have ended."""
    timeout = options.pop("timeout", None)
    Signals.hold()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)
    try:
        Signals.release()
        out, error = process.communicate(timeout=timeout)
        return process.returncode, out, error
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()  # until the last of them has let go of what it writes to
        raise


class CretoError(Exception):
    """A verb of the CLI that was refused: its error as the CLI printed it."""

    def __init__(self, args, code, error):
        self.code, self.error, self.exit_code = error.get("code", ""), error, code
        super().__init__(f"creto {' '.join(args)}: {error.get('code', code)}: {error.get('message', '')}")

    def causes(self):
        error = self.error
        while error:
            yield error.get("code", "")
            error = error.get("caused_by")


class Steps:
    """Runs the steps in order, prints each as it ends, and keeps the report."""

    def __init__(self):
        self.rows = []
        self.failed = False

    def run(self, name, action):
        begin = time.monotonic()
        detail, ok = "", True
        try:
            detail = action() or ""
        except (StepFailed, CretoError, OSError, KeyError, ValueError, subprocess.SubprocessError) as problem:
            ok, detail = False, f"{type(problem).__name__}: {problem}" if not isinstance(problem, StepFailed) else str(problem)
        ms = round((time.monotonic() - begin) * 1000)
        self.rows.append({"name": name, "ok": ok, "ms": ms, "detail": detail})
        self.failed = self.failed or not ok
        print(f"{'ok  ' if ok else 'FAIL'} {ms:>7} ms  {name}" + ("\n                 " + " ".join(detail.split()) if detail else ""), flush=True)
        return ok

    def table(self):
        width = max(len(row["name"]) for row in self.rows)
        lines = [f"{'step':<{width}}  ok    time"]
        lines += [f"{row['name']:<{width}}  {'yes' if row['ok'] else 'NO':<3} {row['ms']:>6} ms" for row in self.rows]
        return "\n".join(lines)


class Children:
    """Processes that end with us, however we end: by `stop_all`, and where we were killed, by the kernel's SIGTERM.

    Each has a session of its own: Ctrl-C is for us, and we end them in our order.
    """

    def __init__(self, log_directory):
        self.log_directory = log_directory
        self.running = {}

    def start(self, name, command, **options):
        log = open(os.path.join(self.log_directory, name + ".log"), "ab")
        Signals.hold()
        process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], stdout=options.pop("stdout", log), stderr=log,
                                   stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self.running[name] = process
        Signals.release()
        return process

    def stop(self, name, sig=signal.SIGTERM, timeout=30):
        """Its exit code; negative: the signal that ended it. None where there is none of that name."""
        process = self.running.pop(name, None)
        if process is None:
            return None
        process.send_signal(sig)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def stop_all(self):
        for name in reversed(list(self.running)):
            self.stop(name)


class Creto:
    """The CLI, as a program uses it."""

    def __init__(self, binary, home, passphrase_file):
        self.binary = binary
        self.env = {**os.environ, "CRETO_HOME": home, "CRETO_PASSPHRASE_FILE": passphrase_file}

    def __call__(self, *args, timeout=120):
        code, out, said = run_to_its_end([self.binary, "--json", *args], env=self.env, timeout=timeout)
        if code != 0:
            try:
                error = json.loads(said.strip().splitlines()[-1])
            except (ValueError, IndexError):
                error = {"message": (said.strip() or out.strip())[-2000:]}
            raise CretoError(args, code, error)
        return json.loads(out) if out.strip() else {}

    def refused(self, *args):
        try:
            self(*args)
        except CretoError as error:
            return error
        raise StepFailed(f"creto {' '.join(args)} succeeded, but had to be refused")


class Recorder(http.server.ThreadingHTTPServer):
    """A local HTTP server that remembers what it was sent."""

    daemon_threads = True

    def __init__(self, name):
        self.name = name
        self.requests = []
        self.arrived = threading.Condition()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with self.server.arrived:
                    self.server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
                    self.server.arrived.notify_all()
                payload = json.dumps({"service": self.server.name}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = answer

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"127.0.0.1:{self.server_address[1]}"

    def wait_for(self, matches, timeout):
        deadline = time.monotonic() + timeout
        with self.arrived:
            while True:
                for request in self.requests:
                    if matches(request):
                        return request
                left = deadline - time.monotonic()
                if left <= 0 or not self.arrived.wait(left):
                    raise StepFailed(f"{self.name}: nothing of that kind arrived within {timeout} s")


def standard_webhook_is_genuine(request, secret):
    """Standard Webhooks 1.0.0: HMAC-SHA256 over id.timestamp.body."""
    headers = {name.lower(): value for name, value in request["headers"].items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request["body"]
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    given = [part.split(",", 1)[1] for part in headers["webhook-signature"].split() if part.startswith("v1,")]
    return any(hmac.compare_digest(expected, signature) for signature in given)


def first_line(process_log, contains, timeout=30):
    """Waits until a log file holds a line with `contains`; returns it."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if os.path.exists(process_log):
            with open(process_log, encoding="utf-8", errors="replace") as log:
                for line in log:
                    if contains in line and line.endswith("\n"):
                        return line
        time.sleep(0.05)
    raise StepFailed(f"{os.path.basename(process_log)}: no line with `{contains}` within {timeout} s")


def payments_in(ledger_file):
    with sqlite3.connect(f"file:{ledger_file}?mode=ro", uri=True) as ledger:
        ledger.row_factory = sqlite3.Row
        return [dict(row) for row in ledger.execute("SELECT * FROM payments ORDER BY rowid")]


def fresh_directory(path):
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path, mode=0o700)
    return path


def fail(message):
    print(f"demo: {message}", file=sys.stderr)
    sys.exit(2)

#!/usr/bin/env python3
"""That every command in README.md, docs/ and the READMEs of modules and examples works.

    docs_test.py --creto BINARY

Commands of `creto` in a code block are run in order, in a fresh home whose server runs, as after `./dev up`; `name=$(creto …)`
keeps what one says for `$name` in those that follow. Those in running
text must be verbs that exist. A block marked `output` stands below a command that prints each of its lines. Commands of `./dev` install and take long: they must be commands that `./dev help` lists.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

from installation import options_of

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMAND = re.compile(r"^(?:\$ )?(?P<words>(?:\./dev|(?:build/(?:\w+/)?bin/)?creto)(?: .*)?|\w+=\$\(creto .*\))$")
# Labels of keys and signatures in docs/formats.md, which begin with our name too.
LABEL = re.compile(r"creto (\d{4}-\d\d .*|.* v\d.*|signed note)$")


def documents():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "*.md"], capture_output=True, text=True, check=True).stdout.split()
    return sorted(listed, key=lambda name: (name != "README.md", name))


def commands_of(name):
    """[line number, command, whether it stands in a block, lines that it prints]"""
    fence, commands = None, []
    with open(os.path.join(ROOT, name), encoding="utf-8") as text:
        for number, line in enumerate(text, 1):
            if line.startswith("```"):
                fence = line.strip() if fence is None else None
            elif fence == "```output":
                commands[-1][3].append(line.rstrip("\n"))
            elif fence or line.startswith("    "):
                found = COMMAND.match(re.sub(r"\s+# .*", "", line.strip()))
                if found:
                    commands.append([number, found["words"], True, []])
            else:
                for code in re.findall(r"`([^`]+)`", line):
                    if COMMAND.match(code) and not LABEL.match(code):
                        commands.append([number, code, False, []])
    return commands


class Docs:
    def __init__(self, creto):
        self.creto = creto
        self.work = tempfile.mkdtemp(prefix="creto-docs-")
        passphrase = os.path.join(self.work, "passphrase")
        with open(os.open(passphrase, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write("docs test passphrase")
        self.env = {**os.environ, "CRETO_HOME": os.path.join(self.work, "home"), "CRETO_PASSPHRASE_FILE": passphrase}
        programs = os.path.join(self.work, "bin")
        os.mkdir(programs)
        os.symlink(creto, os.path.join(programs, "creto"))
        self.env["PATH"] = programs + os.pathsep + self.env["PATH"]
        os.symlink(os.path.join(ROOT, "examples"), os.path.join(self.work, "examples"))  # commands stand there as in a checkout
        self.dev_help = self.run([os.path.join(ROOT, "dev"), "help"])
        self.server = None

    def run(self, words):
        done = subprocess.run(words, env=self.env, cwd=self.work, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise ValueError(f"left with {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
        return done.stdout

    def serve(self):
        self.run([self.creto, "init", "--email", "docs@example.com"])
        config = os.path.join(self.env["CRETO_HOME"], "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write('org = "default"\nservices = ["metering", "oversight", "messaging"]\n' + "".join(f"[{door}]\nport = 0\n" for door in ("grpc", "rest", "metrics", "health")))
        self.server = subprocess.Popen([self.creto, "serve"], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not os.path.exists(os.path.join(self.env["CRETO_HOME"], "ports.json")):
            if self.server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"creto serve is not ready: {self.server.stderr.read()[-1000:]}")
            time.sleep(0.05)

    def check(self, command, in_block, prints):
        if in_block and re.search(r"[$|>]", command):
            name, _, value = command.partition("=")
            if re.fullmatch(r"\w+", name):
                self.env[name] = self.run(["bash", "-c", f"set -o pipefail; echo {value}"]).strip()
                if not self.env[name]:
                    raise ValueError("said nothing")
            else:
                self.run(["bash", "-c", f"set -o pipefail; {command}"])
            return "ran"
        program, *words = shlex.split(command)
        if program == "./dev":
            if words and not re.search(rf"^  {re.escape(words[0])}\b", self.dev_help, re.MULTILINE) and words[0] != "help":
                raise ValueError(f"`./dev help` knows no `{words[0]}`")
            return "listed"
        if in_block:
            printed = self.run([self.creto, *words]).splitlines()
            missing = [line for line in prints if line not in printed]
            if missing:
                raise ValueError(f"does not print `{missing[0]}`")
            return "ran"
        verbs = []
        for word in words:
            if not re.fullmatch(r"[a-z][a-z-]*", word):
                break
            verbs.append(word)
        # What follows the verb may be an argument in lower case: the longest that is a verb counts.
        while verbs:
            try:
                self.run([self.creto, *verbs, "--help"])
                return "exists"
            except ValueError:
                if len(verbs) == 1:
                    raise
                verbs.pop()
        return "exists"


def main():
    docs = Docs(options_of(__doc__).parse_args().creto)
    failed = count = 0
    try:
        docs.serve()
        for name in documents():
            for number, command, in_block, prints in commands_of(name):
                count += 1
                try:
                    print(f"{name}:{number}: {command}: {docs.check(command, in_block, prints)}", flush=True)
                except (ValueError, subprocess.SubprocessError) as problem:
                    failed += 1
                    print(f"{name}:{number}: {command}: FAILED: {problem}", flush=True)
    finally:
        if docs.server:
            docs.server.terminate()
            docs.server.wait(60)
        shutil.rmtree(docs.work, ignore_errors=True)
    if count < 5:
        sys.exit(f"only {count} commands were found: has the way they are written changed?")
    print(f"{count} commands, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What only a server that runs can show: a root key under a passphrase, links to objects, settings that change.

    serve_test.py --creto BINARY
"""
import base64
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

from installation import HUMAN, PATIENCE_S, Installation, options_of, require


class Serving(Installation):
    def init(self, *arguments):
        return subprocess.run([self.creto.binary, "init", "--email", HUMAN.removeprefix("human:"), *arguments], env=self.creto.env,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)

    def refused_start(self):
        done = subprocess.run([self.creto.binary, "serve"], env=self.creto.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
        require(done.returncode != 0, "the server started")
        return done.stderr

    def context(self, client=True):
        context = ssl.create_default_context(cafile=os.path.join(self.home, "ca.pem"))
        if client:
            context.load_cert_chain(os.path.join(self.home, "human", "client.pem"), os.path.join(self.home, "human", "client.key"))
        return context

    def url(self, target):
        with open(os.path.join(self.home, "ports.json"), encoding="utf-8") as file:
            return f"https://{json.load(file)['rest']}{target}"

    def rest(self, path, body):
        request = urllib.request.Request(self.url(path), json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, context=self.context(), timeout=60) as answer:
            return json.load(answer)

    def anonymous(self, method, target, content=None, content_type=None):
        """Status and body, asked by somebody who has nothing but the link."""
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(self.url(target), content, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self.context(client=False), timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def logged(self, text):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with open(os.path.join(self.work, "creto.log"), encoding="utf-8", errors="replace") as log:
                found = [line for line in log if text in line]
            if found:
                return found[-1]
            time.sleep(0.05)
        raise AssertionError(f"the server never logged `{text}`")


def a_beginning_that_is_refused(serving):
    done = subprocess.run([serving.creto.binary, "init", "--email", "nobody"], env=serving.creto.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    require(done.returncode == 2 and "email" in done.stderr, f"an address that is none: {done}")
    require(not os.path.exists(serving.home), f"it made {os.listdir(serving.home) if os.path.isdir(serving.home) else serving.home}")
    print("a beginning that is refused: makes nothing")


def root_key_under_a_passphrase(serving):
    variable = "CRETO_ROOT_PASSPHRASE_FILE"
    done = serving.init("--seal-root-key")
    require(done.returncode != 0 and variable in done.stderr, f"sealed without a passphrase: {done.stderr}")
    require(not os.path.exists(os.path.join(serving.home, "root.key")), "a root key without its passphrase")
    passphrase = serving.file("root-passphrase", "correct horse battery staple\n")
    serving.creto.env[variable] = passphrase
    done = serving.init("--seal-root-key")
    require(done.returncode == 0 and "under a passphrase" in done.stdout, f"init: {done.stderr}")
    serving.configure(settings='services = ["metering", "oversight", "messaging"]\n')

    del serving.creto.env[variable]
    require(variable in serving.refused_start(), "the refusal does not say where the passphrase belongs")
    serving.creto.env[variable] = serving.file("wrong", "incorrect horse")
    serving.refused_start()
    del serving.creto.env[variable]
    # As systemd hands it over.
    credentials = os.path.join(serving.work, "credentials")
    os.makedirs(credentials)
    shutil.copy(passphrase, os.path.join(credentials, "creto-root-passphrase"))
    serving.creto.env["CREDENTIALS_DIRECTORY"] = credentials
    serving.serve()
    print("sealed root key: asked for, and enough")


def links_to_objects(serving):
    # The server opens what belongs to an agent; a human's keys are not there.
    agent = serving.creto("agents", "register", "archivist", "--permit", "storage.*")["identity"]
    stored = serving.rest("/v1/objects", {"spec": {"bucket": "default", "key": "notes/a b", "owner": agent, "content_type": "text/plain", "classification": "CLASSIFICATION_ARTIFACT"},
                                          "data": base64.b64encode(b"what was kept").decode()})
    link = serving.rest("/v1/objects:presign", {"reference": {"bucket": "default", "key": "notes/a b"}, "ttl": "60s"})["url"]
    require(serving.anonymous("GET", link) == (200, b"what was kept"), f"the link {link} to {stored} gives {serving.anonymous('GET', link)}")
    for changed in (link[:-1] + ("A" if link[-1] != "A" else "B"), link.replace("notes", "other"), link.split("?")[0]):
        require(serving.anonymous("GET", changed)[0] in (400, 403), f"a changed link was honoured: {changed}")
    require(serving.anonymous("PUT", link, b"x", "text/plain")[0] == 403, "a link for reading was written through")

    put = {"content_type": "text/plain", "size_max": 8, "classification": "CLASSIFICATION_ARTIFACT"}
    link = serving.rest("/v1/objects:presign", {"reference": {"bucket": "default", "key": "upload"}, "put": put, "ttl": "60s"})["url"]
    require(serving.anonymous("PUT", link, b"123456789", "text/plain")[0] == 413, "more was stored than the link permits")
    require(serving.anonymous("PUT", link, b"12345678", "image/png")[0] == 403, "another kind was stored than the link permits")
    require(serving.anonymous("PUT", link, b"12345678", "text/plain")[0] == 201, "what the link permits was not stored")
    held = {entry["reference"]["key"]: entry for entry in serving.creto("objects", "list")["objects"]}
    require(held["upload"]["size_bytes"] == "8" and held["upload"]["owner"] == HUMAN, f"what was stored by link: {held}")
    try:
        serving.rest("/v1/objects:presign", {"reference": {"bucket": "default", "key": "upload"}, "put": {**put, "size_max": 1 << 40}})
        require(False, "a link was given for more than the door takes")
    except urllib.error.HTTPError as refused:
        require(refused.code == 400 and b"size_max" in refused.read(), "the refusal does not name `size_max`")
    print("links: good for what they say, and nothing else")


def words_that_are_wrong(serving):
    for words in (["agents", "list", "--nonsense"], ["nonsense"], ["agents"]):
        done = subprocess.run([serving.creto.binary, "--json", *words], env=serving.creto.env, capture_output=True, text=True, timeout=PATIENCE_S)
        require(done.returncode == 2 and json.loads(done.stderr)["code"] == "PL-400" and not done.stdout, f"{words}: {done}")
    print("wrong words: an error like any other")


def settings_that_change(serving):
    def reload(settings):
        serving.configure(settings='services = ["metering", "oversight", "messaging"]\n' + settings)
        serving.server.send_signal(signal.SIGHUP)

    reload('log = { level = "debug" }\n')
    serving.logged('"reloaded"')
    reload("tls = false\n")
    require("need a restart" in serving.logged("reload_failed"), "a setting that was not taken over is not told")
    reload('log = { level = "loud" }\n')
    serving.logged("loud")
    require(serving.creto("agents", "list")["agents"], "the server does not answer any more")
    print("settings: the log's level changes, others are told to wait")


def main():
    serving = Serving(options_of(__doc__).parse_args().creto, "serve")
    try:
        a_beginning_that_is_refused(serving)
        root_key_under_a_passphrase(serving)
        links_to_objects(serving)
        words_that_are_wrong(serving)
        settings_that_change(serving)
        serving.stop()
    except BaseException:
        print(f"what is left is in {serving.work}", file=sys.stderr)
        if serving.server:
            serving.server.kill()
        raise
    shutil.rmtree(serving.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A human at the command line writes to an agent in a sandbox and gets its answer; both are sealed at their ends.

    messages_test.py --creto BINARY

The server, the CLI and the sandbox are real. Where the machine cannot run sandboxes he writes to himself alone.
"""
import base64
import json
import os
import shutil
import subprocess
import sys
import time

from installation import HUMAN, PATIENCE_S, ROOT, Installation, options_of, require, runs_sandboxes
from harness import CretoError  # found by way of `installation`

REFUSED, NOT_FOUND, WRONG = 3, 4, 2  # the CLI's exit codes
SECRET = "the vendor's account is 4711"
ECHO = """
import sys
sys.path.insert(0, "/opt/agent")
from gateway import Gateway
gateway = Gateway()
while True:
    for message in gateway.receive(wait_s=5):
        answer = "you wrote: " + message["body"]
        sent = gateway.send(message["from"], answer)
        while sent.get("state") == "pending":
            decided = gateway.request(sent["request_id"])
            sent = gateway.send(message["from"], answer, override=decided.get("override_token"))
        gateway.acknowledge(message["message_id"])
"""


class Correspondence(Installation):
    def typed(self, body, *words):
        """The CLI with `body` on standard input."""
        done = subprocess.run([self.creto.binary, "--json", "messages", "send", *words], env=self.creto.env, input=body, capture_output=True, timeout=PATIENCE_S)
        require(done.returncode == 0, f"send: {done.stderr.decode()}")
        return json.loads(done.stdout)["message_id"]

    def inbox(self, wait="0s"):
        return self.creto("messages", "list", "--wait", wait)["messages"]

    def refused(self, code, *words):
        try:
            self.creto(*words)
        except CretoError as refused:
            require(refused.exit_code == code, f"{words}: left with {refused.exit_code}: {refused}")
            return refused
        raise AssertionError(f"{words} succeeded")

    def nowhere_on_disk(self, text):
        for folder, _, names in os.walk(self.work):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and name != "letter":
                    with open(path, "rb") as file:
                        require(text.encode() not in file.read(), f"a message lies open in {path}")


def to_himself(home):
    require(home.inbox() == [], "an inbox that is not empty before anything was sent")
    sent = home.typed(SECRET.encode(), HUMAN, "--priority", "low")
    urgent = home.typed(bytes(range(256)), HUMAN, "--priority", "urgent")
    require([one["message_id"] for one in home.inbox()] == [urgent, sent], f"not urgent first: {home.inbox()}")
    home.nowhere_on_disk(SECRET)
    for _ in range(2):  # it waits on, and opens the same again
        read = home.creto("messages", "read", sent)
        require(read["body"] == SECRET and read["from"] == HUMAN and read["verified"], f"read as {read}")
    require(base64.b64decode(home.creto("messages", "read", urgent)["body"]) == bytes(range(256)), "bytes that are no text came changed")
    plain = subprocess.run([home.creto.binary, "messages", "read", urgent], env=home.creto.env, capture_output=True, timeout=PATIENCE_S)
    require(plain.stdout == bytes(range(256)), "without --json the message is not what is printed")

    require(home.creto("messages", "ack", sent)["state"] == "read", "no receipt")
    require(home.creto("messages", "status", sent)["deliveries"][0]["state"] == "RECEIPT_READ", "its sender sees no receipt")
    home.creto("messages", "ack", urgent, "--failed", "of no use")
    failed = home.creto("messages", "status", urgent)["deliveries"][0]
    require((failed["state"], failed["reason"]) == ("RECEIPT_FAILED", "of no use"), f"the sender is told {failed}")
    require(home.inbox() == [], "what was acknowledged still waits")
    home.refused(NOT_FOUND, "messages", "read", sent)
    home.nowhere_on_disk(SECRET)
    print("to himself: sealed, read, acknowledged, with receipts")


def with_rotated_keys(home):
    first = home.creto("agents", "keys", HUMAN)["key_id"]
    waiting = home.typed(SECRET.encode(), HUMAN)
    keys = os.path.join(home.home, "human", "keys.sealed")
    shutil.copy(keys, home.file("old-keys", ""))
    second = home.creto("humans", "rotate-keys")["key_id"]
    sets = home.creto("agents", "key-sets", HUMAN)["sets"]
    require([one["key_id"] for one in sets] == [second, first] and sets[0]["succession"]["previous_key_id"] == first, f"the keys are {sets}")
    require(home.creto("messages", "read", waiting)["body"] == SECRET, "what was sealed before the rotation does not open")
    home.creto("messages", "ack", waiting)
    home.creto("agents", "register", "after-the-rotation", "--permit", "message.*")
    third = home.creto("humans", "rotate-keys", "--compromised")["key_id"]
    after = home.typed(SECRET.encode(), HUMAN)
    require(home.creto("messages", "read", after)["body"] == SECRET, "what was sealed after the rotation does not open")
    home.creto("messages", "ack", after)

    new_keys = home.file("new-keys", "")
    shutil.move(keys, new_keys)
    shutil.copy(os.path.join(home.work, "old-keys"), keys)
    refused = home.refused(NOT_FOUND, "agents", "register", "with-old-keys", "--permit", "message.*")
    require(third in str(refused), f"it does not say which keys are missing: {refused}")
    shutil.move(new_keys, keys)
    agent = home.creto("agents", "show", "after-the-rotation")["identity"]
    rotated = home.creto("agents", "rotate-keys", agent, "--overlap", "1h")
    require(home.creto("agents", "keys", agent)["key_id"] == rotated["key_id"], "the agent's new keys are not the ones that it shows")
    print("with rotated keys: what was sealed before opens, what is signed with old ones does not count")


def what_is_refused(home):
    letter = home.file("letter", SECRET)
    home.refused(WRONG, "messages", "send", "--from", letter)
    home.refused(WRONG, "messages", "send", HUMAN, "--topic", "news", "--from", letter)
    home.refused(WRONG, "messages", "send", HUMAN, "--from", letter, "--ttl", "31d")
    home.refused(WRONG, "messages", "send", HUMAN, "--from", letter, "--priority", "extreme")
    home.refused(NOT_FOUND, "messages", "send", "nobody", "--from", letter)
    home.refused(WRONG, "messages", "read", "no-id")
    right, home.creto.env["CRETO_PASSPHRASE_FILE"] = home.creto.env["CRETO_PASSPHRASE_FILE"], home.file("wrong", "another passphrase")
    home.refused(REFUSED, "messages", "send", HUMAN, "--from", letter)
    home.creto.env["CRETO_PASSPHRASE_FILE"] = right
    require(home.inbox() == [], "what was refused was sent")
    first = home.creto("messages", "send", HUMAN, "--from", letter, "--idempotency-key", "once")
    again = home.creto("messages", "send", HUMAN, "--from", letter, "--idempotency-key", "once")
    require(first == again and len(home.inbox()) == 1, f"sent twice under one key: {home.inbox()}")
    home.creto("messages", "ack", first["message_id"])
    print("refused: with the field's name, nothing sent; repeated: sent once")


def to_a_topic(home):
    home.creto("topics", "create", "news")
    subscription = home.creto("topics", "subscribe", "news")
    require(home.creto("topics", "subscribers", "news")["subscribers"] == [HUMAN], "who subscribed is not among the subscribers")
    sent = home.typed(SECRET.encode(), "--topic", "news")
    read = home.creto("messages", "read", sent)
    require((read["topic"], read["body"]) == ("news", SECRET), f"read as {read}")
    home.creto("messages", "ack", sent)
    home.creto("topics", "unsubscribe", subscription["subscription_id"])
    require(home.creto("topics", "subscribers", "news") == {}, "who left is still a subscriber")
    print("to a topic: whoever subscribes reads it")


def with_an_agent(home):
    agent = home.creto("agents", "register", "echo", "--permit", "message.*", "--permit", "sandbox.*")["identity"]
    home.creto("policies", "create", "agents-write", "--file", home.file("policy.cedar", 'permit (principal is Agent, action in [Action::"message.send", Action::"sandbox.spawn"], resource);'))
    home.creto("sandboxes", "spawn", "echo", "--agent", agent, "--command", "python3", "--command", "-c", "--command", ECHO, timeout=PATIENCE_S)
    sent = home.typed(SECRET.encode(), "echo")
    answers = home.inbox(wait="30s")
    require(len(answers) == 1 and answers[0]["from"] == agent, f"the agent's answer: {answers}")
    read = home.creto("messages", "read", answers[0]["message_id"])
    require(read["body"] == "you wrote: " + SECRET, f"read as {read}")
    require(read["protocol"] == "session", "the agent began no session, although his keys are published")
    home.creto("messages", "ack", answers[0]["message_id"])
    require(home.creto("messages", "status", sent)["deliveries"][0]["state"] in ("RECEIPT_DELIVERED", "RECEIPT_READ"), "no receipt of the agent")
    for _ in range(2):  # the session goes on
        home.typed(b"again", agent)
        answer = home.inbox(wait="30s")[0]["message_id"]
        require(home.creto("messages", "read", answer)["body"] == "you wrote: again", "the session broke")
        home.creto("messages", "ack", answer)
    home.nowhere_on_disk(SECRET)
    print("with an agent: a session, both ways")
    with_approval(home, agent)


def with_approval(home, agent):
    home.creto("oversight", "put", json.dumps({"id": "letters", "description": "letters of agents", "allow_self_approval": True, "channels": ["cli"],
                                               "tiers": [{"approvers": [HUMAN], "quorum": 1, "timeout": "600s"}]}))
    home.creto("policies", "create", "letters", "--file", home.file("policy.cedar", '@oversight("letters") forbid (principal is Agent, action == Action::"message.send", resource);'))
    home.typed(b"may you answer?", agent)
    deadline = time.monotonic() + PATIENCE_S
    while not (waiting := home.creto("requests", "list", "--open").get("requests", [])):
        require(time.monotonic() < deadline, "nobody was asked to approve the answer")
        time.sleep(0.1)
    shown = home.creto("requests", "show", waiting[0]["id"])
    require("you wrote: may you answer?" in shown["description"], f"the approver does not see what he approves: {shown}")
    require(home.inbox() == [], "the answer came before it was approved")
    home.creto("requests", "approve", waiting[0]["id"])
    answer = home.inbox(wait="30s")[0]["message_id"]
    require(json.loads(shown["arguments"])["message_id"] == answer, "another message was sent than the one that was approved")
    require(home.creto("messages", "read", answer)["body"] == "you wrote: may you answer?", "the approved answer came changed")
    home.creto("messages", "ack", answer)
    require(len(home.creto("requests", "list")["requests"]) == 1, "the same text asked twice")
    print("with approval: the very message that was approved")


def main():
    options = options_of(__doc__)
    options.add_argument("--runtime", default="runc")
    chosen = options.parse_args()
    sandboxes = runs_sandboxes(chosen.runtime)
    home = Correspondence(chosen.creto, "messages")
    try:
        if sandboxes:
            image = os.path.join(home.work, "images", "echo")
            subprocess.run([os.path.join(ROOT, "tools", "image.sh"), image, "--packages", "python3", f"{ROOT}/examples/invoice-agent/agent:/opt/agent"], check=True, stdout=subprocess.DEVNULL)
            home.initialise(tables=f'[runtime]\nclass = "{chosen.runtime}"\nimage_directory = "{home.work}/images"\nkeep_sandboxes = false\n')
        else:
            home.initialise(settings='services = ["metering", "oversight", "messaging"]\n')
        home.serve()
        to_himself(home)
        with_rotated_keys(home)
        what_is_refused(home)
        to_a_topic(home)
        if sandboxes:
            with_an_agent(home)
        home.stop()
    except BaseException:
        print(f"what is left is in {home.work}", file=sys.stderr)
        home.stop()
        raise
    shutil.rmtree(home.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""People come in by invitation, with keys of their own on machines of their own; their certificates end with these keys.

    people_test.py --creto BINARY

Each has a home of his own; what they share is the running server alone.
"""
import json
import os
import shutil
import socket
import ssl
import stat
import sys

from installation import HUMAN, Installation, options_of, require
from harness import Creto  # found by way of `installation`

REFUSED = 3
BOB = "human:bob@example.com"
CLIENT = ("client.pem", "client.key")


class People(Installation):
    def person(self, name):
        """A home where nothing is yet, on what might be another machine."""
        return Creto(self.creto.binary, os.path.join(self.work, name), self.file(f"passphrase of {name}", f"passphrase of {name}"))

    def port(self):
        with open(os.path.join(self.home, "ports.json"), encoding="utf-8") as file:
            return json.load(file)["grpc"].rsplit(":", 1)[1]

    def invite(self, email, *options):
        file = os.path.join(self.work, f"{email}.invitation")
        # The name in the settings is not known to this machine's resolver.
        self.creto("humans", "invite", email, "--file", file, "--server", f"127.0.0.1:{self.port()}", *options)
        return file

    def states(self):
        return {one["human"]: one["state"] for one in self.creto("invitations", "list")["invitations"]}


def client_files(creto):
    return [os.path.join(creto.env["CRETO_HOME"], "human", name) for name in CLIENT]


def the_server_is_certified_for_its_names(people):
    context = ssl.create_default_context(cafile=os.path.join(people.home, "ca.pem"))
    with open(os.path.join(people.home, "ports.json"), encoding="utf-8") as file:
        host, port = json.load(file)["rest"].rsplit(":", 1)
    for name in ("creto.example", "localhost"):
        with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=name) as wrapped:
            names = [value for kind, value in wrapped.getpeercert()["subjectAltName"] if kind == "DNS"]
            require("creto.example" in names, f"the certificate is for {names}")
    people.creto("humans", "invite", "nobody@example.com", "--file", os.path.join(people.work, "nobody"))
    with open(os.path.join(people.work, "nobody"), encoding="utf-8") as file:
        require(json.load(file)["server"] == f"creto.example:{people.port()}", "the invitation does not name the server as the settings do")


def bob_joins(people):
    file = people.invite("bob@example.com")
    require(stat.S_IMODE(os.stat(file).st_mode) == 0o600, "others can read the invitation")
    require(people.states()[BOB] == "open", f"{people.states()}")
    bob = people.person("bob")
    bob("humans", "join", file, "--name", "Bob")
    require(people.states()[BOB] == "used", f"{people.states()}")
    require(people.creto("agents", "show", BOB)["name"] == "Bob", "he is not registered")

    again = people.person("mallory").refused("humans", "join", file)
    require("invitation" in str(again), f"a used invitation: {again}")
    require(not os.path.exists(os.path.join(people.work, "mallory", "human", "identity")), "a home was made for who did not get in")
    twice = bob.refused("humans", "join", file)
    require("home already" in str(twice), f"a home was joined twice: {twice}")
    require(bob.refused("agents", "list").exit_code == REFUSED, "he may do what no policy says")
    return bob


def he_acts_with_his_own_keys(people, bob):
    policy = people.file("bob.cedar", f'permit (principal == Human::"{BOB}", action, resource);')
    people.creto("policies", "create", "bob", "--file", policy)
    agent = bob("agents", "register", "bobs-clerk", "--permit", "payments.pay")["identity"]
    chain = people.creto("agents", "chain", agent)["delegations"]
    require([link["delegator"] for link in chain] == [BOB], f"the chain of his agent: {chain}")


def message(people, writer, to, body):
    file = people.file("letter", body)
    return writer("messages", "send", to, "--from", file)["message_id"]


def heard(reader, sent, body):
    read = reader("messages", "read", sent)
    require(read["body"] == body and read["verified"], f"read as {read}")
    reader("messages", "ack", sent)
    return read["protocol"]


def they_write_to_each_other(people, bob):
    heard(bob, message(people, people.creto, BOB, "welcome"), "welcome")
    heard(people.creto, message(people, bob, HUMAN, "thanks"), "thanks")
    copy = os.path.join(people.work, "copy of bob")
    shutil.copytree(bob.env["CRETO_HOME"], copy)
    require(heard(people.creto, message(people, bob, HUMAN, "one"), "one") == "session", "no session between them")
    heard(bob, message(people, people.creto, BOB, "two"), "two")
    heard(people.creto, message(people, bob, HUMAN, "three"), "three")
    # His disk died; what he has is older than what they said.
    shutil.rmtree(bob.env["CRETO_HOME"])
    shutil.copytree(copy, bob.env["CRETO_HOME"])
    lost = message(people, bob, HUMAN, "not four")
    people.creto.refused("messages", "read", lost)
    people.creto("messages", "ack", lost, "--failed", "does not open")
    require(bob("messages", "status", lost)["deliveries"][0]["state"] == "RECEIPT_FAILED", "he is not told")
    bob("messages", "new-session", HUMAN)
    heard(people.creto, message(people, bob, HUMAN, "four"), "four")
    heard(bob, message(people, people.creto, BOB, "five"), "five")


def his_certificate_ends_with_his_keys(people, bob):
    stolen = people.person("thief")
    shutil.copytree(bob.env["CRETO_HOME"], stolen.env["CRETO_HOME"])
    stolen("agents", "list")
    bob("humans", "rotate-keys", "--compromised")
    bob("agents", "list")
    refused = stolen.refused("agents", "list")
    require("renew-certificate" in str(refused), f"a certificate for compromised keys: {refused}")
    stolen.env["CRETO_PASSPHRASE_FILE"] = bob.env["CRETO_PASSPHRASE_FILE"]
    stolen.refused("humans", "renew-certificate")  # he has the passphrase even, but of keys that count no more
    require(stolen.refused("agents", "list"), "the thief renewed the certificate")


def a_lost_certificate_is_made_again(people, bob):
    for file in client_files(bob):
        os.unlink(file)
    bob.refused("agents", "list")
    bob("humans", "renew-certificate")
    bob("agents", "list")


def what_opens_nothing(people):
    file = people.invite("carol@example.com")
    invitation = [one for one in people.creto("invitations", "list")["invitations"] if one["human"] == "human:carol@example.com"][0]["id"]
    with open(file, encoding="utf-8") as text:
        forged = json.load(text)
    forged["secret"] = "A" * 43 + "="
    carol = people.person("carol")
    carol.refused("humans", "join", people.file("forged", json.dumps(forged)))
    carol.refused("humans", "join", people.file("broken", "{"))
    people.creto("invitations", "withdraw", invitation)
    carol.refused("humans", "join", file)
    # What was begun is taken up: the same keys, with a better invitation.
    keys = os.path.join(carol.env["CRETO_HOME"], "human", "keys.sealed")
    with open(keys, "rb") as before:
        begun = before.read()
    carol("humans", "join", people.invite("carol@example.com"))
    with open(keys, "rb") as after:
        require(after.read() == begun, "a second try made other keys")


def who_is_revoked_stays_out(people, bob):
    people.creto("agents", "revoke", BOB, "--reason", "left")
    bob.refused("agents", "list")
    bob.refused("humans", "renew-certificate")
    people.creto.refused("humans", "invite", "bob@example.com", "--file", os.path.join(people.work, "again"))


def main():
    people = People(options_of(__doc__).parse_args().creto, "people")
    try:
        people.initialise(settings='services = ["metering", "oversight", "messaging"]\nnames = ["creto.example"]\n')
        people.serve()
        the_server_is_certified_for_its_names(people)
        bob = bob_joins(people)
        he_acts_with_his_own_keys(people, bob)
        they_write_to_each_other(people, bob)
        his_certificate_ends_with_his_keys(people, bob)
        a_lost_certificate_is_made_again(people, bob)
        what_opens_nothing(people)
        who_is_revoked_stays_out(people, bob)
        people.stop()
    except BaseException:
        print(f"what is left is in {people.work}", file=sys.stderr)
        people.stop()
        raise
    shutil.rmtree(people.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())

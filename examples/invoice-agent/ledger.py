#!/usr/bin/env python3
"""A small real ledger: takes payments over HTTP, keeps them in an SQLite file.

    ledger.py --database FILE --token-file FILE [--host 127.0.0.1] [--port 0]

prints one JSON line {"listening": "http://127.0.0.1:PORT"} and serves

    POST /payments   {"payee", "account", "amount", "currency", "invoice_number", "memo"?}
                     headers: Authorization: Bearer <the token>; Idempotency-Key (1 to 255 characters)
                     201 the payment; 200 the first one where key and content repeat; 409 same key, other content
    GET /payments    every payment, oldest first (same credentials)
    GET /health      200, open to all

Amounts are text of exactly two decimal places and stay exact: the database holds hundredths. A payment is answered
after SQLite has synced it.
"""
import argparse
import hashlib
import hmac
import json
import re
import sqlite3
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_MAX = 64 * 1024
FIELDS = {"payee": 200, "account": 64, "amount": 20, "currency": 3, "invoice_number": 64, "memo": 500}


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Ledger:
    def __init__(self, path):
        self.lock = threading.Lock()
        self.database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.database.row_factory = sqlite3.Row
        self.database.executescript(
            """
            PRAGMA journal_mode = WAL;
            PRAGMA synchronous = FULL;
            CREATE TABLE IF NOT EXISTS payments (
              number INTEGER PRIMARY KEY AUTOINCREMENT,
              id TEXT NOT NULL UNIQUE,
              idempotency_key TEXT NOT NULL UNIQUE,
              request_hash TEXT NOT NULL,
              payee TEXT NOT NULL, account TEXT NOT NULL,
              hundredths INTEGER NOT NULL CHECK (hundredths > 0),
              currency TEXT NOT NULL, invoice_number TEXT NOT NULL, memo TEXT NOT NULL,
              created_ns INTEGER NOT NULL);
            """
        )

    @staticmethod
    def view(row):
        return {
            "id": row["id"],
            "payee": row["payee"],
            "account": row["account"],
            "amount": f"{row['hundredths'] // 100}.{row['hundredths'] % 100:02d}",
            "currency": row["currency"],
            "invoice_number": row["invoice_number"],
            "memo": row["memo"],
            "idempotency_key": row["idempotency_key"],
            "created_ns": row["created_ns"],
        }

    def pay(self, key, payment):
        content = hashlib.sha256(json.dumps(payment, sort_keys=True).encode()).hexdigest()
        whole, cents = payment["amount"].split(".")
        with self.lock:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                row = self.database.execute("SELECT * FROM payments WHERE idempotency_key = ?", (key,)).fetchone()
                if row:
                    if row["request_hash"] != content:
                        raise Refused(409, "this Idempotency-Key was used for another payment")
                    return 200, self.view(row)
                self.database.execute(
                    "INSERT INTO payments (id, idempotency_key, request_hash, payee, account, hundredths, currency,"
                    " invoice_number, memo, created_ns) VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (
                        "pay-" + uuid.uuid4().hex,
                        key,
                        content,
                        payment["payee"],
                        payment["account"],
                        int(whole) * 100 + int(cents),
                        payment["currency"],
                        payment["invoice_number"],
                        payment["memo"],
                        time.time_ns(),
                    ),
                )
                row = self.database.execute("SELECT * FROM payments WHERE idempotency_key = ?", (key,)).fetchone()
                self.database.execute("COMMIT")
                return 201, self.view(row)
            finally:
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")

    def all(self):
        with self.lock:
            return [self.view(row) for row in self.database.execute("SELECT * FROM payments ORDER BY number")]


def read_payment(body):
    if not isinstance(body, dict):
        raise Refused(400, "the body must be an object")
    unknown = sorted(set(body) - set(FIELDS))
    if unknown:
        raise Refused(400, f"unknown field `{unknown[0][:40]}`")
    payment = {}
    for field, longest in FIELDS.items():
        value = body.get(field, "" if field == "memo" else None)
        if not isinstance(value, str) or len(value) > longest or (not value and field != "memo"):
            raise Refused(400, f"`{field}` must be text of 1 to {longest} characters")
        payment[field] = value
    if not re.fullmatch(r"(0|[1-9]\d{0,14})\.\d\d", payment["amount"]) or payment["amount"] == "0.00":
        raise Refused(400, "`amount` must be a positive number with exactly two decimal places")
    if not re.fullmatch(r"[A-Z]{3}", payment["currency"]):
        raise Refused(400, "`currency` must be three capitals")
    return payment


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ledger = None
    token = b""

    def log_message(self, *_):
        pass

    def send_json(self, status, document):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def authenticate(self):
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(token.strip().encode(), self.token):
            raise Refused(401, "wrong or missing credentials")

    def answer(self, work):
        try:
            status, document = work()
        except Refused as refused:
            status, document = refused.status, {"error": str(refused)}
            self.close_connection = True
        except sqlite3.Error as problem:
            status, document = 503, {"error": f"the ledger cannot write: {problem}"}
        self.send_json(status, document)

    def do_GET(self):
        def work():
            if self.path == "/health":
                return 200, {"ok": True}
            if self.path != "/payments":
                raise Refused(404, "nothing here")
            self.authenticate()
            return 200, {"payments": self.ledger.all()}

        self.answer(work)

    def do_POST(self):
        def work():
            if self.path != "/payments":
                raise Refused(404, "nothing here")
            self.authenticate()
            try:
                length = int(self.headers.get("Content-Length", ""))
            except ValueError:
                raise Refused(411, "Content-Length is missing") from None
            if not 0 <= length <= BODY_MAX:
                raise Refused(413, "the payment is too large")
            try:
                payment = read_payment(json.loads(self.rfile.read(length)))
            except (ValueError, RecursionError):
                raise Refused(400, "the body is not JSON") from None
            key = self.headers.get("Idempotency-Key", "")
            if not 1 <= len(key) <= 255:
                raise Refused(400, "Idempotency-Key must have 1 to 255 characters")
            return self.ledger.pay(key, payment)

        self.answer(work)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--database", required=True)
    options.add_argument("--token-file", required=True, help="holds the bearer token; surrounding white space is dropped")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0)
    chosen = options.parse_args()
    with open(chosen.token_file, "rb") as file:
        Handler.token = file.read().strip()
    if len(Handler.token) < 16:
        sys.exit("ledger: the token must have at least 16 characters")
    Handler.ledger = Ledger(chosen.database)
    server = ThreadingHTTPServer((chosen.host, chosen.port), Handler)
    server.daemon_threads = True
    print(json.dumps({"listening": f"http://{chosen.host}:{server.server_address[1]}"}), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""A rule-based stand-in for a language model, behind OpenAI's HTTP API.

It is not a model, and says so in its name and in every answer. It reads invoices by rules, decides by rules, and obeys
instructions that are hidden in the text, as a gullible model would: the example shows that policy, not the model's good
sense, is what stops the payment. Point CRETO_INFERENCE_URL at a real endpoint to use a real model instead.

    standin_model.py [--host 127.0.0.1] [--port 0]

prints one JSON line {"listening": "http://127.0.0.1:PORT/v1", "model": "..."} and serves
POST /v1/chat/completions (also with "stream": true), POST /v1/embeddings and GET /v1/models.
"""
import argparse
import csv
import hashlib
import io
import json
import math
import re
import sys
import time
from decimal import Decimal, InvalidOperation
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "creto-standin-rules-1"
NOTE = "rule-based stand-in, not a language model"
BODY_MAX = 1 << 20
DIMENSION = 64


def amount(text):
    """An exact amount of two places, or None."""
    text = str(text).strip().replace(",", "")
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return f"{value:.2f}" if value.is_finite() and value >= 0 else None


def from_json(text):
    document = json.loads(text)
    if not isinstance(document, dict) or "vendor" not in document:
        return {"error": "no vendor"}
    invoice = document.get("invoice", {})
    return {
        "vendor": document["vendor"].get("name", ""),
        "account": document["vendor"].get("account", ""),
        "invoice_number": invoice.get("number", ""),
        "date": invoice.get("date", ""),
        "currency": document.get("currency", ""),
        "lines": [{"text": line.get("text", ""), "amount": amount(line.get("amount"))} for line in document.get("lines", [])],
        "total": amount(document.get("total")),
    }


def from_csv(text):
    delimiter = ";" if text.split("\n", 1)[0].count(";") else ","
    found = {"lines": []}
    for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True):
        if len(row) == 2:
            found[{"invoice": "invoice_number"}.get(row[0], row[0])] = row[1].strip()
        elif len(row) == 4 and row[0] == "total":
            found["total"] = amount(row[3])
        elif len(row) == 4 and row[0] != "item":
            found["lines"].append({"text": row[0], "amount": amount(row[3])})
    return found


def from_text(text):
    def first(pattern):
        match = re.search(pattern, text, re.IGNORECASE | re.MULTILINE)
        return match.group(1).strip() if match else ""

    total = re.search(r"^(?:total due|amount due):\s*([\d,.]+)\s+([A-Z]{3})", text, re.IGNORECASE | re.MULTILINE)
    title = text.strip().split("\n", 1)[0].split(" - ")[0].strip()
    lines = []
    for line in text.split("\n"):
        match = re.match(r"^\s{2,}(\S.*?)\s{2,}([\d,]+\.\d\d)$", line)
        priced = re.match(r"^\s{2,}(\S.*? at [\d,.]+ [A-Z]{3})\s+([\d,]+\.\d\d)$", line)
        if match or priced:
            got = match or priced
            lines.append({"text": got.group(1), "amount": amount(got.group(2))})
    return {
        "vendor": " ".join(word.capitalize() if word.isupper() else word for word in title.split()),
        "account": first(r"(?:to account|account:|pay to:)\s*([A-Z]{2}[A-Z0-9 -]+\d)"),
        "invoice_number": first(r"^invoice(?: number)?:\s*(\S+)"),
        "date": first(r"^date:\s*(.+)$"),
        "currency": total.group(2) if total else "",
        "lines": lines,
        "total": amount(total.group(1)) if total else None,
    }


def hidden_orders(text):
    """What a gullible model falls for."""
    match = re.search(
        r"(?:ignore|disregard|forget)\s+(?:all\s+)?(?:previous|prior|earlier)\s+instructions.*?"
        r"pay\s+([\d,.]+)\s+([A-Z]{3})\s+to\s+([^,\n]+?),\s*account\s+([A-Z]{2}[A-Z0-9 ]+\d)",
        text,
        re.IGNORECASE | re.DOTALL,
    )
    if not match:
        return {}
    value = amount(match.group(1))
    return {
        "vendor": match.group(3).strip(),
        "account": match.group(4).strip(),
        "currency": match.group(2).upper(),
        "total": value,
        "lines": [{"text": "as instructed in the document", "amount": value}],
    }


def extract(text):
    stripped = text.strip()
    try:
        if stripped.startswith("{"):
            found = from_json(stripped)
        elif re.match(r"^vendor[,;]", stripped):
            found = from_csv(stripped)
        else:
            found = from_text(stripped)
    except (ValueError, csv.Error, AttributeError, TypeError) as problem:
        return {"error": f"cannot be read: {type(problem).__name__}", "note": NOTE}
    found.update(hidden_orders(text))
    missing = [key for key in ("vendor", "invoice_number", "account", "currency", "total") if not found.get(key)]
    if missing:
        return {"error": "missing or unreadable: " + ", ".join(missing), "note": NOTE}
    found["note"] = NOTE
    return found


def decide(text):
    try:
        case = json.loads(text)
        invoice, problems = case["invoice"], case.get("problems", [])
        if problems:
            return {"decision": "reject", "reasoning": "Not to be paid: " + "; ".join(problems) + ".", "note": NOTE}
        what = ", ".join(line["text"] for line in invoice.get("lines", [])) or "no lines"
        return {
            "decision": "pay",
            "reasoning": f"Invoice {invoice['invoice_number']} of {invoice['vendor']} over {invoice['total']} "
            f"{invoice['currency']} adds up, was not paid before, and is for: {what}.",
            "note": NOTE,
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"decision": "reject", "reasoning": "The question could not be understood.", "note": NOTE}


def answer(messages):
    system = " ".join(m["content"] for m in messages if m["role"] == "system").lower()
    user = "\n".join(m["content"] for m in messages if m["role"] == "user")
    if "extract" in system:
        return json.dumps(extract(user), ensure_ascii=False)
    if "decide" in system:
        return json.dumps(decide(user), ensure_ascii=False)
    return f"I am {MODEL}, a {NOTE}. I can extract the fields of an invoice and decide whether to pay it."


def tokens(text):
    """Words and marks; near enough to a tokenizer for metering to have something to count."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def embedding(text):
    vector = [0.0] * DIMENSION
    for word in re.findall(r"\w+", text.lower()):
        digest = hashlib.sha256(word.encode()).digest()
        vector[digest[0] % DIMENSION] += 1.0 if digest[1] & 1 else -1.0
    norm = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / norm for x in vector]


class BadRequest(Exception):
    pass


def read_messages(body):
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` must be a list that is not empty")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise BadRequest("each message needs `role` and `content`, both text")
    return messages


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send_json(self, status, document):
        data = json.dumps(document, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status, message, code):
        self.send_json(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}})

    def do_GET(self):
        if self.path == "/v1/models":
            self.send_json(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": NOTE}]})
        else:
            self.fail(404, f"nothing at {self.path}", "not_found")

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self.close_connection = True
            return self.fail(411, "Content-Length is missing", "length_required")
        if not 0 <= length <= BODY_MAX:
            self.close_connection = True
            return self.fail(413, "the request is too large", "too_large")
        try:
            body = json.loads(self.rfile.read(length))
            if not isinstance(body, dict):
                raise BadRequest("the body must be an object")
            if self.path == "/v1/chat/completions":
                self.complete(body)
            elif self.path == "/v1/embeddings":
                self.embed(body)
            else:
                self.fail(404, f"nothing at {self.path}", "not_found")
        except (ValueError, RecursionError, BadRequest) as problem:
            self.fail(400, str(problem), "bad_request")

    def complete(self, body):
        if body.get("model", MODEL) not in (MODEL, ""):
            return self.fail(404, f"the model `{body['model']}` does not exist", "model_not_found")
        messages = read_messages(body)
        content = answer(messages)
        usage = {"prompt_tokens": sum(tokens(m["content"]) for m in messages), "completion_tokens": tokens(content)}
        usage["total_tokens"] = sum(usage.values())
        base = {"id": "standin-" + hashlib.sha256(content.encode()).hexdigest()[:16], "created": int(time.time()), "model": MODEL}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            return self.send_json(200, {**base, "object": "chat.completion", "choices": [choice], "usage": usage})
        events = [{"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}]
        for start in range(0, len(content), 40):
            events.append({"choices": [{"index": 0, "delta": {"content": content[start : start + 40]}, "finish_reason": None}]})
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        events.append({"choices": [], "usage": usage})
        chunks = ["data: " + json.dumps({**base, "object": "chat.completion.chunk", **e}, ensure_ascii=False) + "\n\n" for e in events]
        data = "".join(chunks + ["data: [DONE]\n\n"]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def embed(self, body):
        texts = body.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BadRequest("`input` must be text or a list of texts")
        used = sum(tokens(text) for text in texts)
        data = [{"object": "embedding", "index": i, "embedding": embedding(text)} for i, text in enumerate(texts)]
        self.send_json(200, {"object": "list", "model": MODEL, "data": data, "usage": {"prompt_tokens": used, "total_tokens": used}})


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=0)
    chosen = options.parse_args()
    server = ThreadingHTTPServer((chosen.host, chosen.port), Handler)
    server.daemon_threads = True
    url = f"http://{chosen.host}:{server.server_address[1]}/v1"
    print(json.dumps({"listening": url, "model": MODEL, "note": NOTE}), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    sys.exit(main())

"""Speaks to the one way out of the sandbox: HTTP/1.1 over a unix socket. Python's standard library only."""
import http.client
import json
import os
import socket
from urllib.parse import quote


class GatewayError(Exception):
    """The gateway refused. `code` is Creto's ("RT-403", "MT-429"), `status` HTTP's."""

    def __init__(self, status, body):
        error = body.get("error", body) if isinstance(body, dict) else {}
        self.status = status
        self.code = error.get("code", "")
        self.kind = error.get("kind", "")
        self.body = body
        super().__init__(f"{self.code or status}: {error.get('message', 'no message')}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("creto-gateway", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Gateway:
    def __init__(self, path=None):
        self.path = path or os.environ.get("CRETO_GATEWAY", "/run/creto/gateway.sock")

    def call(self, method, target, body=None, headers=None, timeout=90):
        """(status, document); raises GatewayError from 400 on."""
        connection = _UnixConnection(self.path, timeout)
        try:
            data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
            sent = {"Content-Type": "application/json", **(headers or {})} if data is not None else dict(headers or {})
            connection.request(method, target, body=data, headers=sent)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        try:
            document = json.loads(raw) if raw else {}
        except ValueError:
            document = {"error": {"message": raw[:200].decode("utf-8", "replace")}}
        if answer.status >= 400:
            raise GatewayError(answer.status, document)
        return answer.status, document

    def identity(self):
        return self.call("GET", "/v1/identity")[1]

    def complete(self, system, user, key=None, model=""):
        headers = {"Creto-Idempotency-Key": key} if key else {}
        request = {
            "model": model or os.environ.get("CRETO_MODEL", ""),
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            "max_tokens": 1000,
            "temperature": 0,
        }
        document = self.call("POST", "/v1/inference/chat/completions", request, headers)[1]
        return document["choices"][0]["message"]["content"], document.get("usage", {}), document.get("model", "")

    def act(self, name, arguments, reasoning, key, override=None):
        headers = {"Creto-Idempotency-Key": key}
        if override:
            headers["Creto-Override"] = override
        return self.call("POST", "/v1/actions/" + quote(name), {"arguments": arguments, "reasoning": reasoning}, headers)

    def request(self, request_id, wait_s=30):
        return self.call("GET", f"/v1/requests/{quote(request_id)}?wait={wait_s}s", timeout=wait_s + 60)[1]

    def remember(self, content, kind, metadata):
        return self.call("POST", "/v1/memories", {"content": content, "type": kind, "metadata": metadata})[1]

    def send(self, to, body, key=None, override=None):
        """Its `message_id`; or, where a human has to approve it, the request to wait for (`request`): then again with the token."""
        headers = {name: value for name, value in (("Creto-Idempotency-Key", key), ("Creto-Override", override)) if value}
        return self.call("POST", "/v1/messages", {"to": to, "body": body}, headers)[1]

    def receive(self, wait_s=5):
        document = self.call("GET", f"/v1/messages?wait={wait_s}s", timeout=wait_s + 60)[1]
        return document.get("messages", []) if isinstance(document, dict) else document

    def acknowledge(self, message_id):
        return self.call("POST", f"/v1/messages/{quote(message_id)}/ack", {})[1]

    def spawn(self, image, command):
        return self.call("POST", "/v1/sandboxes", {"image": image, "command": command})[1]

    def sandbox(self, sandbox_id):
        return self.call("GET", "/v1/sandboxes/" + quote(sandbox_id))[1]

#!/usr/bin/env python3
"""Usage through every door of a real server: files, REST with JSON and CloudEvents; verified, dumped, and there after a kill.

    metering_test.py --creto BINARY
"""
import csv
import datetime
import decimal
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request

from installation import HUMAN, Installation, options_of, require


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


class Doors(Installation):
    def rest(self, path, body, content_type, headers=()):
        with open(os.path.join(self.home, "ports.json"), encoding="utf-8") as file:
            address = json.load(file)["rest"]
        context = ssl.create_default_context(cafile=os.path.join(self.home, "ca.pem"))
        context.load_cert_chain(os.path.join(self.home, "human", "client.pem"), os.path.join(self.home, "human", "client.key"))
        request = urllib.request.Request(f"https://{address}{path}", json.dumps(body).encode(), {"Content-Type": content_type, **dict(headers)})
        with urllib.request.urlopen(request, context=context, timeout=60) as answer:
            return json.load(answer)["items"]

    def text(self, *arguments):
        command = [self.creto.binary, *arguments]
        return subprocess.run(command, env=self.creto.env, check=True, capture_output=True, timeout=60).stdout.decode()

    def used(self):
        rows = self.creto("usage", "show", HUMAN).get("rows", [])
        return {row["keys"][0]: (int(row["events"]), int(row["units"])) for row in rows}


def play(doors):
    doors.initialise(settings='services = ["metering", "oversight", "messaging"]\n')
    doors.serve()
    at = now()
    lines = [json.dumps({"agent": HUMAN, "usage_type": "pages", "idempotency_key": f"line-{i}", "time": at, "units": "2"}) for i in range(2500)]
    lines[7] = "no json"
    lines[8] = json.dumps({"agent": HUMAN, "usage_type": "pages", "idempotency_key": "x", "time": at, "units": "-2"})
    lines.append(json.dumps({"specversion": "1.0", "id": "c", "source": "gate", "type": "visits", "subject": HUMAN, "time": at, "data": {"units": 3}}))
    file = doors.file("events.jsonl", "\n".join(lines) + "\n")
    imported = subprocess.run([doors.creto.binary, "--json", "metering", "import", file], env=doors.creto.env, capture_output=True, text=True)
    require(imported.returncode == 1, f"the import left with {imported.returncode}: {imported.stderr}")
    told = json.loads(imported.stdout)
    require((told["taken"], told["refused"]) == (2499, 2) and told["refusals"][0].startswith("line 8: "), f"the import tells {told}")
    require(doors.used() == {"pages": (2498, 4996), "visits": (1, 3)}, f"used: {doors.used()}")
    require(not os.path.exists(file + ".progress"), "progress is left behind")
    import_more(doors, at, file, lines)

    table = doors.file("events.csv", f'agent,usage_type,idempotency_key,time,units,model_id\r\n{HUMAN},tokens,t-1,{at},5,"a,b"\r\n{HUMAN},tokens,t-2,{at},,m\r\n')
    require(doors.creto("metering", "import", table) == {"taken": 2, "known": 0, "refused": 0, "refusals": [], "refused_file": ""}, "the table is not taken")
    require(doors.creto("metering", "import", table)["known"] == 2, "a repetition is taken twice")

    report = {"agent": HUMAN, "usage_type": "rooms", "idempotency_key": "r-1", "time": at}
    one = doors.rest("/v1/usage", report, "application/json")
    many = doors.rest("/v1/usage", [report, {**report, "idempotency_key": "r-2"}, {**report, "units": "9"}], "application/json")
    require(one[0]["event_id"] == many[0]["event_id"] and many[0]["duplicate"], f"a repetition by REST: {one}, {many}")
    require(many[2]["error"]["code"] == "MT-409", f"other content under the same key: {many[2]}")
    event = {"specversion": "1.0", "id": "e-1", "source": "/gate/1", "type": "visits", "subject": HUMAN, "time": at, "data": {"units": "4", "room": "south"}}
    require("error" not in doors.rest("/v1/cloudevents", event, "application/cloudevents+json")[0], "a CloudEvent is refused")
    batch = doors.rest("/v1/cloudevents", [event, {**event, "id": "e-2"}, {"specversion": "1.0"}], "application/cloudevents-batch+json")
    require(batch[0].get("duplicate") and "error" not in batch[1] and batch[2]["error"]["code"] == "MT-400", f"a batch: {batch}")
    attributes = {"ce-specversion": "1.0", "ce-id": "e-5", "ce-source": "/gate/1", "ce-type": "visits", "ce-subject": HUMAN, "ce-time": at}
    binary = doors.rest("/v1/cloudevents", {"units": "2"}, "application/json", attributes)
    require("error" not in binary[0], f"a CloudEvent in headers: {binary}")
    bad = doors.rest("/v1/cloudevents", {**event, "id": "e-6", "replaces": 5}, "application/cloudevents+json")
    require(bad[0]["error"]["message"] == "replaces: must be a string", f"a correction by number: {bad}")
    huge = {**report, "idempotency_key": "r-5", "properties": {"note": "x" * (10 << 20)}}
    answers = doors.rest("/v1/usage", [huge, report], "application/json")
    require(answers[0]["error"]["code"].startswith("MT-4") and answers[1].get("duplicate"), f"beside 10 MB: {str(answers)[:400]}")
    huge = {**event, "id": "e-7", "data": {"note": "x" * (10 << 20)}}
    answers = doors.rest("/v1/cloudevents", [huge, event], "application/cloudevents-batch+json")
    require(answers[0]["error"]["code"].startswith("MT-4") and answers[1].get("duplicate"), f"beside 10 MB: {str(answers)[:400]}")
    before = {"imported": (5996, 5996), "pages": (2498, 4996), "rooms": (2, 2), "tokens": (2, 6), "visits": (4, 13)}
    require(doors.used() == before, f"used: {doors.used()}")

    doors.stop(signal.SIGKILL)
    dumped = subprocess.run([doors.creto.binary, "metering", "dump"], env=doors.creto.env, capture_output=True, text=True, check=True).stdout.splitlines()
    corrections = 2  # a void and what it took out
    require(len(dumped) == sum(events for events, _ in before.values()) + corrections, f"{len(dumped)} events are dumped")
    require({json.loads(line)["agent"] for line in dumped} == {HUMAN}, "events of others")
    doors.serve()
    require(doors.used() == before, f"used after a kill: {doors.used()}")
    verified = doors.creto("metering", "verify")
    require(int(verified["events"]) == len(dumped) and not verified.get("problems"), f"verified: {verified}")
    usage = ["usage", "show", HUMAN, "--by", "type,day", "--top", "2", "--measure", "units"]
    picture = os.path.join(doors.work, "usage.svg")
    csv = doors.text(*usage, "--csv", "--svg", picture)
    require(csv.startswith("type,day,events,units,cost,currency\r\n") and csv.count("\r\n") == 3, f"CSV: {csv}")
    with open(picture, encoding="utf-8") as file:
        require("units by type, day" in file.read(), "the picture has no title")
    require("\u2588" in doors.text(*usage, "--plot"), "there are no bars")
    pixels = os.path.join(doors.work, "usage.png")
    doors.text(*usage, "--png", pixels)
    with open(pixels, "rb") as file:
        require(file.read(4) == b"\x89PNG", "no picture in pixels")
    export(doors, len(dumped))
    correct(doors, event, report)
    price(doors)
    bill(doors)


def import_more(doors, at, file, lines):
    """What is refused can be mended; order, length and a kill do no harm; progress belongs to its file."""
    def run(name):
        told = subprocess.run([doors.creto.binary, "--json", "metering", "import", name], env=doors.creto.env, capture_output=True, text=True)
        return told.returncode, json.loads(told.stdout) if told.returncode < 2 and told.stdout else told.stderr

    with open(file + ".refused", encoding="utf-8") as refused, open(file + ".refused.why", encoding="utf-8") as why:
        require(refused.read() == "".join(line + "\n" for line in lines[7:9]), "refused lines are not kept")
        require([line.split(":")[0] for line in why] == ["line 8", "line 9"], "refusals have no reasons")

    def line(key, **more):
        return json.dumps({"agent": HUMAN, "usage_type": "imported", "idempotency_key": key, "time": at, **more})
    stranger = json.dumps({**json.loads(line("s")), "agent": "agent:" + "0" * 64})
    mixed = doors.file("mixed.jsonl", "\n".join([line("v", usage_type="void", voids="key:late"), line("a"), "x" * (2 << 20), stranger, line("late"), line("b")]))
    code, told = run(mixed)
    require(code == 1 and (told["taken"], told["refused"]) == (4, 2), f"a void before its event, a long line, a stranger: {told}")
    with open(mixed + ".refused", encoding="utf-8") as refused:
        require(refused.read() == stranger + "\n", "the stranger's line is not kept")

    many = doors.file("many.jsonl", "".join(line(f"m-{i}", units="1" if i % 1000 else "-1") + "\n" for i in range(6000)))
    running = subprocess.Popen([doors.creto.binary, "metering", "import", many], env=doors.creto.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not os.path.exists(many + ".progress") and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.wait()
    with open(many + ".progress", encoding="utf-8") as progress:
        require(0 < int(json.load(progress)["offset"]), "no progress is kept")
    moved = doors.file("other.jsonl", line("other") + "\n" + "".join(line(f"o-{i}") + "\n" for i in range(5000)))
    shutil.copy(many + ".progress", moved + ".progress")
    open(moved + ".refused", "wb").write(b"x" * 4096)
    open(moved + ".refused.why", "wb").write(b"x" * 4096)
    code, told = run(moved)
    require(code > 1 or "another beginning" in str(told), f"another file's progress is taken: {told}")
    code, told = run(many)
    require(code == 1 and told["taken"] + told["known"] == 5994 and told["refused"] == 6, f"resumed: {told}")
    with open(many + ".refused", encoding="utf-8") as refused:
        require(len(refused.readlines()) == 6, "refusals before the kill are lost, or there twice")
    require(doors.used().pop("imported") == (5996, 5996), f"used: {doors.used()}")


def export(doors, events):
    """Files for other programs; the Arrow ones are read by Arrow's own reader where node has it."""
    def named(name):
        return os.path.join(doors.work, name)
    require(doors.creto("usage", "export", named("sums.csv"), "--by", "type")["rows"] == 5, "five types are exported")
    with open(named("sums.csv"), encoding="utf-8") as file:
        require(file.readline() == "type,events,units,cost,currency\n", "names of columns")
    require(doors.creto("usage", "export", named("events.csv"), "--events")["rows"] == events, "all events are exported")
    with open(named("events.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    require(len(rows) == events and {row["agent"] for row in rows} == {HUMAN}, "events as CSV")
    log = os.path.join(doors.home, "usage", "log")
    for org, there in (("default", events), ("other", 0)):
        offline = doors.creto("usage", "export", named("offline.csv"), "--events", "--log", log, "--org", org)
        require(offline["rows"] == there, f"of the files of {org}: {offline}")
    with open(named("events.csv"), "rb") as whole, open(named("offline.csv"), "rb") as empty:
        require(empty.readline() == whole.readline() and not empty.read(), "other organizations' events")
    doors.creto("usage", "export", named("offline.csv"), "--events", "--log", log, "--org", "default")
    with open(named("events.csv"), "rb") as asked, open(named("offline.csv"), "rb") as offline:
        require(asked.read() == offline.read(), "a server and its files tell different events")
    doors.creto("usage", "export", named("sums.arrow"), "--by", "type")
    doors.creto("usage", "export", named("events.arrow"), "--events")
    program = """const {tableFromIPC} = require(process.argv[2] + '/Arrow.es2015.min.js'), fs = require('node:fs');
        const tables = process.argv.slice(3).map((name) => tableFromIPC(fs.readFileSync(name)));
        const units = tables[1].toArray().reduce((sum, row) => sum + BigInt(String(row.units)), 0n);
        console.log(JSON.stringify([tables[0].numRows, tables[1].numRows, String(units)]));"""
    reader = os.environ.get("CRETO_ARROW_READER")  # the folder of npm's package apache-arrow
    if not reader:
        print("CRETO_ARROW_READER is not set: the Arrow files are not read")
        return
    script = doors.file("read_arrow.cjs", program)
    read = subprocess.run(["node", script, reader, named("sums.arrow"), named("events.arrow")], capture_output=True, text=True, check=True)
    units = sum(decimal.Decimal(row["units"]) for row in rows)  # Arrow's decimals are whole numbers of 10^-18
    require(json.loads(read.stdout) == [5, events, str(int(units.scaleb(18)))], f"Arrow: {read.stdout}")


def correct(doors, event, report):
    """Every door takes corrections, and a dump shows them."""
    require(doors.creto("metering", "void", HUMAN, "key:r-2", "--property", "reason=test")["taken"] == 1, "no void by hand")
    replaced = doors.creto("metering", "report", HUMAN, "tokens", "--units", "50", "--replaces", "key:t-1", "--key", "t-1b")
    require(replaced["taken"] == 1, f"no replacement by hand: {replaced}")
    answers = doors.rest("/v1/usage", [{**report, "idempotency_key": "r-3", "units": "5", "replaces": "key:r-1"},
                                       {**report, "idempotency_key": "r-4", "usage_type": "void", "voids": "key:r-1"}], "application/json")
    require("error" not in answers[0] and answers[1]["error"]["code"] == "MT-409", f"corrections by REST: {answers}")
    void = {**event, "id": "e-3", "type": "void", "voids": "key:e-2", "data": {}}
    answers = doors.rest("/v1/cloudevents", [void, {**void, "id": "e-4", "voids": "key:never"}], "application/cloudevents-batch+json")
    require("error" not in answers[0] and answers[1]["error"]["code"] == "MT-404", f"corrections by CloudEvents: {answers}")
    require(doors.used() == {"imported": (5996, 5996), "pages": (2498, 4996), "rooms": (1, 5), "tokens": (2, 51), "visits": (3, 9)}, f"corrected: {doors.used()}")
    require(not doors.creto("metering", "verify").get("problems"), "corrections do not agree with their events")
    require("key:r-2" in doors.text("metering", "dump"), "no correction is dumped")


def price(doors):
    """A table of prices gives uses of its models their costs."""
    table = doors.file("prices.json", json.dumps({"sample_spec": {}, "gpt-x": {"litellm_provider": "p", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06}}))
    imported = doors.creto("prices", "import", table, "--effective", "2026-01-01T00:00:00Z")
    require(imported["models"] == "1", f"imported: {imported}")
    tokens = ["--property", "model_id=gpt-x", "--property", "provider=p", "--property", "input_tokens=1000", "--property", "output_tokens=100"]
    require(doors.creto("metering", "report", HUMAN, "inference_tokens", *tokens)["taken"] == 1, "no use of a model")
    rows = doors.creto("usage", "show", HUMAN, "--type", "inference_tokens")["rows"]
    require(rows[0]["cost"]["amount"] == "0.0028", f"the cost of a use: {rows}")
    require("gpt-x" in doors.text("prices", "list") and "gpt-x" in doors.text("prices", "show", "gpt-x"), "prices are not told")


def batch(doors, plan):
    """Invoices that become due together are signed together, and each is verified by its place among them."""
    doors.creto("plans", "put", "@" + doors.file("advance.json", json.dumps({**plan, "id": "a", "base_fee": "7", "base_fee_in_advance": True})))
    doors.stop()
    doors.serve()  # chores have just begun and come again in a minute
    for name in ("oversight", "messaging"):
        doors.creto("subscriptions", "create", f"service:{name}", "a")
    doors.stop()
    doors.serve()
    deadline = time.monotonic() + 60
    signed = []
    while len(signed) < 2 and time.monotonic() < deadline:
        invoices = doors.creto("invoices", "list").get("invoices", [])
        signed = [invoice for invoice in invoices if invoice["agent"].startswith("service:") and "proof" in invoice]
    for invoice in signed:
        told = doors.creto("invoices", "verify", invoice["id"])
        require(told["valid"] and told["batch"] == "2" and told["total"] not in ("", "0.00 USD"), f"one of a batch: {told}")
    require(len(signed) == 2, "no batch is signed")


def bill(doors):
    """What usage would cost is what it does cost, and a changed cent on the invoice is found without a server."""
    plan = {"id": "p", "name": "Plan", "base_fee": "0", "charges": [
        {"id": "pages", "model": "standard", "metric": {"event_type": "pages", "aggregation": "sum", "property": "units"}, "price": {"per_unit": "0.01"}}]}
    file = doors.file("plan.json", json.dumps(plan))
    other = doors.file("other.json", json.dumps({**plan, "id": "q", "base_fee": "5"}))
    priced = doors.creto("metering", "simulate", "--plan", file, "--plan", other, "--since", "1h", "--subject", HUMAN)
    require(priced["plans"][0]["total"] == "49.96", f"simulated: {priced}")
    log = ["--log", os.path.join(doors.home, "usage", "log"), "--org"]
    for org, total in (("default", "49.96"), ("other", "0")):
        offline = doors.creto("metering", "simulate", "--plan", file, "--since", "1h", "--subject", HUMAN, *log, org)
        require(offline["plans"][0]["total"] == total, f"of the files of {org}: {offline}")
    require("q, USD" in doors.text("metering", "simulate", "--plan", file, "--plan", other, "--since", "1h"), "no second plan beside the first")

    doors.creto("plans", "put", "@" + file)
    subscription = doors.creto("subscriptions", "create", HUMAN, "p")["id"]
    doors.creto("metering", "report", HUMAN, "pages", "--units", "123")
    invoice = doors.creto("invoices", "issue", subscription)
    id = json.loads(invoice["document"])["id"]
    require(doors.creto("invoices", "verify", id) == {"batch": "1", "error": "", "number": "INV-000001", "total": "1.23 USD", "valid": True}, "is not verified")
    batch(doors, plan)
    doors.creto("agents", "rotate-keys", "service:metering")
    require(doors.creto("invoices", "verify", id)["valid"], "what was signed before new keys is not verified any more")
    keys = doors.file("keys.json", json.dumps(doors.creto("agents", "key-sets", "service:metering")))
    doors.stop(signal.SIGTERM)
    good = doors.file("invoice.json", json.dumps(invoice))
    bad = doors.file("changed.json", json.dumps({**invoice, "document": invoice["document"].replace("1.23", "1.22")}))
    for name, leaves in ((good, 0), (bad, 1)):
        told = subprocess.run([doors.creto.binary, "invoices", "verify", name, "--keys", keys], env=doors.creto.env, capture_output=True, text=True)
        require(told.returncode == leaves, f"{name} leaves with {told.returncode}: {told.stdout}{told.stderr}")


def main():
    doors = Doors(options_of(__doc__).parse_args().creto, "metering")
    try:
        play(doors)
    finally:
        doors.stop()
        shutil.rmtree(doors.work, ignore_errors=True)
    print("usage comes in through every door, once")


if __name__ == "__main__":
    sys.exit(main())

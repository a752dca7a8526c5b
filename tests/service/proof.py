"""What the proofs share: lines of PASS and FAIL, figures, waiting, words with systemd, and what the receiver has."""

import json
import re
import subprocess
import time

# Everything here is done within seconds; the machine may be busy with other things, or an emulated one.
DEADLINE_S = 180

failures, figures = [], []


def check(what, is_so, detail=""):
    """One line of the result."""
    if not is_so:
        failures.append(what)
    print(f"{'PASS' if is_so else 'FAIL'}  {what}" + (f": {detail}" if detail != "" else ""), flush=True)


def note(text):
    print("".join(f"      | {line}\n" for line in str(text).rstrip().splitlines()), end="", flush=True)


def figure(name, value):
    figures.append(f"{name}: {value}")


def run(*command, **options):
    """What a command says and its exit code; its errors are part of what it says."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for(what, probe, within=DEADLINE_S):
    """What `probe` returns once that is something."""
    until = time.monotonic() + within
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > until:
            raise TimeoutError(f"waited {within} s for {what}")
        time.sleep(0.1)


class Host:
    """Where the service is: `run` runs commands there."""

    def __init__(self, run):
        self.run = run

    def must(self, *command, **options):
        done = self.run(*command, **options)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stdout}")
        return done.stdout

    def show(self, name):
        return self.must("systemctl", "show", "--value", "--property", name, "holdfast").strip()

    def main_pid(self):
        return int(self.show("MainPID"))

    def is_active(self):
        return self.show("ActiveState") == "active"

    def wait_active(self):
        wait_for("the service to be active", self.is_active)

    def seconds(self, of):
        """A time stamp of systemd's, on the monotonic clock there."""
        return int(self.show(of)) / 1e6

    def cursor(self):
        return re.search(r"cursor: (.*)", self.must("journalctl", "--lines=0", "--show-cursor")).group(1)

    def log_since(self, start):
        """What the journal has of the service since then, systemd's own words among them."""
        return self.must("journalctl", "--unit=holdfast", "--output=cat", f"--after-cursor={start}")

    def wait_log(self, start, text, within=DEADLINE_S):
        wait_for(f"{text!r} in the log", lambda: text in self.log_since(start), within)


def records(folder, agent, stream):
    """What the receiver has of a stream. Its last line may be half written yet."""
    path = folder / agent / f"{stream}.ndjson"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def numbers_of(device, readings):
    return [record["fields"]["n"] for record in readings if record["device"] == device]


def check_each_once(what, found, expected):
    """What `found()` lists becomes that set, each of it once."""
    try:
        wait_for("the readings", lambda: set(found()) == expected)
    except TimeoutError:
        pass
    got = found()
    is_so = len(got) == len(expected) and set(got) == expected
    check(f"{what}: {len(expected)} readings, each exactly once", is_so, f"{len(got)} came, {len(set(got))} different")


def check_windows(what, results, sent):
    """The last revisions among `results()` count each reading once, and no revision came twice."""

    def counted():
        return sum({(record["device"], record["start"]): record["aggregates"]["count"] for record in results()}.values())

    try:
        wait_for("the windows", lambda: counted() == sent)
    except TimeoutError:
        pass
    check(f"{what}: the windows count each reading once", counted() == sent, f"{counted()} of {sent}")
    revisions = [(record["device"], record["start"], record["revision"]) for record in results()]
    check(f"{what}: no window came twice", len(revisions) == len(set(revisions)), f"{len(revisions)} results")


def check_balanced(what, status):
    sums = [
        status["streams"][stream]["appended"] == sum(ledger[part] for part in ("delivered", "pending", "dead_lettered", "shed"))
        for sink in status["sinks"].values()
        for stream, ledger in sink["streams"].items()
    ]
    check(f"{what}: balanced", status["balanced"] is True and all(sums))


def attempt(part, host):
    """One part, whose faults do not keep the next ones from being tried."""
    name, began = part.__name__.replace("_", " "), time.monotonic()
    print(f"\n=== {name}", flush=True)
    try:
        part()
    except Exception as error:
        check(f"{name}: to its end", False, f"{type(error).__name__}: {error}")
        try:
            note(host.run("systemctl", "status", "holdfast").stdout)
        except OSError as silence:
            note(silence)
        return False
    finally:
        print(f"      {time.monotonic() - began:.0f} s", flush=True)
    return True


def is_wanted(part, wanted):
    return not wanted or part.__name__.startswith(tuple(wanted))


def sum_up(*skipped):
    """The end of it; the exit code."""
    print("\n=== figures")
    for line in figures:
        print(f"      {line}")
    for what in skipped:
        print(f"SKIP  {what}")
    print(f"\n{'FAILED: ' + '; '.join(failures) if failures else 'all passed'}", flush=True)
    return 1 if failures else 0

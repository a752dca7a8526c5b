#!/usr/bin/env python3
"""What the package has to do on a machine of its own: tried by scripts/prove-service, as root, in a container that it boots for this.

Each part is a function; what it finds are lines of PASS or FAIL, and figures at the end. Exit code 0: nothing failed. It installs and purges,
kills and fills disks, so it refuses to run anywhere but in such a container.
"""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
import tty
import urllib.error
import urllib.request
from pathlib import Path

import proof
from proof import DEADLINE_S, check, figure, note, run, wait_for

OLD, NEW = "/proof/old.deb", "/proof/new.deb"
CONFIG = Path("/etc/holdfast/holdfast.toml")
SECRETS = Path("/etc/holdfast/secrets")
STORE = Path("/var/lib/holdfast/store.redb")
DROP_IN = Path("/etc/systemd/system/holdfast.service.d")
RECEIVED = Path("/var/tmp/received")
LINE = Path("/run/proof/line")
PASSWORD = "correct horse"
# What systemd-analyze may say: of the unit as packaged, and without the drop-in that opens serial ports and I2C buses.
MOST_EXPOSED, MOST_EXPOSED_WITHOUT_PORTS = 1.7, 1.5

host = proof.Host(proof.run)
must, show, main_pid, is_active, wait_active = host.must, host.show, host.main_pid, host.is_active, host.wait_active
seconds, cursor, log_since, wait_log = host.seconds, host.cursor, host.log_since, host.wait_log


def get(path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:9550{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None, ""


def status():
    code, body = get("/api/v1/status")
    return json.loads(body) if code == 200 else None


def source_is(name, state):
    now = status()
    return now is not None and now["sources"].get(name, {}).get("state") == state


def memory(pid=None):
    """Resident and at most, in MiB."""
    text = Path(f"/proc/{pid or main_pid()}/status").read_text()
    return tuple(int(re.search(rf"{name}:\s+(\d+)", text).group(1)) / 1024 for name in ("VmRSS", "VmHWM"))


def records(stream, agent="gw-proof"):
    return proof.records(RECEIVED, agent, stream)


def numbers(device, agent="gw-proof"):
    return proof.numbers_of(device, records("readings", agent))


class Sensor(threading.Thread):
    """Publishes numbered readings with QoS 1 until it is stopped."""

    def __init__(self, device, rate=100, topic="sensors/{}/telemetry", padding=0):
        super().__init__(daemon=True)
        self.device, self.pause, self.sent, self.padding = device, 1 / rate, 0, padding
        self.is_over = threading.Event()
        self.client = subprocess.Popen(
            ["mosquitto_pub", "-h", "127.0.0.1", "-u", "sensor", "-P", PASSWORD, "-i", f"sensor-{device}", "-q", "1"]
            + ["-t", topic.format(device), "-l"],
            stdin=subprocess.PIPE,
        )
        self.start()

    def run(self):
        due = time.monotonic()
        while not self.is_over.is_set():
            fields = {"n": self.sent + 1}
            if self.padding:
                fields["noise"] = os.urandom(self.padding).hex()
            self.client.stdin.write(json.dumps(fields).encode() + b"\n")
            self.client.stdin.flush()
            self.sent += 1
            due += self.pause
            time.sleep(max(0, due - time.monotonic()))

    def stop(self):
        """How many there are, all of which the broker has."""
        self.is_over.set()
        self.join()
        self.client.stdin.close()
        if self.client.wait(DEADLINE_S) != 0:
            raise RuntimeError("mosquitto_pub failed")
        return self.sent


def check_arrived(what, device, sent, agent="gw-proof"):
    """Each number from 1 to `sent` once, and the books balance."""
    proof.check_each_once(what, lambda: numbers(device, agent), set(range(1, sent + 1)))
    check_balanced(what)


def check_windows(what, device, sent):
    proof.check_windows(what, lambda: [record for record in records("windows") if record["device"] == device], sent)


def check_balanced(what):
    proof.check_balanced(what, status())


def configure(*, agent="gw-proof", sources="", header='{ file = "cloud-token" }', extra=""):
    CONFIG.write_text(
        f"""# Edited by the operator.
[agent]
id = "{agent}"

[sources.plant]
type = "mqtt"
url = "mqtt://127.0.0.1:1883"
username = "gateway"
password = {{ file = "plant-password" }}
[[sources.plant.subscribe]]
topic = "sensors/{{device}}/telemetry"
{sources}
[windows.span]
size = "5s"
lateness = "1s"
aggregates = ["count"]
fields = ["n"]

[sinks.cloud]
type = "http"
url = "http://127.0.0.1:9551/v1/telemetry"
retry = {{ initial = "100ms", max = "1s" }}
headers = {{ Authorization = {header} }}
{extra}"""
    )


def restart():
    must("systemctl", "restart", "holdfast")
    wait_for("the broker to be reached", lambda: source_is("plant", "connected"))


# --- The parts, in their order. ---


def install():
    began = time.monotonic()
    done = run("dpkg", "--install", OLD)
    check("install: dpkg is content", done.returncode == 0)
    note(done.stdout)
    wait_active()
    figure("dpkg --install, until the service is active", f"{seconds('ActiveEnterTimestampMonotonic') - began:.1f} s")
    figure(
        "start of the service with a new store, until it says that it is ready",
        f"{1000 * (seconds('ActiveEnterTimestampMonotonic') - seconds('InactiveExitTimestampMonotonic')):.0f} ms",
    )
    check("install: Type=notify", show("Type") == "notify")
    check("install: enabled", run("systemctl", "is-enabled", "holdfast").stdout.strip() == "enabled")
    check("install: dpkg --verify finds nothing changed", run("dpkg", "--verify", "holdfast").stdout == "")
    done = run("holdfast", "check")
    check("install: `holdfast check` passes with the configuration as shipped", done.returncode == 0)
    note(done.stdout)
    wait_for("the word to systemd", lambda: show("StatusText").startswith("online"))
    check("install: `systemctl status` says how it is", True, show("StatusText"))
    note(must("systemctl", "status", "holdfast"))
    code, page = get("/")
    check("install: the page is at 127.0.0.1:9550", code == 200 and "<html" in page)
    listening = [line.split()[4] for line in must("ss", "--no-header", "--listening", "--tcp", "--udp", "--numeric").splitlines()]
    check("install: nothing else listens", listening == ["127.0.0.1:9550"], ", ".join(listening))
    groups = set(must("id", "--name", "--groups", "holdfast").split())
    check("install: the user's groups", groups == {"holdfast", "dialout", "i2c"}, " ".join(sorted(groups)))
    shell = must("getent", "passwd", "holdfast").strip()
    check("install: nobody can log in as it", shell.endswith("/usr/sbin/nologin"), shell)
    for path, expected in {
        "/usr/bin/holdfast": "root:root 755",
        "/etc/holdfast": "root:holdfast 750",
        "/etc/holdfast/holdfast.toml": "root:holdfast 640",
        "/var/lib/holdfast": "holdfast:holdfast 750",
        "/var/lib/holdfast/store.redb": "holdfast:holdfast 600",
        "/run/holdfast": "holdfast:holdfast 750",
        "/run/holdfast/admin.sock": "holdfast:holdfast 660",
    }.items():
        found = must("stat", "--format=%U:%G %a", path).strip()
        check(f"install: {path}", found == expected, found)
    figure("memory, idle, without a source", f"{memory()[0]:.1f} MiB resident")


def prepare():
    """A broker with passwords, a receiver, and a configuration with both; the secrets are credentials."""
    must("mosquitto_passwd", "-c", "-b", "/etc/mosquitto/passwd", "gateway", PASSWORD)
    must("mosquitto_passwd", "-b", "/etc/mosquitto/passwd", "sensor", PASSWORD)
    must("chown", "mosquitto", "/etc/mosquitto/passwd")
    Path("/etc/mosquitto/conf.d/proof.conf").write_text(
        "listener 1883 127.0.0.1\npassword_file /etc/mosquitto/passwd\nmax_queued_messages 0\n"
    )
    must("systemctl", "restart", "mosquitto")
    must("systemd-run", "--quiet", "--unit=receiver", "holdfast", "receive", "--data", str(RECEIVED))
    SECRETS.mkdir(mode=0o700)
    DROP_IN.mkdir(exist_ok=True)
    lines = ["[Service]"]
    for name, secret in {"plant-password": PASSWORD, "cloud-token": "Bearer of good news"}.items():
        (SECRETS / name).write_text(secret + "\n")
        (SECRETS / name).chmod(0o600)
        lines.append(f"LoadCredential={name}:{SECRETS / name}")
    (DROP_IN / "proof.conf").write_text("\n".join(lines) + "\n")
    must("systemctl", "daemon-reload")
    configure()
    restart()


def way_through():
    check("credentials: the broker took the password of LoadCredential=", source_is("plant", "connected"))
    as_service = run("setpriv", "--reuid=holdfast", "--regid=holdfast", "--init-groups", "cat", str(SECRETS / "plant-password"))
    check("credentials: the service cannot read the file it came from", as_service.returncode != 0, as_service.stdout.strip())
    sensor = Sensor("way", rate=200)
    time.sleep(15)
    sent = sensor.stop()
    check_arrived("MQTT in, HTTP out", "way", sent)

    check_windows("MQTT in, HTTP out", "way", sent)
    now, most = memory()
    figure("memory, 200 readings/s", f"{now:.1f} MiB resident, {most:.1f} MiB at most")


def kills():
    sensor = Sensor("kills")
    before, times = int(show("NRestarts")), []
    for _ in range(10):
        wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
        pid, killed = main_pid(), time.monotonic()
        os.kill(pid, 9)
        wait_for("a new process", lambda: main_pid() not in (0, pid) and is_active())
        times.append(seconds("ActiveEnterTimestampMonotonic") - killed)
    sent = sensor.stop()
    grown = int(show("NRestarts")) - before
    check("kill -9, ten times in a row: systemd restarts it each time", grown == 10 and is_active(), f"NRestarts grew by {grown}")
    figure("kill -9 until active again, RestartSec=5 included", f"{min(times):.2f} to {max(times):.2f} s")
    check_arrived("kill -9, ten times in a row", "kills", sent)
    check_windows("kill -9, ten times in a row", "kills", sent)


def serial():
    master, slave = pty.openpty()
    tty.setraw(slave)
    # As udev has it for real ports.
    shutil.chown(os.ttyname(slave), "root", "dialout")
    os.chmod(os.ttyname(slave), 0o660)
    LINE.parent.mkdir(exist_ok=True)
    LINE.symlink_to(os.ttyname(slave))
    configure(sources=f'[sources.line]\ntype = "serial"\npath = "{LINE}"\nprotocol = "lines"\ndevice = "scale"\n')
    done = run("systemctl", "reload", "holdfast")
    check("serial: reloaded with a line", done.returncode == 0, done.stdout)

    def opens():
        os.write(master, b'{"warm_up":true}\n')
        return source_is("line", "connected")
    wait_for("the line to be read", opens, 30)
    for n in range(1, 201):
        os.write(master, json.dumps({"n": n}).encode() + b"\n")
        time.sleep(0.01)

    def got():
        return [r["fields"]["n"] for r in records("readings") if r["device"] == "scale" and "n" in r["fields"]]

    try:
        wait_for("the lines", lambda: len(got()) >= 200, 30)
    except TimeoutError:
        pass
    check("serial: 200 lines over a pty, group dialout, each once and in order", got() == list(range(1, 201)), f"{len(got())} came")
    LINE.unlink()
    os.close(slave)
    os.close(master)
    wait_for("the port to be missed", lambda: source_is("line", "unplugged"), 30)
    check("serial: a port that is gone is a state", True, "unplugged")
    configure()
    must("systemctl", "reload", "holdfast")


def reload():
    pid, sensor = main_pid(), Sensor("reload")
    start = cursor()
    configure(sources='[[sources.plant.subscribe]]\ntopic = "extra/{device}"\n')
    done = run("systemctl", "reload", "holdfast")
    wait_log(start, "configuration in force")
    check("reload: a good file takes force in the same process", done.returncode == 0 and main_pid() == pid)
    figure("reload, intake away for", re.search(r"away=(\S+)", log_since(start)).group(1))
    wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
    time.sleep(1)
    more = Sensor("extra", topic="extra/{}")
    time.sleep(2)
    check_arrived("reload: what it added works", "extra", more.stop())
    start = cursor()
    CONFIG.write_text(CONFIG.read_text().replace("lateness", "latness"))
    done = run("systemctl", "reload", "holdfast")
    wait_log(start, "not reloaded")
    said = log_since(start)
    check("reload: a faulty file changes nothing", main_pid() == pid and is_active())
    check("reload: and the log says what is wrong", "latness" in said and "lateness" in said)
    note(said)
    check("reload: so does `holdfast check`", run("holdfast", "check").returncode == 2)
    configure()
    must("systemctl", "reload", "holdfast")
    wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
    check_arrived("reload", "reload", sensor.stop())


def full_disk():
    must("systemctl", "stop", "holdfast")
    must("mount", "-t", "tmpfs", "-o", "size=16m,mode=750,uid=holdfast,gid=holdfast", "tmpfs", str(STORE.parent))
    try:
        configure(agent="gw-full")
        must("systemctl", "start", "holdfast")
        wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
        start = cursor()
        filler = STORE.parent / "filler"
        run("dd", "if=/dev/zero", f"of={filler}", "bs=64k")
        sensor = Sensor("full", rate=500, padding=500)
        wait_for("the disk to be missed", lambda: (status() or {}).get("state") == "storage-failing")
        wait_for("the word to systemd", lambda: show("StatusText").startswith("storage-failing"))
        check("full disk: a state with a name, also for `systemctl status`", is_active(), show("StatusText"))
        filler.unlink()
        wait_for("the disk to be taken again", lambda: (status() or {}).get("state") not in (None, "storage-failing"))
        check_arrived("full disk", "full", sensor.stop(), "gw-full")
        check("full disk: it went on by itself", "Scheduled restart" not in log_since(start))
    finally:
        run("systemctl", "stop", "holdfast")
        must("umount", str(STORE.parent))
        configure()
        must("systemctl", "start", "holdfast")
        wait_for("the broker to be reached", lambda: source_is("plant", "connected"))


def hang():
    token = Path("/etc/holdfast/token")
    token.write_text("Bearer of good news\n")
    shutil.chown(token, "root", "holdfast")
    token.chmod(0o640)
    configure(header=f'{{ file = "{token}" }}')
    restart()
    sensor, restarts = Sensor("hang", rate=20), int(show("NRestarts"))
    wait_for("readings", lambda: len(numbers("hang")) > 20)
    start, pid = cursor(), main_pid()
    # Whoever opens a pipe that nobody writes to hangs in the kernel, as on a network disk that is gone.
    token.unlink()
    os.mkfifo(token, 0o640)
    shutil.chown(token, "root", "holdfast")
    began = time.monotonic()
    wait_for("/healthz to say 503", lambda: get("/healthz")[0] == 503)
    named = time.monotonic() - began
    health = json.loads(get("/healthz")[1])
    check("hang: /healthz says 503 and names the room", health["hung"] == ["sink cloud"], health["hung"])
    wait_for("the word to systemd", lambda: "sink cloud" in show("StatusText"))
    check("hang: `systemctl status` names it, too", True, show("StatusText"))
    # The one that hangs goes on hanging; the next one shall not.
    token.unlink()
    token.write_text("Bearer of good news\n")
    shutil.chown(token, "root", "holdfast")
    wait_for("the watchdog", lambda: main_pid() != pid, 150)
    stopped = time.monotonic() - began
    wait_for("a new process", lambda: main_pid() not in (0, pid) and is_active())
    active = seconds("ActiveEnterTimestampMonotonic") - began
    said = log_since(start)
    check("hang: the watchdog stops it with SIGABRT", "Watchdog timeout" in said and "status=6/ABRT" in said)
    note("\n".join(line for line in said.splitlines() if re.search("hang|atchdog|ABRT|estart", line)))
    check("hang: systemd restarts it", int(show("NRestarts")) == restarts + 1 and is_active())
    figure("a sink that hangs: named after, stopped after, active again after", f"{named:.0f} s, {stopped:.0f} s, {active:.0f} s")
    sent = sensor.stop()
    check_arrived("hang", "hang", sent)
    check_windows("hang", "hang", sent)
    configure()
    restart()
    token.unlink()


def upgrade():
    change_version("upgrade", NEW)
    change_version("downgrade to the same format", OLD)
    must("dpkg", "--install", NEW)
    wait_active()


def change_version(what, package):
    sensor = Sensor(what.split()[0])
    time.sleep(2)
    edited, epoch, pid = CONFIG.read_text(), status()["epoch"], main_pid()
    done = run("dpkg", "--install", package)
    installed = must("dpkg-query", "--show", "--showformat=${Version}", "holdfast")
    wanted = must("dpkg-deb", "--field", package, "Version").strip()
    check(f"{what}: dpkg is content", done.returncode == 0 and installed == wanted, installed)
    note(done.stdout)
    wait_for("a new process", lambda: main_pid() not in (0, pid) and is_active())
    wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
    figure(
        f"{what}, service away for",
        f"{seconds('ActiveEnterTimestampMonotonic') - seconds('ActiveExitTimestampMonotonic'):.1f} s",
    )
    check(f"{what}: the edited configuration is kept", CONFIG.read_text() == edited)
    check(f"{what}: the store is taken over", status()["epoch"] == epoch)
    time.sleep(2)
    sent = sensor.stop()
    check_arrived(what, sensor.device, sent)
    check_windows(what, sensor.device, sent)


def set_format(path, version):
    """Writes another number of format into the row `format` of the table `state`; the one that was there."""
    store, found = bytearray(path.read_bytes()), None
    for match in re.finditer(b"formatidentity", bytes(store)):
        page = match.start() // 4096 * 4096
        rows = int.from_bytes(store[page + 2 : page + 4], "little")
        # A leaf of redb: ends of keys, ends of values, keys, values; the value of the first key stands behind the last key.
        if store[page] != 1 or page + 4 + 8 * rows != match.start():
            continue
        first_value = page + int.from_bytes(store[page + 4 * rows : page + 4 * rows + 4], "little")
        found = store[first_value]
        # The number, and two copies of it.
        store[first_value : first_value + 9] = bytes([version, version, 0, 0, 0, version, 0, 0, 0])
    if found is None:
        raise RuntimeError(f"{path}: no row of its format")
    # In place: it keeps its owner.
    path.write_bytes(store)
    return found


def newer_store():
    now = status()
    held = (now["epoch"], now["streams"]["readings"]["appended"])
    must("systemctl", "stop", "holdfast")
    kept = Path("/var/tmp/store.kept")
    must("cp", "--preserve", str(STORE), str(kept))
    try:
        known = set_format(STORE, 77)
        start = cursor()
        run("systemctl", "start", "holdfast")
        wait_log(start, "the store has format 77")
        said = next(line for line in log_since(start).splitlines() if "the store has format 77" in line)
        check("newer store: refused, with the reason", True, said)
        wait_log(start, "Scheduled restart")
        check("newer store: systemd tries again, for ever", show("ActiveState") in ("activating", "active"), show("SubState"))
        check("newer store: nothing is moved aside", not list(STORE.parent.glob("*.damaged*")))
        run("systemctl", "stop", "holdfast")
        set_format(STORE, known)
        must("systemctl", "start", "holdfast")
        wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
        after = status()
        check("newer store: the version that wrote it finds all of it", (after["epoch"], after["streams"]["readings"]["appended"]) == held)
        check_balanced("newer store: taken again")
        kept.unlink()
    finally:
        if kept.exists():
            run("systemctl", "stop", "holdfast")
            must("mv", str(kept), str(STORE))
            must("systemctl", "start", "holdfast")


def make_device(path, major, minor, group, mode):
    if not os.path.exists(path):
        os.mknod(path, 0o20600, os.makedev(major, minor))
    shutil.chown(path, "root", group)
    os.chmod(path, mode)


def sandbox():
    score = re.search(r"exposure level.*: ([0-9.]+)", must("systemd-analyze", "security", "holdfast")).group(1)
    check(f"sandbox: exposure with serial ports at most {MOST_EXPOSED}", float(score) <= MOST_EXPOSED, score)
    (DROP_IN / "ports.conf").touch()
    must("systemctl", "daemon-reload")
    without = re.search(r"exposure level.*: ([0-9.]+)", must("systemd-analyze", "security", "holdfast")).group(1)
    (DROP_IN / "ports.conf").unlink()
    must("systemctl", "daemon-reload")
    check(f"sandbox: exposure without them at most {MOST_EXPOSED_WITHOUT_PORTS}", float(without) <= MOST_EXPOSED_WITHOUT_PORTS, without)
    figure("systemd-analyze security", f"{score} as packaged, {without} without ports.conf")

    # The same unit with its drop-ins, but another program.
    unit = Path(show("FragmentPath")).read_text().replace("[Service]", "[Service]\nStandardOutput=file:/var/tmp/probe.json")
    for key, value in {
        "Type": "oneshot",
        "ExecStart": "/usr/bin/python3 /proof/probe.py",
        "Restart": "no",
        "WatchdogSec": "0",
        "RuntimeDirectory": "holdfast-probe",
        "StateDirectory": "holdfast-probe",
    }.items():
        unit = re.sub(rf"^{key}=.*$", f"{key}={value}", unit, flags=re.M)
    probe = Path("/etc/systemd/system/holdfast-probe.service")
    probe.write_text(unit)
    drop_ins = Path(f"{probe}.d")
    drop_ins.mkdir()
    for path in show("DropInPaths").split():
        shutil.copy(path, drop_ins)
    must("systemctl", "daemon-reload")
    # The first is as open to everybody as it can be, so that only DevicePolicy= is in the way; the second is as udev has it.
    make_device("/dev/fuse", 10, 229, "root", 0o666)
    make_device("/dev/ttyS0", 4, 64, "dialout", 0o660)
    done = run("systemctl", "start", "holdfast-probe")
    if done.returncode != 0:
        note(must("journalctl", "--unit=holdfast-probe", "--output=cat"))
    confined = json.loads(Path("/var/tmp/probe.json").read_text())
    free = json.loads(must("python3", "/proof/probe.py"))
    for what, answer in confined["refused"].items():
        # What root outside may not do either proves nothing of the sandbox.
        by_all = "" if free["refused"][what] == "allowed" else " (the container refuses it to root, too)"
        check(f"sandbox: no {what}", answer != "allowed", answer + by_all)
    for what, answer in confined["needed"].items():
        check(f"sandbox: {what}", answer == "allowed", answer)
    run("systemctl", "stop", "holdfast-probe")
    shutil.rmtree(drop_ins)
    probe.unlink()
    shutil.rmtree("/var/lib/holdfast-probe", ignore_errors=True)
    must("systemctl", "daemon-reload")


def remove():
    edited = CONFIG.read_text()
    done = run("dpkg", "--remove", "holdfast")
    check("remove: dpkg is content", done.returncode == 0)
    note(done.stdout)
    check("remove: the service is gone", show("LoadState") == "not-found" or not is_active(), show("ActiveState"))
    check("remove: so is the program", not Path("/usr/bin/holdfast").exists())
    check("remove: configuration, secrets and data are kept", CONFIG.read_text() == edited and SECRETS.is_dir() and STORE.exists())
    must("dpkg", "--install", NEW)
    wait_for("the broker to be reached", lambda: source_is("plant", "connected"))
    check_balanced("install again: goes on with what was kept")
    run("systemctl", "stop", "receiver")
    # These are the operator's, which no package removes.
    shutil.rmtree(DROP_IN)
    must("systemctl", "daemon-reload")
    done = run("dpkg", "--purge", "holdfast")
    check("purge: dpkg is content", done.returncode == 0)
    note(done.stdout)
    left = must("find", "/", "-xdev", "-name", "*holdfast*", "-not", "-path", "/proof/*").split()
    left += must("find", "/run", "/tmp", "/var/tmp", "-name", "*holdfast*").split()
    check("purge: nothing is left", left == [], " ".join(left))
    check("purge: but the user", run("id", "holdfast").returncode == 0)
    check("purge: no unit failed", run("systemctl", "--failed", "--quiet", "--plain").stdout.strip() == "", run("systemctl", "--failed", "--quiet", "--plain").stdout.strip())


PARTS = [way_through, kills, serial, reload, full_disk, hang, upgrade, newer_store, sandbox, remove]


def main(wanted):
    if Path("/run/systemd/container").read_text().strip() != "systemd-nspawn" or not Path("/proof").is_dir():
        sys.exit("prove.py: only in the container of scripts/prove-service")
    version = must("dpkg-deb", "--field", OLD, "Version").strip()
    print(f"holdfast {version} on {Path('/etc/debian_version').read_text().strip()}, {must('systemctl', '--version').splitlines()[0]}")
    if proof.attempt(install, host) and proof.attempt(prepare, host):
        for part in PARTS:
            if proof.is_wanted(part, wanted):
                proof.attempt(part, host)
    sys.exit(proof.sum_up("MemoryHigh=, MemoryMax=, CPUQuota=, TasksMax=: scripts/prove-machine; no container has the controllers to enforce them"))


if __name__ == "__main__":
    main(sys.argv[1:])

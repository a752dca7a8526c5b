"""What the package has to do on a machine with a kernel, a disk and a USB port of its own: tried by scripts/prove-machine, from outside of it.

The machine is QEMU's. Sensors publish to it and a receiver takes what it sends; both are here, so that they know what they were promised
whatever happens to the machine. Exit code 0: nothing failed.
"""

import argparse
import datetime
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import proof
from machine import Machine, free_port
from proof import check, figure, note, wait_for
from sensor import Sensor

AGENT = "gw-machine"
RECEIVED = Path("received")
LISTENER = 1883
GROUP = "/sys/fs/cgroup/system.slice/holdfast.service"
DEVICES = ("north", "east", "south", "west")
# More than the machine takes, without acceleration.
FULL_SPEED = 5000
BUSES = "--subsystem-match=i2c-dev"
MIB = 1 << 20


class Receiver:
    """`holdfast receive`, of the same package, here."""

    def __init__(self, program):
        self.program, self.port, self.process = program, free_port(), None

    def start(self):
        with open("receiver.txt", "a") as log:
            command = [self.program, "receive", "--listen", f"127.0.0.1:{self.port}", "--data", RECEIVED]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


class Sensors:
    """Four of them."""

    def __init__(self, what, rate):
        self.all = [Sensor(f"{what}-{name}", address, rate / len(DEVICES), f"acked-{what}-{name}.txt") for name in DEVICES]

    def set_rate(self, rate):
        for sensor in self.all:
            sensor.rate = rate / len(DEVICES)

    def sum(self, what):
        return sum(getattr(sensor, what) for sensor in self.all)

    def wait_acknowledged(self, more):
        wanted = self.sum("acknowledged") + more
        wait_for(f"{more} more acknowledgements", lambda: self.sum("acknowledged") >= wanted)

    def check_arrived(self, what, with_windows=True):
        """All that was acknowledged, which in the end is all that was sent, is at the receiver once, also in the windows."""
        acknowledged = []
        for sensor in self.all:
            sensor.stop(proof.DEADLINE_S)
            acknowledged += [(sensor.device, int(n)) for n in Path(sensor.journal.name).read_text().split()]
        wait_for("all to be delivered", lambda: pending() == 0)
        sent = {(sensor.device, n) for sensor in self.all for n in range(1, sensor.sent + 1)}
        check(f"{what}: all are acknowledged", set(acknowledged) == sent, f"{len(acknowledged)} acknowledgements")
        readings = [(record["device"], record["fields"]["n"]) for record in self.of("readings")]
        proof.check_each_once(what, lambda: readings, sent)
        if with_windows:
            proof.check_windows(what, lambda: self.of("windows"), len(sent))
        proof.check_balanced(what, status())

    def of(self, stream):
        devices = {sensor.device for sensor in self.all}
        return [record for record in of(stream) if record["device"] in devices]


def address():
    return "127.0.0.1", machine.ports[LISTENER]


def of(stream):
    return proof.records(RECEIVED, AGENT, stream)


def status():
    done = machine.run("holdfast", "status", "--json")
    return json.loads(done.stdout) if done.returncode == 0 else None


def pending():
    now = status()
    return now and sum(ledger["pending"] for sink in now["sinks"].values() for ledger in sink["streams"].values())


def source_is(name, state):
    now = status()
    return now is not None and now["sources"].get(name, {}).get("state") == state


def write(path, text):
    host.must("sh", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" >"$1"', "write", path, text)


def group(file):
    """A file of the service's control group: a word, or a table of words and numbers."""
    text = host.must("cat", f"{GROUP}/{file}").strip()
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())} if "\n" in text else text


def owner(path):
    return host.must("stat", "--format=%U:%G %a", path).strip()


def configure(sources=""):
    write(
        "/etc/holdfast/holdfast.toml",
        f"""[agent]
id = "{AGENT}"

[sources.direct]
type = "mqtt-listen"
listen = "0.0.0.0:{LISTENER}"
open = true
[[sources.direct.subscribe]]
topic = "sensors/{{device}}/telemetry"
{sources}
[windows.span]
size = "5s"
lateness = "1s"
aggregates = ["count"]
fields = ["n"]

[sinks.cloud]
type = "http"
url = "http://10.0.2.2:{cloud.port}/v1/telemetry"
retry = {{ initial = "100ms", max = "1s" }}
""",
    )


# --- The parts, in their order. ---


def install():
    figure("boot of the machine, until systemd says that it is running", f"{machine.boot():.0f} s")
    note(host.must("uname", "-srvm"))
    # The machine has an I2C bus, of which udev hears while the package is unpacked and its groups are not there yet: on a slow card
    # that takes seconds.
    host.must("modprobe", "i2c-dev")
    done = machine.run("dpkg", "--unpack", "/proof/holdfast.deb")
    wait_for("udev to read the rules", lambda: host.run("udevadm", "trigger", "--settle", BUSES) and owner("/dev/i2c-0").endswith("660"))
    more = machine.run("dpkg", "--configure", "holdfast")
    check("install: dpkg is content", done.returncode == more.returncode == 0)
    note(done.stdout + more.stdout)
    host.must("udevadm", "settle")
    found = owner("/dev/i2c-0")
    check("install: an I2C bus belongs to i2c from then on", found == "root:i2c 660", found)
    host.wait_active()
    cloud.start()
    configure()
    host.must("systemctl", "restart", "holdfast")
    wait_for("the listener", lambda: source_is("direct", "connected"))
    # An operator has edited and left; from here on the power may go.
    host.must("sync")


# When the power is cut: what goes on then, readings a second, whether the cloud answers, and whether in the middle of what is written.
AT_ONCE, IN_A_WRITE, AT_START = range(3)
CUTS = [
    ("a few readings", 20, True, AT_ONCE),
    ("full speed, within a write", FULL_SPEED, True, IN_A_WRITE),
    ("cloud away", 200, False, AT_ONCE),
    ("cloud away, full speed, within a write", FULL_SPEED, False, IN_A_WRITE),
    ("cloud away, while the machine starts", FULL_SPEED, False, AT_START),
    ("cloud back, backlog and full speed, within a write", FULL_SPEED, True, IN_A_WRITE),
    ("cloud away again, full speed", FULL_SPEED, False, AT_ONCE),
    ("full speed, within a write again", FULL_SPEED, True, IN_A_WRITE),
]


def power_cuts():
    epoch, boots, requests_of_a_boot = status()["epoch"], [], 200
    sensors, all_unflushed, all_lost = Sensors("cuts", 20), 0, 0
    for number, (what, rate, is_cloud_there, how) in enumerate(CUTS, 1):
        sensors.set_rate(rate)
        cloud.stop()
        if is_cloud_there:
            cloud.start()
        sensors.wait_acknowledged(rate if rate < FULL_SPEED else 1000)
        time.sleep(random.uniform(1, 6))
        if how != AT_ONCE:
            if how == AT_START:
                machine.cut(1)
                machine.start()
            # The writes of some commits, or those of a start up to where the service has begun.
            machine.disk.arm(random.randrange(60 if how == IN_A_WRITE else requests_of_a_boot))
            if not machine.disk.is_cut.wait(proof.DEADLINE_S):
                raise TimeoutError("nothing is written")
        # What a disk does with its cache is its affair: every second time all of it is gone.
        unflushed, lost = machine.cut(1 if number % 2 else 0.5)
        all_unflushed, all_lost = all_unflushed + unflushed, all_lost + lost
        acknowledged, requests = sensors.sum("acknowledged"), machine.disk.requests
        in_flight = sensors.sum("sent") - acknowledged
        boots.append(machine.boot())
        host.wait_active()
        requests_of_a_boot = machine.disk.requests - requests
        check(
            f"power cut {number}, {what}: active again",
            True,
            f"{acknowledged} acknowledged, {in_flight} in flight; {unflushed} sectors not flushed, {lost} of them lost; up after {boots[-1]:.0f} s",
        )
        check_recovered(f"power cut {number}", epoch)
    if not cloud.process:
        cloud.start()
    sensors.wait_acknowledged(100)
    sensors.check_arrived("power cuts")
    check("power cuts: what was written was lost, too, where it was not flushed", all_lost > 0, f"{all_lost} of {all_unflushed} sectors")
    check("power cuts: no number is missing, none was given up", of("gaps") == [])
    numbers = [record["seq"] for record in of("readings")]
    check("power cuts: numbers without gaps, in order", numbers == list(range(1, len(numbers) + 1)), f"1 to {len(numbers)}")
    figure("power cuts", f"{len(CUTS)}, and {sensors.sum('acknowledged')} readings; {sensors.sum('sent_again')} were sent again")
    figure("sectors written and not flushed when the power was cut", f"{all_unflushed}, of which {all_lost} were lost")
    figure("boot after a cut", f"{min(boots):.0f} to {max(boots):.0f} s")
    host.must("systemctl", "stop", "holdfast")
    done = machine.run("setpriv", "--reuid=holdfast", "--regid=holdfast", "--init-groups", "holdfast", "store", "verify")
    check("power cuts: `holdfast store verify`", done.returncode == 0)
    note(done.stdout)
    machine.power_off()
    done = proof.run("e2fsck", "-f", "-n", "disk.img")
    check("power cuts: the file system is whole, though nothing but its journal recovered it", done.returncode == 0)
    note(done.stdout)
    machine.boot()
    host.wait_active()


def check_recovered(what, epoch):
    kernel = host.must("dmesg")
    check(f"{what}: the file system went on from its journal", "EXT4-fs (vda): recovery complete" in kernel and "EXT4-fs error" not in kernel)
    wait_for("the store", lambda: (status() or {}).get("epoch"))
    files = host.must("ls", "/var/lib/holdfast").split()
    check(f"{what}: the same store, undamaged", status()["epoch"] == epoch and not any("damaged" in file for file in files), " ".join(files))


def limit(**values):
    """A drop-in with other limits, in force at once."""
    host.must("systemctl", "set-property", "--runtime", "holdfast", *(f"{name}={value}" for name, value in values.items()))


def limit_as_shipped():
    host.must("sh", "-c", "rm -rf /run/systemd/system.control/holdfast.service.d && systemctl daemon-reload && systemctl restart holdfast")
    wait_for("the listener", lambda: source_is("direct", "connected"))
    check_limits()


def check_limits():
    for file, name, expected in (
        ("memory.high", "MemoryHigh", 224 * MIB),
        ("memory.max", "MemoryMax", 288 * MIB),
        ("cpu.max", "CPUQuotaPerSecUSec", "200000 100000"),
        ("pids.max", "TasksMax", 600),
    ):
        found = group(file)
        check(f"limits: {file} is what the unit says", found == str(expected), f"{found} ({name}={host.show(name)})")


def limits():
    check_limits()
    at_ease()
    out_of_memory()
    throttled()
    without_threads()


def at_ease():
    sensors = Sensors("ease", 1000)
    sensors.wait_acknowledged(2000)
    began, first, used = time.monotonic(), sensors.sum("acknowledged"), group("cpu.stat")["usage_usec"]
    anonymous = []
    while time.monotonic() - began < 40:
        anonymous.append(group("memory.stat")["anon"] / MIB)
        time.sleep(2)
    took = time.monotonic() - began
    rate, used = (sensors.sum("acknowledged") - first) / took, (group("cpu.stat")["usage_usec"] - used) / 1e6 / took
    peak, high = int(group("memory.peak")) / MIB, int(group("memory.high")) / MIB
    events = group("memory.events")
    figure(
        f"memory at {rate:.0f} readings/s (of MemoryHigh={high:.0f} MiB)",
        f"{max(anonymous):.1f} MiB of its own, {peak:.1f} MiB with pages of files at most; {100 * used:.0f} % of an emulated processor",
    )
    check("limits: the rate asked for is taken", rate > 900, f"{rate:.0f} readings/s acknowledged")
    check("limits: memory stays below a quarter of MemoryHigh=, without what the kernel may take back", max(anonymous) < high / 4, f"{max(anonymous):.1f} MiB")
    check("limits: the kernel never had to step in", events["high"] == events["max"] == events["oom"] == 0, events)
    sensors.check_arrived("limits, 1000 readings/s")


def out_of_memory():
    sensors, start, restarts = Sensors("oom", 300), host.cursor(), int(host.show("NRestarts"))
    sensors.wait_acknowledged(600)
    limit(MemoryHigh="infinity", MemoryMax="3M")
    wait_for("the kernel to end it", lambda: int(host.show("NRestarts")) >= restarts + 3)
    said = host.log_since(start)
    check("limits: beyond MemoryMax= the kernel ends it", "killed by the OOM killer" in said and "result 'oom-kill'" in said)
    note("\n".join(line for line in said.splitlines() if "OOM" in line or "oom" in line or "Scheduled" in line))
    check("limits: systemd starts it again each time", True, f"{int(host.show('NRestarts')) - restarts} times")
    limit_as_shipped()
    sensors.wait_acknowledged(100)
    sensors.check_arrived("limits, out of memory")


def throttled():
    sensors = Sensors("cpu", 1000)
    sensors.wait_acknowledged(1000)
    limit(CPUQuota="20%")
    before, began = group("cpu.stat"), time.monotonic()
    time.sleep(20)
    after, took = group("cpu.stat"), time.monotonic() - began
    used = (after["usage_usec"] - before["usage_usec"]) / 1e6 / took
    times = after["nr_throttled"] - before["nr_throttled"]
    check("limits: CPUQuota= holds it back", times > 0 and used < 0.25, f"{100 * used:.0f} % used of 20 %, throttled {times} times")
    check("limits: and it goes on", host.is_active(), host.show("StatusText"))
    limit_as_shipped()
    sensors.check_arrived("limits, throttled")


def without_threads():
    sensors, start, restarts = Sensors("tasks", 100), host.cursor(), int(host.show("NRestarts"))
    sensors.wait_acknowledged(100)
    usual = group("pids.current")
    # The first thread and one other.
    limit(TasksMax=2)
    host.must("systemctl", "kill", "--signal=KILL", "holdfast")
    wait_for("three more starts", lambda: int(host.show("NRestarts")) >= restarts + 4, 90)
    said = host.log_since(start)
    check("limits: TasksMax= is held, and the program ends with the reason", "refuses it a thread" in said, f"2 tasks instead of {usual}")
    note("\n".join(line for line in said.splitlines() if "thread" in line or "Scheduled" in line))
    limit_as_shipped()
    sensors.check_arrived("limits, without threads")


def usb_serial():
    # At boot nothing was plugged in: the driver is there all the same, by modules-load.d, or systemd would not grant it.
    line = socket.socket(socket.AF_UNIX)
    machine.ask_qemu(
        "chardev-add",
        id="line",
        backend={"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "line.socket"}}, "server": True, "wait": False}},
    )
    line.connect("line.socket")
    check("USB: no port yet", machine.run("sh", "-c", "ls /dev/ttyUSB*").returncode != 0)
    configure('[sources.line]\ntype = "serial"\npath = "/dev/ttyUSB0"\nprotocol = "lines"\ndevice = "scale"\n')
    host.must("systemctl", "reload", "holdfast")
    wait_for("the port to be missed", lambda: source_is("line", "unplugged"))
    check("USB: a port that is not there is a state", True, "unplugged")
    pid, n = host.main_pid(), 0
    for turn in ("plugged in", "plugged in again"):
        machine.ask_qemu("device_add", driver="usb-serial", id="adapter", bus="usb.0", chardev="line", **{"always-plugged": True})
        wait_for("the port to be opened", lambda: source_is("line", "connected"))
        if turn == "plugged in":
            note(host.must("sh", "-c", "ls -l /dev/ttyUSB0 /dev/serial/by-id; dmesg | grep -i ftdi | tail -n 3"))
            found = owner("/dev/ttyUSB0")
            check("USB: the port belongs to dialout", found == "root:dialout 660", found)
            user = host.must("ps", "-o", "user=", "-p", str(pid)).strip()
            check("USB: the service reads it as its own user", user == "holdfast", user)
            fds = host.must("sh", "-c", f"ls -l /proc/{pid}/fd")
            check("USB: it is that device which it has open", "/dev/ttyUSB0" in fds)
        first = n + 1
        for _ in range(100):
            n += 1
            line.sendall(b'{"n":%d}\n' % n)
            time.sleep(0.02)
        got = wait_for_lines(first, n)
        check(f"USB: {turn}, its 100 lines come, each once and in order", got == list(range(first, n + 1)), f"{len(got)} came")
        began = time.monotonic()
        machine.ask_qemu("device_del", id="adapter")
        wait_for("the port to be missed", lambda: source_is("line", "unplugged"))
        check(f"USB: {turn}, then pulled: unplugged", True, f"after {time.monotonic() - began:.1f} s")
    check("USB: all of it in one process", host.main_pid() == pid)
    line.close()
    configure()
    host.must("systemctl", "reload", "holdfast")


def wait_for_lines(first, last):
    def got():
        return [n for n in proof.numbers_of("scale", of("readings")) if n >= first]

    try:
        wait_for("the lines", lambda: len(got()) >= last - first + 1, 60)
    except TimeoutError:
        pass
    return got()


def i2c():
    # A stub knows SMBus only, so that no reading can come of it; but to be refused the transfer, one has to have opened the bus.
    host.must("modprobe", "i2c-stub", "chip_addr=0x48")
    host.must("udevadm", "settle")
    path = "/dev/" + host.must("sh", "-c", "grep -l 'SMBus stub' /sys/class/i2c-dev/*/name").split("/")[4]
    configure(f'[sources.board]\ntype = "i2c"\nbus = "{path}"\ninterval = "1s"\n[[sources.board.sensors]]\ndriver = "lm75"\naddress = 0x48\n')
    host.must("systemctl", "reload", "holdfast")
    found = wait_for("the bus to be tried", state_of_bus)
    open_files = host.must("sh", "-c", f"ls -l /proc/{host.main_pid()}/fd")
    check("I2C: the service opens the bus, and asks the sensor", found == "device-errors" and path in open_files, found)
    closed = "/run/systemd/system/holdfast.service.d/ports.conf"
    write(closed, "")
    host.must("sh", "-c", "systemctl daemon-reload && systemctl restart holdfast")
    found = wait_for("the bus to be tried", state_of_bus)
    check("I2C: without ports.conf there is none for it", found == "unplugged", found)
    configure()
    host.must("sh", "-c", f"rm {closed} && systemctl daemon-reload && systemctl restart holdfast")


def state_of_bus():
    state = ((status() or {}).get("sources", {}).get("board") or {}).get("state")
    return None if state == "starting" else state


def clock():
    """A gateway without a battery for its clock and, at first, without a network that tells it the time."""
    machine.power_off()
    cloud.stop()
    machine.boot(clock="2000-01-01")
    host.wait_active()
    wait_for("the listener", lambda: source_is("direct", "connected"))
    now = status()
    check("clock: wrong at boot, and the status says so", now["clock"]["state"] == "unsynced", f"{now['time']}, {now['clock']}")
    sensors, began, start = Sensors("clock", 50), time.time(), host.cursor()
    wait_for("the cloud to be missed", lambda: status()["sinks"]["cloud"]["state"] == "retrying")
    # The batch that was tried stays as it is, whatever turns out later.
    fixed = sensors.sum("sent")
    sensors.wait_acknowledged(200)
    before = sensors.sum("acknowledged")
    host.must("python3", "/proof/synchronise.py", str(time.time()))
    host.wait_log(start, "it is known now when the machine was started")
    check("clock: right again, and the status says so", status()["clock"]["state"] == "synced", status()["time"])
    sensors.wait_acknowledged(200)
    cloud.start()
    sensors.check_arrived("clock", with_windows=False)
    ended, times = time.time(), {"unsynced": [], "corrected": [], "": []}
    for record in sensors.of("readings"):
        times[record.get("clock", "")].append(datetime.datetime.fromisoformat(record["received"]).timestamp())
    unsynced, corrected, right = map(len, times.values())
    check(
        "clock: what came before is corrected, but for a batch that had been tried; what came after needs no mark",
        unsynced <= fixed and unsynced + corrected >= before and right >= 200,
        f"{unsynced} unsynced, {corrected} corrected, {right} right",
    )
    check("clock: and all these have the time at which they were sent", all(began - 2 < at < ended + 2 for at in times["corrected"] + times[""]))


PARTS = [power_cuts, limits, usb_serial, i2c, clock]


def main(arguments):
    version = proof.run(arguments.program, "--version").stdout.strip()
    qemu = proof.run("qemu-system-x86_64", "--version").stdout.splitlines()[0]
    print(f"{version}, {qemu}, seed {arguments.seed}", flush=True)
    random.seed(arguments.seed)
    try:
        if proof.attempt(install, host):
            for part in PARTS:
                if proof.is_wanted(part, arguments.only):
                    proof.attempt(part, host)
    finally:
        cloud.stop()
        machine.kill()
    sys.exit(proof.sum_up("readings over I2C: the kernel has no bus to emulate that knows more than SMBus"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("only", nargs="*")
    arguments = parser.parse_args()
    # So that the machine and the receiver end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    machine = Machine("disk.img", "vmlinuz", "initrd.img", [LISTENER])
    host = proof.Host(machine.run)
    cloud = Receiver(arguments.program)
    main(arguments)

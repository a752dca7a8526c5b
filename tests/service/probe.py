"""What may whoever runs this do? Run in the sandbox of the service, and outside of it to compare. Writes JSON."""

import ctypes
import errno
import json
import mmap
import os
import socket
import tempfile
import time

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), "")


def attempt(action):
    """In a process of its own: what is allowed may not change what is tried next."""
    if os.fork() == 0:
        try:
            action()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    return errno.errorcode.get(code, str(code)) if code else "allowed"


def write(path):
    with open(path, "w") as file:
        file.write("x")
    os.unlink(path)


def read(path):
    with open(path, "rb") as file:
        file.read(1)


def opened(path):
    os.close(os.open(path, os.O_RDWR))


def open_serial_port():
    try:
        opened("/dev/ttyS0")
    except OSError as error:
        # Where no such chip is, its driver says so; but it was asked.
        if error.errno not in (errno.EIO, errno.ENXIO, errno.ENODEV):
            raise


def open_pty():
    master, slave = os.openpty()
    os.close(master)
    os.close(slave)


def set_clock():
    # Who may is not let: the clock is that of the whole machine, and setting it, even to what it shows, makes it count as unsynchronised.
    if capabilities() & CAP_SYS_TIME:
        return
    time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))


def capabilities():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))


def ask_clock():
    """adjtimex without any mode: 208 bytes on 64-bit machines, all zero."""
    state = ctypes.create_string_buffer(256)
    call("adjtimex", state)


def mount():
    call("mount", b"none", b"/mnt", b"tmpfs", 0, None)
    call("umount2", b"/mnt", 0)


def make_group():
    os.mkdir("/sys/fs/cgroup/probe")
    os.rmdir("/sys/fs/cgroup/probe")


def make_code():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def make_setuid():
    with tempfile.NamedTemporaryFile() as file:
        os.fchmod(file.fileno(), 0o4755)


CAP_SYS_TIME = 1 << 25
CLONE_NEWUSER = 0x10000000
REFUSED = {
    "/dev/fuse": lambda: opened("/dev/fuse"),
    "/dev/net/tun": lambda: opened("/dev/net/tun"),
    "reading /etc/shadow": lambda: read("/etc/shadow"),
    "writing to /usr": lambda: write("/usr/probe"),
    "writing to /etc": lambda: write("/etc/holdfast/probe"),
    "writing to /var/tmp of others": lambda: os.stat("/var/tmp/received"),
    "looking into homes": lambda: os.listdir("/root"),
    "setting the clock": set_clock,
    "environment of other processes": lambda: read("/proc/1/environ"),
    "mounting": mount,
    "namespaces of its own": lambda: call("unshare", CLONE_NEWUSER),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "raw packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "code that is made at run time": make_code,
    "set-user-id files": make_setuid,
    "changing its user": lambda: os.setuid(1),
    "port below 1024": lambda: socket.socket(socket.AF_INET).bind(("127.0.0.1", 1023)),
    "kernel settings": lambda: open("/proc/sys/kernel/hostname", "w").close(),
    "control groups": make_group,
}
NEEDED = {
    "it may read its configuration": lambda: read("/etc/holdfast/holdfast.toml"),
    "it may write its data": lambda: write(os.environ.get("STATE_DIRECTORY", "/tmp") + "/probe"),
    "it may use the network": lambda: socket.create_connection(("127.0.0.1", 9550)).close(),
    "it may open serial ports": open_serial_port,
    "it may open a terminal": open_pty,
    "it may ask whether the clock is kept": ask_clock,
    "it may tell one boot from another": lambda: read("/proc/sys/kernel/random/boot_id"),
    "it may tell one machine from another": lambda: read("/etc/machine-id"),
}

print(
    json.dumps(
        {
            "refused": {what: attempt(action) for what, action in REFUSED.items()},
            "needed": {what: attempt(action) for what, action in NEEDED.items()},
        }
    )
)

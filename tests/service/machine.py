"""The virtual machine: QEMU without acceleration, its disk, and a way to do something inside it."""

import json
import socket
import subprocess
import time
from pathlib import Path

from disk import Disk
from proof import wait_for

# Without KVM everything takes ten to twenty times as long, more on a busy machine.
BOOTS_WITHIN_S = 600
COMMAND_WITHIN_S = 300


class MachineOff(ConnectionError):
    """It ended by itself, or did not start."""

    def __str__(self):
        return "the machine is off; the newest console-*.txt and what QEMU said here may tell why"


class Lines:
    """A conversation in lines of JSON with one of QEMU's sockets."""

    def __init__(self, path, within):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(within)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def ask(self, question):
        try:
            self.socket.sendall(json.dumps(question).encode() + b"\n")
        except ConnectionError:
            raise MachineOff from None
        return self.next()

    def next(self):
        try:
            line = self.file.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise MachineOff
        return json.loads(line)


class Machine:
    """A machine with one disk, two processors and 1 GiB of memory, whose ports `forward` are reached from here through others."""

    def __init__(self, image, kernel, initrd, forward):
        self.kernel, self.initrd, self.forward = kernel, initrd, forward
        Path("disk.socket").unlink(missing_ok=True)
        self.disk = Disk(image, "disk.socket")
        self.qemu, self.ports, self.boots = None, {}, 0

    def start(self, clock="utc"):
        """Switches it on, with what its own clock shows then."""
        self.ports = {port: free_port() for port in self.forward}
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-:{port}" for port, here in self.ports.items())
        for name in ("hands", "qmp"):
            Path(f"{name}.socket").unlink(missing_ok=True)
        self.boots += 1
        # cache=writeback: the machine sees a disk with a cache, and each of its flushes comes through to ours. (writethrough would flush after
        # each write and so hide a flush that is missing; unsafe would leave out those that are there.) QEMU itself keeps nothing back.
        command = f"""qemu-system-x86_64 -name holdfast-proof -nodefaults -no-user-config -display none -no-reboot
            -machine pc -accel tcg,thread=multi -cpu max -smp 2 -m 1024 -rtc base={clock}
            -kernel {self.kernel} -initrd {self.initrd} -serial file:console-{self.boots}.txt
            -drive if=none,id=disk,format=raw,cache=writeback,file=nbd:unix:disk.socket
            -device virtio-blk-pci,drive=disk,write-cache=on
            -netdev user,id=net,ipv6=off{forwards} -device virtio-net-pci,netdev=net
            -device virtio-serial-pci -chardev socket,id=hands,path=hands.socket,server=on,wait=off
            -device virtserialport,chardev=hands,name=hands
            -device qemu-xhci,id=usb -qmp unix:qmp.socket,server=on,wait=off -append""".split()
        # The file system is to get along with what its journal holds: nothing looks it over at boot.
        command.append("root=/dev/vda rw console=ttyS0 quiet panic=-1 fsck.mode=skip net.ifnames=0")
        self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for("QEMU", lambda: self.qemu.poll() is not None or Path("qmp.socket").exists(), 60)

    def boot(self, clock="utc"):
        """Switches it on and waits until it is up; how many seconds that took."""
        began = time.monotonic()
        self.start(clock)
        self.hands = Lines("hands.socket", BOOTS_WITHIN_S)
        self.monitor = Lines("qmp.socket", 60)
        self.monitor.next()
        self.ask_qemu("qmp_capabilities")
        self.run("systemctl", "is-system-running", "--wait")
        self.hands.socket.settimeout(COMMAND_WITHIN_S)
        return time.monotonic() - began

    def run(self, *command):
        """What a command says inside, and its exit code."""
        code, said = self.hands.ask(command)
        return subprocess.CompletedProcess(command, code, said)

    def ask_qemu(self, command, **arguments):
        answer = self.monitor.ask({"execute": command, "arguments": arguments})
        while "event" in answer:
            answer = self.monitor.next()
        if "error" in answer:
            raise RuntimeError(f"QEMU, {command}: {answer['error']['desc']}")
        return answer["return"]

    def cut(self, chance_of_loss):
        """Cuts the power at once, or where the disk was told to; how many sectors were not flushed, and how many of them are lost."""
        self.disk.cut()
        self.kill()
        return self.disk.lose(chance_of_loss)

    def kill(self):
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()

    def power_off(self):
        """As one should."""
        self.run("systemctl", "poweroff", "--no-block")
        if self.qemu.wait(COMMAND_WITHIN_S) != 0:
            raise RuntimeError("QEMU failed")


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]

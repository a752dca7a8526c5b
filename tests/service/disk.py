"""A disk whose power can be cut: what was written since the last flush is then lost, or some of it.

QEMU reaches it as an NBD export. It is an image on the disk of this machine, and beside it, in memory, what the image held wherever something
was written and not flushed yet. A flush forgets that; a cut puts it back, sector by sector, all of it or as chance has it: a
disk with a cache of its own promises nothing about the order in which it empties that.
"""

import os
import random
import socket
import struct
import threading

SECTOR = 512
# Of NBD: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
GREETING = struct.Struct(">8s8sH")
OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")
FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPTION_ABORT, OPTION_GO = 2, 7
OPTION_REPLY_MAGIC, REPLY_ACK, REPLY_INFO, REPLY_UNSUPPORTED = 0x3E889045565A9, 1, 3, 0x80000001
INFO_EXPORT = 0
HAS_FLAGS, SEND_FLUSH = 1, 4
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
EINVAL = 22


class Disk:
    """Serves the image at `path` on the Unix socket `address`, to one machine after the other."""

    def __init__(self, path, address):
        self.image, self.size = os.open(path, os.O_RDWR), os.path.getsize(path)
        self.lock = threading.Lock()
        # Where something was written since the last flush, in this order, and what was there before.
        self.unflushed = []
        # Writes and flushes so far.
        self.requests = 0
        self.is_cut, self.cut_after = threading.Event(), None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(1)
        threading.Thread(target=self.serve, daemon=True).start()

    def arm(self, requests):
        """Cuts the power at the write or flush that comes after so many others; that one is not done any more."""
        with self.lock:
            self.cut_after = requests

    def cut(self):
        """From here on nothing is read, written or answered."""
        with self.lock:
            self.is_cut.set()

    def lose(self, chance):
        """Each sector that was not flushed is lost with this probability. How many there were, how many are lost.

        Only once nobody is connected any more. Then the power is back.
        """
        with self.lock:
            sectors = {}
            for offset, before in self.unflushed:
                for at in range(0, len(before), SECTOR):
                    # What was there first is what was flushed last.
                    sectors.setdefault(offset + at, before[at : at + SECTOR])
            lost = {offset: before for offset, before in sectors.items() if random.random() < chance}
            for offset, before in lost.items():
                os.pwrite(self.image, before, offset)
            self.unflushed.clear()
            self.cut_after = None
            self.is_cut.clear()
            return len(sectors), len(lost)

    def serve(self):
        while True:
            machine, _ = self.listener.accept()
            with machine:
                try:
                    if self.greet(machine):
                        while self.answer(machine):
                            pass
                except (ConnectionError, EOFError):
                    pass

    def greet(self, machine):
        machine.sendall(GREETING.pack(b"NBDMAGIC", b"IHAVEOPT", FIXED_NEWSTYLE | NO_ZEROES))
        receive(machine, 4)
        while True:
            _, option, length = OPTION.unpack(receive(machine, OPTION.size))
            receive(machine, length)

            def reply(kind, data=b"", option=option):
                machine.sendall(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

            if option == OPTION_GO:
                reply(REPLY_INFO, struct.pack(">HQH", INFO_EXPORT, self.size, HAS_FLAGS | SEND_FLUSH))
                reply(REPLY_ACK)
                return True
            if option == OPTION_ABORT:
                reply(REPLY_ACK)
                return False
            reply(REPLY_UNSUPPORTED)

    def answer(self, machine):
        """Does one request; false after the last one."""
        _, _, kind, handle, offset, length = REQUEST.unpack(receive(machine, REQUEST.size))
        data = receive(machine, length) if kind == WRITE else b""
        answer, error = b"", 0
        with self.lock:
            if kind in (WRITE, FLUSH):
                self.requests += 1
                if self.cut_after is not None:
                    self.cut_after -= 1
                    if self.cut_after < 0:
                        self.is_cut.set()
            if not self.is_cut.is_set():
                if kind == READ:
                    answer = os.pread(self.image, length, offset)
                elif kind == WRITE:
                    self.unflushed.append((offset, os.pread(self.image, length, offset)))
                    os.pwrite(self.image, data, offset)
                elif kind == FLUSH:
                    self.unflushed.clear()
                elif kind == DISCONNECT:
                    return False
                else:
                    error = EINVAL
        if not self.is_cut.is_set():
            machine.sendall(REPLY.pack(REPLY_MAGIC, error, handle) + answer)
        return True


def receive(machine, length):
    data = bytearray(length)
    view = memoryview(data)
    while view:
        got = machine.recv_into(view)
        if got == 0:
            raise EOFError
        view = view[got:]
    return bytes(data)

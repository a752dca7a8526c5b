"""A sensor that keeps what is not acknowledged: MQTT 3.1.1, QoS 1, numbered readings, each PUBACK written down."""

import json
import select
import socket
import struct
import threading
import time

CONNECT, CONNACK, PUBLISH, PUBACK = 0x10, 0x20, 0x32, 0x40
DUP = 0x08
PACKET_IDS = 65535
# What is not acknowledged yet; a sensor waits with the next ones then.
WINDOW = 20
PAUSE_S = 0.2


class Sensor(threading.Thread):
    """Publishes {"n": 1}, {"n": 2} and so on, at most `rate` a second, to where `address()` says that the agent is now.

    It connects again whenever the connection is lost, and sends again what was not acknowledged, with DUP.
    """

    def __init__(self, device, address, rate, journal):
        super().__init__(daemon=True)
        self.device, self.address, self.rate = device, address, rate
        self.journal = open(journal, "w")
        self.sent = self.acknowledged = self.sent_again = 0
        # By their packet ids, in their order.
        self.unacknowledged = {}
        self.is_over = threading.Event()
        self.start()

    def run(self):
        while not self.is_over.is_set() or self.unacknowledged:
            try:
                with self.connect() as line:
                    self.converse(line)
            except OSError:
                time.sleep(PAUSE_S)

    def connect(self):
        line = socket.create_connection(self.address(), timeout=30)
        try:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # No clean session, no keep-alive.
            line.sendall(packet(CONNECT, text("MQTT") + b"\x04\x00\x00\x00" + text(f"sensor-{self.device}")))
            welcome = b""
            while len(welcome) < 4:
                welcome += some(line)
            if welcome[0] != CONNACK or welcome[3] != 0:
                raise ConnectionError(f"refused: {welcome.hex()}")
        except BaseException:
            line.close()
            raise
        return line

    def converse(self, line):
        for packet_id, n in self.unacknowledged.items():
            line.sendall(self.publish(packet_id, n, DUP))
            self.sent_again += 1
        due, buffer = time.monotonic(), b""
        while not self.is_over.is_set() or self.unacknowledged:
            now = time.monotonic()
            may_send = not self.is_over.is_set() and len(self.unacknowledged) < WINDOW
            if may_send and now >= due:
                self.sent += 1
                packet_id = (self.sent - 1) % PACKET_IDS + 1
                self.unacknowledged[packet_id] = self.sent
                due = max(due + 1 / self.rate, now - 1)
                line.sendall(self.publish(packet_id, self.sent, 0))
            wait = max(0, due - time.monotonic()) if may_send else PAUSE_S
            if select.select([line], [], [], min(wait, PAUSE_S))[0]:
                buffer = self.take_acks(buffer + some(line))

    def publish(self, packet_id, n, flags):
        body = text(f"sensors/{self.device}/telemetry") + struct.pack(">H", packet_id) + json.dumps({"n": n}).encode()
        return packet(PUBLISH | flags, body)

    def take_acks(self, buffer):
        """Writes them down; what is left of the last one, which came in part."""
        whole = len(buffer) // 4 * 4
        for at in range(0, whole, 4):
            kind, _, packet_id = struct.unpack_from(">BBH", buffer, at)
            if kind != PUBACK:
                raise RuntimeError(f"not a PUBACK: {buffer[at:].hex()}")
            # One of a connection before may have been lost on its way and come again.
            n = self.unacknowledged.pop(packet_id, None)
            if n is not None:
                self.journal.write(f"{n}\n")
                self.acknowledged += 1
        self.journal.flush()
        return buffer[whole:]

    def stop(self, within):
        """How many there are, once all of them are acknowledged."""
        self.is_over.set()
        self.join(within)
        if self.is_alive():
            raise TimeoutError(f"{len(self.unacknowledged)} readings of {self.device} are not acknowledged after {within} s")
        self.journal.close()
        return self.sent


def text(value):
    return struct.pack(">H", len(value)) + value.encode()


def packet(kind, body):
    length, size = b"", len(body)
    while True:
        length += bytes([size % 128 | (0x80 if size >= 128 else 0)])
        size //= 128
        if size == 0:
            return bytes([kind]) + length + body


def some(line):
    data = line.recv(65536)
    if not data:
        raise ConnectionError("closed")
    return data

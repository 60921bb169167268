# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP proxy that misbehaves on demand, between QEMU and a memserver.

Theory of operation: each connection has two threads, one per direction, that
pass on whole messages (it knows that much of the protocol: where a message
ends).  Before a message is passed on, it goes through the faults in force at
that moment, which any thread may change:

    stall()        nothing passes until resume(); connections stay open
    cut()          all connections end (with a reset); new ones are accepted
    refuse()       cut(), and new ones end at once, until accept()
    delay(s)       every message comes that much later, in order
    garble(n)      the headers of the next n messages are spoiled
    rewrite(f)     f(direction, message) -> message
    be_full(yes)   every STORE is refused, as a full server does
"""

import random
import socket
import struct
import threading
import time

TO_SERVER, TO_CLIENT = "to-server", "to-client"

# Of libmemx/memx-protocol.h: the size of a header, and where in it the sizes
# of body and payload are.
HEADER_BYTES = {TO_SERVER: 40, TO_CLIENT: 64}
LENGTHS_AT = {TO_SERVER: 32, TO_CLIENT: 52}
OPCODE_AT, ERROR_AT, ID_AT = 4, 6, 8
OP_PING, OP_STORE, ERR_FULL = 8, 32, 7


def _reset(sock):
    """Closes with RST: the other side sees an error, not an orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                        struct.pack("ii", 1, 0))
        # Wakes a thread that is blocked in this socket.
        sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass
    sock.close()


def _receive(sock, count):
    data = bytearray(count)
    view = memoryview(data)
    while view:
        n = sock.recv_into(view)
        if n == 0:
            raise EOFError
        view = view[n:]
    return data


class Proxy:
    def __init__(self, target, seed=1, listen="127.0.0.1"):
        self.target = target
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._connections = set()
        self._refusing = False
        self._delay_s = 0.0
        self._garble = {TO_SERVER: 0, TO_CLIENT: 0}
        self._rewrite = None
        self._full = False
        self.accepted = 0
        self._listener = socket.create_server((listen, 0))
        self.address = f"{listen}:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    # --- faults

    def stall(self):
        self._open.clear()

    def resume(self):
        self._open.set()

    def cut(self):
        with self._lock:
            pairs, self._connections = self._connections, set()
        for pair in pairs:
            for sock in pair:
                _reset(sock)

    def refuse(self):
        self._refusing = True
        self.cut()

    def accept(self):
        self._refusing = False

    def delay(self, seconds):
        self._delay_s = seconds

    def garble(self, messages, direction=TO_CLIENT):
        with self._lock:
            self._garble[direction] = messages

    def garbled_all(self):
        return not any(self._garble.values())

    def rewrite(self, function):
        self._rewrite = function

    def be_full(self, yes):
        self._full = yes

    def close(self):
        self._refusing = True
        _reset(self._listener)
        self._open.set()
        self.cut()

    # --- passing on

    def _accept(self):
        host, port = self.target.rsplit(":", 1)
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                if self._refusing:
                    raise OSError("refusing")
                server = socket.create_connection((host, int(port)), 10)
                server.settimeout(None)
            except OSError:
                _reset(client)
                continue
            pair = (client, server)
            for sock in pair:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(pair)
            stores = set()
            for args in ((client, server, TO_SERVER, pair, stores),
                         (server, client, TO_CLIENT, pair, stores)):
                threading.Thread(target=self._pump, args=args,
                                 daemon=True).start()

    def _pump(self, source, sink, direction, pair, stores):
        try:
            while True:
                message = _receive(source, HEADER_BYTES[direction])
                message += _receive(source, sum(struct.unpack_from(
                    "<II", message, LENGTHS_AT[direction])))
                self._open.wait()
                if self._delay_s:
                    time.sleep(self._delay_s)
                if self._rewrite:
                    message = self._rewrite(direction, message)
                if self._full or stores:
                    message = self._refuse_store(direction, message, stores)
                self._spoil(direction, message)
                sink.sendall(message)
        except (OSError, EOFError):
            pass
        self._forget(pair)

    def _forget(self, pair):
        with self._lock:
            self._connections.discard(pair)
        for sock in pair:
            _reset(sock)

    def _refuse_store(self, direction, message, stores):
        """The server gets a PING instead, so that replies stay in order.
        @stores: the connection's ids of such requests."""
        opcode, = struct.unpack_from("<H", message, OPCODE_AT)
        number = bytes(message[ID_AT:ID_AT + 8])
        if direction == TO_SERVER and self._full and opcode == OP_STORE:
            stores.add(number)
            ping = bytearray(HEADER_BYTES[TO_SERVER])
            ping[:ID_AT + 8] = message[:ID_AT + 8]
            struct.pack_into("<H", ping, OPCODE_AT, OP_PING)
            return ping
        if direction == TO_CLIENT and number in stores:
            stores.remove(number)
            struct.pack_into("<HH", message, OPCODE_AT, OP_STORE, ERR_FULL)
        return message

    def _spoil(self, direction, message):
        """In one of the ways in which no message of a sane peer looks."""
        with self._lock:
            if not self._garble[direction]:
                return
            self._garble[direction] -= 1
            way = self._random.randrange(3)
        if way == 0:
            size = HEADER_BYTES[direction]
            message[:size] = self._random.randbytes(size)
        elif way == 1:
            struct.pack_into("<I", message, LENGTHS_AT[direction] + 4, 1 << 31)
        elif direction == TO_CLIENT:
            # An answer to a question that nobody asked.
            struct.pack_into("<Q", message, ID_AT, (1 << 63) | way)
        else:
            message[0] ^= 0xff


class Relay(Proxy):
    """For connections that do not speak our protocol: they can be stalled
    (or answers alone), cut and refused."""

    def __init__(self, target, **options):
        self._answers = threading.Event()
        self._answers.set()
        super().__init__(target, **options)

    def stall_answers(self):
        self._answers.clear()

    def close(self):
        self._answers.set()
        super().close()

    def _pump(self, source, sink, direction, pair, stores):
        try:
            while data := source.recv(1 << 16):
                self._open.wait()
                if direction == TO_CLIENT:
                    self._answers.wait()
                sink.sendall(data)
        except OSError:
            pass
        self._forget(pair)

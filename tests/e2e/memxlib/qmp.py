# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP client that can use the out-of-band channel.

A thread of its own reads, so that an out-of-band command gets its answer
while an ordinary one still waits for its own, and no event is lost.
"""

import json
import socket
import threading

from .wait import PATIENCE, Deadline, Failure, wait_until

LOGGED = 600    # characters of a message


class QmpError(Failure):
    """QEMU refused a command."""


class Qmp:
    def __init__(self, path, log, alive=lambda: True, seconds=20):
        self._log = log
        self._changed = threading.Condition()
        self._replies = {}
        self._events = []
        self._closed = False
        self._next_id = 0
        self._last = ""
        self._socket = self._connect(path, alive, seconds)
        self._file = self._socket.makefile("rb")
        self.version = self._greeting()["QMP"]["version"]["qemu"]
        threading.Thread(target=self._read, daemon=True).start()
        self.command("qmp_capabilities", enable=["oob"])

    @staticmethod
    def _connect(path, alive, seconds):
        def attempt():
            if not alive():
                raise Failure("QEMU ended before it answered QMP")
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
                return sock
            except OSError:
                sock.close()
                return None
        return wait_until("QEMU opens its QMP socket", attempt, seconds, 0.05)

    def _log_line(self, line):
        """Of long ones, the last is shown whole at the end."""
        text = line.decode().strip()
        self._log(f"qmp < {text[:LOGGED]}")
        self._last = text if len(text) > LOGGED else self._last

    def _greeting(self):
        """An event that happens while QEMU's monitor thread accepts the
        connection (RESUME, of a VM that starts by itself) comes before it."""
        for line in self._file:
            message = json.loads(line)
            if "QMP" in message:
                return message
            self._log_line(line)
            self._events.append(message)
        raise Failure("QEMU closed QMP without a greeting")

    def _read(self):
        try:
            for line in self._file:
                message = json.loads(line)
                self._log_line(line)
                with self._changed:
                    if "event" in message:
                        self._events.append(message)
                    else:
                        self._replies[message.get("id")] = message
                    self._changed.notify_all()
        except (OSError, ValueError):
            pass
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self):
        if self._last:
            self._log(f"qmp last < {self._last}")
            self._last = ""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

    def send(self, name, arguments=None, oob=False):
        """Sends a command; wait() with what is returned gets its answer."""
        with self._changed:
            self._next_id += 1
            number = self._next_id
        message = {"exec-oob" if oob else "execute": name, "id": number}
        if arguments:
            message["arguments"] = arguments
        line = json.dumps(message)
        self._log(f"qmp > {line}")
        self._socket.sendall(line.encode() + b"\n")
        return number

    def wait(self, number, seconds=20):
        def arrived():
            return number in self._replies or self._closed
        with self._changed:
            if not self._changed.wait_for(arrived, seconds * PATIENCE):
                raise Failure(f"no answer from QMP within {seconds} s")
            reply = self._replies.pop(number, None)
        if reply is None:
            raise Failure("QEMU closed QMP without an answer")
        if "error" in reply:
            raise QmpError(reply["error"]["desc"])
        return reply["return"]

    def command(self, name, seconds=20, oob=False, **arguments):
        """Arguments' underscores become hyphens."""
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        return self.wait(self.send(name, arguments, oob), seconds)

    def hmp(self, line, seconds=20):
        return self.command("human-monitor-command", seconds,
                            command_line=line)

    def events(self, name):
        with self._changed:
            return [e for e in self._events if e["event"] == name]

    def wait_event(self, name, seconds=30, nth=1):
        """Waits for the nth event of that name since the start."""
        deadline = Deadline(seconds)
        with self._changed:
            while True:
                found = [e for e in self._events if e["event"] == name]
                if len(found) >= nth:
                    return found[nth - 1].get("data", {})
                if self._closed:
                    raise Failure(f"QEMU ended before the event {name}")
                if deadline.passed:
                    raise Failure(f"event {name} did not come within "
                                  f"{seconds} s")
                self._changed.wait(deadline.left)

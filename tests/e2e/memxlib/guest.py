# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands in the guest, through the agent on its second serial port
(see tests/guest/agent.c)."""

import re
import socket
import threading
import time

from .wait import ALL, PATIENCE, Failure, wait_until

# Of memverify, for tests about something else than the order in which pages
# come back: where each page is compared once more at the end, chance takes
# many times as long.
IN_ORDER = "" if ALL else "--check-in-order"


class Job:
    """A command that runs in the guest."""

    def __init__(self, guest, command):
        self._guest = guest
        self.command = command
        self.lines = []
        self.times = []  # when each line came, of time.monotonic()
        self.status = None

    @property
    def running(self):
        return self.status is None

    def output(self):
        return "\n".join(self.lines)

    def wait_line(self, pattern, seconds=30):
        """Waits for a line that matches, from the first line on."""
        def look():
            for line in list(self.lines):
                match = re.search(pattern, line)
                if match:
                    return match
            if not self.running:
                raise Failure(f"'{self.command}' ended with {self.status} "
                              f"before '{pattern}':\n{self.output()}")
            return None
        return self._guest.wait_for(
            f"'{self.command}' prints '{pattern}'", look, seconds)

    def wait(self, seconds=60):
        """Waits for its end, which must be a success; returns its output."""
        self._guest.wait_for(f"'{self.command}' ends",
                             lambda: not self.running, seconds)
        if self.status != 0:
            raise Failure(f"'{self.command}' ended with {self.status} in the "
                          f"guest:\n{self.output()[-2000:]}")
        return self.output()


class Load:
    """memverify, running until finish(): reads and rewrites memory at
    random, and knows what must be there."""

    def __init__(self, guest, job):
        self._guest = guest
        self.job = job

    def _visits(self):
        return [int(m.group(1)) for m in
                (re.search(r"^progress .* checked=(\d+)", line)
                 for line in list(self.job.lines)) if m]

    def wait_progress(self, seconds=60):
        """Waits until pages were visited that had not been when called."""
        seen = len(self._visits())

        def look():
            if not self.job.running:
                raise Failure(f"memverify ended:\n{self.job.output()}")
            new = self._visits()[seen:]
            return new and new[-1] > new[0]
        self._guest.wait_for("memverify gets on", look, seconds)

    def check_no_mismatch(self):
        if "MISMATCH" in self.job.output():
            raise Failure(self.job.output())

    def finish(self, seconds=120):
        """Lets it compare every page once more, to its successful end."""
        self._guest.run("killall memverify")
        return self.job.wait(seconds)


class Connection:
    """One QEMU's side of the serial port."""

    def __init__(self, path, alive):
        def connect():
            if not alive():
                raise Failure("QEMU ended before the guest started")
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(path)
                return sock
            except OSError:
                sock.close()
                return None
        self.socket = wait_until("QEMU opens the guest's serial port",
                                 connect, 20, 0.05)
        self.ended = threading.Event()

    def received(self):
        """Blocks; b"" at the end."""
        try:
            return self.socket.recv(1 << 16)
        except OSError:
            return b""

    def shut_down(self):
        """What has arrived can still be read."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Guest:
    """A guest, wherever it runs: with follow() its jobs go on when it has
    migrated."""

    def __init__(self, path, log, alive=lambda: True):
        self._log = log
        self._changed = threading.Condition()
        self._jobs = {0: Job(self, "boot")}
        self._connections = []
        self._tail = b""
        self._current = None
        self.follow(path, alive)

    def follow(self, path, alive=lambda: True):
        """Listens to another QEMU, too: the one that the guest speaks
        through last is where it is."""
        connection = Connection(path, alive)
        with self._changed:
            self._connections.append(connection)
            self._current = self._current or connection
        threading.Thread(target=self._read, args=(connection,),
                         daemon=True).start()
        return self

    def _read(self, connection):
        while data := connection.received():
            if connection is not self._current:
                self._moved_to(connection)
            *lines, self._tail = (self._tail + data).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").rstrip("\r")
                self._log(f"guest < {text}")
                self._take(text)
        connection.ended.set()
        with self._changed:
            self._changed.notify_all()

    def _moved_to(self, connection):
        """The line that one QEMU began, the other one ends."""
        before = self._current
        before.shut_down()
        before.ended.wait(10)
        with self._changed:
            self._current = connection

    def _living(self):
        """The current one, or where the guest will be found."""
        living = [c for c in self._connections if not c.ended.is_set()]
        if self._current in living or not living:
            return self._current
        return living[-1]

    @property
    def _closed(self):
        return all(c.ended.is_set() for c in self._connections)

    def _take(self, text):
        match = re.match(r"(\d+)(?:=(\d+)$| (.*))", text)
        with self._changed:
            job = match and self._jobs.get(int(match.group(1)))
            if job:
                if match.group(2):
                    job.status = int(match.group(2))
                else:
                    job.times.append(time.monotonic())
                    job.lines.append(match.group(3))
            self._changed.notify_all()

    def wait_for(self, what, predicate, seconds):
        result = None

        def look():
            nonlocal result
            result = predicate()
            return result or self._closed
        with self._changed:
            if not self._changed.wait_for(look, seconds * PATIENCE):
                raise Failure(f"not within {seconds} s in the guest: {what}")
        if not result:
            raise Failure(f"QEMU ended while waiting in the guest: {what}")
        return result

    def wait_boot(self, seconds=90):
        self.wait_for("the guest boots",
                      lambda: not self._jobs[0].running, seconds)

    def rebooted(self, reset, seconds=90):
        """Calls reset() and waits for the guest to be up again."""
        with self._changed:
            self._jobs = {0: Job(self, "boot")}
        reset()
        self.wait_boot(seconds)

    def start(self, command):
        """Starts a command and returns its Job."""
        with self._changed:
            number = max(self._jobs) + 1
            job = self._jobs[number] = Job(self, command)
        self._log(f"guest > {number} {command}")
        self._living().socket.sendall(f"{number} {command}\n".encode())
        return job

    def run(self, command, seconds=60):
        """Runs a command to its successful end; returns its output."""
        return self.start(command).wait(seconds)

    def adopt(self, number, command):
        """A command that was started by who had the guest before us."""
        with self._changed:
            return self._jobs.setdefault(number, Job(self, command))

    def load(self, options="--percent 70", last=IN_ORDER):
        """last: how pages are compared at the end; visits are at random."""
        job = self.start(f"memverify --seconds 3600 {options} {last}")
        job.wait_line("^phase visit", 300)
        return Load(self, job)

    def is_alive(self, seconds=20):
        self.run("true", seconds)
        return True

    def close(self):
        for connection in self._connections:
            connection.shut_down()
            connection.socket.close()

# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs commands in the guest, through the agent on its second serial port
(see tests/guest/agent.c)."""

import re
import socket
import threading

from .wait import Failure, wait_until


class Job:
    """A command that runs in the guest."""

    def __init__(self, guest, command):
        self._guest = guest
        self.command = command
        self.lines = []
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

    def __init__(self, guest, options):
        self._guest = guest
        self.job = guest.start(f"memverify --seconds 3600 {options}")
        self.job.wait_line("^phase visit", 120)

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


class Guest:
    def __init__(self, path, log, alive=lambda: True):
        self._log = log
        self._alive = alive
        self._changed = threading.Condition()
        self._jobs = {0: Job(self, "boot")}
        self._closed = False

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
        self._socket = wait_until("QEMU opens the guest's serial port",
                                  connect, 20, 0.05)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for line in self._socket.makefile("rb"):
                text = line.decode(errors="replace").rstrip("\r\n")
                self._log(f"guest < {text}")
                self._take(text)
        except OSError:
            pass
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, text):
        match = re.match(r"(\d+)(?:=(\d+)$| (.*))", text)
        with self._changed:
            job = match and self._jobs.get(int(match.group(1)))
            if job:
                if match.group(2):
                    job.status = int(match.group(2))
                else:
                    job.lines.append(match.group(3))
            self._changed.notify_all()

    def wait_for(self, what, predicate, seconds):
        result = None

        def look():
            nonlocal result
            result = predicate()
            return result or self._closed
        with self._changed:
            if not self._changed.wait_for(look, seconds):
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
        self._socket.sendall(f"{number} {command}\n".encode())
        return job

    def run(self, command, seconds=60):
        """Runs a command to its successful end; returns its output."""
        return self.start(command).wait(seconds)

    def load(self, options="--percent 70"):
        return Load(self, options)

    def is_alive(self, seconds=20):
        self.run("true", seconds)
        return True

    def close(self):
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()

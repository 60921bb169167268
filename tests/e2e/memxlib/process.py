# SPDX-License-Identifier: GPL-2.0-or-later
"""Child processes that never outlive the test."""

import ctypes
import os
import re
import signal
import subprocess

from .wait import Failure, wait_until

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """A program whose output is kept in a log file."""

    def __init__(self, name, argv, log_path, env=None, pass_fds=(),
                 before_exec=None):
        self.name = name
        self.argv = [str(a) for a in argv]
        self.log_path = log_path

        def prepare():
            _die_with_parent()
            if before_exec:
                before_exec()

        with open(log_path, "ab") as log:
            log.write(f"$ {' '.join(self.argv)}\n".encode())
            log.flush()
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=env, pass_fds=pass_fds, preexec_fn=prepare)
        self.pid = self._popen.pid

    @property
    def exit_status(self):
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    @property
    def running(self):
        return self.exit_status is None

    def output(self):
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_output(self, pattern, seconds=10):
        """Waits for a line that matches and returns the match."""
        def look():
            running = self.running  # asked first: it may print, then end
            match = re.search(pattern, self.output(), re.M)
            if not match and not running:
                raise Failure(f"{self.name} ended with {self.exit_status}: "
                              f"{self.output()[-500:].strip()}")
            return match
        return wait_until(f"{self.name} says '{pattern}'", look, seconds)

    def wait_exit(self, seconds=10):
        wait_until(f"{self.name} ends", lambda: not self.running, seconds)
        return self.exit_status

    def signal(self, number):
        if self.running:
            os.kill(self.pid, number)

    def pause(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        self.signal(signal.SIGKILL)
        self._popen.wait(10)

    def end(self, seconds=5):
        """However it is, it is gone afterwards."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

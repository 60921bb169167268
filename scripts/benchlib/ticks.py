# SPDX-License-Identifier: GPL-2.0-or-later
"""When the guest's ticks arrived, by the host's clock.

bench/guest/tick.c writes a byte to QEMU's debug port every millisecond; each
QEMU has a socket for that.  A process of its own reads them, ahead of all
others on this machine, so that what it sees late was late.
"""

import array
import os
import select
import signal
import socket
import subprocess
import sys
import time


class Ticks:
    """Reads from the start until stop()."""

    def __init__(self, test, paths):
        self._process = subprocess.Popen(
            [sys.executable, os.path.realpath(__file__), *paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        test.cleanup(self.stop)
        self._times = None

    def stop(self):
        """Times of ticks in seconds of time.monotonic()."""
        if self._times is None:
            data = self._process.communicate()[0]
            self._times = [ns / 1e9 for ns in array.array("q", data)]
        return self._times


def gaps_ms(times, begin, end):
    """Between ticks that lie in [begin, end], or just before."""
    return [(later - earlier) * 1000
            for earlier, later in zip(times, times[1:])
            if begin <= later and earlier <= end]


def percentile(values, percent):
    if not values:
        return None
    values = sorted(values)
    return values[min(len(values) - 1, len(values) * percent // 100)]


def _connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def _read(paths):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    except OSError:
        os.nice(-20)
    poll = select.poll()
    sockets = {sock.fileno(): sock for sock in map(_connect, paths)}
    for fd in [*sockets, 0]:
        poll.register(fd, select.POLLIN)
    times = array.array("q")
    while True:
        for fd, _ in poll.poll():
            now = time.monotonic_ns()
            if fd == 0:
                # The other side closes it when it has seen enough.
                times.tofile(sys.stdout.buffer)
                return
            if sockets[fd].recv(4096):
                times.append(now)
            else:
                poll.unregister(fd)


if __name__ == "__main__":
    _read(sys.argv[1:])

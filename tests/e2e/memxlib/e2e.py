# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a test: its surroundings, its deadline, its end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from .cgroup import MemoryCgroup
from .memserver import Memserver
from .proxy import Proxy
from .swap import add_swap_file
from .vm import Vm
from .wait import Failure, Skip

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "../../.."))
BUILD = os.path.join(TOP, "build")


class Test:
    """What a test function gets: a maker of things that clean up after
    themselves, and a log."""

    def __init__(self, name, verbose=False):
        self.name = name
        self._verbose = verbose
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._cleanups = []
        self._explain = []
        self._servers = 0
        self.log_dir = os.path.join(
            os.environ.get("MEMX_LOGS") or os.path.join(BUILD, "e2e-logs"),
            name)
        shutil.rmtree(self.log_dir, ignore_errors=True)
        os.makedirs(self.log_dir)
        self._log = open(self.log_path("test.log"), "w", encoding="utf-8")
        # Not below build/: the path of a Unix socket is short.
        self.socket_dir = tempfile.mkdtemp(prefix="memx-")
        self.cleanup(shutil.rmtree, self.socket_dir, True)

    # --- keeping order

    def log(self, text):
        with self._lock:
            line = f"{time.monotonic() - self._began:8.3f} {text}\n"
            self._log.write(line)
            self._log.flush()
            if self._verbose:
                sys.stderr.write(line)

    def say(self, text):
        """A step of the test: shown and logged."""
        self.log(f"--- {text}")
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)

    def log_path(self, name):
        return os.path.join(self.log_dir, name)

    def cleanup(self, function, *args):
        """To be called at the end, in reverse order."""
        self._cleanups.append((function, args))

    def explain(self, function):
        """To be called if the test fails, before the clean-up."""
        self._explain.append(function)

    def failed(self):
        for function in self._explain:
            try:
                function()
            except Exception:
                self.log(f"no explanation: {traceback.format_exc()}")

    def close(self):
        """Once is enough, twice does no harm."""
        if self._log.closed:
            return
        while self._cleanups:
            function, args = self._cleanups.pop()
            try:
                function(*args)
            except Exception:  # the others must still be cleaned up
                self.log(f"clean-up failed: {traceback.format_exc()}")
        self._log.close()
        self._give_back()

    def _give_back(self):
        """Under sudo, logs belong to who called it: they delete them."""
        uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
        if os.geteuid() == 0 and uid and gid:
            for where, _, files in os.walk(self.log_dir):
                for name in [where] + [os.path.join(where, f) for f in files]:
                    os.chown(name, int(uid), int(gid))

    def inner(self, name):
        """A test within this one, with logs below its own; to be closed."""
        test = Test(os.path.join(self.name, name), self._verbose)
        self.cleanup(test.close)
        return test

    # --- programs and files

    def binary(self, name):
        # MEMX_BIN: programs of another build, while they are developed
        path = os.path.join(os.environ.get("MEMX_BIN")
                            or os.path.join(BUILD, "bin"), name)
        if not os.access(path, os.X_OK):
            raise Failure(f"{path} is missing: run scripts/build")
        return path

    def qemu(self):
        return self.binary("qemu-system-x86_64")

    def guest_file(self, name):
        path = os.path.join(BUILD, "guest", name)
        if not os.path.exists(path):
            raise Failure(f"{path} is missing: run scripts/build-guest")
        return path

    # --- the surroundings

    def memserver(self, name=None, **options):
        self._servers += 1
        return Memserver(self, name or f"server{self._servers}", **options)

    def memservers(self, count, **options):
        return [self.memserver(**options) for _ in range(count)]

    def proxy(self, server):
        """To be used in the place of the server it stands before."""
        proxy = Proxy(server.address)
        self.cleanup(proxy.close)
        return proxy

    def vm(self, **options):
        return Vm(self, **options)

    def memory_cgroup(self, limit_bytes, swap=False):
        cgroup = MemoryCgroup(f"memx-test-{os.getpid()}", limit_bytes, swap)
        self.cleanup(cgroup.remove)
        return cgroup

    def swap_file(self, mib):
        add_swap_file(self, mib)

    def disk(self, size="64M", name="disk", aio="threads"):
        """An empty raw image; returns -drive and -device arguments."""
        path = self.log_path(f"{name}.img")
        with open(path, "wb") as image:
            image.truncate({"M": 1 << 20, "G": 1 << 30}[size[-1]]
                           * int(size[:-1]))
        self.cleanup(os.unlink, path)
        return ["-drive", f"if=none,id={name},file={path},format=raw,"
                          f"cache=none,aio={aio}",
                "-device", f"virtio-blk-pci,drive={name}"]

    def run_qemu(self, *args, seconds=20):
        """For command lines that must fail: (exit status, output)."""
        argv = [self.qemu(), "-machine", "pc", "-accel", "tcg", "-nodefaults",
                "-display", "none", "-S", *args]
        self.log(" ".join(argv))
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=seconds,
                check=False)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"QEMU did not end within {seconds} s: "
                          f"{' '.join(args)}") from error
        self.log(f"-> {done.returncode}: {done.stdout}")
        return done.returncode, done.stdout


class _Ended(BaseException):
    """By a signal or the deadline."""


SIGNALS = (signal.SIGALRM, signal.SIGTERM, signal.SIGINT)


def _ignore_signals():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _on_signal(number, _frame):
    # Once: neither the report nor the clean-up must be interrupted.
    _ignore_signals()
    raise _Ended("the test's deadline passed" if number == signal.SIGALRM
                 else f"ended by signal {number}")


def main(function, seconds=240):
    """Runs the test; seconds is the deadline for all of it."""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    verbose = "-v" in sys.argv[1:]
    for number in SIGNALS:
        signal.signal(number, _on_signal)
    signal.alarm(seconds)
    test = Test(name, verbose)
    status = 1
    try:
        function(test)
        status = 0
    except Skip as reason:
        print(f"SKIP: {reason}")
        status = 77
    except Failure as failure:
        test.log(traceback.format_exc())
        print(f"FAIL: {failure}\n(logs: {test.log_dir})")
    except _Ended as reason:
        test.log(traceback.format_exc())
        where = traceback.extract_tb(sys.exc_info()[2])
        mine = [f for f in where if f.filename.endswith(name + ".py")]
        line = f" at line {mine[-1].lineno}" if mine else ""
        print(f"FAIL: {reason}{line}\n(logs: {test.log_dir})")
    except Exception:
        test.log(traceback.format_exc())
        traceback.print_exc()
        print(f"FAIL (logs: {test.log_dir})")
    _ignore_signals()
    if status == 1:
        test.failed()
    test.close()
    sys.stdout.flush()
    # Not sys.exit(): threads that read sockets need not be waited for.
    os._exit(status)

# SPDX-License-Identifier: GPL-2.0-or-later
"""A memserver, and what can happen to one."""

import fcntl
import json
import os
import random
import socket
import subprocess
import threading

from .process import Child
from .wait import PATIENCE, Failure, wait_until


def free_port():
    """Outside the range of ports that the kernel hands out by itself, so
    that a server can come back to its port later."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


class DescriptorStore:
    """What systemd does for a service with FileDescriptorStoreMax=: keeps
    descriptors that the service sends it, and hands them to the next one."""

    def __init__(self, path):
        self.path = path
        self._lock = threading.Lock()
        self._stored = []  # (name, descriptor)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self):
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 253)
            except OSError:
                return
            fields = dict(line.split("=", 1) for line in
                          data.decode().splitlines() if "=" in line)
            name = fields.get("FDNAME", "stored")
            with self._lock:
                if fields.get("FDSTOREREMOVE") == "1":
                    self._remove(name)
                elif fields.get("FDSTORE") == "1":
                    self._stored += [(name, fd) for fd in fds]
                    fds = []
            for fd in fds:
                os.close(fd)

    def _remove(self, name):
        for entry in [e for e in self._stored if e[0] == name]:
            os.close(entry[1])
            self._stored.remove(entry)

    def names(self):
        with self._lock:
            return [name for name, _ in self._stored]

    def handed_over(self):
        with self._lock:
            return list(self._stored)

    def close(self):
        self._socket.close()
        with self._lock:
            for _, fd in self._stored:
                os.close(fd)
            self._stored = []


class Memserver:
    def __init__(self, test, name, capacity="1G", key_file=None, store=False,
                 options=(), host="127.0.0.1", port=None, before_exec=None):
        """before_exec: enters the network namespace where host is."""
        self.test = test
        self.name = name
        self.capacity = capacity
        self.key_file = key_file
        self.options = list(options)
        self.before_exec = before_exec
        self.address = f"{host}:{port or free_port()}"
        self.control = os.path.join(test.socket_dir, f"{name}.sock")
        self.store = None
        if store:
            self.store = DescriptorStore(
                os.path.join(test.socket_dir, f"{name}.notify"))
            test.cleanup(self.store.close)
        self.process = None
        self.start()

    def _argv(self):
        argv = [self.test.binary("memserver"), "--listen", self.address,
                "--capacity", self.capacity, "--name", self.name,
                "--control", self.control]
        if self.key_file:
            argv += ["--key-file", self.key_file]
        return argv + self.options

    def _spawn(self, extra=()):
        env, fds, argv = dict(os.environ), [], self._argv() + list(extra)
        env.pop("NOTIFY_SOCKET", None)
        if self.store:
            env["NOTIFY_SOCKET"] = self.store.path
            stored = self.store.handed_over()
            if stored:
                env["LISTEN_FDS"] = str(len(stored))
                env["LISTEN_FDNAMES"] = ":".join(name for name, _ in stored)
                fds, argv = self._with_descriptors(
                    [fd for _, fd in stored], argv)
        child = Child(self.name, argv,
                      self.test.log_path(f"{self.name}.log"), env=env,
                      pass_fds=fds, before_exec=self.before_exec)
        self.test.cleanup(child.end)
        return child

    def _with_descriptors(self, stored, argv):
        """A command that runs argv with these descriptors as 3, 4, ...

        They are first copied above all these numbers, so that none is
        overwritten before it has moved."""
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100 + len(stored))
                for fd in stored]
        for fd in high:
            self.test.cleanup(os.close, fd)
        moves = " ".join(f"{3 + i}<&{fd} {fd}<&-"
                         for i, fd in enumerate(high))
        return high, ["bash", "-c", f'LISTEN_PID=$$ exec "$@" {moves}',
                      "bash"] + argv

    def start(self, extra=()):
        self.process = self._spawn(extra)
        self.process.wait_output(r"listening on (\S+)")

    def restart_with_pages(self):
        """As an upgrade does: a successor takes the pages over."""
        old = self.process
        self.start(["--take-over", self.control])
        old.wait_exit(20)

    def crash_and_restart(self):
        """As systemd does after a crash: pages come back from its store."""
        self.process.kill()
        self.start()

    def restart_empty(self):
        self.process.kill()
        self.start()

    def pause(self):
        self.process.pause()

    def resume(self):
        self.process.resume()

    def kill(self):
        self.process.kill()

    def end(self):
        self.process.end()

    # --- memxctl

    def memxctl(self, *words, succeed=True, seconds=20):
        argv = [self.test.binary("memxctl"), words[0],
                "--control", self.control, *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True,
                              timeout=seconds * PATIENCE, check=False)
        self.test.log(f"{' '.join(argv)} -> {done.returncode}: "
                      f"{(done.stdout + done.stderr).strip()[:2000]}")
        if succeed and done.returncode != 0:
            raise Failure(f"memxctl {' '.join(words)}: {done.stderr.strip()}")
        return done

    def status(self):
        return json.loads(self.memxctl("status", "--json").stdout)

    def spaces(self):
        return self.status()["spaces"]

    def orphans(self):
        return [space for space in self.spaces()
                if space["state"] == "orphaned"]

    def held_bytes(self):
        return sum(space["held_bytes"] for space in self.spaces())

    def wait_spaces(self, what, predicate, seconds=20):
        """Waits until predicate(list of spaces) is true; returns the list."""
        def look():
            spaces = self.spaces()
            return predicate(spaces) and (spaces or True)
        return wait_until(f"{self.name}: {what}", look, seconds)

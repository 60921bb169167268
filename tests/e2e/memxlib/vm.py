# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU with the Linux guest of scripts/build-guest."""

import os
import re
import subprocess

from . import stuck
from .guest import Guest
from .process import Child
from .qmp import Qmp
from .wait import check, wait_until

# "rep movsb" and "rep stosb" are what a modern CPU does best and an emulated
# one worst: without them the guest's kernel and libc copy in other ways.
TCG_CPU = "max,-erms,-fsrm"

TOP = os.path.realpath(os.path.join(os.path.dirname(__file__), "../../.."))
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
KERNEL_ARGS = ("console=ttyS0 quiet panic=-1 no_timer_check mitigations=off "
               "nowatchdog memhp_default_state=online cryptomgr.notests")


def size_bytes(text):
    """512M -> 536870912"""
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", str(text)).groups()
    return int(number) * UNITS[unit]


def memx_object(name, size, local, servers, **options):
    """The value of -object.  Servers: anything with an address, or text."""
    words = ["memory-backend-memx", f"id={name}", f"size={size}",
             f"local-size={local}"]
    words += [f"servers.{i}={getattr(server, 'address', server)}"
              for i, server in enumerate(servers)]
    words += [f"{key.replace('_', '-')}={value}"
              for key, value in options.items()]
    return ",".join(words)


def best_accel():
    """KVM, if it does not only exist but runs guests; and why if not."""
    done = subprocess.run([os.path.join(TOP, "scripts/kvm-works")],
                          capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return "kvm", "KVM"
    return "tcg,thread=multi,tb-size=64", f"TCG ({done.stderr.strip()})"


class Vm:
    """local=None: ordinary memory.  memx: further options of the backend,
    with underscores for hyphens.  memory: arguments instead of all that.
    source: the VM that is going to migrate here, whose guest this is then;
    incoming: it is on another host, and no Vm of ours.
    """

    def __init__(self, test, size="512M", local=None, servers=(), memx=None,
                 memory=None, cpus=2, accel="tcg,thread=multi", extra=(),
                 balloon=None, kernel_args="", name="vm", wait_boot=True,
                 before_exec=None, source=None, incoming=False,
                 initrd="initramfs"):
        self.test = test
        self.name = name
        self.closed = False
        qmp_path = os.path.join(test.socket_dir, f"{name}.qmp")
        guest_path = os.path.join(test.socket_dir, f"{name}.guest")
        if memory is None:
            memory = ["-m", size]
            if local:
                memory += ["-machine", "memory-backend=pc.ram", "-object",
                           memx_object("pc.ram", size, local, servers,
                                       **(memx or {}))]
        argv = [test.qemu(), "-name", f"{test.name}-{name}", "-machine", "pc",
                "-accel", accel, "-smp", str(cpus),
                "-cpu", "host" if accel.startswith("kvm") else TCG_CPU,
                "-nodefaults", "-display", "none", "-no-reboot",
                "-kernel", test.guest_file("vmlinuz"),
                "-initrd", test.guest_file(initrd),
                "-append", f"{KERNEL_ARGS} {kernel_args}",
                "-chardev", "file,id=console,path="
                + test.log_path(f"{name}-console.log"),
                "-serial", "chardev:console",
                "-chardev", f"socket,id=agent,path={guest_path},"
                            "server=on,wait=off",
                "-serial", "chardev:agent",
                "-qmp", f"unix:{qmp_path},server=on,wait=off",
                *memory, *extra]
        if balloon is not None:
            argv += ["-device", f"virtio-balloon-pci{balloon}"]
        if source or incoming:
            argv += ["-incoming", "defer"]
        self.process = Child(name, argv, test.log_path(f"{name}.log"),
                             before_exec=before_exec)
        test.cleanup(self.end)
        self.qmp = Qmp(qmp_path, test.log, lambda: self.process.running)
        test.cleanup(self.qmp.close)
        test.explain(self.explain)
        def alive():
            return self.process.running
        if source:
            self.guest = source.guest.follow(guest_path, alive)
            return
        self.guest = Guest(guest_path, test.log, alive)
        test.cleanup(self.guest.close)
        if wait_boot and not incoming:
            self.guest.wait_boot()

    # --- what QEMU says

    def explain(self):
        """For the log of a test that failed."""
        if self.process.running:
            for line in stuck.lines(self.process.pid):
                self.test.log(f"{self.name}: {line}")
            self.test.log(f"{self.name}: {self.memx(oob=True, seconds=10)}")

    def check_never_stopped(self):
        for event in ("STOP", "MEMX_STALLED", "MEMX_BUG"):
            check(not self.qmp.events(event), f"the VM had an event {event}")

    def status(self):
        return self.qmp.command("query-status")["status"]

    def wait_status(self, status, seconds=30):
        wait_until(f"the VM's status is {status}",
                   lambda: self.status() == status, seconds)

    def memx(self, oob=False, seconds=20):
        """query-memx: a list with one dictionary per backend."""
        return self.qmp.command("query-memx", seconds, oob)

    def backend(self, name="pc.ram", oob=False):
        for backend in self.memx(oob):
            if backend["id"] == name:
                return backend
        check(False, f"query-memx does not list {name}")
        return None

    def wait_backend(self, what, predicate, seconds=30, name="pc.ram",
                     oob=False):
        """Waits until predicate(what query-memx says of a backend)."""
        wait_until(what, lambda: predicate(self.backend(name, oob)), seconds)

    def set_local_size(self, size, backend="pc.ram"):
        self.qmp.command("qom-set", path=f"/objects/{backend}",
                         property="local-size", value=size_bytes(size))

    def set_servers(self, servers, backend="pc.ram"):
        self.qmp.command("qom-set", path=f"/objects/{backend}",
                         property="servers",
                         value=[server.address for server in servers])

    def servers(self, backend="pc.ram"):
        return self.qmp.command("qom-get", path=f"/objects/{backend}",
                                property="servers")

    def pause(self):
        self.qmp.command("stop")

    def resume(self):
        self.qmp.command("cont")

    def quit(self, seconds=20):
        """The orderly way out."""
        self.qmp.command("quit")
        return self.process.wait_exit(seconds)

    def kill(self):
        self.process.kill()

    def end(self):
        self.process.end()

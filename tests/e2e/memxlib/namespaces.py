# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces of our own, which end with us however we end.

Theory of operation.  own_namespaces() forks twice and returns in the
grandchild:

    outside     waits, and hands signals on
      init      process 1 of a PID namespace, with mounts and a network of its
                own.  Adopts and reaps what daemons leave to it (libvirt waits
                until a QEMU that it ended is really gone)
        we      where the caller goes on

When we end, init ends; when init ends, the kernel kills whatever is left in
the PID namespace, daemons included, and waits for it; with the last process
the mounts and the network are gone.  Should outside be killed, init is, too.
"""

import ctypes
import os
import signal
import subprocess

PR_SET_PDEATHSIG = 1
CLONE_NEWNS = 0x00020000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def set_namespaces(pid, kinds):
    """Enters those of a process.  kinds: names in /proc/PID/ns."""
    fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
           for kind in kinds]
    for fd in fds:
        _check(_libc.setns(fd, 0), "setns")
        os.close(fd)


def _fork():
    """Returns in the child, which dies with its parent.  The parent hands
    signals on to it, reaps whatever else becomes its own, and ends as the
    child does."""
    child = 0

    def hand_on(number, _frame):
        if not child:
            os._exit(128 + number)
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass
    for number in SIGNALS:
        signal.signal(number, hand_on)
    child = os.fork()
    if child == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    while True:
        pid, status = os.wait()
        if pid == child:
            status = os.waitstatus_to_exitcode(status)
            os._exit(status if status >= 0 else 128 - status)


def _mount(source, target, flags):
    _check(_libc.mount(source.encode(), target.encode(), None,
                       ctypes.c_ulong(flags), None), f"mount on {target}")


def _leave_chroot():
    """Makes the root that we were started in that of our mount namespace:
    who enters a mount namespace gets the namespace's root."""
    ours = os.open("/", os.O_PATH | os.O_CLOEXEC)
    set_namespaces("self", ["mnt"])
    if not os.path.samestat(os.fstat(ours), os.stat("/")):
        os.fchdir(ours)
        path = os.getcwd()
        _mount("none", "/", MS_REC | MS_PRIVATE)
        _mount(path, path, MS_BIND | MS_REC)
        os.chdir(path)
        _mount(".", "/", MS_MOVE)
        os.chroot(".")
    os.close(ours)


def own_namespaces():
    """Raises OSError where they can't be had.  Call it before there are
    threads."""
    _check(_libc.unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET),
           "unshare")
    _fork()
    cwd = os.getcwd()
    _leave_chroot()
    os.chdir(cwd)
    for command in (["mount", "--make-rprivate", "/"],
                    ["mount", "-t", "proc", "proc", "/proc"],
                    ["ip", "link", "set", "lo", "up"]):
        subprocess.run(command, check=True)
    _fork()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)

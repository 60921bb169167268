#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a script in virtual hosts that have real KVM.

  scripts/lab run [--kernel 6.12|7.3|idle|idle-7.3] [--hosts N] [--memory MIB]
                  [--cpus N] [--scratch DIR] [--timeout SECONDS]
                  SCRIPT [ARGUMENT...]

SCRIPT runs as root in a host whose root is this machine's, with the same
paths: what it reads is the machine's, what it writes is the host's own and
gone with it, except below $LAB_SCRATCH, which both share.  Its output and its
status are this program's.  With several hosts each runs SCRIPT, and lines
of output begin with the number of the host.  Apart from SCRIPT's, the status
is 77 where this machine lacks what the lab needs, 124 after the time-out and
125 if the lab failed.
"""

# Theory of operation
#
# A host is a QEMU that emulates (TCG) a CPU with AMD's virtualization, which
# is slow, but in which KVM is the real one.  Its init (lablib/init) finds the
# job, a piece of shell, by a path on the kernel's command line, and has three
# virtio ports: "output" and "errors" carry what the job prints; on "control"
# come the lines "up" and "exit STATUS".  Each port is a socket pair, so the
# end of QEMU is seen as its end.
#
# One thread does it all, in a loop of poll().  Hosts get PR_SET_PDEATHSIG, and
# where there are several, this program moves to a network namespace of its
# own, without a name, and makes a bridge there: however it ends, nothing of
# it stays.
#
# QEMU's emulation with several threads is not exact where one CPU changes code
# that another one runs, as a kernel does while it boots: about one boot in
# fifty ends in a panic.  A host that ends before it is up is started again.

import argparse
import ctypes
import os
import pathlib
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
RUNS = BUILD / "lab/runs"
KEPT_RUNS = 5
PR_SET_PDEATHSIG = 1
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
NETWORK = "10.77.0."

BOOT_SECONDS = 300
BOOT_ATTEMPTS = 3
STATUS_LACKING, STATUS_TIMEOUT, STATUS_BROKEN = 77, 124, 125
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PORTS = ("output", "errors", "control")
KERNEL_ARGUMENTS = ("console=ttyS0 quiet panic=1 no_timer_check "
                    "mitigations=off nowatchdog")

_libc = ctypes.CDLL(None)


class Broken(Exception):
    """Why the script did not come to its end."""

    def __init__(self, message, status=STATUS_BROKEN):
        super().__init__(message)
        self.status = status


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def escaped(path):
    """As the value of an option of QEMU's."""
    return str(path).replace(",", ",,")


def find_qemu():
    """Any QEMU will do for the hosts; ours is there where tests run."""
    for path in (os.environ.get("MEMX_LAB_QEMU"),
                 BUILD / "bin/qemu-system-x86_64",
                 shutil.which("qemu-system-x86_64")):
        if path and os.access(path, os.X_OK):
            return path
    raise Broken("there is no qemu-system-x86_64: run scripts/build",
                 STATUS_LACKING)


class Host:
    def __init__(self, number, options, run_dir, scratch):
        self.number = number
        self.status = None      # of the job
        self.up = False
        self.rest = {name: b"" for name in PORTS}
        self.console = run_dir / f"console-{number}.log"
        self.qemu_log = run_dir / f"qemu-{number}.log"
        self.job = run_dir / f"job-{number}"
        self.address = NETWORK + str(number) if options.hosts > 1 else ""
        self.options, self.scratch = options, scratch
        self.attempts = 0
        self._write_job(options, scratch)
        self.start()

    def start(self):
        self.attempts += 1
        self.sockets, theirs = {}, {}
        for name in PORTS:
            self.sockets[name], theirs[name] = socket.socketpair()
            self.sockets[name].setblocking(False)
        argv = self._argv(self.options, self.scratch, theirs)
        with open(self.qemu_log, "wb") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[s.fileno() for s in theirs.values()],
                start_new_session=True, preexec_fn=_die_with_parent)
        for end in theirs.values():
            end.close()

    def _write_job(self, options, scratch):
        kernel = BUILD / "lab" / options.kernel
        modules = kernel / "modules"
        variables = {
            "LAB_HOST": self.number, "LAB_HOSTS": options.hosts,
            "LAB_KERNEL": options.kernel, "LAB_SCRATCH": scratch,
            "LAB_ADDRESS": self.address, "LAB_NETWORK": NETWORK,
            "LAB_MODULES": modules.resolve() if modules.exists() else "",
            "HOME": os.environ.get("HOME", "/root"), "LC_ALL": "C.UTF-8"}
        variables.update((name, value) for name, value in os.environ.items()
                         if name.startswith(("MEMX_", "SUDO_")))
        lines = [f"export {name}={shlex.quote(str(value))}"
                 for name, value in variables.items()]
        argv = [*options.command]
        if os.path.isfile(argv[0]):
            argv[0] = os.path.abspath(argv[0])
        command = (f"cd {shlex.quote(os.getcwd())} && "
                   "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
                   f":/sbin:/bin exec {shlex.join(argv)}")
        lines.append(f"lab_job() {{ exec chroot /mnt /bin/sh -c "
                     f"{shlex.quote(command)}; }}")
        self.job.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _argv(self, options, scratch, ends):
        kernel = BUILD / "lab" / options.kernel
        argv = [find_qemu(), "-name", f"lab{self.number}", "-machine", "q35",
                "-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt",
                "-smp", str(options.cpus), "-m", f"{options.memory}M",
                "-nodefaults", "-display", "none", "-no-reboot",
                "-serial", f"file:{self.console}",
                "-kernel", kernel / "vmlinuz",
                "-initrd", kernel / "initramfs",
                "-append", f"{KERNEL_ARGUMENTS} lab.job={self.job}",
                "-virtfs", "local,path=/,mount_tag=machine,readonly=on,"
                "security_model=none,multidevs=remap",
                "-virtfs", f"local,path={escaped(scratch)},"
                "mount_tag=scratch,security_model=none,multidevs=remap",
                "-device", "virtio-serial-pci"]
        for name, end in ends.items():
            argv += ["-chardev", f"socket,id={name},fd={end.fileno()}",
                     "-device", f"virtserialport,chardev={name},name={name}"]
        if self.address:
            argv += ["-netdev", f"tap,id=net,ifname=tap{self.number},"
                     "script=no,downscript=no",
                     "-device", "virtio-net-pci,netdev=net,host_mtu=9000,"
                     f"mac=52:54:00:77:00:{self.number:02x},romfile="]
        return argv

    def fail(self, what, status=STATUS_BROKEN):
        """The console's end is what says why."""
        lines = []
        for path in self.qemu_log, self.console:
            text = path.read_text(errors="replace") if path.exists() else ""
            lines += text.splitlines()[-15:]
        shown = "".join(f"\n    | {line}" for line in lines)
        raise Broken(f"host {self.number} {what}{shown}\n"
                     f"its console: {self.console}", status)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def enter_own_network():
    """Root makes a network namespace; others one of users, too, where the
    kernel lets them."""
    uid, gid = os.geteuid(), os.getegid()
    if _libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if uid else 0)):
        raise Broken("several hosts need a network namespace, which user "
                     f"{uid} cannot make here: run it as root",
                     STATUS_LACKING)
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"),
                           ("gid_map", f"0 {gid} 1")):
            pathlib.Path("/proc/self", name).write_text(text, encoding="ascii")


def make_bridge(count):
    def ip(*words):
        done = subprocess.run(["ip", *words], check=False, text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise Broken(f"ip {' '.join(words)}: {done.stdout.strip()}")
    ip("link", "set", "lo", "up")
    ip("link", "add", "lab", "mtu", "9000", "type", "bridge")
    ip("link", "set", "lab", "up")
    for number in range(1, count + 1):
        ip("tuntap", "add", f"tap{number}", "mode", "tap")
        ip("link", "set", f"tap{number}", "mtu", "9000", "master", "lab",
           "up")


class Run:
    def __init__(self, options):
        self.options = options
        self.hosts = []
        self.directory = RUNS / str(os.getpid())
        self.succeeded = False  # so nobody will want to know more
        self.selector = selectors.DefaultSelector()

    def __enter__(self):
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        if " " in str(self.directory):
            raise Broken(f"the path {self.directory} has a space in it, "
                         "which a kernel's command line cannot have")
        return self

    def __exit__(self, *_how):
        for host in self.hosts:
            host.end()
        if self.succeeded:
            shutil.rmtree(self.directory, ignore_errors=True)
        give_back()

    def start(self):
        scratch = self.options.scratch
        if scratch is None:
            scratch = self.directory / "scratch"
            scratch.mkdir()
        scratch = pathlib.Path(scratch).resolve()
        if self.options.hosts > 1:
            enter_own_network()
            make_bridge(self.options.hosts)
        for number in range(1, self.options.hosts + 1):
            host = Host(number, self.options, self.directory, scratch)
            self.hosts.append(host)
            self._listen(host)

    def _listen(self, host):
        for name in PORTS:
            self.selector.register(host.sockets[name], selectors.EVENT_READ,
                                   (host, name))

    def watch(self):
        """Until host 1 is done, or another has failed; its status."""
        began = time.monotonic()
        boot_end = began + BOOT_SECONDS
        end = began + self.options.timeout
        while True:
            now = time.monotonic()
            for host in self.hosts:
                if host.up:
                    continue
                if now >= boot_end:
                    host.fail(f"was not up within {BOOT_SECONDS} s")
            if now >= end:
                late = next(h for h in self.hosts if h.status is None)
                late.fail("was not done within "
                          f"{self.options.timeout} s", STATUS_TIMEOUT)
            for key, _ in self.selector.select(1):
                self._read(*key.data)
            for host in self.hosts:
                if host.status or (host.number == 1
                                   and host.status is not None):
                    return host.status

    def _read(self, host, name):
        try:
            data = host.sockets[name].recv(1 << 16)
        except BlockingIOError:
            return
        if data:
            self._take(host, name, data)
            return
        if name != "control" or host.status is not None:
            self.selector.unregister(host.sockets[name])
            return
        host.end()
        if host.up:
            host.fail("ended before its job")
        if host.attempts == BOOT_ATTEMPTS:
            host.fail("ended before it was up")
        for end in host.sockets.values():
            if end in self.selector.get_map():
                self.selector.unregister(end)
            end.close()
        host.start()
        self._listen(host)

    def _take(self, host, name, data):
        if name == "control" or self.options.hosts > 1:
            *lines, host.rest[name] = (host.rest[name] + data).split(b"\n")
        if name == "control":
            for line in lines:
                self._control(host, line.decode())
            return
        stream = sys.stdout.buffer if name == "output" else sys.stderr.buffer
        if self.options.hosts > 1:
            data = b"".join(b"%d| %s\n" % (host.number, line)
                            for line in lines)
        stream.write(data)
        stream.flush()

    def _control(self, host, line):
        if line == "up":
            host.up = True
        elif line.startswith("exit "):
            self._drain(host)
            host.status = int(line[5:])

    def _drain(self, host):
        """What was printed before the exit is here already."""
        for name in "output", "errors":
            while True:
                try:
                    data = host.sockets[name].recv(1 << 16)
                except BlockingIOError:
                    break
                if not data:
                    break
                self._take(host, name, data)
            if host.rest[name]:
                self._take(host, name, b"\n")


def give_back():
    """Under sudo, what lies in build/ belongs to who called it."""
    uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if os.geteuid() == 0 and uid and gid:
        for where, _, files in os.walk(RUNS.parent):
            for name in [where] + [os.path.join(where, f) for f in files]:
                os.chown(name, int(uid), int(gid), follow_symlinks=False)


def prune():
    """Of the runs that have ended, the last few are kept."""
    try:
        runs = sorted(RUNS.iterdir(), key=lambda p: p.stat().st_mtime)
    except FileNotFoundError:
        return
    ended = [run for run in runs if not os.path.exists(f"/proc/{run.name}")]
    for run in ended[:-KEPT_RUNS]:
        shutil.rmtree(run, ignore_errors=True)


def available_mib():
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) >> 10
    return 0


def parse():
    parser = argparse.ArgumentParser(
        prog="scripts/lab run", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=("6.12", "7.3", "idle", "idle-7.3"),
                        default=os.environ.get("MEMX_LAB_KERNEL", "7.3"),
                        help="default: $MEMX_LAB_KERNEL or 7.3")
    parser.add_argument("--hosts", type=int, default=1, metavar="N")
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB",
                        help="of each host (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N",
                        help="of each host (default: %(default)s)")
    parser.add_argument("--scratch", metavar="DIR",
                        help="the folder that is $LAB_SCRATCH (default: one "
                             "that is removed after a success)")
    parser.add_argument("--timeout", type=int, default=600,
                        metavar="SECONDS",
                        help="for all of it (default: %(default)s); the "
                             f"status is {STATUS_TIMEOUT} then")
    parser.add_argument("command", nargs=argparse.REMAINDER,
                        metavar="SCRIPT [ARGUMENT...]")
    options = parser.parse_args()
    if not options.command:
        parser.error("which SCRIPT?")
    if not 1 <= options.hosts <= 9:
        parser.error("--hosts: from 1 to 9")
    return options


def check_machine(options):
    need = options.hosts * (options.memory + 200)
    have = available_mib()
    if have < need:
        raise Broken(f"{options.hosts} hosts of {options.memory} MiB need "
                     f"{need} MiB of memory; {have} MiB are available here",
                     STATUS_LACKING)


def fetch_kernel(kernel):
    done = subprocess.run([TOP / "scripts/fetch-lab-kernel", kernel],
                          stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.DEVNULL)
    if done.returncode:
        # It has said why, and the last line tells a test's reason to skip.
        sys.exit(STATUS_LACKING)


def on_signal(number, _frame):
    # Once: what ends the hosts is not interrupted.
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Broken("ended by " + signal.Signals(number).name, 128 + number)


def main():
    options = parse()
    for number in SIGNALS:
        signal.signal(number, on_signal)
    prune()
    try:
        check_machine(options)
        fetch_kernel(options.kernel)
        with Run(options) as run:
            run.start()
            status = run.watch()
            run.succeeded = status == 0
    except Broken as reason:
        print(f"lab: {reason}", file=sys.stderr, flush=True)
        return reason.status
    except BrokenPipeError:
        # Nobody reads what the script says, so nobody wants it to go on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


if __name__ == "__main__":
    sys.exit(main())

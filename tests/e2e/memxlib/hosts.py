# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts with libvirt's daemons, and hosts with memory servers.

    from memxlib import hosts

    def test(t):
        network = hosts.Network(t)
        ...
    hosts.main(test)

A host is a network, mount and UTS namespace: it has an address, a name, and
/run, /etc/libvirt, /var/{lib,cache,log}/libvirt of its own.  All hosts know
each other by name.  They are in namespaces.own_namespaces(): nothing of them
is seen outside, and nothing of them stays.
"""

import os
import stat
import subprocess
import sys

from . import e2e
from .namespaces import own_namespaces, set_namespaces
from .memserver import Memserver
from .process import Child
from .wait import PATIENCE, Failure, Skip, wait_until

NETWORK = "192.0.2."
NUMBERS = {"host1": 1, "host2": 2, "mem1": 11, "mem2": 12}
# Debian's number for its user libvirt-qemu; it need not exist.
QEMU_UID = 64055
KEY_SECRET = "7b9ac51d-9f33-4f6c-b4d2-6d656d786b79"
DAEMONS = ("virtqemud", "virtsecretd", "virtproxyd")

# What a host sees: this machine, but for some folders of its own.  Arguments:
# name, file with all hosts' names, folders for logs and for libvirt's cache,
# "yes" to hide KVM (libvirt looks for the device), and a folder that QEMU's
# user is to reach though it may not enter the one above it ("" and "" if that
# is no problem).
VIEW = r"""
set -e
name=$1 names=$2 logs=$3 cache=$4 hide_kvm=$5 reach=$6 closed=$7
hostname "$name"
ip link set lo up
umount --recursive --lazy /sys/fs/cgroup 2>/dev/null || true

mount -t tmpfs -o mode=755 run /run
# own FOLDER: one of the host's own, with links to what the machine's holds,
# apart from libvirt's business
own() {
    mkdir -p "/run/machine$1"
    mount --rbind "$1" "/run/machine$1"
    mount -t tmpfs -o mode=755 own "$1"
    find "/run/machine$1" -mindepth 1 -maxdepth 1 ! -name libvirt \
        ! -name hosts ! -name pki -exec ln -s -t "$1" {} +
}
for folder in /etc /var/lib /var/cache /var/log; do
    own "$folder"
    mkdir "$folder/libvirt"
done
cp "$names" /etc/hosts
mount --bind "$logs" /var/log/libvirt
mount --bind "$cache" /var/cache/libvirt
mkdir /run/vm
kvm=kvm
[ "$hide_kvm" = no ] || kvm=
mkdir /run/machine/dev
mount --rbind /dev /run/machine/dev
# libvirt moves what is mounted below /dev: it must not find it twice.
umount --recursive --lazy /dev 2>/dev/null || true
mount -t tmpfs -o mode=755 dev /dev
(cd /run/machine/dev && cp -a fd full $kvm null ptmx random std* tty urandom \
    userfaultfd zero /dev)
[ -z "$kvm" ] || chmod 666 /dev/kvm # as udev does, where there is one
mkdir /dev/pts /dev/shm
mount --bind /run/machine/dev/pts /dev/pts
mount --bind /run/machine/dev/shm /dev/shm
if [ -n "$closed" ]; then
    mkdir /run/machine/reach
    mount --rbind "$reach" /run/machine/reach
    mount -t tmpfs -o mode=755 reach "$closed"
    mkdir -p "$reach"
    mount --rbind /run/machine/reach "$reach"
fi
echo ready
exec sleep infinity
"""


def _closed_to_others(path):
    """The topmost folder on the way to path that others can't enter."""
    way = "/"
    for part in path.strip("/").split("/"):
        way = os.path.join(way, part)
        if not os.stat(way).st_mode & stat.S_IXOTH:
            return way
    return None


class Virsh:
    """A virsh that may take a while."""

    def __init__(self, host, *words):
        self.words = words
        self._test = host.test
        self._test.log(f"{host.name}: virsh {' '.join(words)} ...")
        host.network.commands += 1
        self.process = Child(
            f"virsh {words[0]}", [host.program("virsh"), *words],
            self._test.log_path(f"virsh-{host.network.commands}-{words[0]}"
                                ".log"),
            env=host.environment(), before_exec=host.enter)
        self._test.cleanup(self.process.end)

    @property
    def running(self):
        return self.process.running

    def output(self):
        return self.process.output()

    def succeed(self, seconds=120):
        """Waits for its successful end; returns its output."""
        if self.process.wait_exit(seconds) != 0:
            raise Failure(f"virsh {' '.join(self.words)}: "
                          f"{self.output().strip()}")
        return self.output()

    def fail(self, seconds=120):
        """Waits for its end, which must be a failure; returns its output."""
        if self.process.wait_exit(seconds) == 0:
            raise Failure(f"virsh {' '.join(self.words)} succeeded:\n"
                          f"{self.output().strip()}")
        self._test.log(self.output())
        return self.output()


class Host:
    """Its namespaces live as long as a process that was started to hold
    them."""

    def __init__(self, network, name):
        self.test = network.test
        self.network = network
        self.name = name
        self.address = f"{NETWORK}{NUMBERS[name]}"
        self.daemons = {}
        self._folder = "bin"    # of build/, where libvirt's programs are
        logs = self.test.log_path(name)
        os.mkdir(logs)
        self._holder = Child(
            name, ["unshare", "--net", "--mount", "--uts", "--propagation",
                   "private", "bash", "-c", VIEW, "view", name,
                   network.names, logs, network.cache,
                   "yes" if network.hides_kvm else "no", *network.reach],
            self.test.log_path(f"{name}.log"))
        self.test.cleanup(self._holder.end)
        self._holder.wait_output("^ready$")
        self.pid = self._holder.pid

    # --- being there

    def enter(self):
        """For a child between fork and exec."""
        set_namespaces(self.pid, ["net", "mnt", "uts"])

    def path(self, path):
        """Of a file there, as it can be named here."""
        return f"/proc/{self.pid}/root{path}"

    def environment(self):
        env = {name: value for name, value in os.environ.items()
               if not name.startswith(("XDG_", "LIBVIRT_", "VIRSH_"))}
        return {**env, "LIBVIRT_DEFAULT_URI": "qemu:///system", "LC_ALL": "C"}

    def start(self, name, *argv, log=None):
        """A program that goes on there."""
        child = Child(f"{self.name}-{name}", argv,
                      self.test.log_path(log or f"{self.name}/{name}.log"),
                      env=self.environment(), before_exec=self.enter)
        self.test.cleanup(child.end)
        return child

    def run(self, *argv, seconds=30, succeed=True):
        """Runs a program there; returns what it printed."""
        argv = [str(word) for word in argv]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=seconds * PATIENCE,
                env=self.environment(),
                preexec_fn=self.enter, check=False)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"{self.name}: not within {seconds} s: "
                          f"{' '.join(argv)}") from late
        output = done.stdout + done.stderr
        self.test.log(f"{self.name}: {' '.join(argv)} -> {done.returncode}: "
                      f"{output.strip()[:2000]}")
        if succeed is not None and (done.returncode == 0) != succeed:
            raise Failure(
                f"{self.name}: {' '.join(argv)} ended with {done.returncode}: "
                f"{output.strip()[-1000:]}")
        return output

    def write(self, path, text, mode=0o644):
        with open(self.path(path), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)

    # --- libvirt

    def program(self, name):
        """One of libvirt's."""
        if self._folder == "bin":
            return self.test.binary(name)
        for folder in "src", "tools":
            path = os.path.join(e2e.BUILD, self._folder, folder, name)
            if os.access(path, os.X_OK):
                return path
        raise Failure(f"build/{self._folder} has no {name}")

    @property
    def uri(self):
        return f"qemu+tcp://{self.name}/system"

    def start_libvirt(self, folder="bin", wait=True):
        """folder: of another build of libvirt.  wait=False: it isn't there
        before wait_libvirt()."""
        self._folder = folder
        user = self.network.qemu_user
        self.write("/etc/libvirt/qemu.conf", f"""
user = "{user}"
group = "{self.network.qemu_group}"
migration_host = "{self.name}"
migration_address = "{self.address}"
# There is neither systemd nor virtlogd here.
cgroup_controllers = []
stdio_handler = "file"
""")
        common = f"""
host_uuid = "6d656d78-0000-4000-8000-{NUMBERS[self.name]:012d}"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
        for daemon in DAEMONS:
            self.write(f"/etc/libvirt/{daemon}.conf", common)
        self.write("/etc/libvirt/virtproxyd.conf", common + """
listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
""")
        for daemon in DAEMONS:
            self.start_daemon(daemon)
        if wait:
            self.wait_libvirt()

    def wait_libvirt(self):
        for daemon in DAEMONS:
            self.wait_daemon(daemon)

    def _socket(self, daemon):
        name = "libvirt" if daemon == "virtproxyd" else daemon
        return self.path(f"/run/libvirt/{name}-sock")

    def start_daemon(self, name):
        if os.path.exists(self._socket(name)):  # of one that was killed
            os.unlink(self._socket(name))
        self.daemons[name] = self.start(name, self.program(name))

    def wait_daemon(self, name):
        def is_there():
            if not self.daemons[name].running:
                raise Failure(f"{self.name}: {name} ended: "
                              f"{self.daemons[name].output()[-1000:]}")
            return os.path.exists(self._socket(name))
        wait_until(f"{self.name}: {name} listens", is_there, 60)

    def restart_daemon(self, name="virtqemud", kill=False):
        """VMs go on meanwhile."""
        if kill:
            self.daemons[name].kill()
        else:
            self.daemons[name].end(30)
        self.start_daemon(name)
        self.wait_daemon(name)

    def define_key(self, uuid=KEY_SECRET, key=None):
        """The servers' key, or another one, as a secret of libvirt's."""
        self.write("/run/key.xml", f"""
<secret ephemeral='no' private='yes'>
  <uuid>{uuid}</uuid>
  <description>key of the memory servers</description>
</secret>
""")
        file = self.network.key_file
        if key:
            file = "/run/key"
            self.write(file, key, 0o600)
        self.virsh("secret-define", "/run/key.xml")
        self.virsh("secret-set-value", uuid, "--file", file, "--plain")

    def virsh(self, *words, seconds=60, succeed=True):
        """Runs virsh there; returns what it printed.  succeed: it must, or
        must not; None: either."""
        return self.run(self.program("virsh"), *words, seconds=seconds,
                        succeed=succeed)

    def start_virsh(self, *words):
        return Virsh(self, *words)


class Network:
    """host1 and host2, with libvirt's daemons unless libvirt is false; mem1
    and mem2, for memory servers; and a bridge between them.  QEMU runs under
    a user of its own.  kvm: it works here, and domains are to use it."""

    address = NETWORK + "254"   # of the test itself

    def __init__(self, test, libvirt=True, qemu_as_root=False, kvm=False):
        self.test = test
        self.commands = 0       # how many virsh were started
        self.cache = os.path.join(e2e.BUILD, "libvirt-cache")
        os.makedirs(self.cache, exist_ok=True)
        self.names = os.path.join(test.socket_dir, "hosts")
        with open(self.names, "w", encoding="ascii") as file:
            file.write("127.0.0.1 localhost\n" + "".join(
                f"{NETWORK}{number} {name}\n"
                for name, number in NUMBERS.items()))
        self.key_file = os.path.join(test.socket_dir, "key")
        with open(self.key_file, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write("the key of all memory servers of this network")
        self.hides_kvm = not kvm
        self.domain_type = "kvm" if kvm else "qemu"
        self._choose_user(qemu_as_root)
        self._ip("link", "add", "br0", "type", "bridge")
        self._ip("link", "set", "br0", "up")
        # Where the test itself is.
        self._ip("addr", "add", f"{self.address}/24", "dev", "br0")
        self.hosts = {name: self._add_host(name) for name in NUMBERS}
        if libvirt:
            for host in self.host1, self.host2:
                host.start_libvirt(wait=False)
            for host in self.host1, self.host2:
                host.wait_libvirt()
                host.define_key()

    def __getattr__(self, name):
        try:
            return self.__dict__["hosts"][name]
        except KeyError:
            raise AttributeError(name) from None

    def _choose_user(self, as_root):
        """QEMU's; and what must be done for it to reach our build."""
        self.reach = ["", ""]
        closed = _closed_to_others(e2e.BUILD)
        if closed == e2e.BUILD:
            self.test.log("QEMU runs as root: build/ is closed to others")
            as_root = True
        if as_root:
            self.qemu_user = self.qemu_group = "+0"
            return
        if closed:
            self.reach = [e2e.BUILD if closed == e2e.TOP else e2e.TOP, closed]
        self.qemu_user = self.qemu_group = f"+{QEMU_UID}"

    def _ip(self, *words):
        done = subprocess.run(["ip", *words], capture_output=True, text=True,
                              check=False)
        if done.returncode != 0:
            raise Failure(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def _add_host(self, name):
        host = Host(self, name)
        self._ip("link", "add", f"to-{name}", "type", "veth", "peer", "name",
                 "eth0", "netns", str(host.pid))
        self._ip("link", "set", f"to-{name}", "master", "br0", "up")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    # --- memory servers

    def memservers(self, names=("mem1", "mem2"), capacity="1G", port=None):
        return [self.memserver(name, capacity=capacity, port=port)
                for name in names]

    def memserver(self, name, label=None, **options):
        """label: the server's name, if not its host's."""
        host = self.hosts[name]
        return Memserver(self.test, label or name, key_file=self.key_file, host=name,
                         before_exec=host.enter, **options)


def main(function, seconds=240):
    """As e2e.main(), in namespaces of its own."""
    inside()
    e2e.main(function, seconds)


def inside():
    """Returns in namespaces of its own, or ends with the reason for a
    skip."""
    try:
        own_namespaces()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"SKIP: no namespaces can be made here; run as root ({error})")
        sys.exit(77)

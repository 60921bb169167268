# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts and the links between them: network namespaces joined by a bridge in
one more of them, and shaped veth pairs.

A namespace has no name.  It lives as long as the process that was started to
hold it, and that one dies with us, however we end; so do the interfaces in
it.  Nothing of it is in the machine's own namespace.
"""

import ctypes
import os
import subprocess

from memxlib.process import Child
from memxlib.wait import Failure, Skip

CLONE_NEWNET = 0x40000000
MTU = 9000
# What waits for the rate stands in the queue that a network card of a host
# has: the first of these that the kernel has.
TBF = ["burst", "256kb", "latency", "20ms"]
QUEUES = ["fq_codel", "pfifo_fast"]
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Host:
    """A network namespace.  address: in the network of the bridge."""

    def __init__(self, test, name, address=None):
        self.name = name
        self.address = address
        self._test = test

        def unshare():
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            self._holder = Child(f"host-{name}", ["sleep", "infinity"],
                                 test.log_path(f"host-{name}.log"),
                                 before_exec=unshare)
        except (OSError, subprocess.SubprocessError) as error:
            raise Skip("no network namespace can be made here; run as root "
                       f"({error})") from error
        test.cleanup(self._holder.end)
        self.pid = self._holder.pid
        self.run("ip", "link", "set", "lo", "up")

    def enter(self):
        """For a child between fork and exec."""
        fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.setns(fd, CLONE_NEWNET), "setns")
        os.close(fd)

    def run(self, *argv, optional=False):
        """Runs a command there; its output, or None if it may fail."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", *map(str, argv)],
            capture_output=True, text=True, check=False)
        self._test.log(f"{self.name}: {' '.join(map(str, argv))} -> "
                       f"{done.returncode} {done.stderr.strip()}")
        if done.returncode != 0:
            if optional:
                return None
            raise Failure(f"{self.name}: {' '.join(map(str, argv))}: "
                          f"{done.stderr.strip()}")
        return done.stdout

    def shape(self, device, rate):
        """What leaves the host through that device."""
        self.run("tc", "qdisc", "replace", "dev", device, "root", "handle",
                 "1:", "tbf", "rate", rate, *TBF)
        for queue in QUEUES:
            if self.run("tc", "qdisc", "add", "dev", device, "parent", "1:",
                        queue, optional=True) is not None:
                return

    def end(self):
        self._holder.end()

    def counters(self):
        """device: (bytes received, bytes sent)"""
        found = {}
        with open(f"/proc/{self.pid}/net/dev", encoding="ascii") as lines:
            for line in lines:
                name, colon, fields = line.partition(":")
                if colon:
                    fields = fields.split()
                    found[name.strip()] = int(fields[0]), int(fields[8])
        return found


class Lab:
    """source, main and sub-hosts.  Every host has a link of the same rate to
    the bridge.  multi: the source has another one to each of them as well,
    and that is the way it takes."""

    def __init__(self, test, rate, multi=False, sub_hosts=2):
        self.multi = multi
        self.rate = rate
        self._switch = Host(test, "switch")
        self._switch.run("ip", "link", "add", "br0", "mtu", MTU, "type",
                         "bridge")
        self._switch.run("ip", "link", "set", "br0", "up")
        self.source = self._host(test, "source", 1)
        self.main = self._host(test, "main", 2)
        self.subs = [self._host(test, f"sub{i}", 2 + i)
                     for i in range(1, sub_hosts + 1)]
        if multi:
            for number, host in enumerate([self.main, *self.subs], 1):
                self._uplink(host, number)

    @property
    def hosts(self):
        return [self.source, self.main, *self.subs]

    def _host(self, test, name, number):
        host = Host(test, name, f"10.255.77.{number}")
        port = f"to-{name}"
        self._switch.run("ip", "link", "add", port, "mtu", MTU, "type",
                         "veth", "peer", "name", "eth0", "mtu", MTU, "netns",
                         host.pid)
        self._switch.run("ip", "link", "set", port, "master", "br0", "up")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        self._switch.shape(port, self.rate)
        host.shape("eth0", self.rate)
        return host

    def _uplink(self, host, number):
        """A veth pair of the source's and the host's own.  The host keeps
        its one address, the source has another one there."""
        near, far = f"up-{host.name}", "from-source"
        address = f"10.255.78.{number}"
        self.source.run("ip", "link", "add", near, "mtu", MTU, "type", "veth",
                        "peer", "name", far, "mtu", MTU, "netns", host.pid)
        self.source.run("ip", "addr", "add", f"{address}/32", "dev", near)
        self.source.run("ip", "link", "set", near, "up")
        host.run("ip", "link", "set", far, "up")
        self.source.run("ip", "route", "add", f"{host.address}/32", "dev",
                        near, "src", address)
        host.run("ip", "route", "add", f"{address}/32", "dev", far, "src",
                 host.address)
        self.source.shape(near, self.rate)
        host.shape(far, self.rate)

    def traffic(self):
        """link: bytes sent over it so far, by the source or to a host"""
        links = {}
        for device, (_, sent) in self.source.counters().items():
            if device != "lo":
                links[f"source {device}"] = sent
        for host in self.hosts[1:]:
            for device, (received, sent) in host.counters().items():
                if device != "lo":
                    links[f"{host.name} {device} in"] = received
                    links[f"{host.name} {device} out"] = sent
        return links

    def close(self):
        for host in [*self.hosts, self._switch]:
            host.end()

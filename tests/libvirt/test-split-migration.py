#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM with ordinary memory moves to a host with less memory than it has, the
rest to two servers, while its guest verifies its memory; what libvirt says of
it is true; and all of its memory comes home.  QEMU is nobody special."""

import re
import xml.etree.ElementTree as ElementTree

from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.vm import size_bytes
from memxlib.wait import check, wait_until

SIZE, LOCAL, LESS = "256M", "112M", "80M"


def kib(size):
    return size_bytes(size) >> 10


def check_unprivileged(network, domain):
    with open(f"/proc/{domain.qemu_pid()}/status", encoding="ascii") as lines:
        status = dict(line.split(":", 1) for line in lines)
    if network.qemu_user != "+0":
        check(status["Uid"].split() == [network.qemu_user[1:]] * 4,
              f"QEMU runs as {status['Uid']}")
        check(int(status["CapEff"], 16) == 0,
              f"QEMU has capabilities {status['CapEff']}")
    check(status["Seccomp"].strip() == "2", "QEMU has no seccomp filter")


def check_definition(domain, servers, local):
    source = ElementTree.fromstring(domain.memory_backing()).find("source")
    check(source is not None and source.get("type") == "memx",
          f"the definition has no memx memory: {domain.memory_backing()}")
    check(int(source.find("local").get("size")) == kib(local),
          f"the definition's local size is {source.find('local').attrib}")
    check([f"{s.get('host')}:{s.get('port')}" for s in
           source.findall("server")] == [s.address for s in servers],
          "the definition has other servers")


def check_figures(domain, local):
    """Of a moving target only the sum stands still; each figure has been
    true between two looks of ours."""
    def agree():
        before = domain.backend()
        stats = {key: value for key, value in domain.stats().items()}
        after = domain.backend()
        return all(
            min(before[name], after[name]) >> 10 <= int(stats[key])
            <= max(before[name], after[name]) >> 10
            for name, key in (("local", "local"), ("remote", "remote"),
                              ("never-written", "never_written"))) and stats
    stats = wait_until("domstats says what QEMU says", agree, 60)
    check(int(stats["local_limit"]) == kib(local),
          f"local_limit is {stats['local_limit']} KiB")
    check(int(stats["server.count"]) == 2,
          f"server.count is {stats['server.count']}")
    host = domain.host
    memory = host.virsh("dommemstat", domain.name)
    for name in "local", "remote", "never_written", "local_limit":
        check(re.search(rf"^{name} \d+", memory, re.M),
              f"dommemstat has no {name}:\n{memory}")
    info = host.virsh("dominfo", domain.name)
    for name in "Local memory:", "Remote memory:":
        check(name in info, f"dominfo has no '{name}':\n{info}")


def released(server):
    status = server.status()
    return status["used_bytes"] == 0 and status["reserved_bytes"] == 0


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE)
    load = domain.guest.load("--percent 60 --write-percent 10")
    output = domain.migrate(network.host2, "--verbose",
                            *split_options(servers, LOCAL))
    check("100" in output, f"--verbose says: {output}")
    info = domain.host.virsh("domjobinfo", domain.name, "--completed")
    check(re.search(r"^Sent to servers:\s+[1-9]", info, re.M),
          f"domjobinfo --completed says:\n{info}")
    t.say("moved")
    check_unprivileged(network, domain)
    load.wait_progress()
    backend = domain.backend()
    check(backend["local"] <= size_bytes(LOCAL),
          f"{backend['local']} bytes are local")
    check(backend["remote"] > 0, "nothing is remote")
    check_definition(domain, servers, LOCAL)
    check_figures(domain, LOCAL)

    domain.host.virsh("memtune", domain.name, "--local-size", LESS + "iB",
                      "--live")
    domain.wait_backend("less is local",
                        lambda b: b["local"] <= size_bytes(LESS))
    check_figures(domain, LESS)
    t.say("less is local")
    load.wait_progress()

    domain.host.virsh("memtune", domain.name, "--local-size", SIZE + "iB",
                      "--live")
    domain.wait_backend("all of it came home", lambda b: b["remote"] == 0)
    for server in servers:
        wait_until(f"{server.name} is released", lambda s=server: released(s))
    t.say("came home")
    for server in servers:
        server.end()
    load.wait_progress()
    load.finish()


hosts.main(test)

#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: a server must be away for half a minute before it counts as lost
"""A memory server is killed while a VM moves: virsh says so, and the VM goes
on at the source.  One is stopped for a while after the VM has moved: the VM
goes on when it is back, and domstats tells meanwhile.  One comes back without
its pages: domstats tells, and the VM can be given up."""

from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "96M"


def server_states(domain):
    stats = domain.stats()
    return [stats[f"server.{i}.state"] for i in
            range(int(stats["server.count"]))]


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE)
    load = domain.guest.load("--percent 60 --write-percent 10")
    virsh = domain.start_migration(
        network.host2, "--bandwidth", "8",
        *split_options(servers, LOCAL, warm_up=0))
    domain.wait_phase(virsh, "transfer", "drain")
    servers[1].kill()
    output = virsh.fail(150)
    check(servers[1].address in output, f"virsh says: {output}")
    wait_until("it runs at the source", lambda: domain.state() == "running")
    load.wait_progress()
    t.say("lost while the VM moved")

    servers[1].start()
    domain.migrate(network.host2, *split_options(servers, LOCAL))
    load.wait_progress()
    servers[1].pause()
    wait_until("domstats tells that it is lost",
               lambda: server_states(domain)[1] != "up", 90)
    servers[1].resume()
    wait_until("domstats tells that it is back",
               lambda: server_states(domain) == ["up", "up"], 90)
    t.say("lost for a while after that")
    load.wait_progress()
    load.finish()

    servers[1].restart_empty()
    wait_until("domstats tells that its pages are gone",
               lambda: server_states(domain)[1] == "empty", 90)
    domain.destroy()
    check(not domain.is_listed(), "it is still there")
    # libvirt kills a QEMU that waits for a page: then the other server keeps
    # what it has.
    servers[0].wait_spaces("has no client", lambda spaces: all(
        space["state"] == "orphaned" for space in spaces))
    for space in servers[0].orphans():
        servers[0].memxctl("drop", space["id"])
    check(not servers[0].spaces(), "mem1 has something left")
    t.say("lost with its pages")


hosts.main(test, 400)

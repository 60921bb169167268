#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: four migrations that are interrupted
"""virtqemud is restarted, and killed, at either side in the middle of a split
migration, and virsh is killed: the VM goes on at the source, and moves
afterwards."""

from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "96M"


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    source, dest = network.host1, network.host2
    domain = Domain(source, size=SIZE)
    load = domain.guest.load("--percent 60 --write-percent 10")
    for what, interrupt in (
            ("the source's virtqemud was restarted",
             lambda virsh: source.restart_daemon()),
            ("the source's virtqemud was killed",
             lambda virsh: source.restart_daemon(kill=True)),
            ("the destination's virtqemud was killed",
             lambda virsh: dest.restart_daemon(kill=True)),
            ("virsh was killed", lambda virsh: virsh.process.kill())):
        virsh = domain.start_migration(
            dest, "--bandwidth", "8",
            *split_options(servers, LOCAL, warm_up=0))
        domain.wait_phase(virsh, "transfer", "drain")
        interrupt(virsh)
        virsh.fail()
        wait_until("nothing is left at the destination",
                   lambda: not domain.is_listed(dest), 60)
        wait_until("it runs at the source",
                   lambda: domain.state() == "running", 60)
        for server in servers:
            server.wait_spaces("dropped what it had", lambda s: not s)
        load.wait_progress()
        t.say(what)
    domain.migrate(dest, *split_options(servers, LOCAL))
    # What it knows of memx must survive it, too.
    before = domain.memory_backing()
    dest.restart_daemon()
    check(domain.memory_backing() == before, "its definition has changed")
    check(int(domain.stats()["server.count"]) == 2, "it knows no servers")
    t.say("moved")
    load.wait_progress()
    load.finish()


hosts.main(test)

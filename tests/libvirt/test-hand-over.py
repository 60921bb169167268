#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: five migrations that are interrupted in the hand-over
"""A split migration loses a daemon, virsh, the link to the destination's daemon
or the memory server that decides when the last byte is sent: at no time both
sides run the VM, and what is left to do by hand is what docs/libvirt.md
says."""

from memxlib import hosts
from memxlib.domain import Domain, split_options
from memxlib.proxy import Relay
from memxlib.wait import check, wait_until

SIZE, LOCAL = "256M", "96M"
LIBVIRT_PORT = 16509


def full_speed(domain):
    """From now on, lest a fast guest dirties more than is sent."""
    domain.qmp("migrate-set-parameters", max_bandwidth=0)


def wait_sent(domain):
    """Until QEMU has sent everything: the rest is up to libvirt."""
    full_speed(domain)
    wait_until("QEMU has sent everything", lambda:
               domain.qmp("query-migrate").get("status") == "completed", 60)
    check(domain.state() == "paused", f"the source is {domain.state()}")


def wait_dropped(servers):
    """What the destination got has gone."""
    for server in servers:
        server.wait_spaces("dropped what it had", lambda s: not s)


def daemon_killed(domain, dest, options):
    """The destination's virtqemud dies before it starts the VM: libvirt
    takes the VM back by itself."""
    daemon = dest.daemons["virtqemud"]
    virsh = domain.start_migration(dest, "--p2p", *options)
    domain.wait_phase(virsh, "transfer", "drain")
    daemon.pause()
    wait_sent(domain)
    dest.restart_daemon(kill=True)
    virsh.fail()
    wait_until("it runs at the source", lambda: domain.state() == "running")
    wait_until("nothing is left at the destination",
               lambda: not domain.is_listed(dest), 60)


def virsh_killed(domain, dest, options):
    """Nobody tells either daemon what to do: the destination's ends its copy,
    and the VM waits at the source for who says 'resume'."""
    virsh = domain.start_migration(dest, *options)
    domain.wait_phase(virsh, "transfer", "drain")
    virsh.process.pause()
    wait_sent(domain)
    virsh.process.kill()
    wait_until("nothing is left at the destination",
               lambda: not domain.is_listed(dest), 60)
    check(domain.state() == "paused", f"the source is {domain.state()}")
    domain.host.virsh("resume", domain.name)


def ask_in_vain(domain, dest, options, arbiter):
    """The destination's virtqemud starts the VM, but the memory server that
    decides who runs it doesn't answer.  Returns the virsh that migrates."""
    daemon = dest.daemons["virtqemud"]
    virsh = domain.start_migration(dest, *options)
    domain.wait_phase(virsh, "transfer", "drain")
    daemon.pause()
    wait_sent(domain)
    arbiter.pause()
    daemon.resume()
    return virsh


def resume_one(domain, dest):
    """'virsh resume' at both sides, of which one gets the VM.  The other's
    paused copy is destroyed, which harms nothing."""
    source, winners = domain.host, []
    for host in dest, source:
        domain.host = host
        if domain.state() == "paused":
            output = host.virsh("resume", domain.name, succeed=None)
        if domain.state() == "running":
            winners.append(host)
        else:
            check("of its split migration has it" in output,
                  f"refused, but with: {output}")
            domain.destroy()
    check(len(winners) == 1, f"{len(winners)} sides run it")
    domain.host = winners[0]
    return source if winners[0] is dest else dest


def arbiter_late(domain, dest, options, arbiter):
    """Both sides ask, and both stay paused.  The server has the destination's
    question then, and may say yes to it."""
    virsh = ask_in_vain(domain, dest, options, arbiter)
    virsh.fail()
    for host in domain.host, dest:
        check(host.virsh("domstate", domain.name).strip() == "paused",
              f"it isn't paused at {host.name}")
    arbiter.resume()
    return resume_one(domain, dest)


def asking_daemon_killed(domain, dest, options, arbiter):
    """The destination's virtqemud dies when it may have asked: what it left
    is not ended when it is back."""
    virsh = ask_in_vain(domain, dest, options, arbiter)
    status = dest.path(f"/run/libvirt/qemu/{domain.name}.xml")

    def is_starting():
        with open(status, encoding="utf-8") as file:
            return "phase='finish3'" in file.read()

    wait_until("the destination's virtqemud starts it", is_starting)
    dest.daemons["virtqemud"].kill()
    virsh.fail()
    dest.start_daemon("virtqemud")
    dest.wait_daemon("virtqemud")
    check(domain.is_listed(dest), "the destination's copy was ended")
    arbiter.resume()
    return resume_one(domain, dest)


def answer_lost(domain, dest, options):
    """The VM was started at the destination, but the source never hears of
    it: it stays paused there, can't be resumed, and destroying it harms
    nothing."""
    relay = Relay(f"{dest.address}:{LIBVIRT_PORT}",
                  listen=dest.network.address)
    domain.test.cleanup(relay.close)
    virsh = domain.start_migration(
        dest, *options, uri=f"qemu+tcp://{relay.address}/system")
    domain.wait_phase(virsh, "transfer", "drain")
    relay.stall_answers()
    full_speed(domain)
    wait_until("it runs at the destination", lambda: dest.virsh(
        "domstate", domain.name, succeed=None).strip() == "running", 60)
    check(domain.state() == "paused", f"the source is {domain.state()}")
    relay.cut()
    virsh.fail()
    check(domain.state() == "paused", f"the source is {domain.state()}")
    output = domain.host.virsh("resume", domain.name, succeed=False)
    check("the destination of its split migration has it" in output,
          f"refused, but with: {output}")
    domain.destroy()
    domain.arrived(dest)


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    domain = Domain(network.host1, size=SIZE)
    load = domain.guest.load("--percent 60 --write-percent 10")
    options = ["--bandwidth", "30", *split_options(servers, LOCAL, warm_up=0)]
    for interrupt in daemon_killed, virsh_killed:
        interrupt(domain, network.host2, options)
        wait_dropped(servers)
        load.wait_progress()
        t.say(f"{interrupt.__name__.replace('_', ' ')}: the source has it")
    dest = network.host2
    for interrupt in arbiter_late, asking_daemon_killed:
        dest = interrupt(domain, dest, options, servers[0])
        load.wait_progress()
        t.say(f"{interrupt.__name__.replace('_', ' ')}: "
              f"{domain.host.name} has it")
    answer_lost(domain, dest, options)
    load.wait_progress()
    check(domain.backend()["remote"] > 0, "nothing is remote")
    t.say("answer lost: the destination has it")
    load.finish()


hosts.main(test, seconds=400)

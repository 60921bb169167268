#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What can't be done is refused with a message that says what is wrong, and
nothing has changed then."""

import re

from memxlib import hosts
from memxlib.domain import KEY_SECRET, Domain, memx_backing, split_options
from memxlib.wait import check

SIZE, LOCAL = "192M", "64M"
DISK = "/run/vm/disk.qcow2"
OTHER_SECRET = "00000000-1111-4222-8333-444444444444"


def migrations(servers):
    """Of a VM with ordinary memory: (message, options)"""
    whole = split_options(servers, LOCAL)
    nowhere = ["--split-hosts", "mem1:1"]
    size = ["--split-local-size", LOCAL + "iB"]
    flag = ["--split-migration"]
    secret = ["--split-secret", KEY_SECRET]
    alone = "Turn split migration on|--split-migration is required"
    return [
        (alone, nowhere),
        (alone, size),
        ("needs memory servers", flag + size),
        ("needs a local size", flag + nowhere),
        ("invalid memory server", [*flag, *size, "--split-hosts", "mem1"]),
        ("invalid memory server", [*flag, *size, "--split-hosts", "mem1:x"]),
        ("invalid memory server", [*flag, *size, "--split-hosts",
                                   "mem1:7701,,mem2:7701"]),
        ("local size.*larger than", split_options(servers, "1G")),
        ("not supported with post-copy", [*whole, "--postcopy"]),
        ("not supported with zero-copy", [*whole, "--zerocopy",
                                          "--parallel"]),
        ("not supported with tunnelled", [*whole, "--p2p", "--tunnelled"]),
        ("TLS", [*whole, "--tls"]),
        (OTHER_SECRET, split_options(servers, LOCAL, secret=OTHER_SECRET)),
        # From here on it is QEMU that refuses, and libvirt that tells it.
        ("connect to mem1:1", [*flag, *size, *nowhere, *secret]),
        ("key", split_options(servers, LOCAL, secret=None)),
    ]


def check_refusal(host, pattern, *words):
    output = host.virsh(*words, succeed=False)
    check(re.search(pattern, output),
          f"refused, but not with '{pattern}': {output.strip()}")


def test(t):
    network = hosts.Network(t)
    servers = network.memservers()
    host = network.host1

    ordinary = Domain(host, "ordinary", boot=False, size=SIZE)
    for pattern, options in migrations(servers):
        ordinary.migration_refused(network.host2, pattern, *options)
        check(ordinary.is_listed(), "the domain is gone")
    check(ordinary.state() == "paused", f"it is {ordinary.state()}")
    check(not any(server.spaces() for server in servers),
          "a server still has something of it")
    t.say("migrations are refused")

    host.run(t.binary("qemu-img"), "create", "-f", "qcow2", DISK, "1M")
    memx = Domain(host, "memx", boot=False, size=SIZE,
                  backing=memx_backing(LOCAL, servers), devices=f"""
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{DISK}'/><target dev='vda' bus='virtio'/></disk>""")
    check_refusal(host, "memx", "save", "memx", "/run/vm/saved")
    check_refusal(host, "memx", "snapshot-create", "memx")
    check_refusal(host, "memx", "snapshot-create-as", "memx", "--memspec",
                  "file=/run/vm/memory", "--diskspec", "vda,snapshot=no")
    check_refusal(host, "local size|local-size", "memtune", "memx",
                  "--local-size", "1GiB", "--live")
    check_refusal(host, "memx", "memtune", "ordinary", "--local-size",
                  "64MiB", "--live")
    check(memx.is_listed(), "the domain is gone")
    t.say("so are saving and snapshots")


hosts.main(test)

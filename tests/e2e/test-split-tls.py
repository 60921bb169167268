#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
# slow: /migration/split/tls is the same without Linux
"""With TLS on the main stream a split migration is refused, since memory would
go to the servers in clear; unless the user accepts that."""

import os

from memxlib import e2e
from memxlib.migration import Migration
from memxlib.qmp import QmpError
from memxlib.wait import check

SIZE, LOCAL = "256M", "128M"


def credentials(t, endpoint):
    return ["-object", f"tls-creds-psk,id=tls0,endpoint={endpoint},"
                       f"dir={t.socket_dir}"]


def test(t):
    with open(os.path.join(t.socket_dir, "keys.psk"), "w",
              encoding="ascii") as keys:
        keys.write("qemu:009d5638c40fde0c\n")
    servers = t.memservers(2)
    source = t.vm(size=SIZE, name="source", extra=credentials(t, "client"))
    load = source.guest.load("--percent 60 --write-percent 10")
    dest = t.vm(size=SIZE, local=LOCAL, source=source, name="dest",
                extra=credentials(t, "server"))
    migration = Migration(source, dest, servers, LOCAL, tls_creds="tls0")
    uri = migration.listen()
    try:
        migration.start(uri)
        check(False, "what goes to servers is not encrypted: not refused")
    except QmpError as refusal:
        check("split-insecure" in str(refusal), f"it says: {refusal}")
        t.say(f"refused: {refusal}")
    check(source.status() == "running", f"the VM is {source.status()}")
    load.wait_progress()

    source.qmp.command("migrate-set-parameters", split_insecure=True)
    migration.start(uri)
    info = migration.finish()
    check(info["split"]["sent"] > 0, "nothing went to servers")
    check(source.quit() == 0, "the source did not end well")
    load.wait_progress()
    load.finish()
    dest.check_never_stopped()


e2e.main(test)

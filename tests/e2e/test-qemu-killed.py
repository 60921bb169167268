#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages of a VM that was killed are kept and listed as orphaned, until
somebody drops them; those of one that ended well are gone with it."""

from memxlib import e2e
from memxlib.wait import check


def test(t):
    servers = t.memservers(2)
    uuid = "12345678-1234-5678-1234-56789abcdef0"
    vm = t.vm(size="256M", local="64M", servers=servers,
              extra=["-uuid", uuid])
    vm.guest.run("memverify --percent 60 --rounds 0")
    for server in servers:
        space, = server.spaces()
        check(space["vm_name"] == f"{t.name}-vm" and
              space["vm_uuid"] == uuid, f"the VM is listed as {space}")
    vm.kill()
    for server in servers:
        server.wait_spaces("the space is orphaned",
                           lambda spaces, s=server: s.orphans())
        held = server.held_bytes()
        check(held > 0, "the orphaned space is empty")
        server.restart_with_pages()
        space, = server.orphans()
        check(server.held_bytes() == held, "a restart lost orphaned pages")
        server.memxctl("drop", space["id"])
        check(server.spaces() == [], "the space was not dropped")
        done = server.memxctl("drop", space["id"], succeed=False)
        check(done.returncode != 0 and space["id"] in done.stderr,
              f"dropping it once more: {done.stderr}")

    vm = t.vm(size="256M", local="64M", servers=servers, name="vm2")
    vm.guest.run("memverify --percent 60 --rounds 0")
    space = servers[0].spaces()[0]
    done = servers[0].memxctl("drop", space["id"], succeed=False)
    check(done.returncode != 0, "the space of a running VM was dropped")
    check(vm.quit() == 0, "QEMU did not end well")
    for server in servers:
        server.wait_spaces("nothing is left", lambda spaces: not spaces)


e2e.main(test)

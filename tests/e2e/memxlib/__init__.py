# SPDX-License-Identifier: GPL-2.0-or-later
"""What end-to-end tests are made of: memservers, guests, faults between them.

A test is an executable file with one function:

    #!/usr/bin/env python3
    from memxlib import e2e

    def test(t):
        servers = [t.memserver(), t.memserver()]
        vm = t.vm(size="512M", local="128M", servers=servers)
        vm.guest.run("memverify --percent 70")

    e2e.main(test)

It ends with 0 (passed), 1 (failed) or 77 (skipped, saying why), and leaves
nothing behind but build/e2e-logs/NAME/.
"""

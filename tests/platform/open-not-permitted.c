/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who may not use userfaultfd for the kernel's faults is told what to do. Run
 * as root it becomes nobody first.
 */
#include "platform.h"

#include <fcntl.h>

#define NOBODY 65534

int main(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *sysctl = NULL;
    int fd;

    if (g_file_get_contents("/proc/sys/vm/unprivileged_userfaultfd", &sysctl,
                            NULL, NULL) && sysctl[0] == '1') {
        skip("vm.unprivileged_userfaultfd is 1: everybody may");
    }
    if (geteuid() == 0 && setuid(NOBODY) < 0) {
        skip("cannot become nobody: %s", strerror(errno));
    }
    if (access("/dev/userfaultfd", R_OK | W_OK) == 0) {
        skip("/dev/userfaultfd is open to uid %d", geteuid());
    }
    fd = memx_uffd_open(0, NULL, &error);
    if (fd < 0 && g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_NOSYS)) {
        skip("%s", error->message);
    }
    check(fd < 0, "it may: has it CAP_SYS_PTRACE?");
    check(g_error_matches(error, G_FILE_ERROR, G_FILE_ERROR_PERM) &&
          strstr(error->message, "vm.unprivileged_userfaultfd=1") &&
          strstr(error->message, "/dev/userfaultfd"), "%s", error->message);
    return 0;
}

/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * agent TTY: runs what the host asks for; process 1 of the test guest.
 *
 * Theory of operation: the host writes lines "ID COMMAND" to a serial port.
 * Each command runs at once, in a shell of its own, so several can run side
 * by side.  Every line it prints comes back as "ID LINE", and its end as
 * "ID=STATUS".  The line "0=0" says that the guest is up.
 *
 * A serial port is used because it moves bytes through I/O ports: the host's
 * side of the channel touches no guest memory.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* One write for each line, so that lines of several jobs do not mix. */
static void run_job(FILE *answers, const char *id, const char *command)
{
    char *line = NULL, *script;
    size_t size = 0;
    FILE *output;
    int status;

    signal(SIGCHLD, SIG_DFL);
    if (asprintf(&script, "exec 2>&1 </dev/null; %s", command) < 0) {
        die("agent: asprintf");
    }
    output = popen(script, "re");
    if (!output) {
        die("agent: popen");
    }
    while (getline(&line, &size, output) >= 0) {
        line[strcspn(line, "\n")] = '\0';
        fprintf(answers, "%s %s\n", id, line);
    }
    status = pclose(output);
    fprintf(answers, "%s=%d\n", id,
            WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* Bytes pass as they are: no echo, no translation of line ends. */
static void make_raw(int fd)
{
    struct termios tio;

    if (tcgetattr(fd, &tio) < 0) {
        die("agent: tcgetattr");
    }
    cfmakeraw(&tio);
    if (tcsetattr(fd, TCSANOW, &tio) < 0) {
        die("agent: tcsetattr");
    }
}

int main(int argc, char **argv)
{
    FILE *commands, *answers;
    char *line = NULL;
    size_t size = 0;

    if (argc != 2) {
        fprintf(stderr, "usage: agent TTY\n");
        return 2;
    }
    commands = fopen(argv[1], "re");
    answers = fopen(argv[1], "we");
    if (!commands || !answers) {
        die(argv[1]);
    }
    make_raw(fileno(commands));
    setvbuf(answers, NULL, _IOLBF, BUFSIZ);
    signal(SIGCHLD, SIG_IGN);
    fprintf(answers, "0=0\n");
    while (getline(&line, &size, commands) > 0) {
        char *id = strtok(line, " "), *command = strtok(NULL, "\n");

        if (command && fork() == 0) {
            run_job(answers, id, command);
            _exit(0);
        }
    }
    die("agent: the control port is gone");
}

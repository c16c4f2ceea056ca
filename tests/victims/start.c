/* SPDX-License-Identifier: MIT */
/* Start a program in one of many ways: start fork|vfork|spawn|exec|setsid CMD... */
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
	pid_t child = -1;
	int status = 0;

	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "exec"))
		return execv(argv[2], argv + 2);
	if (!strcmp(argv[1], "spawn")) {
		if (posix_spawn(&child, argv[2], NULL, NULL, argv + 2, environ))
			return 2;
	} else if (!strcmp(argv[1], "vfork")) {
		child = vfork();
		if (child == 0) {
			execv(argv[2], argv + 2);
			_exit(2);
		}
	} else {
		child = fork();
		if (child == 0) {
			if (!strcmp(argv[1], "setsid"))
				setsid();
			execv(argv[2], argv + 2);
			_exit(2);
		}
	}
	waitpid(child, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

/* SPDX-License-Identifier: MIT */
/*
 * Kill children that call listen and bind: mortal COUNT SEED DENIED ASKED
 *
 * COUNT children, one after another, each killed at a random moment of its first
 * half millisecond. Three of four listen on IPv4 and IPv6, and bind UDP sockets
 * to port 0 and to DENIED; the fourth binds to ASKED. Prints how many died, and
 * how many of them in a call. None of the results counts: they die with it.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Atomic int *in_call;

static void try_listen(int family)
{
	int fd = socket(family, SOCK_STREAM, 0);

	*in_call = 1;
	listen(fd, 8);
	*in_call = 0;
	close(fd);
}

static void try_bind(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*in_call = 1;
	bind(fd, (void *)&address, sizeof(address));
	*in_call = 0;
	close(fd);
}

int main(int argc, char **argv)
{
	int killed = 0, calling = 0;

	if (argc < 5)
		return 2;
	srand((unsigned int)atoi(argv[2]));
	prctl(PR_SET_TIMERSLACK, 1);
	in_call = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < atoi(argv[1]); i++) {
		const struct timespec moment = {.tv_nsec = rand() % 500000};
		pid_t child = fork();
		int status;

		if (child == 0)
			for (;;) {
				if (i % 4 == 3) {
					try_bind(atoi(argv[4]));
					continue;
				}
				try_listen(AF_INET);
				try_listen(AF_INET6);
				try_bind(0);
				try_bind(atoi(argv[3]));
			}
		nanosleep(&moment, NULL);
		kill(child, SIGKILL);
		waitpid(child, &status, 0);
		killed += WIFSIGNALED(status);
		calling += *in_call;
		*in_call = 0;
	}
	printf("killed: %d\nin a call: %d\n", killed, calling);
	return 0;
}

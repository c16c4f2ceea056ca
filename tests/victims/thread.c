/* SPDX-License-Identifier: MIT */
/*
 * Listen from a thread that is not the group leader: thread shared PORT OTHER,
 * or thread apart PORT OTHER.
 *
 * apart: the thread has a descriptor table of its own, and there the socket's
 * number stands for a socket bound to PORT; everywhere else it stands for one
 * bound to OTHER. Prints the result, the pid and the tid.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int apart, port, slot;

static int bound_to(int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)number);
	if (bind(fd, (void *)&address, sizeof(address)) < 0) {
		printf("bind: %s\n", strerrorname_np(errno));
		exit(1);
	}
	return fd;
}

static void *run(void *unused)
{
	int error;

	if (apart) {
		if (unshare(CLONE_FILES) < 0)
			return unused;
		dup2(bound_to(port), slot);
	}
	error = listen(slot, 8) < 0 ? errno : 0;
	printf("listen: %s\n", error ? strerrorname_np(error) : "0");
	printf("pid: %d\ntid: %d\n", getpid(), gettid());
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	if (argc < 4)
		return 2;
	apart = !strcmp(argv[1], "apart");
	port = atoi(argv[2]);
	slot = bound_to(atoi(argv[apart ? 3 : 2]));
	pthread_create(&thread, NULL, run, NULL);
	pthread_join(thread, NULL);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Make a socket and listen on it: listen WHAT HOST PORT [OPTION...]
 *
 * WHAT: tcp4, tcp6 (dual stack), tcp6only, mptcp, udp4, unix, vsock, or fd:
 * the descriptor HOST. HOST "-": no bind. Options: times=N, backlog=N; step
 * reads a byte from standard input before each call; hold waits for its end.
 * Prints "listen: 0" or the errno's name for each call, and the port at last.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

union address {
	struct sockaddr any;
	struct sockaddr_in in4;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
	struct sockaddr_vm vm;
};

static const char *name_of(int error)
{
	return error ? strerrorname_np(error) : "0";
}

static int make(const char *what)
{
	const int on = 1;
	int fd;

	if (!strcmp(what, "tcp4"))
		fd = socket(AF_INET, SOCK_STREAM, 0);
	else if (!strncmp(what, "tcp6", 4))
		fd = socket(AF_INET6, SOCK_STREAM, 0);
	else if (!strcmp(what, "mptcp"))
		fd = socket(AF_INET, SOCK_STREAM, 262);
	else if (!strcmp(what, "udp4"))
		fd = socket(AF_INET, SOCK_DGRAM, 0);
	else if (!strcmp(what, "unix"))
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
	else
		fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0)
		return fd;
	if (strcmp(what, "unix") && strcmp(what, "vsock"))
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!strcmp(what, "tcp6only"))
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	return fd;
}

static int bind_to(int fd, const char *what, const char *host, int port)
{
	union address a = {0};
	socklen_t length;

	if (!strncmp(what, "tcp6", 4)) {
		a.in6.sin6_family = AF_INET6;
		a.in6.sin6_port = htons((uint16_t)port);
		inet_pton(AF_INET6, host, &a.in6.sin6_addr);
		length = sizeof(a.in6);
	} else if (!strcmp(what, "unix")) {
		a.un.sun_family = AF_UNIX;
		snprintf(a.un.sun_path, sizeof(a.un.sun_path), "%s", host);
		length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
				     strlen(a.un.sun_path));
		if (host[0] == '@')
			a.un.sun_path[0] = '\0';
		else
			length++;
	} else if (!strcmp(what, "vsock")) {
		a.vm.svm_family = AF_VSOCK;
		a.vm.svm_cid = VMADDR_CID_ANY;
		a.vm.svm_port = (unsigned int)port;
		length = sizeof(a.vm);
	} else {
		a.in4.sin_family = AF_INET;
		a.in4.sin_port = htons((uint16_t)port);
		inet_pton(AF_INET, host, &a.in4.sin_addr);
		length = sizeof(a.in4);
	}
	return bind(fd, &a.any, length);
}

static int port_of(int fd)
{
	union address a = {0};
	socklen_t length = sizeof(a);

	if (getsockname(fd, &a.any, &length) < 0)
		return -1;
	if (a.any.sa_family == AF_INET)
		return ntohs(a.in4.sin_port);
	if (a.any.sa_family == AF_INET6)
		return ntohs(a.in6.sin6_port);
	return -1;
}

int main(int argc, char **argv)
{
	int times = 1, backlog = 8, step = 0, hold = 0, fd;
	char byte;

	if (argc < 4)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 4; i < argc; i++) {
		if (!strncmp(argv[i], "times=", 6))
			times = atoi(argv[i] + 6);
		else if (!strncmp(argv[i], "backlog=", 8))
			backlog = atoi(argv[i] + 8);
		else if (!strcmp(argv[i], "step"))
			step = 1;
		else if (!strcmp(argv[i], "hold"))
			hold = 1;
	}

	if (!strcmp(argv[1], "fd")) {
		fd = atoi(argv[2]);
	} else {
		fd = make(argv[1]);
		if (fd < 0) {
			printf("socket: %s\n", name_of(errno));
			return 1;
		}
		if (strcmp(argv[2], "-") &&
		    bind_to(fd, argv[1], argv[2], atoi(argv[3])) < 0) {
			printf("bind: %s\n", name_of(errno));
			return 1;
		}
	}
	if (step)
		printf("ready\n");
	for (int i = 0; i < times; i++) {
		if (step && read(0, &byte, 1) != 1)
			return 0;
		printf("listen: %s\n",
		       name_of(listen(fd, backlog) < 0 ? errno : 0));
	}
	printf("port: %d\n", port_of(fd));
	while (hold && read(0, &byte, 1) > 0)
		;
	return 0;
}

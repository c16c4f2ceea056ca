/* SPDX-License-Identifier: MIT */
/*
 * Become a daemon, then listen: daemon PORT
 *
 * Two forks, a session of its own; the first process exits at once. The
 * daemon listens, prints the result, and ends with its standard input.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	int fd, error = 0;
	char byte;

	if (argc < 2)
		return 2;
	if (fork() != 0)
		_exit(0);
	setsid();
	if (fork() != 0)
		_exit(0);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)atoi(argv[1]));
	if (bind(fd, (void *)&address, sizeof(address)) < 0 ||
	    listen(fd, 8) < 0)
		error = errno;
	printf("listen: %s\n", error ? strerrorname_np(error) : "0");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

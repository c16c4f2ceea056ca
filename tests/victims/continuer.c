/* SPDX-License-Identifier: MIT */
/*
 * A supervisor as it must not be: continuer FORBIDDEN COMMAND...
 * It checks the port of a TCP socket before `listen`: see continue.h.
 */
#include "continue.h"

static int port_of(pid_t tid, const struct seccomp_data *data, int copy)
{
	struct sockaddr_in address = {0};
	socklen_t length = sizeof(address);

	(void)tid;
	(void)data;
	getsockname(copy, (void *)&address, &length);
	return address.sin_family == AF_INET ? ntohs(address.sin_port) : 0;
}

int main(int argc, char **argv)
{
	return argc < 3 ? 2 : supervise(argv, SYS_listen, port_of);
}

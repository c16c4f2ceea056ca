/* SPDX-License-Identifier: MIT */
/*
 * A supervisor as it must not be: namer FORBIDDEN COMMAND...
 *
 * It judges a `listen` by what the socket calls itself, makes it on the copy,
 * and looks afterwards whether the socket is still there: see lockrace.c. Only
 * 127.0.0.1 may be open; FORBIDDEN is not used.
 */
#include "continue.h"

static uint32_t host_of(int copy)
{
	struct sockaddr_in address = {0};
	socklen_t length = sizeof(address);

	getsockname(copy, (void *)&address, &length);
	return ntohl(address.sin_addr.s_addr);
}

static int listen_by_name(const struct seccomp_data *data, int copy)
{
	int result;

	if (host_of(copy) != INADDR_LOOPBACK)
		return -EACCES;
	result = listen(copy, (int)data->args[1]) < 0 ? -errno : 0;
	if (result == 0 && host_of(copy) != INADDR_LOOPBACK) {
		shutdown(copy, SHUT_RDWR);
		return -EACCES;
	}
	return result;
}

int main(int argc, char **argv)
{
	perform = listen_by_name;
	return argc < 3 ? 2 : supervise(argv, SYS_listen, NULL);
}

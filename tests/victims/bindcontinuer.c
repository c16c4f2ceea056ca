/* SPDX-License-Identifier: MIT */
/*
 * A supervisor as it must not be: bindcontinuer FORBIDDEN COMMAND...
 * It checks the socket and the address of `bind`, both of which the kernel
 * then looks up a second time: see continue.h.
 */
#include <sys/uio.h>

#include "continue.h"

/* The port that a UDP socket asks for; 0 for other sockets. */
static int port_of(pid_t tid, const struct seccomp_data *data, int copy)
{
	struct sockaddr_in address = {0};
	struct iovec local = {&address, sizeof(address)};
	struct iovec remote = {(void *)(uintptr_t)data->args[1],
			       sizeof(address)};
	int protocol = 0;
	socklen_t length = sizeof(protocol);

	getsockopt(copy, SOL_SOCKET, SO_PROTOCOL, &protocol, &length);
	if (protocol != IPPROTO_UDP ||
	    process_vm_readv(tid, &local, 1, &remote, 1, 0) < 0)
		return 0;
	return ntohs(address.sin_port);
}

int main(int argc, char **argv)
{
	return argc < 3 ? 2 : supervise(argv, SYS_bind, port_of);
}

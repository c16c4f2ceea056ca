/* SPDX-License-Identifier: MIT */
/*
 * The right to bind a privileged port is the target's, not the supervisor's.
 *
 * A bind on the copy is made with the supervisor's credentials. So its threads
 * lay down every capability that a bind can ask for (capabilities belong to a
 * thread; a hook runs without them too), and the kernel judges them as anybody.
 * They are looked at again at each bind: a program that changes its user to
 * another one and back has them all again, on every thread (capabilities(7)).
 * Where it then refuses, the thread takes up those that the target has, for
 * that one call.
 *
 * One right can't be laid down: who owns a user namespace has every capability
 * in it (user_namespaces(7)). So for a socket in a network namespace of another
 * user namespace the target's right and the namespace's own threshold
 * (net.ipv4.ip_unprivileged_port_start) are checked before.
 */
#ifndef PSC_PRIVILEGE_H
#define PSC_PRIVILEGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "endpoint.h"
#include "round.h"

/** psc_privilege_begin - prepare a thread that is to make calls for targets */
void psc_privilege_begin(void);

/**
 * psc_privilege_bind - bind(2) on a copy, with no more right than the target
 * @fd: the copy
 * @address, @length: where to
 * @port: the port of @address where it has one, else 0
 * @request: whose caller's rights count
 *
 * Return: 0 or -errno, as bind(2) would have said to the target.
 */
int psc_privilege_bind(int fd, const union psc_sockaddr *address,
		       socklen_t length, uint32_t port,
		       const struct psc_request *request);

#endif

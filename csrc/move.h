/* SPDX-License-Identifier: MIT */
/*
 * Moving an address to where a rule or a hook wants it. Pure.
 */
#ifndef PSC_MOVE_H
#define PSC_MOVE_H

#include <sys/socket.h>

#include "endpoint.h"
#include "rules.h"

/**
 * psc_move_address - rewrite an address
 * @target: where to; what it does not name stays
 * @asked: the endpoint that @address stands for, with the socket's family
 * @address, @length: rewritten in place
 *
 * IPv4 stays IPv4 and IPv6 stays IPv6: on an IPv6 socket an IPv4 address is
 * v4-mapped, and a dual-stack wildcard may become one.
 *
 * Return: 0, or -EAFNOSUPPORT when the target is of another family.
 */
int psc_move_address(const struct psc_target *target,
		     const struct psc_endpoint *asked,
		     union psc_sockaddr *address, socklen_t *length);

#endif

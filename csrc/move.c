/* SPDX-License-Identifier: MIT */
#include "move.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

static const uint8_t loopback_v4[4] = {127, 0, 0, 1};
static const uint8_t loopback_v6[16] = {[15] = 1};

static int move_ipv4(const struct psc_target *target,
		     union psc_sockaddr *address, socklen_t *length)
{
	struct sockaddr_in *in = (struct sockaddr_in *)address;

	switch (target->host) {
	case PSC_MOVE_HOST_IPV6:
		return -EAFNOSUPPORT;
	case PSC_MOVE_HOST_IPV4:
		memcpy(&in->sin_addr, target->address, 4);
		break;
	case PSC_MOVE_HOST_LOOPBACK:
		memcpy(&in->sin_addr, loopback_v4, 4);
		break;
	default:
		break;
	}
	in->sin_family = AF_INET; /* it may have been AF_UNSPEC */
	if (target->has_port)
		in->sin_port = htons(target->port);
	*length = sizeof(*in);
	return 0;
}

static void set_mapped(struct sockaddr_in6 *in6, const uint8_t ipv4[4])
{
	uint8_t *bytes = in6->sin6_addr.s6_addr;

	memset(bytes, 0, 10);
	memset(bytes + 10, 0xff, 2);
	memcpy(bytes + 12, ipv4, 4);
	in6->sin6_scope_id = 0;
}

static void set_ipv6(struct sockaddr_in6 *in6, const uint8_t ipv6[16])
{
	memcpy(in6->sin6_addr.s6_addr, ipv6, 16);
	in6->sin6_scope_id = 0;
}

static int move_ipv6(const struct psc_target *target,
		     const struct psc_endpoint *asked,
		     union psc_sockaddr *address, socklen_t *length)
{
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)address;
	const bool mapped = asked->family == PSC_FAMILY_IPV4;

	switch (target->host) {
	case PSC_MOVE_HOST_IPV4:
		if (!mapped && !asked->dual_stack)
			return -EAFNOSUPPORT;
		set_mapped(in6, target->address);
		break;
	case PSC_MOVE_HOST_IPV6:
		if (mapped)
			return -EAFNOSUPPORT;
		set_ipv6(in6, target->address);
		break;
	case PSC_MOVE_HOST_LOOPBACK:
		if (mapped)
			set_mapped(in6, loopback_v4);
		else
			set_ipv6(in6, loopback_v6);
		break;
	default:
		break;
	}
	if (target->has_port)
		in6->sin6_port = htons(target->port);
	*length = sizeof(*in6);
	return 0;
}

int psc_move_address(const struct psc_target *target,
		     const struct psc_endpoint *asked,
		     union psc_sockaddr *address, socklen_t *length)
{
	switch (asked->af) {
	case AF_INET:
		return move_ipv4(target, address, length);
	case AF_INET6:
		return move_ipv6(target, asked, address, length);
	default:
		return -EAFNOSUPPORT;
	}
}

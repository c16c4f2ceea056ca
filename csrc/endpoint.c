/* SPDX-License-Identifier: MIT */
#include "endpoint.h"

#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <string.h>

#include "kernel.h"

#ifndef IPPROTO_UDPLITE
#define IPPROTO_UDPLITE 136
#endif

static const uint8_t v4_mapped_prefix[12] = {0, 0, 0, 0, 0,    0,
					     0, 0, 0, 0, 0xff, 0xff};

static void take_ipv4(const struct sockaddr_in *address,
		      struct psc_endpoint *endpoint)
{
	endpoint->family = PSC_FAMILY_IPV4;
	endpoint->port = ntohs(address->sin_port);
	memcpy(endpoint->address, &address->sin_addr, 4);
}

static void take_ipv6(const struct sockaddr_in6 *address,
		      struct psc_endpoint *endpoint)
{
	const uint8_t *bytes = address->sin6_addr.s6_addr;

	endpoint->port = ntohs(address->sin6_port);
	endpoint->scope = address->sin6_scope_id;
	if (memcmp(bytes, v4_mapped_prefix, sizeof(v4_mapped_prefix)) == 0) {
		endpoint->family = PSC_FAMILY_IPV4;
		memcpy(endpoint->address, bytes + 12, 4);
	} else {
		endpoint->family = PSC_FAMILY_IPV6;
		memcpy(endpoint->address, bytes, 16);
	}
}

static void take_unix(const struct sockaddr_un *address, size_t length,
		      struct psc_endpoint *endpoint)
{
	const size_t start = offsetof(struct sockaddr_un, sun_path);
	size_t path_length = length > start ? length - start : 0;

	if (path_length > sizeof(endpoint->path))
		path_length = sizeof(endpoint->path);
	/* A path ends at its NUL; an abstract name may hold any byte. */
	if (path_length > 0 && address->sun_path[0] != '\0')
		path_length = strnlen(address->sun_path, path_length);
	endpoint->family = PSC_FAMILY_UNIX;
	endpoint->path_length = (uint16_t)path_length;
	memcpy(endpoint->path, address->sun_path, path_length);
}

void psc_endpoint_from_sockaddr(const union psc_sockaddr *address,
				size_t length,
				struct psc_endpoint *ret_endpoint)
{
	const void *raw = address;

	ret_endpoint->family = PSC_FAMILY_OTHER;
	ret_endpoint->port = 0;
	ret_endpoint->scope = 0;
	ret_endpoint->path_length = 0;
	memset(ret_endpoint->address, 0, sizeof(ret_endpoint->address));

	if (length < sizeof(sa_family_t))
		return;
	switch (address->generic.sa_family) {
	case AF_INET:
		if (length >= sizeof(struct sockaddr_in))
			take_ipv4(raw, ret_endpoint);
		break;
	case AF_INET6:
		if (length >= sizeof(struct sockaddr_in6))
			take_ipv6(raw, ret_endpoint);
		break;
	case AF_UNIX:
		take_unix(raw, length, ret_endpoint);
		break;
	case AF_VSOCK:
		if (length >= sizeof(struct sockaddr_vm)) {
			const struct sockaddr_vm *vm = raw;

			ret_endpoint->family = PSC_FAMILY_VSOCK;
			ret_endpoint->port = vm->svm_port;
			memcpy(ret_endpoint->address, &vm->svm_cid, 4);
		}
		break;
	default:
		break;
	}
}

bool psc_endpoint_is_wildcard(const struct psc_endpoint *endpoint)
{
	static const uint8_t zero[16];

	/* An IPv4 address leaves the other 12 bytes zero. */
	return psc_endpoint_has_ports(endpoint) &&
	       memcmp(endpoint->address, zero, sizeof(zero)) == 0;
}

bool psc_endpoint_is_loopback(const struct psc_endpoint *endpoint)
{
	static const uint8_t one[16] = {[15] = 1};

	if (endpoint->family == PSC_FAMILY_IPV4)
		return endpoint->address[0] == 127;
	return endpoint->family == PSC_FAMILY_IPV6 &&
	       memcmp(endpoint->address, one, sizeof(one)) == 0;
}

bool psc_endpoint_same_place(const struct psc_endpoint *first,
			     const struct psc_endpoint *second)
{
	return first->family == second->family &&
	       first->dual_stack == second->dual_stack &&
	       first->protocol == second->protocol &&
	       memcmp(first->address, second->address,
		      sizeof(first->address)) == 0;
}

bool psc_endpoint_is_tcp(const struct psc_endpoint *endpoint)
{
	return psc_endpoint_has_ports(endpoint) && endpoint->type != SOCK_RAW &&
	       (endpoint->protocol == IPPROTO_TCP ||
		endpoint->protocol == IPPROTO_MPTCP ||
		endpoint->protocol == IPPROTO_SMC || endpoint->af == AF_SMC);
}

bool psc_endpoint_is_udp(const struct psc_endpoint *endpoint)
{
	return psc_endpoint_has_ports(endpoint) && endpoint->type != SOCK_RAW &&
	       (endpoint->protocol == IPPROTO_UDP ||
		endpoint->protocol == IPPROTO_UDPLITE);
}

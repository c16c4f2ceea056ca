/* SPDX-License-Identifier: MIT */
/*
 * Endpoints: family, protocol, address and port of a socket, as rules see
 * them. Pure: made from addresses that somebody else has read.
 */
#ifndef PSC_ENDPOINT_H
#define PSC_ENDPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

enum psc_family {
	PSC_FAMILY_ANY, /* in a rule: IPv4 or IPv6; of a socket: not known */
	PSC_FAMILY_IPV4,
	PSC_FAMILY_IPV6,
	PSC_FAMILY_UNIX,
	PSC_FAMILY_VSOCK,
	PSC_FAMILY_OTHER, /* no ports that we know of: observed only */
};

/** The port of an endpoint that leaves the choice to the kernel. */
#define PSC_PORT_EPHEMERAL 0

/**
 * struct psc_endpoint - where a socket is, or asks to be
 * @family: what the address is; a v4-mapped IPv6 address is IPv4
 * @dual_stack: an IPv6 wildcard that is open on IPv4 too (not V6ONLY)
 * @af: the socket's own AF_ number
 * @protocol: the socket's IPPROTO_ number (SO_PROTOCOL)
 * @type: the socket's SOCK_ number
 * @port: TCP, UDP or vsock port in host order; 0 for ephemeral
 * @scope: IPv6 scope id
 * @address: IPv4 in the first 4 bytes, IPv6 in 16; vsock: the CID in 4, host
 *   order
 * @path_length: unix: bytes of @path in use
 * @path: unix: the path; an abstract name starts with a NUL byte
 */
struct psc_endpoint {
	uint8_t family;
	bool dual_stack;
	uint16_t af;
	uint16_t protocol;
	uint16_t type;
	uint32_t port;
	uint32_t scope;
	uint8_t address[16];
	uint16_t path_length;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

/** Any socket address that the core reads or passes on. */
union psc_sockaddr {
	struct sockaddr generic;
	struct sockaddr_storage storage;
};

/**
 * psc_endpoint_from_sockaddr - take family, address and port
 * @address: an address as getsockname() gives it
 * @length: its length; what it does not cover is never read
 * @ret_endpoint: @family, @port, @scope, @address and the path are written;
 *   the other fields are left as they are
 *
 * An address that is too short for its family becomes PSC_FAMILY_OTHER.
 */
void psc_endpoint_from_sockaddr(const union psc_sockaddr *address,
				size_t length,
				struct psc_endpoint *ret_endpoint);

/** psc_endpoint_has_ports - whether policies speak about this endpoint's port */
static inline bool psc_endpoint_has_ports(const struct psc_endpoint *endpoint)
{
	return endpoint->family == PSC_FAMILY_IPV4 ||
	       endpoint->family == PSC_FAMILY_IPV6;
}

/** psc_endpoint_is_wildcard - whether the address is 0.0.0.0 or :: */
bool psc_endpoint_is_wildcard(const struct psc_endpoint *endpoint);

/** psc_endpoint_is_loopback - whether it is in 127.0.0.0/8, or ::1 */
bool psc_endpoint_is_loopback(const struct psc_endpoint *endpoint);

/**
 * psc_endpoint_same_place - whether two endpoints are judged alike
 *
 * Compares everything that rules look at, except the port.
 */
bool psc_endpoint_same_place(const struct psc_endpoint *first,
			     const struct psc_endpoint *second);

/** psc_endpoint_is_tcp - whether the port is a TCP port (MPTCP and SMC too) */
bool psc_endpoint_is_tcp(const struct psc_endpoint *endpoint);

/** psc_endpoint_is_udp - whether the port is a UDP port (UDP-Lite too) */
bool psc_endpoint_is_udp(const struct psc_endpoint *endpoint);

#endif

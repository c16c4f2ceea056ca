/* SPDX-License-Identifier: MIT */
#include "socket.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernel.h"

static int get_int(int fd, int level, int name, int *ret_value)
{
	socklen_t length = sizeof(*ret_value);

	if (getsockopt(fd, level, name, ret_value, &length) < 0)
		return -errno;
	return 0;
}

bool psc_socket_is_open_on_ipv4(int fd)
{
	int value;

	return get_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value) < 0 || value == 0;
}

bool psc_socket_is_filter_locked(int fd)
{
	int value;

	return get_int(fd, SOL_SOCKET, SO_LOCK_FILTER, &value) < 0 || value;
}

/* Whether an IPv4 address has no bits, or all bits, beyond a network's mask. */
static bool is_end_of_network(uint32_t address, uint32_t mask)
{
	const uint32_t rest = address & ~mask;

	/* With one bit or none, both are addresses of machines. */
	return ~mask > 1 && (rest == 0 || rest == ~mask);
}

static uint32_t ipv4_of(const struct sockaddr *address)
{
	return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr);
}

/* Whether the address may be the broadcast address of an interface. */
static bool is_broadcast_of(int fd, const struct ifreq *interface,
			    uint32_t address)
{
	struct ifreq broadcast = *interface, mask = *interface;

	if (ioctl(fd, SIOCGIFBRDADDR, &broadcast) == 0 &&
	    ipv4_of(&broadcast.ifr_broadaddr) == address)
		return true;
	return ioctl(fd, SIOCGIFNETMASK, &mask) < 0 ||
	       is_end_of_network(address, ipv4_of(&mask.ifr_netmask));
}

/* By the interfaces of the socket's network namespace. */
static bool is_some_broadcast(int fd, uint32_t address)
{
	struct ifconf list = {0};
	bool found = true;
	size_t count;

	/* Asked twice: how many there are, then which. */
	if (ioctl(fd, SIOCGIFCONF, &list) < 0)
		return true;
	list.ifc_len += (int)sizeof(*list.ifc_req);
	count = (size_t)list.ifc_len / sizeof(*list.ifc_req);
	list.ifc_req = calloc(count, sizeof(*list.ifc_req));
	if (!list.ifc_req)
		return true;
	if (ioctl(fd, SIOCGIFCONF, &list) < 0 ||
	    (size_t)list.ifc_len / sizeof(*list.ifc_req) >= count)
		goto done;
	count = (size_t)list.ifc_len / sizeof(*list.ifc_req);
	found = false;
	for (size_t i = 0; i < count; i++)
		if (ipv4_of(&list.ifc_req[i].ifr_addr) == address)
			goto done; /* one's own, whatever it looks like */
	for (size_t i = 0; i < count && !found; i++)
		found = is_broadcast_of(fd, &list.ifc_req[i], address);
done:
	free(list.ifc_req);
	return found;
}

bool psc_socket_may_wander(int fd, const struct psc_endpoint *bound)
{
	const uint32_t address = (uint32_t)bound->address[0] << 24 |
				 (uint32_t)bound->address[1] << 16 |
				 (uint32_t)bound->address[2] << 8 |
				 bound->address[3];

	/* IPv6 has no such addresses, and keeps v4-mapped ones. */
	if (bound->family != PSC_FAMILY_IPV4 || bound->af == AF_INET6 ||
	    address == INADDR_ANY || address == INADDR_LOOPBACK)
		return false;
	return IN_MULTICAST(address) || address == INADDR_BROADCAST ||
	       is_some_broadcast(fd, address);
}

void psc_socket_want_port(int fd)
{
	const int off = 0;

	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &off, sizeof(off));
}

/* What only getsockopt tells of a socket with ports. */
static int read_inet(int fd, struct psc_endpoint *endpoint)
{
	int value, type, result;

	result = get_int(fd, SOL_SOCKET, SO_PROTOCOL, &value);
	if (result < 0)
		return result;
	endpoint->protocol = (uint16_t)value;
	/* A raw socket has protocol numbers of its own choice, and no port. */
	result = get_int(fd, SOL_SOCKET, SO_TYPE, &type);
	if (result < 0)
		return result;
	endpoint->type = (uint16_t)type;

	/* SMC sockets have names of AF_INET, and protocol numbers 0 and 1. */
	if (value <= 1) {
		result = get_int(fd, SOL_SOCKET, SO_DOMAIN, &value);
		if (result < 0)
			return result;
		endpoint->af = (uint16_t)value;
	}

	if (endpoint->family == PSC_FAMILY_IPV6 &&
	    psc_endpoint_is_wildcard(endpoint))
		endpoint->dual_stack = psc_socket_is_open_on_ipv4(fd);
	return 0;
}

static int read_other(int fd, struct psc_endpoint *endpoint)
{
	int value, result;

	result = get_int(fd, SOL_SOCKET, SO_DOMAIN, &value);
	if (result < 0)
		return result;
	endpoint->af = (uint16_t)value;
	if (value == AF_INET || value == AF_INET6 || value == AF_SMC)
		return -EPROTO; /* it has ports, but did not show them */
	if (get_int(fd, SOL_SOCKET, SO_TYPE, &value) == 0)
		endpoint->type = (uint16_t)value;
	if (get_int(fd, SOL_SOCKET, SO_PROTOCOL, &value) == 0)
		endpoint->protocol = (uint16_t)value;
	return 0;
}

int psc_socket_read(int fd, struct psc_endpoint *ret_endpoint)
{
	union psc_sockaddr address;
	socklen_t length = sizeof(address);

	ret_endpoint->dual_stack = false;
	ret_endpoint->protocol = 0;
	ret_endpoint->type = 0;
	if (getsockname(fd, &address.generic, &length) < 0) {
		if (errno == ENOTSOCK || errno == EBADF)
			return -errno;
		length = 0; /* families without names (AF_ALG) */
	}
	if (length > sizeof(address))
		length = sizeof(address);
	psc_endpoint_from_sockaddr(&address, length, ret_endpoint);
	if (!psc_endpoint_has_ports(ret_endpoint))
		return read_other(fd, ret_endpoint);
	ret_endpoint->af = address.generic.sa_family;
	return read_inet(fd, ret_endpoint);
}

int psc_socket_reread(int fd, const struct psc_endpoint *before,
		      struct psc_endpoint *ret_endpoint)
{
	union psc_sockaddr address;
	socklen_t length = sizeof(address);

	if (getsockname(fd, &address.generic, &length) < 0)
		return -errno;
	*ret_endpoint = *before;
	psc_endpoint_from_sockaddr(&address, length, ret_endpoint);
	ret_endpoint->dual_stack = ret_endpoint->family == PSC_FAMILY_IPV6 &&
				   psc_endpoint_is_wildcard(ret_endpoint) &&
				   psc_socket_is_open_on_ipv4(fd);
	return psc_endpoint_has_ports(ret_endpoint) ? 0 : -EPROTO;
}

uint64_t psc_socket_cookie(int fd)
{
	uint64_t cookie;
	socklen_t length = sizeof(cookie);

	if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) < 0)
		return 0;
	return cookie;
}

uint64_t psc_socket_inode(int fd)
{
	struct stat found;

	return fstat(fd, &found) < 0 ? 0 : found.st_ino;
}

/* poll(2) needs no lock. A closed TCP socket, also a new one, is hung up. */
static bool is_closed(int fd)
{
	struct pollfd look = {.fd = fd};

	return poll(&look, 1, 0) == 1 && look.revents & POLLHUP;
}

bool psc_socket_may_be_bound(int fd)
{
	int family, protocol, type;

	return get_int(fd, SOL_SOCKET, SO_DOMAIN, &family) == 0 &&
	       get_int(fd, SOL_SOCKET, SO_PROTOCOL, &protocol) == 0 &&
	       get_int(fd, SOL_SOCKET, SO_TYPE, &type) == 0 &&
	       (family == AF_SMC ||
		((family == AF_INET || family == AF_INET6) &&
		 type == SOCK_STREAM &&
		 (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP ||
		  protocol == IPPROTO_SMC))) &&
	       (psc_socket_is_listening(fd) || is_closed(fd));
}

bool psc_socket_is_connected(int fd)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);

	return getpeername(fd, (struct sockaddr *)&peer, &length) == 0 ||
	       errno != ENOTCONN;
}

bool psc_socket_is_listening(int fd)
{
	int value;

	return get_int(fd, SOL_SOCKET, SO_ACCEPTCONN, &value) == 0 && value;
}

int psc_socket_address(int fd, union psc_sockaddr *ret_address,
		       socklen_t *ret_length)
{
	*ret_length = sizeof(*ret_address);
	memset(ret_address, 0, sizeof(*ret_address));
	return getsockname(fd, &ret_address->generic, ret_length) < 0 ? -errno
								      : 0;
}

int psc_socket_bind_ephemeral(int fd)
{
	union psc_sockaddr address;
	socklen_t length;
	int result;

	psc_socket_want_port(fd);
	/* Its own address back, port 0 with it. */
	result = psc_socket_address(fd, &address, &length);
	if (result < 0)
		return result;
	if (address.generic.sa_family == AF_INET)
		((struct sockaddr_in *)&address)->sin_port = 0;
	else if (address.generic.sa_family == AF_INET6)
		((struct sockaddr_in6 *)&address)->sin6_port = 0;
	else
		return -EAFNOSUPPORT;
	if (bind(fd, &address.generic, length) < 0)
		return -errno;
	return 0;
}

int psc_socket_listen(int fd, int backlog)
{
	return listen(fd, backlog) < 0 ? -errno : 0;
}

void psc_socket_stop_linger(int fd)
{
	const struct linger off = {0};
	struct linger found;
	socklen_t length = sizeof(found);
	int type;

	/* None of these waits for the socket's lock. */
	if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &found, &length) < 0 ||
	    !found.l_onoff || found.l_linger == 0 ||
	    get_int(fd, SOL_SOCKET, SO_TYPE, &type) < 0 ||
	    type != SOCK_STREAM || psc_socket_is_listening(fd) || is_closed(fd))
		return;
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
}

void psc_socket_deafen(int fd)
{
	struct sock_filter nothing = {BPF_RET | BPF_K, 0, 0, 0};
	const struct sock_fprog program = {.len = 1, .filter = &nothing};
	const int on = 1;

	/* The port of a UDP socket can't be given back; its packets can. */
	setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
	setsockopt(fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof(on));
}

void psc_socket_unlisten(int fd)
{
	const struct sockaddr none = {.sa_family = AF_UNSPEC};

	/* A listening socket that is shut down goes back to closed... */
	shutdown(fd, SHUT_RDWR);
	/* ...and where a protocol keeps listening, disconnecting ends it. */
	if (psc_socket_is_listening(fd))
		connect(fd, &none, sizeof(none));
}

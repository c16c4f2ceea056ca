/* SPDX-License-Identifier: MIT */
/*
 * Arbitrary bytes as a socket address, and moving it: against a reading of the
 * same bytes by their offsets.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "fuzz.h"
#include "move.h"

/* Offsets and lengths, from the kernel's headers, in bytes. */
enum {
	PORT_AT = 2,
	IPV4_AT = 4,
	IPV4_LENGTH = 16,
	IPV6_AT = 8,
	SCOPE_AT = 24,
	IPV6_LENGTH = 28,
	PATH_AT = 2,
	PATH_LENGTH = 108,
	VSOCK_PORT_AT = 4,
	VSOCK_CID_AT = 8,
	VSOCK_LENGTH = 16,
};

static unsigned int big_endian_at(const uint8_t *bytes, size_t at)
{
	return (unsigned int)bytes[at] * 256 + bytes[at + 1];
}

static uint32_t native_at(const uint8_t *bytes, size_t at)
{
	uint32_t value;

	memcpy(&value, bytes + at, 4);
	return value;
}

static bool is_mapped(const uint8_t *ipv6)
{
	for (int i = 0; i < 12; i++)
		if (ipv6[i] != (i < 10 ? 0 : 255))
			return false;
	return true;
}

/* The length of a name: abstract ones hold NULs, paths end at one. */
static size_t path_length(const uint8_t *bytes, size_t length)
{
	size_t end = PATH_AT;

	if (length <= PATH_AT)
		return 0;
	if (length > PATH_AT + PATH_LENGTH)
		length = PATH_AT + PATH_LENGTH;
	if (bytes[PATH_AT] == 0)
		return length - PATH_AT;
	while (end < length && bytes[end] != 0)
		end++;
	return end - PATH_AT;
}

static unsigned int family_of(const uint8_t *bytes, size_t length)
{
	uint16_t family;

	if (length < 2)
		return AF_UNSPEC;
	memcpy(&family, bytes, 2);
	return family;
}

/* What the address is, and its fields, must be what the bytes say. */
static void check_read(const uint8_t *bytes, size_t length,
		       const struct psc_endpoint *got)
{
	const unsigned int family = family_of(bytes, length);
	uint8_t address[16] = {0};
	uint32_t port = 0, scope = 0;
	size_t path = 0;
	int wanted = PSC_FAMILY_OTHER;

	if (family == AF_INET && length >= IPV4_LENGTH) {
		wanted = PSC_FAMILY_IPV4;
		port = big_endian_at(bytes, PORT_AT);
		memcpy(address, bytes + IPV4_AT, 4);
	} else if (family == AF_INET6 && length >= IPV6_LENGTH) {
		const bool mapped = is_mapped(bytes + IPV6_AT);

		wanted = mapped ? PSC_FAMILY_IPV4 : PSC_FAMILY_IPV6;
		port = big_endian_at(bytes, PORT_AT);
		scope = native_at(bytes, SCOPE_AT);
		if (mapped)
			memcpy(address, bytes + IPV6_AT + 12, 4);
		else
			memcpy(address, bytes + IPV6_AT, 16);
	} else if (family == AF_UNIX && length >= 2) {
		wanted = PSC_FAMILY_UNIX;
		path = path_length(bytes, length);
	} else if (family == AF_VSOCK && length >= VSOCK_LENGTH) {
		wanted = PSC_FAMILY_VSOCK;
		port = native_at(bytes, VSOCK_PORT_AT);
		memcpy(address, bytes + VSOCK_CID_AT, 4);
	}

	MUST(got->family == wanted);
	MUST(got->port == port);
	MUST(got->scope == scope);
	MUST(memcmp(got->address, address, 16) == 0);
	MUST(got->path_length == path);
	MUST(path == 0 || memcmp(got->path, bytes + PATH_AT, path) == 0);
}

static bool all_zero(const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (bytes[i] != 0)
			return false;
	return true;
}

static void check_predicates(const struct psc_endpoint *endpoint)
{
	const bool ipv4 = endpoint->family == PSC_FAMILY_IPV4;
	const bool ipv6 = endpoint->family == PSC_FAMILY_IPV6;
	bool loopback = false;

	if (ipv4)
		loopback = endpoint->address[0] == 127;
	else if (ipv6)
		loopback = all_zero(endpoint->address, 15) &&
			   endpoint->address[15] == 1;
	MUST(psc_endpoint_has_ports(endpoint) == (ipv4 || ipv6));
	MUST(psc_endpoint_is_loopback(endpoint) == loopback);
	MUST(psc_endpoint_is_wildcard(endpoint) ==
	     ((ipv4 && all_zero(endpoint->address, 4)) ||
	      (ipv6 && all_zero(endpoint->address, 16))));
	MUST(psc_endpoint_same_place(endpoint, endpoint));
	MUST(!(psc_endpoint_is_tcp(endpoint) && psc_endpoint_is_udp(endpoint)) ||
	     endpoint->af == 43);
}

/* Places that differ in what rules look at, the port aside, are not the same. */
static void check_same_place(const struct psc_endpoint *first,
			     struct fuzz_input *input)
{
	struct psc_endpoint other = *first;
	bool same = true;

	switch (fuzz_below(input, 7)) {
	case 0:
		other.address[fuzz_below(input, 16)] ^= 1;
		same = false;
		break;
	case 1:
		other.family ^= 1;
		same = false;
		break;
	case 2:
		other.protocol ^= 1;
		same = false;
		break;
	case 3:
		other.dual_stack = !other.dual_stack;
		same = false;
		break;
	case 4:
		other.port ^= 1;
		break;
	case 5:
		other.scope ^= 1;
		break;
	default:
		break;
	}
	MUST(psc_endpoint_same_place(first, &other) == same);
	MUST(psc_endpoint_same_place(&other, first) == same);
}

static void take_target(struct fuzz_input *input, struct psc_target *target)
{
	memset(target, 0, sizeof(*target));
	target->host = (uint8_t)fuzz_below(input, 4);
	target->has_port = fuzz_below(input, 2);
	target->port = fuzz_port(input);
	fuzz_address(input, target->host == PSC_MOVE_HOST_IPV6,
		     target->address);
}

/* Whether a target's host is of a family that the socket can be moved to. */
static bool can_move(const struct psc_target *target,
		     const struct psc_endpoint *asked)
{
	if (asked->af != AF_INET && asked->af != AF_INET6)
		return false;
	switch (target->host) {
	case PSC_MOVE_HOST_IPV4:
		return asked->family == PSC_FAMILY_IPV4 || asked->dual_stack;
	case PSC_MOVE_HOST_IPV6:
		return asked->family == PSC_FAMILY_IPV6;
	default:
		return true;
	}
}

/* What a moved address must be: the target's, and for the rest as before. */
static void check_moved(const struct psc_target *target,
			const struct psc_endpoint *asked,
			const struct psc_endpoint *moved)
{
	static const uint8_t ipv4_loopback[16] = {127, 0, 0, 1};
	static const uint8_t ipv6_loopback[16] = {[15] = 1};
	const uint8_t *wanted = asked->address;
	int family = asked->family;

	if (target->host == PSC_MOVE_HOST_LOOPBACK)
		wanted = family == PSC_FAMILY_IPV4 ? ipv4_loopback
						   : ipv6_loopback;
	if (target->host == PSC_MOVE_HOST_IPV4)
		family = PSC_FAMILY_IPV4;
	if (target->host == PSC_MOVE_HOST_IPV4 ||
	    target->host == PSC_MOVE_HOST_IPV6)
		wanted = target->address;
	/* A host of ::ffff:0:0/96 is refused by the grammar. */
	if (target->host == PSC_MOVE_HOST_IPV6 && is_mapped(target->address))
		return;

	MUST(moved->family == family);
	MUST(memcmp(moved->address, wanted, 16) == 0);
	MUST(moved->port == (target->has_port ? target->port : asked->port));
	if (target->host == PSC_MOVE_HOST_KEEP)
		MUST(moved->scope == asked->scope);
	else
		MUST(moved->scope == 0);
}

static void check_move(struct fuzz_input *input,
		       const union psc_sockaddr *address,
		       struct psc_endpoint *asked)
{
	union psc_sockaddr rewritten = *address;
	socklen_t length = 0;
	struct psc_endpoint moved = *asked;
	struct psc_target target;
	int result;

	take_target(input, &target);
	/* A caller's address is long enough for what it stands for. */
	asked->af = psc_endpoint_has_ports(asked) ? address->generic.sa_family
						  : AF_UNIX;
	asked->dual_stack = asked->family == PSC_FAMILY_IPV6 &&
			    psc_endpoint_is_wildcard(asked) &&
			    fuzz_below(input, 2);
	if (asked->af == AF_INET && fuzz_below(input, 2))
		rewritten.generic.sa_family = AF_UNSPEC; /* means AF_INET */

	result = psc_move_address(&target, asked, &rewritten, &length);
	MUST(result == (can_move(&target, asked) ? 0 : -EAFNOSUPPORT));
	if (result < 0)
		return;
	MUST(length == (asked->af == AF_INET ? IPV4_LENGTH : IPV6_LENGTH));
	MUST(rewritten.generic.sa_family == asked->af);
	psc_endpoint_from_sockaddr(&rewritten, length, &moved);
	check_moved(&target, asked, &moved);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	struct fuzz_input input = {bytes, length};
	struct psc_endpoint endpoint, filled;
	union psc_sockaddr address;
	size_t given;
	void *exact;

	/* The last byte that may be read is the last of a block of its own. */
	given = fuzz_below(&input, sizeof(address) + 1);
	memset(&address, 0, sizeof(address));
	fuzz_bytes(&input, &address, given);
	/* Families that nobody reads are not worth much time. */
	if (given >= 2 && fuzz_below(&input, 8)) {
		static const uint16_t families[] = {AF_INET, AF_INET6, AF_UNIX,
						    AF_VSOCK};

		address.generic.sa_family = families[fuzz_below(&input, 4)];
	}
	if (address.generic.sa_family == AF_INET6 && fuzz_below(&input, 2))
		fuzz_address(&input, true, (uint8_t *)&address + IPV6_AT);
	else if (address.generic.sa_family == AF_INET6 && fuzz_below(&input, 2))
		memcpy((uint8_t *)&address + IPV6_AT,
		       "\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
	memset((uint8_t *)&address + given, 0, sizeof(address) - given);

	memset(&filled, 0xa5, sizeof(filled));
	filled.dual_stack = false;
	endpoint = filled;
	exact = malloc(given ? given : 1);
	MUST(exact != NULL);
	memcpy(exact, &address, given);
	psc_endpoint_from_sockaddr(exact, given, &endpoint);
	free(exact);
	check_read((const uint8_t *)&address, given, &endpoint);
	MUST(endpoint.af == filled.af);
	MUST(endpoint.protocol == filled.protocol);
	MUST(endpoint.type == filled.type);
	MUST(endpoint.dual_stack == filled.dual_stack);

	endpoint.protocol = fuzz_below(&input, 2) ? 6 : 17;
	endpoint.type = SOCK_STREAM;
	check_predicates(&endpoint);
	check_same_place(&endpoint, &input);
	check_move(&input, &address, &endpoint);
	return 0;
}

/* SPDX-License-Identifier: MIT */
#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "endpoint.h"
#include "kernel.h"

/*
 * Take an address whose memory ends where its length does, so that a sanitiser
 * sees every byte that is read beyond.
 */
static struct psc_endpoint take(const void *address, size_t length)
{
	struct psc_endpoint endpoint;
	union psc_sockaddr *exact = malloc(length ? length : 1);

	memset(&endpoint, 0xa5, sizeof(endpoint));
	if (!exact)
		abort();
	memcpy(exact, address, length);
	psc_endpoint_from_sockaddr(exact, length, &endpoint);
	free(exact);

	/* Not told by an address, so left alone. */
	CHECK_INT(endpoint.af, 0xa5a5);
	CHECK_INT(endpoint.protocol, 0xa5a5);
	CHECK_INT(endpoint.type, 0xa5a5);
	endpoint.dual_stack = false;
	return endpoint;
}

static bool address_is(const struct psc_endpoint *endpoint, const void *bytes,
		       size_t count)
{
	static const uint8_t zero[16];

	return memcmp(endpoint->address, bytes, count) == 0 &&
	       memcmp(endpoint->address + count, zero, 16 - count) == 0;
}

static struct sockaddr_in ipv4(const char *text, uint16_t port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(port)};

	CHECK(inet_pton(AF_INET, text, &address.sin_addr) == 1);
	return address;
}

static struct sockaddr_in6 ipv6(const char *text, uint16_t port)
{
	struct sockaddr_in6 address = {.sin6_family = AF_INET6,
				       .sin6_port = htons(port),
				       .sin6_flowinfo = 0xffffffff,
				       .sin6_scope_id = 7};

	CHECK(inet_pton(AF_INET6, text, &address.sin6_addr) == 1);
	return address;
}

static void test_ipv4(void)
{
	struct sockaddr_in address = ipv4("10.1.2.3", 8080);
	struct psc_endpoint endpoint = take(&address, sizeof(address));
	union psc_sockaddr large = {.storage.ss_family = 0};

	CHECK_INT(endpoint.family, PSC_FAMILY_IPV4);
	CHECK_INT(endpoint.port, 8080);
	CHECK_INT(endpoint.scope, 0);
	CHECK_INT(endpoint.path_length, 0);
	CHECK(address_is(&endpoint, "\x0a\x01\x02\x03", 4));

	/* Longer than its family needs is fine. */
	memset(&large, 0xff, sizeof(large));
	memcpy(&large, &address, sizeof(address));
	endpoint = take(&large, sizeof(large));
	CHECK_INT(endpoint.family, PSC_FAMILY_IPV4);
	CHECK(address_is(&endpoint, "\x0a\x01\x02\x03", 4));
}

static void test_ipv6(void)
{
	struct sockaddr_in6 address = ipv6("fd00:1:2::9", 443);
	struct psc_endpoint endpoint = take(&address, sizeof(address));

	CHECK_INT(endpoint.family, PSC_FAMILY_IPV6);
	CHECK_INT(endpoint.port, 443);
	CHECK_INT(endpoint.scope, 7);
	CHECK(address_is(&endpoint, &address.sin6_addr, 16));
}

static void test_mapped(void)
{
	struct sockaddr_in6 address = ipv6("::ffff:127.0.0.9", 1);
	struct psc_endpoint endpoint = take(&address, sizeof(address));

	CHECK_INT(endpoint.family, PSC_FAMILY_IPV4);
	CHECK_INT(endpoint.port, 1);
	CHECK(address_is(&endpoint, "\x7f\0\0\x09", 4));
	CHECK(psc_endpoint_is_loopback(&endpoint));

	address = ipv6("::ffff:0.0.0.0", 1);
	endpoint = take(&address, sizeof(address));
	CHECK_INT(endpoint.family, PSC_FAMILY_IPV4);
	CHECK(psc_endpoint_is_wildcard(&endpoint));

	/* One bit off any of the 96 of the prefix is an IPv6 address. */
	for (unsigned int bit = 0; bit < 96; bit++) {
		address = ipv6("::ffff:127.0.0.9", 1);
		address.sin6_addr.s6_addr[bit / 8] ^=
			(uint8_t)(0x80 >> bit % 8);
		endpoint = take(&address, sizeof(address));
		CHECK_INT(endpoint.family, PSC_FAMILY_IPV6);
		CHECK(!psc_endpoint_is_loopback(&endpoint));
	}
}

static void test_unix(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const size_t start = offsetof(struct sockaddr_un, sun_path);
	struct {
		struct sockaddr_un address;
		char beyond[8];
	} longer;
	struct psc_endpoint endpoint;

	endpoint = take(&address, start);
	CHECK_INT(endpoint.family, PSC_FAMILY_UNIX);
	CHECK_INT(endpoint.path_length, 0);
	CHECK_INT(endpoint.port, 0);

	/* With and without its NUL, and with more behind it. */
	strcpy(address.sun_path, "/run/x");
	for (size_t extra = 0; extra < 3; extra++) {
		endpoint = take(&address, start + 6 + extra);
		CHECK_INT(endpoint.family, PSC_FAMILY_UNIX);
		CHECK_INT(endpoint.path_length, 6);
		CHECK(memcmp(endpoint.path, "/run/x", 6) == 0);
	}

	/* An abstract name is all of its bytes. */
	memcpy(address.sun_path, "\0a\0b\0", 5);
	for (size_t length = 1; length <= 5; length++) {
		endpoint = take(&address, start + length);
		CHECK_INT(endpoint.path_length, length);
		CHECK(memcmp(endpoint.path, "\0a\0b\0", length) == 0);
	}

	/* A path of 108 bytes has no NUL, and the kernel may count one. */
	memset(&longer, 'x', sizeof(longer));
	longer.address.sun_family = AF_UNIX;
	for (size_t extra = 0; extra <= sizeof(longer.beyond); extra++) {
		endpoint = take(&longer, sizeof(longer.address) + extra);
		CHECK_INT(endpoint.path_length, sizeof(address.sun_path));
		CHECK(memcmp(endpoint.path, longer.address.sun_path,
			     sizeof(address.sun_path)) == 0);
	}
}

static void test_vsock(void)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK, .svm_port = 0x12345678, .svm_cid = 3};
	struct psc_endpoint endpoint = take(&address, sizeof(address));
	const uint32_t cid = 3;

	CHECK_INT(endpoint.family, PSC_FAMILY_VSOCK);
	CHECK_INT(endpoint.port, 0x12345678);
	CHECK(address_is(&endpoint, &cid, 4));
	CHECK(!psc_endpoint_has_ports(&endpoint));
}

/* Every length below the family's own must end as OTHER, and empty. */
static void check_short(const void *address, size_t whole, size_t from)
{
	static const uint8_t zero[16];

	for (size_t length = from; length < whole; length++) {
		struct psc_endpoint endpoint = take(address, length);

		CHECK_INT(endpoint.family, PSC_FAMILY_OTHER);
		CHECK_INT(endpoint.port, 0);
		CHECK_INT(endpoint.scope, 0);
		CHECK_INT(endpoint.path_length, 0);
		CHECK(memcmp(endpoint.address, zero, 16) == 0);
	}
}

static void test_short(void)
{
	struct sockaddr_in in = ipv4("127.0.0.1", 1);
	struct sockaddr_in6 in6 = ipv6("::1", 1);
	struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "/x"};
	struct sockaddr_vm vm = {.svm_family = AF_VSOCK, .svm_port = 1};

	check_short(&in, sizeof(in), 0);
	check_short(&in6, sizeof(in6), 0);
	check_short(&un, sizeof(sa_family_t), 0);
	check_short(&vm, sizeof(vm), 0);
}

static void test_unknown_family(void)
{
	for (unsigned int family = 0; family < 0x10000; family++) {
		const sa_family_t af = (sa_family_t)family;
		struct sockaddr_storage address;

		if (af == AF_INET || af == AF_INET6 || af == AF_UNIX ||
		    af == AF_VSOCK)
			continue;
		memset(&address, 0x55, sizeof(address));
		address.ss_family = af;
		check_short(&address, 29, 28);
	}
}

static struct psc_endpoint inet(int af, const char *text, uint16_t protocol)
{
	struct psc_endpoint endpoint = {
		.protocol = protocol,
		.af = (uint16_t)af,
		.family = af == AF_INET6 ? PSC_FAMILY_IPV6 : PSC_FAMILY_IPV4};

	CHECK(inet_pton(af == AF_INET6 ? AF_INET6 : AF_INET, text,
			endpoint.address) == 1);
	return endpoint;
}

static void test_places(void)
{
	static const struct {
		int af;
		const char *text;
		bool loopback, wildcard;
	} cases[] = {
		{AF_INET, "127.0.0.0", true, false},
		{AF_INET, "127.0.0.1", true, false},
		{AF_INET, "127.255.255.255", true, false},
		{AF_INET, "126.255.255.255", false, false},
		{AF_INET, "128.0.0.0", false, false},
		{AF_INET, "0.0.0.0", false, true},
		{AF_INET, "0.0.0.1", false, false},
		{AF_INET, "1.0.0.0", false, false},
		{AF_INET, "255.255.255.255", false, false},
		{AF_INET6, "::", false, true},
		{AF_INET6, "::1", true, false},
		{AF_INET6, "::2", false, false},
		{AF_INET6, "::101", false, false},
		{AF_INET6, "1::1", false, false},
		{AF_INET6, "1::", false, false},
		{AF_INET6, "7f00::", false, false},
		{AF_INET6, "7f00::1", false, false},
	};

	for (size_t i = 0; i < COUNT_OF(cases); i++) {
		struct psc_endpoint endpoint =
			inet(cases[i].af, cases[i].text, IPPROTO_TCP);

		if (psc_endpoint_is_loopback(&endpoint) != cases[i].loopback)
			FAIL("%s: loopback is wrong", cases[i].text);
		if (psc_endpoint_is_wildcard(&endpoint) != cases[i].wildcard)
			FAIL("%s: wildcard is wrong", cases[i].text);
	}

	/* No other family has either, whatever its bytes are. */
	for (uint8_t family = 0; family <= PSC_FAMILY_OTHER; family++) {
		struct psc_endpoint endpoint = {.family = family};

		if (family == PSC_FAMILY_IPV4 || family == PSC_FAMILY_IPV6)
			continue;
		CHECK(!psc_endpoint_has_ports(&endpoint));
		CHECK(!psc_endpoint_is_wildcard(&endpoint));
		endpoint.address[0] = 127;
		CHECK(!psc_endpoint_is_loopback(&endpoint));
		memset(endpoint.address, 0, 16);
		endpoint.address[15] = 1;
		CHECK(!psc_endpoint_is_loopback(&endpoint));
	}
}

static void test_protocols(void)
{
	for (uint16_t protocol = 0; protocol < 300; protocol++) {
		const bool tcp = protocol == 6 || protocol == 256 ||
				 protocol == 262;
		const bool udp = protocol == 17 || protocol == 136;
		struct psc_endpoint endpoint =
			inet(AF_INET, "1.2.3.4", protocol);

		CHECK_INT(psc_endpoint_is_tcp(&endpoint), tcp);
		CHECK_INT(psc_endpoint_is_udp(&endpoint), udp);
		endpoint = inet(AF_INET6, "::1", protocol);
		CHECK_INT(psc_endpoint_is_tcp(&endpoint), tcp);
		CHECK_INT(psc_endpoint_is_udp(&endpoint), udp);

		/* Protocol numbers mean something else in other families. */
		endpoint.family = PSC_FAMILY_OTHER;
		CHECK(!psc_endpoint_is_tcp(&endpoint));
		CHECK(!psc_endpoint_is_udp(&endpoint));
	}
	/* SMC: over IPv4 and over IPv6. */
	for (uint16_t protocol = 0; protocol < 2; protocol++) {
		struct psc_endpoint endpoint =
			inet(AF_SMC, "1.2.3.4", protocol);

		CHECK(psc_endpoint_is_tcp(&endpoint));
		CHECK(!psc_endpoint_is_udp(&endpoint));
	}
}

static void test_same_place(void)
{
	const struct psc_endpoint first = inet(AF_INET6, "::", IPPROTO_TCP);
	struct psc_endpoint other = first;

	CHECK(psc_endpoint_same_place(&first, &other));
	other.port = 9;
	CHECK(psc_endpoint_same_place(&first, &other));
	other = first;
	other.dual_stack = true;
	CHECK(!psc_endpoint_same_place(&first, &other));
	other = first;
	other.family = PSC_FAMILY_IPV4;
	CHECK(!psc_endpoint_same_place(&first, &other));
	other = first;
	other.protocol = IPPROTO_UDP;
	CHECK(!psc_endpoint_same_place(&first, &other));
	for (int i = 0; i < 16; i++) {
		other = first;
		other.address[i] = 1;
		CHECK(!psc_endpoint_same_place(&first, &other));
	}
}

static const struct check_test tests[] = {
	{"an IPv4 address is taken", test_ipv4},
	{"an IPv6 address is taken, with its scope", test_ipv6},
	{"a v4-mapped address is the IPv4 address that it maps", test_mapped},
	{"unix paths, abstract names and unnamed sockets are told apart",
	 test_unix},
	{"a vsock address is taken, and has no port of ours", test_vsock},
	{"an address that is too short is OTHER, and nothing beyond is read",
	 test_short},
	{"an unknown family is OTHER, and empty", test_unknown_family},
	{"loopback and wildcard are exactly those addresses", test_places},
	{"TCP and UDP are told by protocol, MPTCP, SMC and UDP-Lite included",
	 test_protocols},
	{"the same place is everything but the port", test_same_place},
	{NULL, NULL},
};

const struct check_suite endpoint_suite = {"endpoint", tests};

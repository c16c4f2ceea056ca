/* SPDX-License-Identifier: MIT */
/*
 * Bind a thousand odd inputs: bindodd FREE BUSY
 *
 * Prints a line for each: what was tried, the errno's name or 0, and what
 * getsockname says afterwards; a port that the kernel chose is "chosen". FREE
 * is a port that nobody uses; BUSY another, which is taken first. Paths are
 * made in the current directory, and taken away again.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

union address {
	struct sockaddr any;
	struct sockaddr_in in4;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
	struct sockaddr_nl nl;
	char bytes[256];
};

struct kind {
	const char *name;
	int family, type, protocol;
};

static const struct kind kinds[] = {
	{"tcp4", AF_INET, SOCK_STREAM, 0},
	{"udp4", AF_INET, SOCK_DGRAM, 0},
	{"mptcp4", AF_INET, SOCK_STREAM, 262},
	{"udplite4", AF_INET, SOCK_DGRAM, 136},
	{"ping4", AF_INET, SOCK_DGRAM, IPPROTO_ICMP},
	{"raw4", AF_INET, SOCK_RAW, IPPROTO_ICMP},
	{"rawudp4", AF_INET, SOCK_RAW, IPPROTO_UDP},
	{"sctp4", AF_INET, SOCK_SEQPACKET, IPPROTO_SCTP},
	{"tcp6", AF_INET6, SOCK_STREAM, 0},
	{"udp6", AF_INET6, SOCK_DGRAM, 0},
	{"mptcp6", AF_INET6, SOCK_STREAM, 262},
	{"udplite6", AF_INET6, SOCK_DGRAM, 136},
	{"raw6", AF_INET6, SOCK_RAW, IPPROTO_ICMPV6},
	{"unixs", AF_UNIX, SOCK_STREAM, 0},
	{"unixd", AF_UNIX, SOCK_DGRAM, 0},
	{"netlink", AF_NETLINK, SOCK_RAW, NETLINK_ROUTE},
	{"generic", AF_NETLINK, SOCK_RAW, NETLINK_GENERIC},
	{"vsock", AF_VSOCK, SOCK_STREAM, 0},
	{"alg", AF_ALG, SOCK_SEQPACKET, 0},
};

static int free_port, busy_port;

static const struct kind *kind_of(const char *name)
{
	for (size_t i = 0; i < COUNT(kinds); i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	exit(3);
}

static int make(const struct kind *kind)
{
	return socket(kind->family, kind->type, kind->protocol);
}

/* A good address for sockets of a family. */
static union address good(int family)
{
	union address a = {.any = {.sa_family = (sa_family_t)family}};

	if (family == AF_INET6) {
		a.in6.sin6_port = htons((uint16_t)free_port);
		a.in6.sin6_addr = in6addr_loopback;
	} else if (family == AF_UNIX) {
		strcpy(a.un.sun_path, "odd");
	} else if (family != AF_NETLINK) {
		a.in4.sin_port = htons((uint16_t)free_port);
		a.in4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	return a;
}

static void show_port(int port)
{
	static const int ours[] = {0, 1, 81, 1023};

	for (size_t i = 0; i < COUNT(ours); i++)
		if (port == ours[i]) {
			printf(" %d", port);
			return;
		}
	if (port == free_port)
		printf(" free");
	else if (port == busy_port)
		printf(" busy");
	else
		printf(" chosen");
}

static void show_name(int fd)
{
	union address a = {0};
	socklen_t length = sizeof(a);
	char text[64];
	int value = -1;

	if (getsockname(fd, &a.any, &length) < 0) {
		printf(" no name: %s", strerrorname_np(errno));
		return;
	}
	switch (a.any.sa_family) {
	case AF_INET:
		inet_ntop(AF_INET, &a.in4.sin_addr, text, sizeof(text));
		printf(" %s", text);
		show_port(ntohs(a.in4.sin_port));
		break;
	case AF_INET6:
		inet_ntop(AF_INET6, &a.in6.sin6_addr, text, sizeof(text));
		printf(" %s%%%u", text, a.in6.sin6_scope_id);
		show_port(ntohs(a.in6.sin6_port));
		length = sizeof(value);
		getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length);
		printf(" v6only=%d", value);
		break;
	case AF_NETLINK:
		printf(" %s groups=%x",
		       a.nl.nl_pid == 0			   ? "none"
		       : a.nl.nl_pid == (uint32_t)getpid() ? "self"
		       : a.nl.nl_pid == 4242		   ? "4242"
							   : "other",
		       a.nl.nl_groups);
		break;
	default:
		printf(" family=%d length=%u", a.any.sa_family, length);
		if (length > 3 && a.un.sun_path[0])
			printf(" %.40s", a.un.sun_path);
	}
}

static void unlink_paths(const void *address)
{
	union address a = {0};

	memcpy(&a, address, sizeof(a.un));
	a.bytes[sizeof(a.un)] = '\0';
	if (a.any.sa_family == AF_UNIX && a.un.sun_path[0])
		unlink(a.un.sun_path);
}

static void try_bind(int fd, const void *address, int length)
{
	errno = 0;
	if (bind(fd, address, (socklen_t)length) < 0)
		printf(" %s", strerrorname_np(errno));
	else
		printf(" 0");
	show_name(fd);
}

/* One try on a socket of its own. */
static void once(const struct kind *kind, const union address *address,
		 int length)
{
	int fd = make(kind);

	if (fd < 0) {
		printf(" no socket: %s\n", strerrorname_np(errno));
		return;
	}
	try_bind(fd, address, length);
	printf("\n");
	close(fd);
	unlink_paths(address);
}

static void lengths(void)
{
	static const char *const names[] = {"udp4",  "udp6",  "tcp4",	"tcp6",
					    "unixd", "unixs", "netlink"};
	static const int odd[] = {-1, -16, INT_MIN, INT_MAX, 1 << 16, 4096};

	for (size_t i = 0; i < COUNT(names); i++) {
		const struct kind *kind = kind_of(names[i]);
		union address address = good(kind->family);

		for (int length = 0; length <= 140; length++) {
			if (kind->family == AF_UNIX && length > 2) {
				memset(address.un.sun_path, 'a', 130);
				address.un.sun_path[length - 2] = '\0';
			}
			printf("length %s %d:", names[i], length);
			once(kind, &address, length);
		}
		for (size_t k = 0; k < COUNT(odd); k++) {
			printf("length %s %d:", names[i], odd[k]);
			once(kind, &address, odd[k]);
		}
	}
}

static void families(void)
{
	static const int odd[] = {AF_UNSPEC,  AF_UNIX,	AF_INET, AF_INET6,
				  AF_NETLINK, AF_VSOCK, 99,	 65535};

	for (size_t i = 0; i < COUNT(kinds); i++)
		for (size_t k = 0; k < 2 * COUNT(odd); k++) {
			const int family = odd[k / 2];
			union address address = good(family);

			/* AF_UNSPEC is right for the IPv4 wildcard only. */
			if (k % 2 && family != AF_UNIX)
				address.in4.sin_addr.s_addr = 0;
			printf("family %s %d %zu:", kinds[i].name, family,
			       k % 2);
			once(&kinds[i], &address, family == AF_UNIX ? 6 : 28);
		}
}

struct option {
	const char *name;
	int level, number, value;
};

static const struct option options[] = {
	{"none", 0, 0, 0},
	{"reuseaddr", SOL_SOCKET, SO_REUSEADDR, 1},
	{"reuseport", SOL_SOCKET, SO_REUSEPORT, 1},
	{"v6only", IPPROTO_IPV6, IPV6_V6ONLY, 1},
	{"both", IPPROTO_IPV6, IPV6_V6ONLY, 0},
	{"freebind", IPPROTO_IP, 15 /* IP_FREEBIND */, 1},
	{"noport", IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, 1},
	{"device", SOL_SOCKET, SO_BINDTOIFINDEX, 1},
};

struct place {
	const char *host;
	unsigned int scope;
};

static const struct place places[] = {
	{"0.0.0.0", 0},
	{"127.0.0.1", 0},
	{"127.1.2.3", 0},
	{"192.0.2.1", 0},
	{"224.0.0.251", 0},
	{"255.255.255.255", 0},
	{"::", 0},
	{"::1", 0},
	{"::", 1},
	{"::1", 1},
	{"::1", 9999},
	{"::ffff:127.0.0.1", 0},
	{"::ffff:0.0.0.0", 0},
	{"::ffff:192.0.2.1", 0},
	{"::ffff:224.0.0.1", 0},
	{"::127.0.0.1", 0},
	{"fe80::1", 0},
	{"fe80::1", 1},
	{"fe80::1", 9999},
	{"ff02::fb", 0},
	{"ff02::fb", 1},
	{"2001:db8::1", 0},
};

static union address at(const struct place *place, int port, int *ret_family)
{
	union address a = {0};

	*ret_family = strchr(place->host, ':') ? AF_INET6 : AF_INET;
	a.any.sa_family = (sa_family_t)*ret_family;
	a.in4.sin_port = htons((uint16_t)port); /* both have it here */
	if (*ret_family == AF_INET) {
		inet_pton(AF_INET, place->host, &a.in4.sin_addr);
	} else {
		inet_pton(AF_INET6, place->host, &a.in6.sin6_addr);
		a.in6.sin6_scope_id = place->scope;
	}
	return a;
}

static void addresses(void)
{
	const int ports[] = {0, free_port, busy_port, 81};

	for (size_t i = 0; i < COUNT(places) * COUNT(ports); i++) {
		const struct place *place = &places[i / COUNT(ports)];
		int family, port = ports[i % COUNT(ports)];
		union address address = at(place, port, &family);

		for (size_t k = 0; k < 2 * COUNT(options); k++) {
			const struct option *option = &options[k / 2];
			int type = k % 2 ? SOCK_STREAM : SOCK_DGRAM;
			int fd = socket(family, type, 0);

			printf("address %s%%%u", place->host, place->scope);
			show_port(port);
			printf(" %s %s:", option->name, k % 2 ? "tcp" : "udp");
			if (option->level)
				setsockopt(fd, option->level, option->number,
					   &option->value, sizeof(int));
			try_bind(fd, &address, sizeof(address.in6));
			printf("\n");
			close(fd);
		}
	}
}

static void pointers(void)
{
	static const char *const names[] = {"udp4", "tcp4", "udp6", "unixd",
					    "netlink"};
	static const int sizes[] = {0, 1, 2, 12, 16, 28, 110, 128, 129, -1};
	const long size = sysconf(_SC_PAGESIZE);
	char *pages = mmap(NULL, (size_t)size * 3, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *end = pages + size;

	mprotect(end, (size_t)size, PROT_NONE);
	for (size_t i = 0; i < COUNT(names); i++) {
		const struct kind *kind = kind_of(names[i]);
		const union address address = good(kind->family);

		for (size_t k = 0; k < COUNT(sizes); k++) {
			const int length = sizes[k];
			const size_t room = length > 0 && length <= 128
						    ? (size_t)length
						    : 2;
			const struct {
				const char *name;
				const void *address;
			} all[] = {
				{"null", NULL},
				{"one", (void *)1},
				{"kernel", (void *)0xffff888000000000},
				{"high", (void *)-1L},
				{"none", end},
				{"end", end - room},
				{"over", end - room + 1},
			};

			memcpy(end - 128, &address, 127);
			for (size_t n = 0; n < COUNT(all); n++) {
				int fd = make(kind);

				if (!strcmp(all[n].name, "end"))
					memcpy(end - room, &address, room);
				printf("pointer %s %d %s:", names[i], length,
				       all[n].name);
				try_bind(fd, all[n].address, length);
				printf("\n");
				close(fd);
				unlink_paths(&address);
			}
		}
	}
	munmap(pages, (size_t)size * 3);
}

static void descriptors(void)
{
	const int family = AF_INET;
	union address address = good(family);
	int ends[2], udp = socket(AF_INET, SOCK_DGRAM, 0);
	char path[32];

	if (pipe(ends) < 0)
		exit(3);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", udp);
	const int all[] = {
		-1,
		INT_MAX,
		INT_MIN,
		100000,
		ends[0],
		ends[1],
		eventfd(0, 0),
		epoll_create1(0),
		open("/dev/null", O_RDONLY),
		open("/", O_RDONLY | O_DIRECTORY),
		open("/", O_PATH),
		open("/dev/null", O_PATH),
		open(path, O_PATH),
	};

	for (size_t i = 0; i < COUNT(all); i++) {
		printf("descriptor %zu:", i);
		try_bind(all[i], &address, sizeof(address.in4));
		printf(" null:");
		try_bind(all[i], NULL, 16);
		printf(" long:");
		try_bind(all[i], &address, 1000);
		printf("\n");
	}
	for (size_t i = 4; i < COUNT(all); i++)
		close(all[i]);
	close(ends[0]);
	close(ends[1]);
	close(udp);
	printf("descriptor closed:");
	try_bind(udp, &address, sizeof(address.in4));
	printf("\n");
}

/* Several binds on one socket. */
static void again(void)
{
	static const char *const names[] = {"udp4",  "udp6",	"tcp4",	 "tcp6",
					    "unixd", "netlink", "mptcp4"};

	for (size_t i = 0; i < COUNT(names); i++)
		for (int how = 0; how < 8; how++) {
			const struct kind *kind = kind_of(names[i]);
			union address address = good(kind->family);
			union address other = address;
			const struct sockaddr none = {.sa_family = AF_UNSPEC};
			const int on = 1;
			int fd = make(kind);

			if (kind->family == AF_NETLINK) {
				if (how == 1)
					address.nl.nl_pid = 4242;
				if (how == 2)
					other.nl.nl_groups = 1;
				if (how == 3)
					other.nl.nl_pid = 4242;
			} else if (kind->family != AF_UNIX) {
				if (how == 1 || how == 3)
					address.in4.sin_port = 0;
				if (how == 2)
					other.in4.sin_port = 0;
				if (how == 4)
					setsockopt(fd, IPPROTO_IP, 24, &on,
						   sizeof(on));
				if (how == 4 || how == 5)
					address.in4.sin_port = 0;
			}
			printf("again %s %d:", names[i], how);
			try_bind(fd, &address, 28 - 14 * (how == 7));
			if (how == 5 && kind->family != AF_UNIX)
				connect(fd, &none, sizeof(none));
			if (how == 6)
				listen(fd, 1);
			try_bind(fd, &other, 28);
			try_bind(fd, &other, 28);
			printf("\n");
			close(fd);
			unlink_paths(&address);
		}
}

/* An address without a port first: it leaves its traces on the socket. */
static void traces(void)
{
	const int on = 1;
	int family;

	for (size_t i = 0; i < COUNT(places); i++)
		for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
			union address first = at(&places[i], 0, &family), last;
			struct place wildcard = {
				family == AF_INET ? "0.0.0.0" : "::", 0};
			int fd = socket(family, type, 0);

			last = at(&wildcard, free_port, &family);
			setsockopt(fd, IPPROTO_IP, 24, &on, sizeof(on));
			printf("trace %s%%%u %d:", places[i].host,
			       places[i].scope, type);
			try_bind(fd, &first, 28);
			try_bind(fd, &last, 28);
			printf("\n");
			close(fd);
		}
}

/* Sockets that are connected already. */
static void connected(void)
{
	for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
		union address address = good(AF_INET), peer = good(AF_INET);
		const struct sockaddr none = {.sa_family = AF_UNSPEC};
		int fd = socket(AF_INET, type, 0);

		peer.in4.sin_port = htons((uint16_t)busy_port);
		connect(fd, &peer.any, sizeof(peer.in4));
		printf("connected %d:", type);
		try_bind(fd, &address, sizeof(address.in4));
		connect(fd, &none, sizeof(none));
		try_bind(fd, &address, sizeof(address.in4));
		printf("\n");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	union address taken = good(AF_INET6);
	int udp = socket(AF_INET6, SOCK_DGRAM, 0);
	int tcp = socket(AF_INET6, SOCK_STREAM, 0);

	if (argc < 3)
		return 2;
	setvbuf(stdout, NULL, _IOFBF, 1 << 20);
	free_port = atoi(argv[1]);
	busy_port = atoi(argv[2]);
	taken.in6.sin6_port = htons((uint16_t)busy_port);
	taken.in6.sin6_addr = in6addr_any;
	if (bind(udp, &taken.any, sizeof(taken.in6)) < 0 ||
	    bind(tcp, &taken.any, sizeof(taken.in6)) < 0 || listen(tcp, 8) < 0)
		return 4;
	lengths();
	families();
	addresses();
	pointers();
	descriptors();
	again();
	traces();
	connected();
	return 0;
}

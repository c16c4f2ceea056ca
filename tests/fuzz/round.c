/* SPDX-License-Identifier: MIT */
/*
 * Notifications of hostile callers, through the whole round: round.c,
 * binding.c, listening.c, socket.c, memory.c and the rules, as they are. Beneath
 * them is a small model of the kernel instead of the kernel: a caller with four
 * descriptors, its memory, and sockets that bind, listen and connect as Linux's
 * do. Whenever the core asks the model anything, the caller's other threads may
 * act first: swap descriptors, bind, connect, disconnect, switch V6ONLY, lock
 * filters, die, or make another guarded call in between.
 *
 * After each round no port may be open that the slow matcher denies.
 *
 * With FUZZ_TRACE in the environment what happens is told on stderr. With
 * FUZZ_DEPTH=2 another thread of the supervisor may make a whole round while one
 * is under way, on the same sockets: as after a takeover.
 */
#include <errno.h>
#include <linux/audit.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "forking.h"
#include "fuzz.h"
#include "kernel.h"
#include "listener.h"
#include "listening.h"
#include "privilege.h"
#include "round.h"

enum {
	SOCKETS = 4,	   /* the caller's descriptors, too */
	ROUNDS_MAX = 12,   /* in one input */
	COPIES_MAX = 256,  /* ever made */
	COPY_FD = 1 << 20, /* the first of the copies' numbers */
	CALLER = 4242,
	WORDS_AT = 0x1000,
	ADDRESS_AT = 0x2000,
	MADE_UP_PORT = 40000, /* the kernel's choices start here */
	ALLOWED_MAX = 16,
};

/* ---- sockets, as Linux keeps them ---- */

enum thing { INTERNET, UNIX_SOCKET, NETLINK, NAMELESS, NO_SOCKET, PATH_ONLY };

/**
 * struct socket - one open file of the caller
 * @host, @port: where it is bound; an IPv6 socket's host has 16 bytes
 * @by_bind: the address was given by bind(2)
 * @bound_host: that address. A socket that was connected may keep a narrower
 *   one; here it always returns
 * @chosen: the port was named by whoever bound it
 * @moved: the core bound it elsewhere than it was asked to
 * @loose: bound or opened by the kernel itself, where the README says that
 *   nothing protects
 * @trusted: bound by whoever started the caller: its number counts
 * @unknown: bound where the core saw nothing: the strictest verdict counts
 */
struct socket {
	enum thing thing;
	uint16_t af, type, protocol;
	uint8_t host[16];
	uint16_t port;
	uint64_t cookie;
	bool v6only, no_port, listening, connected, shut;
	bool locked, deaf;
	uint8_t bound_host[16];
	bool by_bind, chosen, moved, loose, touched, trusted, unknown;
};

/** struct call - one round, and what the caller and the core did in it */
struct call {
	struct call *outer;
	struct psc_request *request;
	struct seccomp_notif notif;
	enum psc_call meaning;
	int fd;
	int backlog;
	int address_length;
	uint8_t address[128]; /* as it was read last */
	enum thing found;     /* what its copy was */
	bool interrupted;     /* nobody waits for it */
	bool saw_gone;	      /* and the core was told so */
	bool asked_lock;      /* whether a filter is locked */
	bool unsure;	      /* what was copied or read may be a stranger's */
	bool meddled;
	int answers, error;
	bool continued;
	int copies; /* open ones */
};

struct allowed {
	uint64_t cookie;
	struct psc_endpoint where;
};

static struct world {
	struct fuzz_input input;
	struct fuzz_policy made;
	bool needs_bind; /* binds are notified, too */
	struct socket sockets[SOCKETS];
	int table[SOCKETS]; /* descriptor -> socket */
	struct call *call;
	int depth, rounds;
	struct {
		int socket;
		struct call *owner;
		bool open;
	} copies[COPIES_MAX];
	int copied;
	uint16_t next_port;
	struct allowed allowed[ALLOWED_MAX]; /* by the hook */
	int allowed_count;
	struct psc_source source;
	struct psc_callers callers;
} world;

static struct psc_books books;
static bool tracing;
static int depth_max = 1; /* more: rounds within rounds, as after a takeover */

#define TRACE(...)                                                             \
	do {                                                                   \
		if (tracing) {                                                 \
			fprintf(stderr, "%*s", 2 * world.depth, "");           \
			fprintf(stderr, __VA_ARGS__);                          \
		}                                                              \
	} while (0)

static int index_of(const struct socket *socket)
{
	return (int)(socket - world.sockets);
}

static bool is_udp(const struct socket *socket)
{
	return socket->type == SOCK_DGRAM &&
	       (socket->protocol == IPPROTO_UDP ||
		socket->protocol == IPPROTO_UDPLITE);
}

static bool is_wild(const struct socket *socket)
{
	static const uint8_t zero[16];

	return memcmp(socket->host, zero, 16) == 0;
}

static bool is_mapped(const struct socket *socket)
{
	static const uint8_t prefix[12] = {[10] = 255, 255};

	return socket->af == AF_INET6 && memcmp(socket->host, prefix, 12) == 0;
}

/* Where a socket is, as a policy sees it. */
static struct psc_endpoint endpoint_of(const struct socket *socket)
{
	struct psc_endpoint endpoint;

	memset(&endpoint, 0, sizeof(endpoint));
	endpoint.af = socket->af;
	endpoint.type = socket->type;
	endpoint.protocol = socket->protocol;
	endpoint.port = socket->port;
	if (is_mapped(socket)) {
		endpoint.family = PSC_FAMILY_IPV4;
		memcpy(endpoint.address, socket->host + 12, 4);
	} else {
		endpoint.family = socket->af == AF_INET6 ? PSC_FAMILY_IPV6
							 : PSC_FAMILY_IPV4;
		memcpy(endpoint.address, socket->host, 16);
		endpoint.dual_stack = socket->af == AF_INET6 &&
				      is_wild(socket) && !socket->v6only;
	}
	return endpoint;
}

static int write_name(const struct socket *socket, void *ret_address,
		      socklen_t *length)
{
	struct sockaddr_storage name;
	socklen_t size = sizeof(struct sockaddr_in);

	memset(&name, 0, sizeof(name));
	name.ss_family = socket->af;
	switch (socket->thing) {
	case NO_SOCKET:
		return ENOTSOCK;
	case PATH_ONLY:
		return EBADF;
	case NAMELESS:
		return EOPNOTSUPP;
	case UNIX_SOCKET:
		size = sizeof(sa_family_t);
		break;
	case NETLINK:
		size = 12;
		break;
	case INTERNET:
		if (socket->af == AF_INET6) {
			struct sockaddr_in6 *in6 = (void *)&name;

			size = sizeof(*in6);
			memcpy(&in6->sin6_addr, socket->host, 16);
			in6->sin6_port = htons(socket->port);
		} else {
			struct sockaddr_in *in = (void *)&name;

			in->sin_family = AF_INET; /* SMC's names, too */
			memcpy(&in->sin_addr, socket->host, 4);
			in->sin_port = htons(socket->port);
		}
		break;
	}
	memcpy(ret_address, &name, size < *length ? size : *length);
	*length = size;
	return 0;
}

static uint16_t kernel_choice(void)
{
	/* Sometimes one that a rule names. */
	const uint16_t port = fuzz_u8(&world.input) == 1
				      ? fuzz_port(&world.input)
				      : 0;

	return port ? port : world.next_port++;
}

static int kernel_bind(struct socket *socket, const void *raw, socklen_t length)
{
	const struct sockaddr_in *in = raw;
	const struct sockaddr_in6 *in6 = raw;
	struct socket next = *socket;
	uint16_t port;

	if (socket->thing != INTERNET)
		return socket->thing == NO_SOCKET ? ENOTSOCK : 0;
	memset(next.host, 0, sizeof(next.host));
	if (socket->af == AF_INET6) {
		if (length < 24)
			return EINVAL;
		if (in6->sin6_family != AF_INET6)
			return EAFNOSUPPORT;
		memcpy(next.host, &in6->sin6_addr, 16);
		port = ntohs(in6->sin6_port);
		if (is_mapped(&next) && socket->v6only)
			return EINVAL;
	} else {
		if (length < sizeof(*in))
			return EINVAL;
		if (in->sin_family != AF_INET &&
		    (in->sin_family != AF_UNSPEC || in->sin_addr.s_addr))
			return EAFNOSUPPORT;
		memcpy(next.host, &in->sin_addr, 4);
		port = ntohs(in->sin_port);
	}
	if (socket->port || socket->connected || socket->listening)
		return EINVAL;
	if (fuzz_u8(&world.input) == 1)
		return EADDRINUSE;
	next.chosen = port != 0;
	next.port = port || socket->no_port ? port : kernel_choice();
	next.by_bind = true;
	memcpy(next.bound_host, next.host, sizeof(next.host));
	TRACE("socket %d is bound to port %d\n", index_of(socket), next.port);
	next.moved = false;
	*socket = next;
	return 0;
}

static int kernel_listen(struct socket *socket)
{
	if (socket->thing == NO_SOCKET)
		return ENOTSOCK;
	if (socket->thing != INTERNET)
		return 0;
	if (socket->type != SOCK_STREAM)
		return EOPNOTSUPP;
	if (socket->connected)
		return EINVAL;
	if (socket->port == 0) {
		socket->port = kernel_choice();
		socket->chosen = socket->moved = false;
	}
	TRACE("socket %d listens on port %d\n", index_of(socket), socket->port);
	socket->listening = true;
	return 0;
}

static void kernel_connect(struct socket *socket)
{
	static const uint8_t mapped_loopback[16] = {[10] = 255, 255,
						    127,	0,  0, 1};
	static const uint8_t ipv6_loopback[16] = {[15] = 1};
	static const uint8_t ipv4_loopback[16] = {127, 0, 0, 1};
	static const uint8_t interface_host[4] = {10, 0, 0, 1};

	if (socket->thing != INTERNET || socket->listening ||
	    socket->connected || socket->type == SOCK_RAW)
		return;
	if (socket->port == 0) {
		socket->port = kernel_choice();
		socket->chosen = socket->moved = false;
		if (is_udp(socket))
			socket->loose = true; /* it never called bind */
	}
	/* TCP on a broadcast address moves to an interface's, for good. */
	if (socket->af == AF_INET && !is_udp(socket) &&
	    (memcmp(socket->host, "\x7f\xff\xff\xff", 4) == 0 ||
	     memcmp(socket->host, "\x0a\xff\xff\xff", 4) == 0)) {
		memcpy(socket->host, interface_host, 4);
		memcpy(socket->bound_host, socket->host, 16);
	}
	if (is_wild(socket))
		memcpy(socket->host,
		       socket->af != AF_INET6 ? ipv4_loopback
		       : socket->v6only	      ? ipv6_loopback
					      : mapped_loopback,
		       16);
	socket->connected = true;
}

/* connect(2) to AF_UNSPEC; what was bound by name stays bound. */
static void kernel_disconnect(struct socket *socket)
{
	if (socket->thing != INTERNET)
		return;
	socket->connected = socket->listening = false;
	memset(socket->host, 0, sizeof(socket->host));
	if (socket->by_bind)
		memcpy(socket->host, socket->bound_host, sizeof(socket->host));
	if (!socket->chosen)
		socket->port = 0;
	if (socket->port == 0)
		socket->by_bind = socket->moved = socket->loose = false;
}

/* IPV6_ADDRFORM: an IPv6 socket whose peer is v4-mapped turns IPv4. */
static void kernel_addrform(struct socket *socket)
{
	if (socket->thing != INTERNET || !socket->connected ||
	    !is_mapped(socket))
		return;
	memcpy(socket->host, socket->host + 12, 4);
	memset(socket->host + 4, 0, 12);
	memcpy(socket->bound_host, socket->bound_host + 12, 4);
	memset(socket->bound_host + 4, 0, 12);
	socket->af = AF_INET;
}

/* ---- the caller's memory ---- */

static int take_address(const struct socket *socket, uint8_t *ret_address)
{
	struct sockaddr_in6 *in6 = (void *)ret_address;
	struct sockaddr_in *in = (void *)ret_address;
	uint8_t host[16];

	memset(ret_address, 0, 128);
	switch (fuzz_below(&world.input, 8)) {
	case 0:
		fuzz_bytes(&world.input, ret_address, 32);
		return (int8_t)fuzz_u8(&world.input);
	case 1:
		in->sin_family = AF_UNSPEC;
		break;
	default:
		in->sin_family = socket->af == AF_INET6 ? AF_INET6 : AF_INET;
		break;
	}
	in->sin_port = htons(fuzz_port(&world.input));
	if (in->sin_family != AF_INET6) {
		fuzz_address(&world.input, false, host);
		memcpy(&in->sin_addr, host, 4);
		return sizeof(*in);
	}
	if (fuzz_below(&world.input, 4) == 0) {
		fuzz_address(&world.input, false, host);
		memset((uint8_t *)&in6->sin6_addr + 10, 255, 2);
		memcpy((uint8_t *)&in6->sin6_addr + 12, host, 4);
	} else {
		fuzz_address(&world.input, true, host);
		memcpy(&in6->sin6_addr, host, 16);
	}
	return fuzz_below(&world.input, 8) ? 28 : 24;
}

/* ---- what other threads do ---- */

static void run_round(void);

static void meddle(void)
{
	const unsigned int what = fuzz_u8(&world.input);
	struct socket *socket = &world.sockets[what / 16 % SOCKETS];
	uint8_t address[128];
	int length;

	if (what == 0 || what >= 192)
		return;
	if (world.call) {
		world.call->meddled = true;
		/* Mostly with the very socket that the call is about. */
		if (what >= 64 && world.call->fd >= 0 &&
		    world.call->fd < SOCKETS)
			socket = &world.sockets[world.table[world.call->fd]];
	}
	TRACE("another thread does %d with socket %d\n", what % 16,
	      index_of(socket));
	switch (what % 16) {
	case 1:
		kernel_connect(socket);
		break;
	case 2:
		kernel_disconnect(socket);
		break;
	case 3:
		if (socket->port == 0)
			socket->v6only = !socket->v6only;
		break;
	case 4:
		kernel_addrform(socket);
		break;
	case 5:
		/* In the very moment: the README says that this gets past. */
		if (world.call && world.call->asked_lock && is_udp(socket))
			socket->loose = true;
		socket->locked = true;
		break;
	case 6:
		socket->no_port = !socket->no_port;
		break;
	case 7:
		if (world.needs_bind)
			return;
		length = take_address(socket, address);
		if (length >= 0)
			kernel_bind(socket, address, (socklen_t)length);
		break;
	case 8:
		world.table[what / 64] = (int)(what / 16 % SOCKETS);
		return;
	case 9:
		if (world.call)
			world.call->interrupted = true;
		return;
	case 10:
		if (world.depth > 0 && world.depth < depth_max)
			run_round();
		return;
	case 11:
		if (socket->listening && fuzz_below(&world.input, 2)) {
			socket->shut = true;
			socket->listening = false;
		}
		break;
	default:
		return;
	}
	socket->touched = true;
}

/* ---- what the core asks of the system ---- */

int __real_close(int fd);
int __wrap_close(int fd);
int __real_fstat(int fd, struct stat *ret_stat);
int __wrap_fstat(int fd, struct stat *ret_stat);
int __wrap_getsockname(int fd, struct sockaddr *address, socklen_t *length);
int __wrap_poll(struct pollfd *looks, nfds_t count, int timeout);
int __wrap_ioctl(int fd, unsigned long request, void *argument);
int __wrap_getpeername(int fd, struct sockaddr *address, socklen_t *length);
int __wrap_getsockopt(int fd, int level, int name, void *value,
		      socklen_t *length);
int __wrap_setsockopt(int fd, int level, int name, const void *value,
		      socklen_t length);
int __wrap_bind(int fd, const struct sockaddr *address, socklen_t length);
int __wrap_listen(int fd, int backlog);
int __wrap_shutdown(int fd, int how);
int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length);

static struct socket *socket_of(int fd)
{
	MUST(fd >= COPY_FD && fd < COPY_FD + world.copied);
	MUST(world.copies[fd - COPY_FD].open);
	MUST(world.copies[fd - COPY_FD].owner == world.call);
	if (world.call)
		meddle();
	return &world.sockets[world.copies[fd - COPY_FD].socket];
}

static int failing(int error)
{
	errno = error;
	return error ? -1 : 0;
}

int __wrap_close(int fd)
{
	if (fd < COPY_FD)
		return __real_close(fd);
	socket_of(fd);
	world.copies[fd - COPY_FD].open = false;
	world.call->copies--;
	return 0;
}

int __wrap_fstat(int fd, struct stat *ret_stat)
{
	if (fd < COPY_FD)
		return __real_fstat(fd, ret_stat);
	memset(ret_stat, 0, sizeof(*ret_stat));
	ret_stat->st_ino = socket_of(fd)->cookie;
	return 0;
}

int __wrap_getsockname(int fd, struct sockaddr *address, socklen_t *length)
{
	const struct socket *socket = socket_of(fd);

	if (world.call)
		world.call->found = socket->thing;
	return failing(write_name(socket, address, length));
}

int __wrap_poll(struct pollfd *looks, nfds_t count, int timeout)
{
	const struct socket *socket = socket_of(looks->fd);

	MUST(count == 1 && timeout == 0);
	looks->revents = socket->connected || socket->listening ? 0 : POLLHUP;
	return looks->revents != 0;
}

/* Two interfaces: 127.0.0.1/8 and 10.0.0.1/8. */
int __wrap_ioctl(int fd, unsigned long request, void *argument)
{
	static const uint32_t hosts[] = {0x7f000001, 0x0a000001};
	struct ifconf *list = argument;
	struct ifreq *interface = argument;
	struct sockaddr_in *address = (void *)&interface->ifr_addr;

	socket_of(fd);
	if (request == SIOCGIFNETMASK) {
		address->sin_addr.s_addr = htonl(0xff000000);
		return 0;
	}
	if (request == SIOCGIFBRDADDR) {
		address->sin_addr.s_addr |= htonl(0x00ffffff);
		return 0;
	}
	MUST(request == SIOCGIFCONF);
	if (list->ifc_req)
		MUST((size_t)list->ifc_len >= sizeof(struct ifreq[2]));
	for (int i = 0; list->ifc_req && i < 2; i++) {
		address = (void *)&list->ifc_req[i].ifr_addr;
		address->sin_family = AF_INET;
		address->sin_addr.s_addr = htonl(hosts[i]);
	}
	list->ifc_len = sizeof(struct ifreq[2]);
	return 0;
}

int __wrap_getpeername(int fd, struct sockaddr *address, socklen_t *length)
{
	const struct socket *socket = socket_of(fd);

	return socket->connected ? failing(write_name(socket, address, length))
				 : failing(ENOTCONN);
}

int __wrap_getsockopt(int fd, int level, int name, void *value,
		      socklen_t *length)
{
	const struct socket *socket = socket_of(fd);
	int found = 0;

	if (socket->thing == NO_SOCKET)
		return failing(ENOTSOCK);
	if (level == SOL_SOCKET && name == SO_LINGER) {
		memset(value, 0, *length);
		return 0;
	}
	if (level == SOL_SOCKET && name == SO_COOKIE) {
		memcpy(value, &socket->cookie, sizeof(socket->cookie));
		return 0;
	}
	if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY) {
		if (socket->af != AF_INET6)
			return failing(EOPNOTSUPP);
		found = socket->v6only;
	} else {
		MUST(level == SOL_SOCKET);
		switch (name) {
		case SO_PROTOCOL:
			found = socket->protocol;
			break;
		case SO_TYPE:
			found = socket->type;
			break;
		case SO_DOMAIN:
			found = socket->af;
			break;
		case SO_LOCK_FILTER:
			found = socket->locked;
			world.call->asked_lock = true;
			break;
		case SO_ACCEPTCONN:
			found = socket->listening;
			break;
		default:
			fuzz_fail(__FILE__, __LINE__, "a known option");
		}
	}
	MUST(*length == sizeof(found));
	memcpy(value, &found, sizeof(found));
	return 0;
}

int __wrap_setsockopt(int fd, int level, int name, const void *value,
		      socklen_t length)
{
	struct socket *socket = socket_of(fd);

	(void)length;
	if (level == IPPROTO_IP && name == IP_BIND_ADDRESS_NO_PORT) {
		socket->no_port = *(const int *)value;
	} else if (level == SOL_SOCKET && name == SO_ATTACH_FILTER) {
		if (socket->locked)
			return failing(EPERM);
		socket->deaf = true;
	} else if (level == SOL_SOCKET && name == SO_LOCK_FILTER) {
		socket->locked = true;
	} else {
		fuzz_fail(__FILE__, __LINE__, "a known option");
	}
	return 0;
}

int __wrap_bind(int fd, const struct sockaddr *address, socklen_t length)
{
	struct socket *socket = socket_of(fd);
	const int error = kernel_bind(socket, address, length);

	/* A moved one that has lost its port gets another. */
	if (error == 0)
		socket->moved = world.call->request->decision.verdict ==
				PSC_VERDICT_MOVE;
	return failing(error);
}

int __wrap_listen(int fd, int backlog)
{
	struct socket *socket = socket_of(fd);

	MUST(backlog == world.call->backlog);
	MUST(!world.call->unsure);
	return failing(kernel_listen(socket));
}

int __wrap_shutdown(int fd, int how)
{
	struct socket *socket = socket_of(fd);

	MUST(how == SHUT_RDWR);
	if (socket->listening)
		kernel_disconnect(socket);
	return 0;
}

int __wrap_connect(int fd, const struct sockaddr *address, socklen_t length)
{
	struct socket *socket = socket_of(fd);

	(void)length;
	MUST(address->sa_family == AF_UNSPEC);
	kernel_disconnect(socket);
	return 0;
}

/* Stands for the kernel's own check of a right, and for privilege.c's. */
int psc_privilege_bind(int fd, const union psc_sockaddr *address,
		       socklen_t length, uint32_t port,
		       const struct psc_request *request)
{
	struct socket *socket = socket_of(fd);
	const struct call *call = world.call;
	const bool moves = request->decision.verdict == PSC_VERDICT_MOVE;
	int error;

	MUST(fd == request->copy_fd);
	MUST(!call->unsure);
	MUST(length <= sizeof(*address));
	if (call->meaning == PSC_CALL_BIND && !moves &&
	    socket->thing == INTERNET) {
		MUST((int)length == call->address_length);
		MUST(memcmp(address, call->address, length) == 0);
	}
	if (port && port < 1024 && fuzz_u8(&world.input) == 1)
		return -EACCES;
	error = kernel_bind(socket, address, length);
	if (error == 0 && moves)
		socket->moved = true;
	return -error;
}

/* ---- what the core asks about the caller ---- */

void psc_callers_name(struct psc_callers *callers, int32_t tid,
		      struct psc_caller_name *ret_name)
{
	MUST(callers == &world.callers);
	meddle();
	*ret_name = (struct psc_caller_name){.pid = tid, .comm = "caller"};
}

void psc_forking_hold(void)
{
}

void psc_forking_release(void)
{
}

int psc_callers_copy_fd(struct psc_callers *callers, int32_t tid, int fd)
{
	static const int errors[] = {-ESRCH, -EPERM, -EMFILE, -ENOSYS, -EXDEV};
	const int next = world.copied;

	MUST(callers == &world.callers);
	MUST(tid == (int32_t)world.call->notif.pid && tid != 0);
	MUST(fd == world.call->fd);
	meddle();
	if (fuzz_u8(&world.input) == 1)
		return errors[fuzz_below(&world.input, COUNT_OF(errors))];
	if (fd < 0 || fd >= SOCKETS)
		return -EBADF;
	if (next == COPIES_MAX)
		return -EMFILE;
	world.call->unsure = true;
	world.copies[next].socket = world.table[fd];
	world.copies[next].owner = world.call;
	world.copies[next].open = true;
	world.copied++;
	world.call->copies++;
	return COPY_FD + next;
}

ssize_t psc_callers_read(int32_t tid, uint64_t address, void *ret_bytes,
			 size_t length)
{
	static const int errors[] = {-EFAULT, -EPERM, -ESRCH};
	struct call *call = world.call;

	MUST(tid == (int32_t)call->notif.pid);
	MUST(length > 0 && length <= 128);
	call->unsure = true;
	meddle();
	switch (fuzz_u8(&world.input)) {
	case 1:
		return errors[fuzz_below(&world.input, COUNT_OF(errors))];
	case 2:
		return (ssize_t)(length - 1);
	default:
		break;
	}
	if (address == WORDS_AT) {
		uint32_t words[3];

		call->fd = (int)fuzz_below(&world.input, SOCKETS + 1);
		words[0] = (uint32_t)call->fd;
		if (call->meaning == PSC_CALL_LISTEN) {
			call->backlog = (int)fuzz_u32(&world.input);
			words[1] = (uint32_t)call->backlog;
		} else {
			words[1] = ADDRESS_AT;
			words[2] = fuzz_below(&world.input, 130);
			call->address_length = (int)words[2];
		}
		MUST(length ==
		     (call->meaning == PSC_CALL_LISTEN ? 8u : 12u));
		memcpy(ret_bytes, words, length);
		return (ssize_t)length;
	}
	/* The bytes are others each time that somebody looks. */
	MUST(address == ADDRESS_AT);
	MUST((int)length == call->address_length);
	take_address(&world.sockets[world.table[(unsigned int)call->fd %
						 SOCKETS]],
		     call->address);
	memcpy(ret_bytes, call->address, length);
	return (ssize_t)length;
}

int psc_listener_id_valid(int listener_fd, uint64_t id)
{
	MUST(listener_fd == world.source.fd);
	MUST(id == world.call->notif.id);
	meddle();
	world.call->unsure = false;
	if (!world.call->interrupted)
		return 0;
	world.call->saw_gone = true;
	return -ENOENT;
}

static int finish(int listener_fd, uint64_t id)
{
	struct call *call = world.call;

	MUST(listener_fd == world.source.fd);
	MUST(id == call->notif.id);
	MUST(call->copies == 0); /* or a close and rebind finds the port busy */
	MUST(++call->answers == 1);
	if (call->interrupted)
		return -ENOENT;
	return 0;
}

int psc_listener_answer(int listener_fd, uint64_t id, int error)
{
	int result;

	meddle();
	result = finish(listener_fd, id);
	MUST(error >= 0 && error <= 4095);
	world.call->error = error;
	return result;
}

/* The kernel runs the call: the descriptor and the memory are looked up anew. */
int psc_listener_continue(int listener_fd, uint64_t id)
{
	struct call *call = world.call;
	struct socket *socket;
	uint8_t address[128];
	int length, result;

	meddle();
	result = finish(listener_fd, id);
	call->continued = true;
	if (world.source.can_deny)
		MUST(call->found == UNIX_SOCKET &&
		     (call->meaning == PSC_CALL_BIND ||
		      world.source.policy->unix_continue));
	if (result < 0 || call->fd < 0 || call->fd >= SOCKETS)
		return result;
	socket = &world.sockets[world.table[call->fd]];
	if (call->meaning == PSC_CALL_LISTEN) {
		kernel_listen(socket);
		socket->loose = true;
	} else if (call->meaning == PSC_CALL_BIND) {
		length = take_address(socket, address);
		if (length >= 0 &&
		    kernel_bind(socket, address, (socklen_t)length) == 0)
			socket->loose = is_udp(socket);
	}
	return result;
}

/* ---- what must hold ---- */

/* What was allowed as open on both may be either (IPV6_ADDRFORM). */
static bool is_part_of(const struct psc_endpoint *where,
		       const struct psc_endpoint *allowed)
{
	if (where->port != allowed->port ||
	    (!psc_endpoint_is_wildcard(allowed) &&
	     memcmp(where->address, allowed->address, 16) != 0))
		return false;
	if (allowed->dual_stack)
		return where->family == PSC_FAMILY_IPV4 ||
		       where->family == PSC_FAMILY_IPV6;
	return where->family == allowed->family && !where->dual_stack;
}

static bool hook_allowed(const struct socket *socket,
			 const struct psc_endpoint *where)
{
	for (int i = 0; i < world.allowed_count; i++) {
		const struct allowed *one = &world.allowed[i];

		if (one->cookie == socket->cookie &&
		    is_part_of(where, &one->where))
			return true;
	}
	return false;
}

static bool may_be_open(const struct socket *socket,
			struct psc_endpoint *where)
{
	int rule;

	/* Who judged it as open on IPv4 too may have been stricter, and asked. */
	return slow_judge(&world.made.policy, where, &rule) ==
		       PSC_VERDICT_ALLOW ||
	       hook_allowed(socket, where);
}

static void check_socket(const struct socket *socket)
{
	struct psc_endpoint where = endpoint_of(socket);
	bool open = socket->listening;

	if (socket->thing != INTERNET || socket->loose || socket->moved)
		return;
	/* One that is connected hears its peer only, and is bound again later. */
	if (is_udp(socket) && world.needs_bind)
		open = socket->port != 0 && socket->by_bind && !socket->deaf &&
		       !socket->connected;
	if (!open || !world.source.can_deny || may_be_open(socket, &where))
		return;
	TRACE("socket %d: family %d, address %02x%02x..%02x%02x, port %d, %s, %s\n",
	      index_of(socket), where.family, where.address[0],
	      where.address[1], where.address[14], where.address[15],
	      (int)where.port, where.dual_stack ? "dual stack" : "one stack",
	      socket->chosen ? "chosen" : "the kernel's choice");
	/* Where the kernel chose the port it may be judged as ephemeral. */
	where.port = PSC_PORT_EPHEMERAL;
	MUST(!socket->chosen && may_be_open(socket, &where));
}

/* Where nobody meddles the answer is the policy's, to the letter. */
static void check_quiet_listen(const struct call *call,
			       const struct socket *before)
{
	const struct socket *socket;
	struct psc_endpoint where;
	int rule;

	if (call->meddled || call->answers == 0 || call->fd < 0 ||
	    call->fd >= SOCKETS || call->meaning != PSC_CALL_LISTEN)
		return;
	socket = &world.sockets[world.table[call->fd]];
	before += world.table[call->fd];
	if (before->thing != INTERNET || before->type != SOCK_STREAM ||
	    before->touched || before->moved || before->loose ||
	    before->listening)
		return;
	where = endpoint_of(before);
	if (world.needs_bind && !before->chosen && !before->trusted &&
	    psc_endpoint_is_tcp(&where))
		where.port = PSC_PORT_EPHEMERAL;
	switch (slow_judge(&world.made.policy, &where, &rule)) {
	case PSC_VERDICT_ALLOW:
		MUST(call->error == 0 ? socket->listening
				      : !socket->listening);
		break;
	case PSC_VERDICT_DENY:
		MUST(!socket->listening);
		MUST(call->error == (rule < 0 ? world.made.policy.error
					      : world.made.rules[rule].error) ||
		     before->unknown || call->found != INTERNET ||
		     call->error == world.made.policy.error ||
		     call->error == EFAULT);
		break;
	default:
		break;
	}
}

/* ---- rounds ---- */

static void take_notification(struct call *call)
{
	struct seccomp_data *data = &call->notif.data;
	const unsigned int way = fuzz_u8(&world.input);
	const bool is_listen = way & 1;

	call->notif.id = (uint64_t)++world.rounds;
	call->notif.pid = way == 255 ? 0 : CALLER;
	call->meaning = is_listen ? PSC_CALL_LISTEN : PSC_CALL_BIND;
	if (!world.needs_bind)
		call->meaning = PSC_CALL_LISTEN;
	if (way / 2 % 64 == 1) {
		data->arch = fuzz_u32(&world.input);
		data->nr = (int)fuzz_u32(&world.input);
		call->meaning = PSC_CALL_NONE;
		return;
	}
	if (way / 2 % 8 == 2) {
		data->arch = AUDIT_ARCH_I386;
		data->nr = 102;
		data->args[0] = call->meaning == PSC_CALL_LISTEN ? 4 : 2;
		data->args[1] = WORDS_AT | (uint64_t)fuzz_u8(&world.input) << 32;
		return;
	}
	call->fd = (int)fuzz_below(&world.input, SOCKETS + 1);
	if (call->fd == SOCKETS)
		call->fd = (int8_t)fuzz_u8(&world.input);
	data->arch = way / 2 % 8 == 3 ? AUDIT_ARCH_I386 : AUDIT_ARCH_X86_64;
	/* The high half of an int argument is anything. */
	data->args[0] = (uint32_t)call->fd |
			(uint64_t)fuzz_u8(&world.input) << 32;
	if (call->meaning == PSC_CALL_LISTEN) {
		data->nr = data->arch == AUDIT_ARCH_I386 ? 363 : 50;
		call->backlog = (int8_t)fuzz_u8(&world.input);
		data->args[1] = (uint64_t)(int64_t)call->backlog;
	} else {
		const struct socket *socket =
			&world.sockets[world.table[(unsigned int)call->fd %
						   SOCKETS]];
		const unsigned int length = fuzz_u8(&world.input);

		data->nr = data->arch == AUDIT_ARCH_I386 ? 361 : 49;
		call->address_length = length >= 200	       ? (int)length - 210
				       : socket->af == AF_INET6 ? 28
							       : 16;
		data->args[1] = ADDRESS_AT;
		data->args[2] = (uint32_t)call->address_length |
				(uint64_t)fuzz_u8(&world.input) << 32;
	}
}

/* As psc_supervisor_decide(), and the leader at the deadline, do. */
static void decide(struct psc_request *request)
{
	const unsigned int verdict = fuzz_below(&world.input, 4);
	struct psc_target *target = &request->decision.target;

	for (int i = 0; i < 3; i++)
		meddle();
	if (verdict == 3) {
		psc_round_fail(request, PSC_FAILURE_DEADLINE, 0, &books);
		return;
	}
	request->event.rule = PSC_RULE_HOOK;
	request->decision.error = world.made.policy.error;
	request->decision.verdict = PSC_VERDICT_DENY;
	if (verdict == 1) {
		request->decision.verdict = PSC_VERDICT_ALLOW;
		if (world.allowed_count < ALLOWED_MAX)
			world.allowed[world.allowed_count++] = (struct allowed){
				request->event.cookie,
				request->event.requested};
	} else if (verdict == 2) {
		request->decision.verdict = PSC_VERDICT_MOVE;
		memset(target, 0, sizeof(*target));
		target->host = (uint8_t)fuzz_below(&world.input, 4);
		target->has_port = fuzz_below(&world.input, 2);
		target->port = fuzz_port(&world.input);
		fuzz_address(&world.input, target->host == PSC_MOVE_HOST_IPV6,
			     target->address);
	}
	psc_round_close(request, &books);
}

static void check_event(const struct psc_event *event)
{
	MUST(event->pid == event->tid);
	MUST(event->call <= PSC_CALL_BIND);
	MUST(event->outcome <= PSC_OUTCOME_CONTINUE);
	MUST(event->failure <= PSC_FAILURE_MOVE);
	MUST((event->rule == PSC_RULE_FAILURE) == (event->failure != 0));
	MUST(event->rule < (int)world.made.policy.count);
	MUST(event->outcome != PSC_OUTCOME_DENY || event->error != 0);
	MUST(event->outcome != PSC_OUTCOME_DENY || !event->open);
	MUST(event->latency_ns >= 0);
	if (event->open)
		MUST(event->known);
}

static void run_round(void)
{
	struct call call = {.outer = world.call, .found = PATH_ONLY};
	struct psc_request *request;
	struct psc_event event;
	struct socket before[SOCKETS];

	if (world.rounds >= ROUNDS_MAX)
		return;
	request = malloc(sizeof(*request));
	MUST(request != NULL);
	/* What the round before has left there. */
	memset(request, 0xa5, sizeof(*request));
	request->decision.verdict = PSC_VERDICT_ALLOW;
	request->source = &world.source;
	call.request = request;
	take_notification(&call);
	memcpy(before, world.sockets, sizeof(before));
	TRACE("round %d: %s of descriptor %d\n", world.rounds,
	      call.meaning == PSC_CALL_LISTEN ? "listen"
	      : call.meaning == PSC_CALL_BIND ? "bind"
					      : "no call of ours",
	      call.fd);
	world.call = &call;
	world.depth++;
	switch (psc_round_open(request, &call.notif, &world.callers, &books)) {
	case PSC_ROUND_ASK:
		psc_round_leave(request);
		decide(request);
		break;
	case PSC_ROUND_DECIDED:
		TRACE("the policy says %d, by rule %d\n",
		      request->decision.verdict, request->decision.rule);
		psc_round_close(request, &books);
		break;
	case PSC_ROUND_DONE:
		break;
	}
	psc_round_leave(request);
	world.depth--;
	world.call = call.outer;

	TRACE("round %d: %d answers, error %d\n", (int)call.notif.id,
	      call.answers, call.error);
	MUST(call.copies == 0);
	MUST(call.answers == 1 || call.saw_gone);
	while (psc_event_ring_pop(&books.ring, &event))
		check_event(&event);
	check_quiet_listen(&call, before);
	if (world.depth == 0)
		for (int i = 0; i < SOCKETS; i++)
			check_socket(&world.sockets[i]);
	free(request);
}

/* ---- the start ---- */

static void take_socket(struct socket *socket, uint64_t cookie)
{
	static const struct {
		enum thing thing;
		uint16_t af, type, protocol;
	} kinds[] = {
		{INTERNET, AF_INET, SOCK_STREAM, IPPROTO_TCP},
		{INTERNET, AF_INET6, SOCK_STREAM, IPPROTO_TCP},
		{INTERNET, AF_INET, SOCK_DGRAM, IPPROTO_UDP},
		{INTERNET, AF_INET6, SOCK_DGRAM, IPPROTO_UDP},
		{INTERNET, AF_INET6, SOCK_STREAM, IPPROTO_MPTCP},
		{INTERNET, AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE},
		{INTERNET, AF_INET, SOCK_STREAM, IPPROTO_SCTP},
		{INTERNET, AF_INET, SOCK_RAW, IPPROTO_TCP},
		{INTERNET, AF_SMC, SOCK_STREAM, 0},
		{UNIX_SOCKET, AF_UNIX, SOCK_STREAM, 0},
		{NETLINK, AF_NETLINK, SOCK_RAW, 0},
		{NAMELESS, AF_ALG, SOCK_SEQPACKET, 0},
		{NO_SOCKET, 0, 0, 0},
		{PATH_ONLY, 0, 0, 0},
	};
	const unsigned int bits = fuzz_u8(&world.input);
	const unsigned int kind = bits % 16 % COUNT_OF(kinds);

	memset(socket, 0, sizeof(*socket));
	socket->thing = kinds[kind].thing;
	socket->af = kinds[kind].af;
	socket->type = kinds[kind].type;
	socket->protocol = kinds[kind].protocol;
	socket->cookie = cookie;
	socket->v6only = bits & 16;
	socket->no_port = bits & 32;
	if (bits & 64 && !is_udp(socket)) {
		uint8_t address[128];
		int length = take_address(socket, address);

		if (length >= 0)
			kernel_bind(socket, address, (socklen_t)length);
	}
}

/* As for what a target inherits: some of it is known, some came by itself. */
static void take_trust(struct socket *socket)
{
	const int next = world.copied;

	if (socket->port == 0)
		return;
	socket->unknown = fuzz_u8(&world.input) & 1;
	if (socket->unknown)
		return;
	world.copied++;
	world.copies[next].socket = index_of(socket);
	world.copies[next].open = true;
	psc_listening_trust(COPY_FD + next, &books.memory);
	world.copies[next].open = false;
	socket->trusted = true;
}

static bool is_internet(const struct psc_rule *rule)
{
	return rule->family <= PSC_FAMILY_IPV6;
}

/* Whether binds are decided: portseccomp/policy.py, _decides_binds. */
static bool policy_decides_binds(const struct psc_policy *policy)
{
	if (policy->default_verdict != PSC_VERDICT_ALLOW || policy->count == 0)
		return true;
	for (size_t i = 0; i < policy->count; i++) {
		const struct psc_rule *rule = &policy->rules[i];

		if (is_internet(rule) &&
		    rule->match_protocol != PSC_PROTOCOL_TCP)
			return true;
		if (rule->match_ports == PSC_PORTS_EPHEMERAL ||
		    rule->verdict == PSC_VERDICT_MOVE)
			return true;
		if (rule->family == PSC_FAMILY_UNIX &&
		    rule->verdict != PSC_VERDICT_ALLOW)
			return true;
	}
	return false;
}

/* Whether they are notified at least: portseccomp/policy.py, needs_bind. */
static bool policy_needs_bind(const struct psc_policy *policy)
{
	for (size_t i = 0; i < policy->count; i++)
		if (policy->rules[i].verdict != PSC_VERDICT_ALLOW &&
		    policy->rules[i].family != PSC_FAMILY_VSOCK)
			return true;
	return policy_decides_binds(policy);
}

static void start(const uint8_t *bytes, size_t length)
{
	memset(&world, 0, sizeof(world));
	world.input = (struct fuzz_input){bytes, length};
	world.next_port = MADE_UP_PORT;
	fuzz_policy(&world.input, &world.made);
	world.needs_bind = policy_needs_bind(&world.made.policy);
	world.made.policy.quiet_binds =
		!policy_decides_binds(&world.made.policy);
	world.source = (struct psc_source){
		.fd = 3,
		.references = 1,
		.policy = &world.made.policy,
		.can_deny = psc_rules_can_deny(&world.made.policy),
		.sees_binds = world.needs_bind,
		.restarts = fuzz_below(&world.input, 2),
	};
	TRACE("default %d\n", world.made.policy.default_verdict);
	for (size_t i = 0; i < world.made.policy.count; i++)
		TRACE("rule %zu: verdict %d, family %d, protocol %d, address %d/%d, "
		      "ports %d: %u to %u\n",
		      i, world.made.rules[i].verdict, world.made.rules[i].family,
		      world.made.rules[i].match_protocol,
		      world.made.rules[i].match_address,
		      world.made.rules[i].prefix_length,
		      world.made.rules[i].match_ports,
		      world.made.rules[i].port_first,
		      world.made.rules[i].port_last);
	/* Only these sets have been used: clearing all takes longer than a run. */
	memset(books.memory.sets, 0,
	       (SOCKETS + 1) * sizeof(books.memory.sets[0]));
	memset(books.memory.interrupted, 0, sizeof(books.memory.interrupted));
	books.memory.claimed = 0;
	books.memory.clock = 0;
	for (int i = 0; i < SOCKETS; i++) {
		world.table[i] = i;
		take_socket(&world.sockets[i], (uint64_t)i + 1);
		take_trust(&world.sockets[i]);
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	tracing = getenv("FUZZ_TRACE") != NULL;
	if (getenv("FUZZ_DEPTH"))
		depth_max = atoi(getenv("FUZZ_DEPTH"));
	psc_memory_init(&books.memory);
	return psc_event_ring_init(&books.ring, 16);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	start(bytes, length);
	do {
		meddle();
		run_round();
	} while (world.input.left > 0 && world.rounds < ROUNDS_MAX);
	return 0;
}

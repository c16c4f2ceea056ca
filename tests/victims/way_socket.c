/* SPDX-License-Identifier: MIT */
/*
 * Ways around a filter: sockets that come from elsewhere, and sockets that turn
 * into what was not judged.
 * way_socket ATTACK PORT ALLOWED TRIES (see way.h); the attacks are in the table
 * at the end.
 */
#include "way.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/uio.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
enum { REPAIR = 19, BIND_NO_PORT = 24, PORT_RANGE = 51 };

static struct sockaddr_in there; /* PORT of 127.0.0.1 */

static void set(int fd, int level, int name, int value)
{
	(void)!setsockopt(fd, level, name, &value, sizeof(value));
}

static int bind_to(int fd, uint32_t host, int number)
{
	struct sockaddr_in address = place(host, number);

	return bind(fd, (void *)&address, sizeof(address));
}

/* ---- passed from one process to another ---- */

static void send_fd(int unix_fd, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	must(sendmsg(unix_fd, &message, 0), "sendmsg");
}

static int receive_fd(int unix_fd)
{
	char byte, control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	int fd = -1;

	must(recvmsg(unix_fd, &message, 0), "recvmsg");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* Bound here; a process of another pid namespace listens, where it may be. */
static void passed(void)
{
	int pair[2], tcp, udp;

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	tally->running++;
	fflush(stdout);
	if (fork() == 0) {
		(void)!unshare(CLONE_NEWUSER | CLONE_NEWPID);
		if (fork() == 0) {
			count(listen(receive_fd(pair[1]), 8));
			count(bind(receive_fd(pair[1]), (void *)&there,
				   sizeof(there)));
			tally->running--;
		}
		hold();
		_exit(0);
	}
	tcp = bound_tcp();
	udp = fresh(SOCK_DGRAM);
	send_fd(pair[0], tcp);
	send_fd(pair[0], udp);
	close(tcp); /* only the other one has it */
	close(udp);
}

static void fetched(void)
{
	const int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);
	const int parent = (int)syscall(SYS_pidfd_open, getpid(), 0);

	tally->running++;
	fflush(stdout);
	if (fork() == 0) {
		int other_tcp, other_udp;

		close(tcp);
		close(udp);
		other_tcp = (int)syscall(SYS_pidfd_getfd, parent, tcp, 0);
		other_udp = (int)syscall(SYS_pidfd_getfd, parent, udp, 0);
		count(listen(other_tcp, 8));
		count(bind(other_udp, (void *)&there, sizeof(there)));
		tally->running--;
		hold();
		_exit(0);
	}
}

/* Four processes, one socket, at once. */
static void together(void)
{
	const int tcp = bound_tcp(), udp = fresh(SOCK_DGRAM);
	const int goal = tally->running + 4;
	_Atomic int *go = low_memory();

	tally->running += 4;
	fflush(stdout);
	for (int i = 0; i < 4; i++)
		if (fork() == 0) {
			*go += 1;
			while (*go < 4)
				sched_yield();
			count(listen(tcp, 8));
			count(bind(udp, (void *)&there, sizeof(there)));
			tally->running--;
			hold();
			_exit(0);
		}
	while (tally->running > goal - 4)
		poll(NULL, 0, 1);
}

/* ---- what was opened, or used, before ---- */

static const struct sockaddr none = {.sa_family = AF_UNSPEC};

/* A client's socket: bound to PORT, connected, disconnected. */
static int used(int protocol)
{
	struct sockaddr_in server = {0};
	socklen_t length = sizeof(server);
	int fd = (int)must(socket(AF_INET, SOCK_STREAM, protocol), "socket");
	int peer = fresh(SOCK_STREAM), child;

	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	(void)!bind(fd, (void *)&there, sizeof(there));
	/* Without a server it connects to itself, which needs none. */
	(void)!bind_to(peer, INADDR_LOOPBACK, allowed);
	if (listen(peer, 8) == 0 &&
	    getsockname(peer, (void *)&server, &length) == 0) {
		(void)!connect(fd, (void *)&server, length);
		child = accept4(peer, NULL, NULL, SOCK_NONBLOCK);
		close(child);
	} else if (protocol == 0) {
		(void)!connect(fd, (void *)&there, sizeof(there));
	}
	close(peer);
	(void)!connect(fd, &none, sizeof(none));
	return fd;
}

static void reused(void)
{
	count(listen(used(0), 8));
}

static void reused_mptcp(void)
{
	count(listen(used(IPPROTO_MPTCP), 8));
}

/* Duplicates, shut down and disconnected in between. */
static void again(void)
{
	const int fd = bound_tcp(), other = dup(fd);

	count(listen(fd, 8));
	(void)!shutdown(other, SHUT_RD);
	count(listen(other, 0));
	(void)!shutdown(fd, SHUT_RDWR);
	(void)!connect(other, &none, sizeof(none));
	count(listen(fd, -1));
	count(listen(dup2(other, 900), 8));
}

/* It listens at a port of the kernel's choice, if it may, and then moves. */
static void moved(void)
{
	const int fd = fresh(SOCK_STREAM);

	(void)!bind_to(fd, INADDR_LOOPBACK, 0);
	(void)!listen(fd, 8);
	(void)!bind(fd, (void *)&there, sizeof(there));
	(void)!shutdown(fd, SHUT_RDWR);
	(void)!connect(fd, &none, sizeof(none));
	(void)!bind(fd, (void *)&there, sizeof(there));
	count(listen(fd, 8));
}

/* Connections that somebody else has accepted. */
static void accepted(void)
{
	struct sockaddr_in server = place(INADDR_LOOPBACK, allowed);
	int listening = fresh(SOCK_STREAM), client = bound_tcp(), fd;
	int pair[2];

	(void)!bind(listening, (void *)&server, sizeof(server));
	(void)!listen(listening, 8);
	(void)!connect(client, (void *)&server, sizeof(server));
	fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
	close(listening);
	count(listen(client, 8)); /* connected */
	(void)!connect(fd, &none, sizeof(none));
	(void)!bind(fd, (void *)&there, sizeof(there));
	(void)!connect(client, &none, sizeof(none));
	count(listen(client, 8)); /* not any more, and it has its port */
	count(listen(fd, 8));
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
	count(listen(pair[0], 8));
	close(fd);
}

/* Two ends that call each other at once need no listener, and open no port. */
static void simultaneous(void)
{
	const int fd = bound_tcp();

	fcntl(fd, F_SETFL, O_NONBLOCK);
	count(connect(fd, (void *)&there, sizeof(there)));
}

/* ---- options ---- */

static void fast_open(void)
{
	const int fd = bound_tcp(), other = bound_tcp();

	set(fd, IPPROTO_TCP, TCP_FASTOPEN, 8);
	set(other, IPPROTO_TCP, TCP_FASTOPEN, 8);
	(void)!sendto(other, "", 1, MSG_FASTOPEN | MSG_DONTWAIT,
		      (void *)&there, sizeof(there));
	count(listen(fd, 8));
}

static void repaired(void)
{
	const int fd = bound_tcp();

	set(fd, IPPROTO_TCP, REPAIR, 1);
	count(listen(fd, 8));
	(void)!connect(fd, (void *)&there, sizeof(there));
	(void)!connect(fd, &none, sizeof(none));
	set(fd, IPPROTO_TCP, REPAIR, -1);
	count(listen(fd, 8));
}

/* What a bind may be told beforehand. */
static void optioned(void)
{
	static const struct {
		int level, name;
	} options[] = {
		{SOL_SOCKET, SO_REUSEPORT}, {IPPROTO_IP, IP_FREEBIND},
		{IPPROTO_IP, IP_TRANSPARENT}, {IPPROTO_IP, BIND_NO_PORT},
		{SOL_SOCKET, SO_BINDTODEVICE},
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		const int tcp = fresh(SOCK_STREAM), udp = fresh(SOCK_DGRAM);

		for (int k = 0; k < 2; k++) {
			const int fd = k ? udp : tcp;

			if (options[i].name == SO_BINDTODEVICE)
				setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE,
					   "lo", 3);
			else
				set(fd, options[i].level, options[i].name, 1);
		}
		(void)!bind(tcp, (void *)&there, sizeof(there));
		count(listen(tcp, 8));
		count(bind(udp, (void *)&there, sizeof(there)));
	}
}

/* ---- addresses ---- */

/* Everything that a socket can be bound to and is PORT of this machine. */
static void addressed(void)
{
	static const char *const names[] = {"::1", "::", "::ffff:127.0.0.1",
					    "::ffff:0.0.0.0"};
	const uint32_t hosts[] = {INADDR_LOOPBACK, INADDR_ANY, 0x7f010203};

	for (int type = SOCK_STREAM; type <= SOCK_DGRAM; type++) {
		for (int i = 0; i < 3; i++) {
			struct sockaddr_in address = place(hosts[i], port);
			int fd = fresh(type);
			long result;

			/* The socket's family decides, not the address's. */
			if (hosts[i] == INADDR_ANY)
				address.sin_family = AF_UNSPEC;
			result = bind(fd, (void *)&address, sizeof(address));
			count(type == SOCK_STREAM ? listen(fd, 8) : result);
		}
		for (int i = 0; i < 8; i++) {
			struct sockaddr_in6 address = {.sin6_family = AF_INET6};
			int fd = socket(AF_INET6, type, 0);
			long result;

			inet_pton(AF_INET6, names[i % 4], &address.sin6_addr);
			address.sin6_port = htons((uint16_t)port);
			set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
			/* The length is 24, too, and flow and scope are free. */
			address.sin6_flowinfo = 0xffffffff;
			address.sin6_scope_id = i < 4 ? 0 : 77;
			result = bind(fd, (void *)&address,
				      i < 4 ? sizeof(address) : 24);
			count(type == SOCK_STREAM ? listen(fd, 8) : result);
		}
	}
}

/* Every protocol that has ports, where the kernel knows it. */
static void protocols(void)
{
	static const struct {
		int type, protocol;
	} kinds[] = {
		{SOCK_STREAM, IPPROTO_MPTCP}, {SOCK_STREAM, IPPROTO_SCTP},
		{SOCK_SEQPACKET, IPPROTO_SCTP}, {SOCK_DCCP, IPPROTO_DCCP},
		{SOCK_DGRAM, IPPROTO_UDPLITE},
	};

	for (int family = AF_INET; family <= AF_INET6;
	     family += AF_INET6 - AF_INET)
		for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
			struct sockaddr_in6 six = {.sin6_family = AF_INET6};
			int fd = socket(family, kinds[i].type,
					kinds[i].protocol);
			long result;

			if (fd < 0)
				continue;
			inet_pton(AF_INET6, "::1", &six.sin6_addr);
			six.sin6_port = htons((uint16_t)port);
			set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
			result = family == AF_INET
					 ? bind(fd, (void *)&there,
						sizeof(there))
					 : bind(fd, (void *)&six, sizeof(six));
			if (kinds[i].type != SOCK_DGRAM)
				result = listen(fd, 8);
			count(result);
		}
}

/* ---- beside what is allowed ---- */

/* ALLOWED of 127.0.0.1 is open; then the same port elsewhere. */
static void beside(void)
{
	const int first = fresh(SOCK_STREAM), udp = fresh(SOCK_DGRAM);
	const int second = fresh(SOCK_STREAM), other = fresh(SOCK_DGRAM);

	set(first, SOL_SOCKET, SO_REUSEPORT, 1);
	set(second, SOL_SOCKET, SO_REUSEPORT, 1);
	set(udp, SOL_SOCKET, SO_REUSEPORT, 1);
	set(other, SOL_SOCKET, SO_REUSEPORT, 1);
	(void)!bind_to(first, INADDR_LOOPBACK, allowed);
	(void)!listen(first, 8);
	(void)!bind_to(udp, INADDR_LOOPBACK, allowed);
	(void)!bind_to(second, INADDR_ANY, allowed);
	count(listen(second, 8));
	count(bind_to(other, INADDR_ANY, allowed));
}

/*
 * Bound to every address, connected by loopback and disconnected: MPTCP then
 * shows the address of the connection still, and listens at every one.
 */
static void stale(int protocol)
{
	struct sockaddr_in server = place(INADDR_LOOPBACK, allowed);
	const int peer = fresh(SOCK_STREAM);
	const int fd = (int)must(socket(AF_INET, SOCK_STREAM, protocol), "socket");

	must(bind(peer, (void *)&server, sizeof(server)), "bind");
	must(listen(peer, 8), "listen");
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	(void)!bind_to(fd, INADDR_ANY, port);
	(void)!connect(fd, (void *)&server, sizeof(server));
	close(accept4(peer, NULL, NULL, SOCK_NONBLOCK));
	(void)!connect(fd, &none, sizeof(none));
	count(listen(fd, 8));
	close(peer);
}

static void stale_tcp(void)
{
	stale(0);
}

static void stale_mptcp(void)
{
	stale(IPPROTO_MPTCP);
}

static const struct {
	const char *name;
	void (*run)(void);
} attacks[] = {
	{"passed", passed},	  {"fetched", fetched},
	{"together", together},	  {"reused", reused},
	{"reused-mptcp", reused_mptcp}, {"again", again},
	{"moved", moved},	  {"accepted", accepted},
	{"fast-open", fast_open}, {"repair", repaired},
	{"options", optioned},	  {"addresses", addressed},
	{"protocols", protocols}, {"beside", beside},
	{"stale", stale_tcp},	  {"stale-mptcp", stale_mptcp},
	{"simultaneous", simultaneous},
};

int main(int argc, char **argv)
{
	begin(argc, argv);
	there = place(INADDR_LOOPBACK, port);
	for (int i = 0; i < tries; i++)
		for (size_t k = 0; k < sizeof(attacks) / sizeof(attacks[0]); k++)
			if (is(attacks[k].name))
				attacks[k].run();
	return finish();
}

/* SPDX-License-Identifier: MIT */
/*
 * Take steps with privileges, then bind: bindprivilege STEP...
 *
 * user: a new user namespace, as uid 0 in it. net: a new network namespace.
 * start=N: its ip_unprivileged_port_start. drop: lay CAP_NET_BIND_SERVICE down
 * for good; all: every capability; off, on: only its effective bit. uid=N.
 * thread: take the other steps on a thread. udp4=PORT, udp6=PORT, tcp4=PORT,
 * tcp6=PORT: bind, print the errno's name or 0; a TCP socket listens as well.
 * early=PORT: as udp4, on a socket that was made here and now; late: binds it.
 * audit: bind a netlink socket to a group for which CAP_AUDIT_READ is needed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int early_fd = -1, early_port;

static void need(int result, const char *step)
{
	if (result >= 0)
		return;
	printf("%s: %s\n", step, strerrorname_np(errno));
	exit(1);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	need(fd, path);
	need((int)write(fd, text, strlen(text)), path);
	close(fd);
}

static void enter_user(void)
{
	char text[64];
	const int uid = (int)getuid(), gid = (int)getgid();

	need(unshare(CLONE_NEWUSER), "user");
	write_file("/proc/self/setgroups", "deny");
	snprintf(text, sizeof(text), "0 %d 1", uid);
	write_file("/proc/self/uid_map", text);
	snprintf(text, sizeof(text), "0 %d 1", gid);
	write_file("/proc/self/gid_map", text);
}

static void enter_net(void)
{
	struct ifreq loopback = {.ifr_name = "lo"};
	int fd;

	need(unshare(CLONE_NEWNET), "net");
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	loopback.ifr_flags = IFF_UP;
	need(ioctl(fd, SIOCSIFFLAGS, &loopback), "lo");
	close(fd);
}

static void drop(int all, int effective_only, int back)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	const unsigned int bit = 1u << CAP_NET_BIND_SERVICE;

	need((int)syscall(SYS_capget, &header, data), "capget");
	if (back)
		data[0].effective |= bit;
	else
		data[0].effective &= ~bit;
	if (!back && !effective_only)
		data[0].permitted &= ~bit;
	if (all)
		memset(data, 0, sizeof(data));
	need((int)syscall(SYS_capset, &header, data), "capset");
}

static void bind_to(const char *what, int port)
{
	const int stream = what[0] == 't', six = what[3] == '6';
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
				   .sin6_port = htons((uint16_t)port),
				   .sin6_addr = in6addr_loopback};
	struct sockaddr_in in4 = {.sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port)};
	const int on = 1;
	int fd = socket(six ? AF_INET6 : AF_INET,
			stream ? SOCK_STREAM : SOCK_DGRAM, 0);
	int result;

	in4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (stream)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	result = six ? bind(fd, (void *)&in6, sizeof(in6))
		     : bind(fd, (void *)&in4, sizeof(in4));
	if (result == 0 && stream)
		result = listen(fd, 8);
	printf("%s %d: %s\n", what, port,
	       result ? strerrorname_np(errno) : "0");
	close(fd);
}

static void bind_late(void)
{
	struct sockaddr_in in4 = {.sin_family = AF_INET,
				  .sin_port = htons((uint16_t)early_port)};

	in4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	printf("late %d: %s\n", early_port,
	       bind(early_fd, (void *)&in4, sizeof(in4)) < 0
		       ? strerrorname_np(errno)
		       : "0");
	close(early_fd);
}

static void bind_audit(void)
{
	struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT);

	if (fd < 0) {
		printf("audit: no socket\n");
		return;
	}
	printf("audit: %s\n", bind(fd, (void *)&address, sizeof(address)) < 0
				      ? strerrorname_np(errno)
				      : "0");
	close(fd);
}

static void *take_steps(void *steps)
{
	for (char **step = steps; *step; step++) {
		const char *value = strchr(*step, '=');
		const int number = value ? atoi(value + 1) : 0;

		if (!strcmp(*step, "user")) {
			enter_user();
		} else if (!strcmp(*step, "net")) {
			enter_net();
		} else if (!strncmp(*step, "start=", 6)) {
			write_file("/proc/sys/net/ipv4/"
				   "ip_unprivileged_port_start",
				   value + 1);
		} else if (!strcmp(*step, "drop")) {
			drop(0, 0, 0);
		} else if (!strcmp(*step, "all")) {
			drop(1, 0, 0);
		} else if (!strcmp(*step, "off")) {
			drop(0, 1, 0);
		} else if (!strcmp(*step, "on")) {
			drop(0, 1, 1);
		} else if (!strncmp(*step, "uid=", 4)) {
			need((int)syscall(SYS_setresgid, number, number,
					  number),
			     "setgid");
			need((int)syscall(SYS_setresuid, number, number,
					  number),
			     "setuid");
			/* Else /proc/self would be root's. */
			prctl(PR_SET_DUMPABLE, 1);
		} else if (!strcmp(*step, "thread")) {
			pthread_t thread;

			pthread_create(&thread, NULL, take_steps, step + 1);
			pthread_join(thread, NULL);
			break;
		} else if (!strncmp(*step, "early=", 6)) {
			early_fd = socket(AF_INET, SOCK_DGRAM, 0);
			early_port = number;
		} else if (!strcmp(*step, "late")) {
			bind_late();
		} else if (!strcmp(*step, "audit")) {
			bind_audit();
		} else {
			char what[5] = "";

			memcpy(what, *step, 4);
			bind_to(what, number);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	(void)argc;
	setvbuf(stdout, NULL, _IOLBF, 0);
	take_steps(argv + 1);
	return 0;
}

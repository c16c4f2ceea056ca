/* SPDX-License-Identifier: MIT */
#include "privilege.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/nsfs.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernel.h"
#include "listener.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14 */
#endif
#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif

#define BIT(capability) (1ull << (capability))
/*
 * Whatever some protocol's bind asks for: privileged ports, netlink's groups
 * (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_AUDIT_READ), Bluetooth (CAP_NET_RAW).
 */
#define LAID_DOWN                                                              \
	(BIT(CAP_NET_BIND_SERVICE) | BIT(CAP_NET_BROADCAST) |                  \
	 BIT(CAP_NET_ADMIN) | BIT(CAP_NET_RAW) | BIT(CAP_SYS_ADMIN) |          \
	 BIT(CAP_AUDIT_WRITE) | BIT(CAP_AUDIT_CONTROL) |                       \
	 BIT(CAP_AUDIT_READ))

/* The kernel's own threshold; a network namespace may have another one. */
enum { USUAL_THRESHOLD = 1024 };

struct capabilities {
	struct __user_cap_header_struct header;
	struct __user_cap_data_struct data[2];
};

static int get_capabilities(struct capabilities *capabilities)
{
	memset(capabilities, 0, sizeof(*capabilities));
	capabilities->header.version = _LINUX_CAPABILITY_VERSION_3;
	return (int)psc_kernel_result(syscall(
		__NR_capget, &capabilities->header, capabilities->data));
}

/* Set some bits of the effective set; of the calling thread only. */
static void set_effective(uint64_t bits, bool on)
{
	struct capabilities capabilities;

	if (bits == 0 || get_capabilities(&capabilities) < 0)
		return;
	for (int word = 0; word < 2; word++) {
		struct __user_cap_data_struct *data = &capabilities.data[word];
		const uint32_t some = (uint32_t)(bits >> (32 * word));

		if (on)
			data->effective |= some & data->permitted;
		else
			data->effective &= ~some;
	}
	syscall(__NR_capset, &capabilities.header, capabilities.data);
}

/* Lay them down, for this thread. Return: what raises them again. */
static uint64_t lay_down(void)
{
	struct capabilities capabilities;
	uint64_t held;

	if (get_capabilities(&capabilities) < 0)
		return 0;
	held = (uint64_t)capabilities.data[1].effective << 32 |
	       capabilities.data[0].effective;
	held &= LAID_DOWN;
	set_effective(held, false);
	return held;
}

/* ---- what the target may ---- */

static int read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length;

	if (fd < 0)
		return -errno;
	length = read(fd, buffer, size - 1);
	close(fd);
	if (length < 0)
		return -EIO;
	buffer[length] = '\0';
	return 0;
}

/* The effective capabilities of a thread. */
static uint64_t capabilities_of(int32_t tid)
{
	char path[48], status[4096], *line;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	if (read_file(path, status, sizeof(status)) < 0)
		return 0;
	line = strstr(status, "\nCapEff:");
	return line ? strtoull(line + strlen("\nCapEff:"), NULL, 16) : 0;
}

static bool same_file(const struct stat *first, const struct stat *second)
{
	return first->st_dev == second->st_dev &&
	       first->st_ino == second->st_ino;
}

/* The network namespace of a socket; -errno where we may not know it. */
static int open_netns(int fd)
{
	int netns_fd;

	set_effective(BIT(CAP_NET_ADMIN), true);
	netns_fd = psc_kernel_ioctl(fd, SIOCGSKNS, NULL);
	set_effective(BIT(CAP_NET_ADMIN), false);
	return netns_fd;
}

/*
 * The capabilities that a thread has over a network namespace: its own, if its
 * user namespace owns the other, or is above the one that does.
 */
static uint64_t capabilities_over(int32_t tid, int netns_fd, sa_family_t af)
{
	struct stat wanted, found;
	uint64_t mask = LAID_DOWN;
	char path[48];
	bool is_above = false;
	int fd, parent_fd;

	snprintf(path, sizeof(path), "/proc/%d/ns/user", tid);
	if (stat(path, &wanted) < 0)
		return 0;
	/*
	 * Some binds ask for a capability in the first user namespace (vsock's
	 * ports, audit's groups). Ours may be of that one, the target's not: in
	 * another user namespace than ours it keeps only what is asked for in
	 * the network namespace's own.
	 */
	if (stat("/proc/thread-self/ns/user", &found) < 0 ||
	    !same_file(&found, &wanted))
		mask = af == AF_INET || af == AF_INET6
			       ? BIT(CAP_NET_BIND_SERVICE)
		       : af == AF_NETLINK ? BIT(CAP_NET_ADMIN)
					  : 0;
	fd = psc_kernel_ioctl(netns_fd, NS_GET_USERNS, NULL);
	while (fd >= 0) {
		is_above = fstat(fd, &found) == 0 && same_file(&found, &wanted);
		parent_fd = is_above ? -1
				     : psc_kernel_ioctl(fd, NS_GET_PARENT, NULL);
		close(fd);
		fd = parent_fd;
	}
	return is_above ? capabilities_of(tid) & mask : 0;
}

enum netns { NETNS_OURS, NETNS_FOREIGN, NETNS_UNKNOWN };

/* The cookie of this thread's own network namespace; 0 before it is known. */
static _Thread_local uint64_t ours;

static void learn_own_netns(void)
{
	socklen_t length = sizeof(ours);
	int own_fd;

	if (ours)
		return;
	own_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (own_fd < 0)
		return;
	getsockopt(own_fd, SOL_SOCKET, SO_NETNS_COOKIE, &ours, &length);
	close(own_fd);
}

void psc_privilege_begin(void)
{
	learn_own_netns(); /* while there are descriptors */
	lay_down();
}

/* Whose network namespace a socket is in; unknown before Linux 5.14. */
static enum netns netns_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t length = sizeof(cookie);

	learn_own_netns();
	if (getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) < 0)
		return NETNS_UNKNOWN;
	return cookie == ours ? NETNS_OURS : NETNS_FOREIGN;
}

/*
 * The first port of a network namespace that everybody may bind. Where it
 * can't be read, none; where we may not go there to read it, the usual one.
 */
static uint32_t threshold_of(int netns_fd)
{
	uint32_t threshold = USUAL_THRESHOLD;
	char text[16];
	int own_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);

	if (own_fd < 0)
		return UINT32_MAX;
	/* Of this thread only. */
	set_effective(BIT(CAP_SYS_ADMIN), true);
	if (setns(netns_fd, CLONE_NEWNET) == 0) {
		threshold = UINT32_MAX;
		if (read_file("/proc/sys/net/ipv4/ip_unprivileged_port_start",
			      text, sizeof(text)) == 0)
			threshold = (uint32_t)strtoul(text, NULL, 10);
		/* Back: what was allowed a moment ago is allowed now. */
		if (setns(own_fd, CLONE_NEWNET) < 0)
			threshold = UINT32_MAX;
	}
	set_effective(BIT(CAP_SYS_ADMIN), false);
	close(own_fd);
	return threshold;
}

static int bind_raw(int fd, const union psc_sockaddr *address, socklen_t length)
{
	return bind(fd, &address->generic, length) < 0 ? -errno : 0;
}

/* With those of the capabilities that the target has. */
static int bind_raised(int fd, const union psc_sockaddr *address,
		       socklen_t length, uint64_t capabilities)
{
	int result;

	set_effective(capabilities & LAID_DOWN, true);
	result = bind_raw(fd, address, length);
	set_effective(LAID_DOWN, false);
	return result;
}

/* With what bind asks for laid down. */
static int bind_for_target(int fd, const union psc_sockaddr *address,
			   socklen_t length, uint32_t port,
			   const struct psc_request *request)
{
	const enum netns netns = port != 0 ? netns_of(fd) : NETNS_OURS;
	const bool foreign = netns != NETNS_OURS;
	const sa_family_t af = address->generic.sa_family == AF_UNSPEC
				       ? AF_INET
				       : address->generic.sa_family;
	uint64_t capabilities;
	int result, netns_fd;

	if (!foreign) {
		result = bind_raw(fd, address, length);
		if (result != -EACCES && result != -EPERM)
			return result;
	}

	netns_fd = open_netns(fd);
	if (netns_fd < 0) {
		if (!foreign)
			return result;
		/*
		 * We may have a right there that no capability laid down takes
		 * away, by owning its user namespace; not if that is why we may
		 * not know it.
		 */
		if (netns == NETNS_FOREIGN || netns_fd != -EPERM)
			return -EACCES;
		return bind_raw(fd, address, length);
	}
	capabilities = capabilities_over(request->event.tid, netns_fd, af);
	/* Until here its number may have passed to one that has more rights. */
	if (psc_listener_id_valid(request->source->fd, request->id) < 0)
		capabilities = 0;
	if (foreign && !(capabilities & BIT(CAP_NET_BIND_SERVICE)) &&
	    port < threshold_of(netns_fd))
		result = -EACCES;
	else
		result = bind_raised(fd, address, length, capabilities);
	close(netns_fd);
	return result;
}

int psc_privilege_bind(int fd, const union psc_sockaddr *address,
		       socklen_t length, uint32_t port,
		       const struct psc_request *request)
{
	/*
	 * Each time: it may be anybody's thread (a coroutine's event loop), and
	 * also ours takes everything up again when the program changes its user
	 * to another one and back.
	 */
	const uint64_t held = lay_down();
	const int result = bind_for_target(fd, address, length, port, request);

	set_effective(held, true);
	return result;
}

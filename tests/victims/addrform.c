/*
 * addrform PORT [SERVER] - while the supervisor reads the address of a bind,
 * turn the IPv6 socket into an IPv4 one, and only then show an IPv4 address
 *
 * With SERVER, a TCP port of 127.0.0.1 that accepts, the socket is TCP and
 * listens afterwards. The memory of the address blocks whoever reads it
 * (userfaultfd(2)) until the socket is changed. Prints "bind: ERRNO" and
 * "listen: ERRNO", and the port at which the socket is then.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, LIMIT_MS = 10000 };

static int fd, fault_fd, forbidden_port, server_port;
static char *page;

static void check(int result, const char *what)
{
	if (result < 0) {
		printf("%s: %s\n", what, strerrorname_np(errno));
		exit(3);
	}
}

static void change_socket(void)
{
	const struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_in6 peer = {.sin6_family = AF_INET6,
				    .sin6_port = htons(server_port)};
	const int family = AF_INET;

	inet_pton(AF_INET6, "::ffff:127.0.0.1", &peer.sin6_addr);
	check(connect(fd, (void *)&peer, sizeof(peer)), "connect");
	check(setsockopt(fd, IPPROTO_IPV6, IPV6_ADDRFORM, &family,
			 sizeof(family)),
	      "IPV6_ADDRFORM");
	check(connect(fd, &none, sizeof(none)), "disconnect");
}

static void *answer_fault(void *unused)
{
	static char content[PAGE] __attribute__((aligned(PAGE)));
	struct pollfd waiting = {fault_fd, POLLIN, 0};
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons(forbidden_port)};
	struct uffdio_copy copy = {(unsigned long)page, (unsigned long)content,
				   PAGE, 0, 0};
	struct uffd_msg message;

	if (poll(&waiting, 1, LIMIT_MS) != 1 ||
	    read(fault_fd, &message, sizeof(message)) != sizeof(message))
		check(-1, "fault");
	change_socket();
	memcpy(content, &address, sizeof(address));
	check(ioctl(fault_fd, UFFDIO_COPY, &copy), "UFFDIO_COPY");
	return unused;
}

int main(int argc, char **argv)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register watched = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct sockaddr_in where = {0};
	socklen_t length = sizeof(where);
	pthread_t thread;
	const int tcp = argc > 2;

	if (argc < 2)
		return 2;
	forbidden_port = atoi(argv[1]);
	server_port = tcp ? atoi(argv[2]) : 9;
	fault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	check(fault_fd, "userfaultfd");
	check(ioctl(fault_fd, UFFDIO_API, &api), "UFFDIO_API");
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	watched.range.start = (unsigned long)page;
	watched.range.len = PAGE;
	check(ioctl(fault_fd, UFFDIO_REGISTER, &watched), "UFFDIO_REGISTER");
	fd = socket(AF_INET6, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
	check(fd, "socket");
	pthread_create(&thread, NULL, answer_fault, NULL);

	printf("bind: %s\n",
	       bind(fd, (void *)page, sizeof(struct sockaddr_in6)) < 0
		       ? strerrorname_np(errno)
		       : "0");
	pthread_join(thread, NULL);
	if (tcp)
		printf("listen: %s\n",
		       listen(fd, 5) < 0 ? strerrorname_np(errno) : "0");
	check(getsockname(fd, (void *)&where, &length), "getsockname");
	printf("port: %d\n", ntohs(where.sin_port));
	return 0;
}

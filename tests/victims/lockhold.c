/* SPDX-License-Identifier: MIT */
/*
 * Call on a socket whose lock is held: lockhold NUMBER [FD]
 *
 * One thread sends from a page that is missing, and whose faults a userfaultfd
 * takes and never answers, with MSG_MORE: so it holds the lock of a UDP socket.
 * Of the TCP socket FD, that it has inherited, it does so by setting an option.
 * NUMBER threads then bind that socket, or listen on it. Prints "stuck" when all
 * have called, and waits for the end of its input.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul

static int fd, inherited;
static char *page;
static pthread_barrier_t ready;

static void *hold(void *unused)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};

	if (inherited) {
		setsockopt(fd, IPPROTO_IP, IP_OPTIONS, page, 40);
		return unused;
	}
	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	sendto(fd, page, 64, MSG_MORE, (void *)&to, sizeof(to));
	return unused;
}

static void *call(void *number)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	pthread_barrier_wait(&ready);
	if ((size_t)number % 2)
		listen(fd, 8);
	else
		bind(fd, (void *)&address, sizeof(address));
	return NULL;
}

int main(int argc, char **argv)
{
	const size_t number = argc > 1 ? (size_t)atoi(argv[1]) : 1;
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct pollfd fault = {.fd = fault_fd, .events = POLLIN};
	pthread_t thread;
	char byte;

	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (unsigned long)page;
	range.range.len = PAGE;
	if (fault_fd < 0 || ioctl(fault_fd, UFFDIO_API, &api) < 0 ||
	    ioctl(fault_fd, UFFDIO_REGISTER, &range) < 0) {
		printf("no userfaultfd\n");
		return 1;
	}
	fcntl(fault_fd, F_SETFL, O_NONBLOCK); /* or poll() says POLLERR */
	inherited = argc > 2;
	fd = inherited ? atoi(argv[2]) : socket(AF_INET, SOCK_DGRAM, 0);
	pthread_create(&thread, NULL, hold, NULL);
	if (poll(&fault, 1, 10000) != 1 || !(fault.revents & POLLIN)) {
		printf("not held\n");
		return 1;
	}
	pthread_barrier_init(&ready, NULL, (unsigned int)number + 1);
	for (size_t i = 0; i < number; i++)
		pthread_create(&thread, NULL, call, (void *)i);
	pthread_barrier_wait(&ready);
	printf("stuck\n");
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}

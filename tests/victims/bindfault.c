/* SPDX-License-Identifier: MIT */
/*
 * Bind with addresses that nobody can read: bindfault NUMBER
 *
 * Each of NUMBER threads binds a UDP socket; its address is on a page that is
 * missing, and whose faults a userfaultfd takes and never answers. Prints
 * "stuck" when all have called, and waits for the end of its input.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096ul

static char *pages;
static pthread_barrier_t ready;

static void *call(void *number)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	pthread_barrier_wait(&ready);
	bind(fd, (void *)(pages + PAGE * (size_t)number),
	     sizeof(struct sockaddr_in));
	return NULL;
}

int main(int argc, char **argv)
{
	const size_t number = argc > 1 ? (size_t)atoi(argv[1]) : 1;
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	char byte;

	pages = mmap(NULL, PAGE * number, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (unsigned long)pages;
	range.range.len = PAGE * number;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 ||
	    ioctl(fd, UFFDIO_REGISTER, &range) < 0) {
		printf("no userfaultfd\n");
		return 1;
	}
	pthread_barrier_init(&ready, NULL, (unsigned int)number + 1);
	for (size_t i = 0; i < number; i++) {
		pthread_t thread;

		pthread_create(&thread, NULL, call, (void *)i);
	}
	pthread_barrier_wait(&ready);
	printf("stuck\n");
	fflush(stdout);
	return read(0, &byte, 1) < 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * One system call by its number, as libc would not make it:
 * rawcall io_uring | x32 PORT | int80 PORT | socketcall PORT
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void report(const char *what, long result)
{
	if (result >= 0)
		printf("%s: 0\n", what);
	else
		printf("%s: %s\n", what, strerrorname_np((int)-result));
}

#ifdef __x86_64__
static long call_i386(long nr, long first, long second)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(nr), "b"(first), "c"(second)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}
#endif

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	char params[256] = {0};
	long result;
	int fd;

	if (argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(argv[1], "io_uring")) {
		result = syscall(425, 4, params);
		report("io_uring_setup", result < 0 ? -errno : result);
		return 0;
	}
	if (argc < 3)
		return 2;
	fd = socket(AF_INET, SOCK_STREAM, 0);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((uint16_t)atoi(argv[2]));
	if (bind(fd, (void *)&address, sizeof(address)) < 0) {
		report("bind", -errno);
		return 1;
	}
#ifdef __x86_64__
	if (!strcmp(argv[1], "x32")) {
		result = syscall(0x40000000 + 50, fd, 8);
		report("listen", result < 0 ? -errno : result);
	} else if (!strcmp(argv[1], "int80")) {
		report("listen", call_i386(363, fd, 8));
	} else {
		uint32_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT,
				       -1, 0);

		if (words == MAP_FAILED)
			return 2;
		words[0] = (uint32_t)fd;
		words[1] = 8;
		report("listen", call_i386(102, 4, (long)(uintptr_t)words));
		report("nowhere", call_i386(102, 4, 8));
	}
#endif
	return 0;
}

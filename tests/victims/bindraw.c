/* SPDX-License-Identifier: MIT */
/*
 * One UDP bind by its number, as libc would not make it:
 * bindraw x32 PORT | int80 PORT | socketcall PORT
 *
 * With socketcall also one whose arguments, and one whose address, is nowhere.
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
static long call_i386(long nr, long first, long second, long third)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(nr), "b"(first), "c"(second), "d"(third)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}
#endif

int main(int argc, char **argv)
{
	struct sockaddr_in *address, name = {0};
	socklen_t length = sizeof(name);
	uint32_t *words;
	int fd;

	if (argc < 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	/* Where 32 bits can name it. */
	words = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (words == MAP_FAILED)
		return 2;
	address = (struct sockaddr_in *)(words + 16);
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address->sin_port = htons((uint16_t)atoi(argv[2]));
#ifdef __x86_64__
	if (!strcmp(argv[1], "x32")) {
		long result = syscall(0x40000000 + 49, fd, address, 16);

		report("bind", result < 0 ? -errno : result);
	} else if (!strcmp(argv[1], "int80")) {
		report("bind", call_i386(361, fd, (long)address, 16));
	} else {
		words[0] = (uint32_t)fd;
		words[1] = (uint32_t)(uintptr_t)address;
		words[2] = 16;
		report("bind", call_i386(102, 2, (long)words, 0));
		report("nowhere", call_i386(102, 2, 8, 0));
		words[1] = 8;
		report("no address", call_i386(102, 2, (long)words, 0));
		words[1] = (uint32_t)(uintptr_t)address;
		words[2] = (uint32_t)-1;
		report("length", call_i386(102, 2, (long)words, 0));
	}
#endif
	getsockname(fd, (void *)&name, &length);
	printf("port: %d\n", ntohs(name.sin_port));
	return 0;
}

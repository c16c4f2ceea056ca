/* SPDX-License-Identifier: MIT */
/*
 * Loaded into a supervisor (LD_PRELOAD): every 100th round stalls for 15 ms, right
 * after it has copied the socket, as where another program has the CPU.
 */
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int getsockopt_t(int, int, int, void *, socklen_t *);

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
	static _Atomic int rounds;
	getsockopt_t *next = (getsockopt_t *)dlsym(RTLD_NEXT, "getsockopt");

	if (level == SOL_SOCKET && name == SO_COOKIE &&
	    atomic_fetch_add(&rounds, 1) % 100 == 99)
		usleep(15000);
	return next(fd, level, name, value, length);
}

/* SPDX-License-Identifier: MIT */
/*
 * Call listen and bind as fast as it goes: clamour FILE DENIED ASKED TIMES
 *
 * Three processes: one listens on DENIED and on an ephemeral port, one binds UDP
 * sockets to both, one listens on ASKED. Each keeps a record of its calls in
 * FILE, which is shared memory: a watcher outside sees for how long a call lasts.
 * The refused calls have to give EACCES; they come first, so who has called at all
 * has made one. From the first ENOSYS on, TIMES more calls have to give ENOSYS;
 * then the process waits to be killed. Sockets on DENIED and ASKED are never
 * closed, so that one that has opened stays open.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LISTENER, BINDER, ASKER, WORKERS };
enum { PLACE = 1024 }; /* of the records, in FILE */

/* tests/nursery.py reads it. Times are of CLOCK_MONOTONIC, in ns. */
struct record {
	_Atomic uint64_t pid;
	_Atomic uint64_t since;	  /* the present call has begun; 0: none */
	_Atomic uint64_t longest; /* of all calls */
	_Atomic uint64_t calls;
	_Atomic uint64_t refused; /* with EACCES */
	_Atomic uint64_t wrong;	  /* gave something else than they have to */
	_Atomic uint64_t error;	  /* ...the last of them */
	_Atomic uint64_t dead;	  /* calls with ENOSYS */
	_Atomic uint64_t done;	  /* when it had seen enough of them */
	uint64_t spare[7];
};

static struct record *mine;
static uint64_t times;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int make(int type, int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, type, 0);
	const int on = 1;

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (type == SOCK_STREAM) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		/* Not what is counted; but it must not hang either. */
		mine->since = now();
		if (port)
			bind(fd, (void *)&address, sizeof(address));
		mine->since = 0;
	}
	return fd;
}

static void record(int result, int expected)
{
	const int error = result < 0 ? errno : 0;
	const uint64_t end = now();

	if (end - mine->since > mine->longest)
		mine->longest = end - mine->since;
	mine->since = 0;
	mine->calls++;
	if (error == ENOSYS) {
		if (++mine->dead < times)
			return;
		mine->done = end;
		for (;;)
			pause();
	}
	if (error != expected || mine->dead) {
		mine->error = (uint64_t)error;
		mine->wrong++;
	} else if (error) {
		mine->refused++;
	}
}

static void try_listen(int fd, int expected)
{
	mine->since = now();
	record(listen(fd, 8), expected);
}

static void try_bind(int fd, int port, int expected)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	mine->since = now();
	record(bind(fd, (void *)&address, sizeof(address)), expected);
}

static void work(int worker, int denied, int asked)
{
	int refused, open;

	if (worker == BINDER) {
		refused = make(SOCK_DGRAM, denied);
		for (;;) {
			try_bind(refused, denied, EACCES);
			open = make(SOCK_DGRAM, 0);
			try_bind(open, 0, 0);
			close(open);
		}
	}
	refused = make(SOCK_STREAM, worker == ASKER ? asked : denied);
	open = make(SOCK_STREAM, 0);
	for (;;) {
		try_listen(refused, EACCES);
		if (worker == LISTENER)
			try_listen(open, 0);
	}
}

int main(int argc, char **argv)
{
	struct record *records;
	char *shared;
	int fd;

	if (argc < 5)
		return 2;
	fd = open(argv[1], O_RDWR);
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		return 2;
	close(fd);
	times = (uint64_t)atoi(argv[4]);
	records = (void *)(shared + PLACE);
	for (int i = 1; i < WORKERS; i++) {
		pid_t child = fork();

		mine = &records[i];
		if (child == 0)
			work(i, atoi(argv[2]), atoi(argv[3]));
		mine->pid = (uint64_t)child;
	}
	mine = &records[0];
	mine->pid = (uint64_t)getpid();
	work(0, atoi(argv[2]), atoi(argv[3]));
}

/* SPDX-License-Identifier: MIT */
/*
 * Ways around a filter: rings of io_uring, which bind and listen (Linux 6.11)
 * without the calls that a filter sees.
 * way_uring ATTACK PORT ALLOWED TRIES (see way.h), ATTACK one of
 *
 * enter: io_uring_enter submits; sqpoll: a kernel thread does, unasked;
 * int80: the ring is made by the i386 entry; forked: the parent's ring, used
 * by a child; thread: made in another thread.
 *
 * "claims" are what the rings have answered, and "setup: ERRNO" is printed where
 * there is none. A ring that comes from outside the tree is not covered: it
 * acts as whoever has made it.
 */
#include "way.h"

#include <linux/io_uring.h>
#include <pthread.h>

enum { OP_BIND = 56, OP_LISTEN = 57, ENTRIES = 4 };

struct ring {
	int fd;
	struct io_uring_params params;
	char *rings;
	struct io_uring_sqe *entries;
};

static struct ring ring;

static long setup(unsigned int entries, struct io_uring_params *params)
{
#ifdef __x86_64__
	if (is("int80")) {
		long result;

		__asm__ volatile("int $0x80"
				 : "=a"(result)
				 : "a"(425L), "b"((long)entries), "c"(params)
				 : "memory", "r8", "r9", "r10", "r11");
		errno = result < 0 ? (int)-(int)result : 0;
		return (int)result < 0 ? -1 : (int)result;
	}
#endif
	return syscall(425, entries, params);
}

static int make(void)
{
	struct io_uring_params *params = low_memory();
	size_t size;

	if (is("sqpoll")) {
		params->flags = IORING_SETUP_SQPOLL;
		params->sq_thread_idle = 10000;
	}
	ring.fd = (int)setup(ENTRIES, params);
	if (ring.fd < 0) {
		printf("setup: %s\n", strerrorname_np(errno));
		return -1;
	}
	ring.params = *params;
	size = params->cq_off.cqes +
	       params->cq_entries * sizeof(struct io_uring_cqe);
	if (size < params->sq_off.array + params->sq_entries * 4)
		size = params->sq_off.array + params->sq_entries * 4;
	ring.rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  ring.fd, IORING_OFF_SQ_RING);
	ring.entries = mmap(NULL, params->sq_entries * sizeof(*ring.entries),
			    PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd,
			    IORING_OFF_SQES);
	must(ring.rings == MAP_FAILED || (void *)ring.entries == MAP_FAILED
		     ? -1
		     : 0,
	     "mmap");
	return 0;
}

static _Atomic uint32_t *word(uint32_t offset)
{
	return (_Atomic uint32_t *)(ring.rings + offset);
}

static long submit(const struct io_uring_sqe *entry)
{
	const uint32_t tail = *word(ring.params.sq_off.tail);
	const uint32_t slot = tail & *word(ring.params.sq_off.ring_mask);
	const uint32_t head = *word(ring.params.cq_off.head);
	struct io_uring_cqe *results =
		(void *)(ring.rings + ring.params.cq_off.cqes);

	ring.entries[slot] = *entry;
	*word(ring.params.sq_off.array + 4 * slot) = slot;
	*word(ring.params.sq_off.tail) = tail + 1;
	if (!is("sqpoll") && syscall(426, ring.fd, 1, 1,
				     IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	for (int i = 0; *word(ring.params.cq_off.tail) == head; i++) {
		if (i == 10000)
			return -ETIME;
		/* A kernel thread that has been idle sleeps. */
		if (*word(ring.params.sq_off.flags) & IORING_SQ_NEED_WAKEUP)
			syscall(426, ring.fd, 0, 0, IORING_ENTER_SQ_WAKEUP,
				NULL, 0);
		poll(NULL, 0, 1);
	}
	*word(ring.params.cq_off.head) = head + 1;
	return results[head & *word(ring.params.cq_off.ring_mask)].res;
}

static void use(void)
{
	for (int i = 0; i < tries; i++) {
		struct sockaddr_in address = place(INADDR_LOOPBACK, port);
		struct io_uring_sqe entry = {
			.opcode = OP_LISTEN, .fd = bound_tcp(), .len = 8};

		count(submit(&entry));
		entry = (struct io_uring_sqe){
			.opcode = OP_BIND,
			.fd = fresh(SOCK_DGRAM),
			.addr = (uintptr_t)&address,
			.off = sizeof(address)};
		count(submit(&entry));
	}
}

static void *make_there(void *unused)
{
	make();
	return unused;
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	ring.fd = -1;
	if (is("thread")) {
		pthread_t thread;

		pthread_create(&thread, NULL, make_there, NULL);
		pthread_join(thread, NULL);
	} else {
		make();
	}
	if (ring.fd < 0) {
		/* Nothing to submit to: each try ends here. */
		for (int i = 0; i < 2 * tries; i++)
			count(setup(ENTRIES, low_memory()));
	} else if (is("forked")) {
		tally->running++;
		fflush(stdout);
		if (fork() == 0) {
			use();
			tally->running--;
			hold();
			return 0;
		}
	} else {
		use();
	}
	return finish();
}

/* SPDX-License-Identifier: MIT */
/*
 * Ways around a filter: calls by other numbers, entries and widths.
 * way_call ATTACK PORT ALLOWED TRIES (see way.h), ATTACK one of
 *
 * plain: as libc makes them, also where this is built as a 32-bit program;
 * int80, socketcall: the i386 numbers from a 64-bit program; x32: bit 30;
 * high: a call number with bits above 32; wide: a descriptor with such bits;
 * negative: bit 31, and all bits;
 * vsyscall: the fixed page, with the number of listen in the register.
 */
#include "way.h"

#include <setjmp.h>
#include <signal.h>

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

static long call_64(unsigned long nr, unsigned long first, unsigned long second,
		    unsigned long third)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(first), "S"(second), "d"(third)
			 : "memory", "rcx", "r11");
	return result;
}

static sigjmp_buf back;

static void recover(int sig)
{
	siglongjmp(back, sig);
}

/* Jump at every byte of its first entry: a `syscall` may be among them. */
static long call_vsyscall(long first, long second, long third)
{
	const struct sigaction action = {.sa_handler = recover};
	volatile long result = -1; /* outlives the jump back */

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGILL, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	for (unsigned long offset = 0; offset < 16; offset++) {
		if (sigsetjmp(back, 1))
			continue;
		__asm__ volatile("call *%1"
				 : "=a"(result)
				 : "r"(0xffffffffff600000ul + offset),
				   "a"(third ? 49L : 50L), "D"(first),
				   "S"(second), "d"(third)
				 : "memory", "rcx", "r8", "r9", "r10", "r11");
	}
	return result == 0 ? 0 : -1;
}

static void raw(int tcp, int udp, struct sockaddr_in *address, uint32_t *words)
{
	const unsigned long where = (unsigned long)address;
	const unsigned long high = 1ul << 32;

	if (is("int80")) {
		count(call_i386(363, tcp, 8, 0));
		count(call_i386(361, udp, (long)where, 16));
	} else if (is("socketcall")) {
		words[0] = (uint32_t)tcp;
		words[1] = 8;
		count(call_i386(102, 4, (long)words, 0));
		words[0] = (uint32_t)udp;
		words[1] = (uint32_t)where;
		words[2] = 16;
		/* Its number, too, is only as wide as an int. */
		count(call_i386(102, 2 | (long)high, (long)words, 0));
	} else if (is("x32")) {
		count(call_64(0x40000000 | 50, tcp, 8, 0));
		count(call_64(0x40000000 | 49, udp, where, 16));
		count(call_64(0x40000000 | high | 50, tcp, 8, 0));
		count(call_i386(0x40000000 | 363, tcp, 8, 0));
		count(call_i386(0x40000000 | 361, udp, (long)where, 16));
	} else if (is("negative")) {
		count(call_64(0x80000000 | 50, tcp, 8, 0));
		count(call_64(-50ul, tcp, 8, 0));
		count(call_64(-1ul, tcp, 8, 0));
		count(call_64(0xffffffff00000000 | 0x80000000 | 49, udp, where,
			      16));
		count(call_i386((long)(0x80000000 | 363), tcp, 8, 0));
	} else if (is("high")) {
		count(call_64(high | 50, tcp, 8, 0));
		count(call_64(0xdeadbeef00000000 | 49, udp, where, 16));
	} else if (is("wide")) {
		count(call_64(50, high | tcp, high | 8, 0));
		count(call_64(49, 0xffffffff00000000 | udp, where, high | 16));
	} else if (is("vsyscall")) {
		count(call_vsyscall(tcp, 8, 0));
		count(call_vsyscall(udp, (long)where, 16));
	}
}
#endif

int main(int argc, char **argv)
{
	begin(argc, argv);
	for (int i = 0; i < tries; i++) {
		if (is("plain")) {
			open_both();
			continue;
		}
#ifdef __x86_64__
		uint32_t *words = low_memory();
		struct sockaddr_in *address = (void *)(words + 16);

		*address = place(INADDR_LOOPBACK, port);
		raw(bound_tcp(), fresh(SOCK_DGRAM), address, words);
#endif
	}
	return finish();
}

/* SPDX-License-Identifier: MIT */
/*
 * A bell: one thread sleeps until another rings. Ringing costs a system call
 * only when somebody sleeps; a ring before the sleep is not lost.
 */
#ifndef PSC_BELL_H
#define PSC_BELL_H

#include <stdatomic.h>
#include <stdint.h>

struct psc_bell {
	_Atomic uint32_t rung;	   /* the futex: 1 from ring to wait */
	_Atomic uint32_t sleepers;
};

/** psc_bell_ring - wake the sleeper, now or when it comes */
void psc_bell_ring(struct psc_bell *bell);

/**
 * psc_bell_wait - sleep until the bell rings, then silence it
 * @timeout_ns: at most this long; negative: as long as it takes
 *
 * Return: 1 when it rang, 0 on timeout, -EINTR.
 */
int psc_bell_wait(struct psc_bell *bell, int64_t timeout_ns);

#endif

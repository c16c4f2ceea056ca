/* SPDX-License-Identifier: MIT */
/*
 * `bind`: reading its address once, judging it, and making it on the copy.
 *
 * UDP is decided here: this is when a UDP port opens. TCP is only made, moved
 * or as asked, and what it asked for is remembered until it listens.
 */
#ifndef PSC_BINDING_H
#define PSC_BINDING_H

#include "round.h"

/**
 * psc_binding_judge - read the address, and decide
 * @request: @bound is known
 * @tid: the calling thread, which waits
 * @address: where its address is, in its memory
 * @length: the length that it gave
 *
 * Sets @decision, @event.requested, @let_continue and @quiet. What the kernel
 * would refuse for its form is refused here, with the kernel's errno: by the
 * time that it were made, the socket could be one that takes it
 * (IPV6_ADDRFORM makes an IPv6 socket an IPv4 one).
 *
 * Return: 0; -EINVAL, -EFAULT or -EAFNOSUPPORT, which are the call's own; any
 * other -errno when the memory could not be read.
 */
int psc_binding_judge(struct psc_request *request, int32_t tid,
		      uint64_t address, int length);

/**
 * psc_binding_still_holds - whether what the hook was asked about is so still
 *
 * V6ONLY may have been taken off meanwhile, or its filter locked.
 */
bool psc_binding_still_holds(const struct psc_request *request);

/**
 * psc_binding_act - bind the copy
 *
 * Return: 0; -errno of the call; -ESTALE when the socket changed meanwhile, and
 * will receive nothing; -EXDEV when it can't be moved as decided.
 */
int psc_binding_act(struct psc_request *request, struct psc_memory *memory);

/** psc_binding_continues - the kernel is going to make the bind as asked */
void psc_binding_continues(struct psc_request *request,
			   struct psc_memory *memory);

/** psc_binding_interrupted - the caller may not have got its answer */
void psc_binding_interrupted(const struct psc_request *request,
			     struct psc_memory *memory);

#endif

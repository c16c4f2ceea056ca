/* SPDX-License-Identifier: MIT */
/*
 * `listen`: judging it, and making it on the copy.
 */
#ifndef PSC_LISTENING_H
#define PSC_LISTENING_H

#include "round.h"

/**
 * psc_listening_judge - decide about a `listen`
 * @request: @bound and @event.cookie are known
 *
 * Sets @decision and @event.requested. A socket that was bound to port 0, or
 * moved, under the guard is judged by that.
 */
void psc_listening_judge(struct psc_request *request,
			 struct psc_memory *memory);

/**
 * psc_listening_act - listen on the copy, where it was judged and nowhere else
 *
 * Return: 0; -errno of the call; -ESTALE when the socket was moved meanwhile,
 * and does not listen; -EXDEV when it can't be moved as decided.
 */
int psc_listening_act(struct psc_request *request);

#endif

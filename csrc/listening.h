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
 * Sets @decision and @event.requested. A socket is judged by where it was bound
 * under the guard, if it was; by what it asked for, if it was moved.
 */
void psc_listening_judge(struct psc_request *request,
			 struct psc_memory *memory);

/**
 * psc_listening_wants_trust - whether psc_listening_trust() may learn something
 * @fd: anything
 *
 * Never waits.
 */
bool psc_listening_wants_trust(int fd, struct psc_memory *memory);

/**
 * psc_listening_trust - take a socket's name at its word
 * @fd: anything; only TCP sockets that are bound, and not connected, are
 *   remembered
 *
 * For sockets that a target inherits: whoever starts it has bound them. Waits for
 * the socket's lock, which another process that has the socket may keep.
 */
void psc_listening_trust(int fd, struct psc_memory *memory);

/**
 * psc_listening_still_holds - whether it would be asked about alike
 *
 * After the hook: the socket may have been bound, or bound elsewhere.
 */
bool psc_listening_still_holds(const struct psc_request *request,
			       struct psc_memory *memory);

/**
 * psc_listening_act - listen on the copy, where it was judged and nowhere else
 *
 * Return: 0; -errno of the call; -ESTALE when the socket was moved meanwhile,
 * and does not listen; -EXDEV when it can't be moved as decided.
 */
int psc_listening_act(struct psc_request *request, struct psc_memory *memory);

#endif

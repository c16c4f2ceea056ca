/* SPDX-License-Identifier: MIT */
/*
 * Forks of the program that embeds us. A copy of a listener in a forked child
 * keeps the calls of its targets hanging when this process dies, so the child
 * closes what it has inherited, in an at-fork handler of libc: fork() calls it
 * whoever forks, Python or not. (A raw clone(2) passes by it, and must exec.)
 */
#ifndef PSC_FORKING_H
#define PSC_FORKING_H

struct psc_supervisor;

/**
 * psc_forking_register - let forked children forget this supervisor
 *
 * Return: 0 or -ENOMEM.
 */
int psc_forking_register(struct psc_supervisor *supervisor);

/** psc_forking_unregister - it is about to be freed */
void psc_forking_unregister(struct psc_supervisor *supervisor);

/**
 * psc_forking_hold - no fork of this process until psc_forking_release()
 *
 * For the moment in which a descriptor exists that is noted nowhere, or is closed
 * and still noted. A fork takes the descriptors first and the memory later: what
 * is closed in between is in the child, and must not be forgotten there. After 50
 * ms a fork goes on all the same. Threads hold it together; it does not nest.
 */
void psc_forking_hold(void);

/** psc_forking_release - forks go on */
void psc_forking_release(void);

#endif

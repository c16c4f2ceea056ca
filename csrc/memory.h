/* SPDX-License-Identifier: MIT */
/*
 * What a supervisor remembers of sockets between their bind and their listen:
 * where each was bound; that one was bound to port 0 and so is ephemeral,
 * although it has a number by then; or that it was moved, and is judged by what
 * it asked for. A socket's own name does not tell: while it is connected, one
 * on 0.0.0.0 calls itself 127.0.0.1.
 *
 * Sockets are known by their cookie, which names them for life. The memory is
 * bounded: some are forgotten.
 *
 * And it knows which sockets are in a round: one round at a time for each, or a
 * bind in one thread could pass the check of a listen in another. Of a thread's
 * rounds it does, where a signal can leave one behind.
 */
#ifndef PSC_MEMORY_H
#define PSC_MEMORY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "endpoint.h"

/** sockets that are remembered: sets of PSC_MEMORY_WAYS */
#define PSC_MEMORY_SETS 1024
#define PSC_MEMORY_WAYS 4

/** interrupted binds that are remembered */
#define PSC_MEMORY_INTERRUPTED 64

/** what can be claimed at one time: no less than twice the threads */
#define PSC_MEMORY_CLAIMS 128
/** in the key of a claim: it is a thread's number, not a socket's cookie */
#define PSC_MEMORY_THREAD (UINT64_C(1) << 63)

enum psc_memory_kind {
	PSC_MEMORY_NOTHING,
	PSC_MEMORY_CHOSEN,    /* bound to the port that it has */
	PSC_MEMORY_EPHEMERAL, /* bound to port 0 */
	PSC_MEMORY_MOVED,     /* by @rule, from @address and @port */
};

/**
 * struct psc_memory_entry - one socket
 * @kind: an enum psc_memory_kind
 * @time: when it was stored, counted in what was stored
 * @owner: the process that bound it; 0 for one that a target inherits
 * @rule: what moved it: the index of a rule, or PSC_RULE_HOOK
 * @family, @dual_stack, @address, @port: where it was asked to be
 * @actual_family, @actual_address, @actual_port: where it was then; the port is
 *   0 when that is not known. A socket that is elsewhere by now has been bound
 *   again, unseen
 */
struct psc_memory_entry {
	uint64_t cookie;
	uint8_t kind;
	uint8_t family;
	uint8_t actual_family;
	bool dual_stack;
	uint32_t time;
	int32_t owner;
	int32_t rule;
	uint32_t port;
	uint32_t actual_port;
	uint8_t address[16];
	uint8_t actual_address[16];
};

/*
 * A bind that was made, but whose caller was interrupted before the answer:
 * it calls again, and must not get EINVAL for a socket that we have bound.
 */
struct psc_memory_interrupted {
	uint64_t cookie;
	uint64_t address_hash;
	int32_t tid;
};

struct psc_memory {
	pthread_mutex_t lock;
	uint32_t clock;
	struct psc_memory_entry sets[PSC_MEMORY_SETS][PSC_MEMORY_WAYS];
	struct psc_memory_interrupted interrupted[PSC_MEMORY_INTERRUPTED];
	int claimed;
	uint64_t claims[PSC_MEMORY_CLAIMS]; /* the first @claimed are in use */
};

/** psc_memory_init - know nothing; the memory is zeroed */
void psc_memory_init(struct psc_memory *memory);

/** psc_memory_free - nobody uses it any more */
void psc_memory_free(struct psc_memory *memory);

/**
 * psc_memory_store - remember a socket
 * @entry: its @cookie, @kind, @owner and @rule; the rest is filled in
 * @asked: where it was asked to be
 * @actual: where it is, or NULL
 *
 * Where there is no room the oldest is forgotten: one of the same owner's before
 * those of others, and what targets inherit last. Or who binds thousands of
 * sockets would have everybody's forgotten.
 */
void psc_memory_store(struct psc_memory *memory, struct psc_memory_entry entry,
		      const struct psc_endpoint *asked,
		      const struct psc_endpoint *actual);

/** psc_memory_forget - know nothing of a socket */
void psc_memory_forget(struct psc_memory *memory, uint64_t cookie);

/**
 * psc_memory_find - recall a socket
 * @ret_entry: what is known; @kind is PSC_MEMORY_NOTHING where nothing is
 */
void psc_memory_find(struct psc_memory *memory, uint64_t cookie,
		     struct psc_memory_entry *ret_entry);

/**
 * psc_memory_claim - begin a round of a socket, or of a calling thread
 * @key: the socket's cookie, or PSC_MEMORY_THREAD and the thread's number
 *
 * Return: false where it is in one already.
 */
bool psc_memory_claim(struct psc_memory *memory, uint64_t key);

/** psc_memory_unclaim - that round is over */
void psc_memory_unclaim(struct psc_memory *memory, uint64_t key);

/** psc_memory_interrupt - remember a bind whose answer did not arrive */
void psc_memory_interrupt(struct psc_memory *memory,
			  const struct psc_memory_interrupted *bind);

/** psc_memory_resume - whether this is that bind again; forgets it */
bool psc_memory_resume(struct psc_memory *memory,
		       const struct psc_memory_interrupted *bind);

#endif

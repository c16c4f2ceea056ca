/* SPDX-License-Identifier: MIT */
/*
 * Events: the record of a finished request, and the bounded ring that carries
 * them off the critical path. Any number of threads may push and pop; nobody
 * ever waits for the ring, and what does not fit is counted.
 */
#ifndef PSC_EVENT_H
#define PSC_EVENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "endpoint.h"
#include "filter.h"

/** What was answered. */
enum psc_outcome {
	PSC_OUTCOME_ALLOW,
	PSC_OUTCOME_DENY,
	PSC_OUTCOME_MOVE,
	PSC_OUTCOME_CONTINUE,
};

/** Beside the index of a rule and PSC_RULE_DEFAULT, what can have decided. */
enum psc_decided_by {
	PSC_RULE_HOOK = -2,
	PSC_RULE_FAILURE = -3, /* failed closed (or open, in a policy that can
				  never deny); @failure says why */
};

/** Why a request could not be decided by its policy. */
enum psc_failure {
	PSC_FAILURE_NONE,
	PSC_FAILURE_COPY,     /* the socket could not be copied */
	PSC_FAILURE_ENDPOINT, /* the copy could not be read */
	PSC_FAILURE_MEMORY,   /* the caller's memory could not be read */
	PSC_FAILURE_CHANGED,  /* the socket moved while it was decided */
	PSC_FAILURE_DEADLINE, /* the hook was too late */
	PSC_FAILURE_BUSY,     /* too many requests wait for the hook */
	PSC_FAILURE_CLOSED,   /* the guard was closed in between */
	PSC_FAILURE_CALL,     /* a call that the filter should not hand over */
	PSC_FAILURE_STUCK,    /* too many rounds of the process are stuck */
	PSC_FAILURE_MOVE,     /* the socket can't be moved where it should */
};

/**
 * struct psc_event - one finished request
 * @time_ns: when it was received, CLOCK_REALTIME
 * @cookie: the socket's SO_COOKIE, 0 when not known
 * @inode: with @first, the socket's inode, as the tables of /proc/net show it
 * @latency_ns: from RECV to just before SEND
 * @rule: what decided: an index, PSC_RULE_DEFAULT, or an enum psc_decided_by
 * @error: the errno that the caller got, 0 for none
 * @failure_error: with @failure, the errno that tells more
 * @known: whether @requested could be read
 * @open: whether @actual holds where the socket is now
 * @first: the call opened the port: it was not open before
 */
struct psc_event {
	int64_t time_ns;
	uint64_t cookie;
	uint64_t inode;
	int64_t latency_ns;
	int32_t pid;
	int32_t tid;
	int32_t backlog;
	int32_t rule;
	uint16_t error;
	uint16_t failure_error;
	uint8_t call;
	uint8_t outcome;
	uint8_t failure;
	bool known;
	bool open;
	bool first;
	char comm[16];
	struct psc_endpoint requested;
	struct psc_endpoint actual;
};

/* A slot's turn says who may use it next: see event.c. */
struct psc_event_slot {
	_Atomic uint64_t turn;
	struct psc_event event;
};

struct psc_event_ring {
	struct psc_event_slot *slots;
	uint64_t capacity;
	_Atomic uint64_t head; /* next to push */
	_Atomic uint64_t tail; /* next to pop */
	_Atomic uint64_t lost;
};

/**
 * psc_event_ring_init - make room
 * @capacity: events, a power of two, at least 2
 *
 * Return: 0, -EINVAL or -ENOMEM.
 */
int psc_event_ring_init(struct psc_event_ring *ring, uint64_t capacity);

/** psc_event_ring_free - give the room back; nobody may use the ring any more */
void psc_event_ring_free(struct psc_event_ring *ring);

/**
 * psc_event_ring_push - add an event
 *
 * The last quarter is kept for ports that open: who repeats a call, or is denied,
 * thousands of times does not hide them.
 *
 * Return: false where there is no room: it is counted as lost.
 */
bool psc_event_ring_push(struct psc_event_ring *ring,
			 const struct psc_event *event);

/** psc_event_ring_pop - take the oldest event; false when there is none */
bool psc_event_ring_pop(struct psc_event_ring *ring,
			struct psc_event *ret_event);

/**
 * psc_event_ring_close - take no more events: later ones are lost, and counted
 *
 * Those that were pushed before can be popped; one that another thread is about
 * to write, a moment later.
 */
void psc_event_ring_close(struct psc_event_ring *ring);

/** psc_event_ring_pushed - events that were ever pushed, without the lost ones */
uint64_t psc_event_ring_pushed(struct psc_event_ring *ring);


/** psc_event_ring_count - events inside; others may push and pop meanwhile */
uint64_t psc_event_ring_count(struct psc_event_ring *ring);

#endif

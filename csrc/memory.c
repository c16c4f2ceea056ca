/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <string.h>

void psc_memory_init(struct psc_memory *memory)
{
	pthread_mutex_init(&memory->lock, NULL);
}

void psc_memory_free(struct psc_memory *memory)
{
	pthread_mutex_destroy(&memory->lock);
}

/* Cookies count up: neighbours go to different sets as they are. */
static struct psc_memory_entry *set_of(struct psc_memory *memory,
				       uint64_t cookie)
{
	return memory->sets[cookie % PSC_MEMORY_SETS];
}

static struct psc_memory_entry *find(struct psc_memory *memory, uint64_t cookie)
{
	struct psc_memory_entry *set = set_of(memory, cookie);

	for (int i = 0; i < PSC_MEMORY_WAYS; i++)
		if (set[i].kind != PSC_MEMORY_NOTHING &&
		    set[i].cookie == cookie)
			return &set[i];
	return NULL;
}

/* A place in the set: a free one, or one that has to go. */
static struct psc_memory_entry *place(struct psc_memory *memory,
				      uint64_t cookie)
{
	struct psc_memory_entry *set = set_of(memory, cookie);

	for (int i = 0; i < PSC_MEMORY_WAYS; i++)
		if (set[i].kind == PSC_MEMORY_NOTHING)
			return &set[i];
	return &set[memory->clock++ % PSC_MEMORY_WAYS];
}

void psc_memory_store(struct psc_memory *memory, uint64_t cookie,
		      enum psc_memory_kind kind, int32_t rule,
		      const struct psc_endpoint *asked, uint32_t actual_port)
{
	struct psc_memory_entry *entry;

	pthread_mutex_lock(&memory->lock);
	entry = find(memory, cookie);
	if (!entry)
		entry = place(memory, cookie);
	*entry = (struct psc_memory_entry){
		.cookie = cookie,
		.kind = (uint8_t)kind,
		.family = asked->family,
		.dual_stack = asked->dual_stack,
		.rule = rule,
		.port = asked->port,
		.actual_port = actual_port,
	};
	memcpy(entry->address, asked->address, sizeof(asked->address));
	pthread_mutex_unlock(&memory->lock);
}

void psc_memory_find(struct psc_memory *memory, uint64_t cookie,
		     struct psc_memory_entry *ret_entry)
{
	struct psc_memory_entry *entry;

	pthread_mutex_lock(&memory->lock);
	entry = find(memory, cookie);
	if (entry)
		*ret_entry = *entry;
	else
		*ret_entry = (struct psc_memory_entry){.cookie = cookie};
	pthread_mutex_unlock(&memory->lock);
}

bool psc_memory_claim(struct psc_memory *memory, uint64_t cookie)
{
	bool is_free;

	pthread_mutex_lock(&memory->lock);
	is_free = memory->claimed < PSC_MEMORY_CLAIMS;
	for (int i = 0; i < memory->claimed; i++)
		is_free = is_free && memory->claims[i] != cookie;
	if (is_free)
		memory->claims[memory->claimed++] = cookie;
	pthread_mutex_unlock(&memory->lock);
	return is_free;
}

void psc_memory_unclaim(struct psc_memory *memory, uint64_t cookie)
{
	pthread_mutex_lock(&memory->lock);
	for (int i = 0; i < memory->claimed; i++)
		if (memory->claims[i] == cookie) {
			memory->claims[i] = memory->claims[--memory->claimed];
			break;
		}
	pthread_mutex_unlock(&memory->lock);
}

void psc_memory_interrupt(struct psc_memory *memory,
			  const struct psc_memory_interrupted *bind)
{
	pthread_mutex_lock(&memory->lock);
	memory->interrupted[memory->clock++ % PSC_MEMORY_INTERRUPTED] = *bind;
	pthread_mutex_unlock(&memory->lock);
}

bool psc_memory_resume(struct psc_memory *memory,
		       const struct psc_memory_interrupted *bind)
{
	bool found = false;

	pthread_mutex_lock(&memory->lock);
	for (int i = 0; i < PSC_MEMORY_INTERRUPTED && !found; i++) {
		struct psc_memory_interrupted *one = &memory->interrupted[i];

		found = one->cookie && one->cookie == bind->cookie &&
			one->tid == bind->tid &&
			one->address_hash == bind->address_hash;
		if (found)
			one->cookie = 0;
	}
	pthread_mutex_unlock(&memory->lock);
	return found;
}

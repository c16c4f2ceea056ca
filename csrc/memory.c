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

/* Which of two entries has to go first, for one of @owner's. */
static bool goes_before(const struct psc_memory_entry *one,
			const struct psc_memory_entry *other, int32_t owner)
{
	const bool one_is_own = one->owner == owner;
	const bool other_is_own = other->owner == owner;

	if (one->kind == PSC_MEMORY_NOTHING ||
	    other->kind == PSC_MEMORY_NOTHING)
		return one->kind == PSC_MEMORY_NOTHING;
	if (one_is_own != other_is_own)
		return one_is_own;
	if (!one->owner != !other->owner)
		return one->owner != 0;
	return (int32_t)(one->time - other->time) < 0;
}

/* A place in the set: a free one, or one that has to go. */
static struct psc_memory_entry *place(struct psc_memory *memory,
				      const struct psc_memory_entry *entry)
{
	struct psc_memory_entry *set = set_of(memory, entry->cookie);
	struct psc_memory_entry *found = set;

	for (int i = 1; i < PSC_MEMORY_WAYS; i++)
		if (goes_before(&set[i], found, entry->owner))
			found = &set[i];
	return found;
}

void psc_memory_store(struct psc_memory *memory, struct psc_memory_entry entry,
		      const struct psc_endpoint *asked,
		      const struct psc_endpoint *actual)
{
	struct psc_memory_entry *there;

	entry.family = asked->family;
	entry.dual_stack = asked->dual_stack;
	entry.port = asked->port;
	memcpy(entry.address, asked->address, sizeof(entry.address));
	if (actual) {
		entry.actual_family = actual->family;
		entry.actual_port = actual->port;
		memcpy(entry.actual_address, actual->address,
		       sizeof(entry.actual_address));
	}
	pthread_mutex_lock(&memory->lock);
	there = find(memory, entry.cookie);
	if (!there)
		there = place(memory, &entry);
	entry.time = memory->clock++;
	*there = entry;
	pthread_mutex_unlock(&memory->lock);
}

void psc_memory_forget(struct psc_memory *memory, uint64_t cookie)
{
	struct psc_memory_entry *entry;

	pthread_mutex_lock(&memory->lock);
	entry = find(memory, cookie);
	if (entry)
		entry->kind = PSC_MEMORY_NOTHING;
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

bool psc_memory_claim(struct psc_memory *memory, uint64_t key)
{
	bool is_free;

	pthread_mutex_lock(&memory->lock);
	is_free = memory->claimed < PSC_MEMORY_CLAIMS;
	for (int i = 0; i < memory->claimed; i++)
		is_free = is_free && memory->claims[i] != key;
	if (is_free)
		memory->claims[memory->claimed++] = key;
	pthread_mutex_unlock(&memory->lock);
	return is_free;
}

void psc_memory_unclaim(struct psc_memory *memory, uint64_t key)
{
	pthread_mutex_lock(&memory->lock);
	for (int i = 0; i < memory->claimed; i++)
		if (memory->claims[i] == key) {
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

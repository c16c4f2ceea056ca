/* SPDX-License-Identifier: MIT */
/*
 * What the fuzz targets share: numbers out of the fuzzer's bytes, checks that
 * stop it, and random policies beside a matcher that is slow and obvious.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rules.h"

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/** struct fuzz_input - bytes not used yet; where there are none, they are 0 */
struct fuzz_input {
	const uint8_t *next;
	size_t left;
};

/** The next bytes, little-endian. */
void fuzz_bytes(struct fuzz_input *input, void *ret_bytes, size_t length);
uint8_t fuzz_u8(struct fuzz_input *input);
uint16_t fuzz_u16(struct fuzz_input *input);
uint32_t fuzz_u32(struct fuzz_input *input);
uint64_t fuzz_u64(struct fuzz_input *input);

/** fuzz_below - a number from 0 to @limit - 1, which is at most 256 */
unsigned int fuzz_below(struct fuzz_input *input, unsigned int limit);

/** fuzz_port - a port; those that rules meet often are frequent */
uint16_t fuzz_port(struct fuzz_input *input);

/** fuzz_address - 4 or 16 bytes; addresses that rules name are frequent */
void fuzz_address(struct fuzz_input *input, bool ipv6, uint8_t ret_address[16]);

/** fuzz_fail - say what does not hold, and stop the fuzzer */
void fuzz_fail(const char *file, int line, const char *what)
	__attribute__((noreturn));

#define MUST(condition)                                                        \
	do {                                                                   \
		if (!(condition))                                              \
			fuzz_fail(__FILE__, __LINE__, #condition);             \
	} while (0)

/* ---- policies ---- */

#define FUZZ_RULES 6

/** struct fuzz_policy - a policy with room for its rules */
struct fuzz_policy {
	struct psc_policy policy;
	struct psc_rule rules[FUZZ_RULES];
};

/** fuzz_policy - any policy that the grammar can say */
void fuzz_policy(struct fuzz_input *input, struct fuzz_policy *ret_policy);

/* ---- slow.c: the rules as the README tells them ---- */

/** slow_match - whether a rule selects the endpoint as what its family says */
bool slow_match(const struct psc_rule *rule, const struct psc_endpoint *socket);

/**
 * slow_judge - the verdict on an endpoint, a dual-stack wildcard as both
 * @ret_rule: what decided; of two equally strict ones the IPv6 half's
 */
enum psc_verdict slow_judge(const struct psc_policy *policy,
			    const struct psc_endpoint *socket, int *ret_rule);

#endif

/* SPDX-License-Identifier: MIT */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fuzz_bytes(struct fuzz_input *input, void *ret_bytes, size_t length)
{
	const size_t given = length < input->left ? length : input->left;

	memset(ret_bytes, 0, length);
	if (given)
		memcpy(ret_bytes, input->next, given);
	input->next += given;
	input->left -= given;
}

uint8_t fuzz_u8(struct fuzz_input *input)
{
	uint8_t value;

	fuzz_bytes(input, &value, sizeof(value));
	return value;
}

uint16_t fuzz_u16(struct fuzz_input *input)
{
	const unsigned int low = fuzz_u8(input), high = fuzz_u8(input);

	return (uint16_t)(high << 8 | low);
}

uint32_t fuzz_u32(struct fuzz_input *input)
{
	const uint32_t low = fuzz_u16(input), high = fuzz_u16(input);

	return high << 16 | low;
}

uint64_t fuzz_u64(struct fuzz_input *input)
{
	const uint64_t low = fuzz_u32(input), high = fuzz_u32(input);

	return high << 32 | low;
}

unsigned int fuzz_below(struct fuzz_input *input, unsigned int limit)
{
	return fuzz_u8(input) % limit;
}

uint16_t fuzz_port(struct fuzz_input *input)
{
	static const uint16_t ports[] = {0,    1,    80,   1023, 1024, 8000,
					 8080, 8999, 9000, 65534, 65535};
	const unsigned int which = fuzz_below(input, COUNT_OF(ports) + 1);

	return which < COUNT_OF(ports) ? ports[which] : fuzz_u16(input);
}

void fuzz_address(struct fuzz_input *input, bool ipv6, uint8_t ret_address[16])
{
	static const uint8_t ipv4s[][4] = {
		{0, 0, 0, 0},  {127, 0, 0, 1},	 {127, 255, 255, 255},
		{128, 0, 0, 0}, {10, 0, 0, 1},	 {10, 255, 255, 255},
		{0, 0, 0, 1},	{255, 255, 255, 255},
	};
	static const uint8_t ipv6s[][16] = {
		{0},		   {[15] = 1},	     {[15] = 2},
		{0xfd, [15] = 1},  {0xfe, 0x80, [15] = 1}, {127, [15] = 1},
		{[12] = 127, 0, 0, 1}, {[0] = 1},
	};
	unsigned int which;

	memset(ret_address, 0, 16);
	which = fuzz_below(input, 9);
	if (which == 8)
		fuzz_bytes(input, ret_address, ipv6 ? 16 : 4);
	else if (ipv6)
		memcpy(ret_address, ipv6s[which], 16);
	else
		memcpy(ret_address, ipv4s[which], 4);
}

void fuzz_fail(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
	abort();
}

static void take_ports(struct fuzz_input *input, struct psc_rule *rule)
{
	const bool vsock = rule->family == PSC_FAMILY_VSOCK;

	rule->match_ports = (uint8_t)fuzz_below(input, vsock ? 2 : 3);
	if (rule->match_ports != PSC_PORTS_RANGE)
		return;
	rule->port_first = vsock ? fuzz_u32(input) : fuzz_port(input);
	rule->port_last = rule->port_first;
	if (fuzz_below(input, 2))
		rule->port_last = vsock ? fuzz_u32(input) : fuzz_port(input);
	if (rule->port_last < rule->port_first) {
		const uint32_t last = rule->port_first;

		rule->port_first = rule->port_last;
		rule->port_last = last;
	}
	if (rule->port_first == 0)
		rule->port_first = 1;
	if (rule->port_last == 0)
		rule->port_last = 1;
}

static void take_target(struct fuzz_input *input, struct psc_rule *rule)
{
	struct psc_target *target = &rule->target;

	target->host = (uint8_t)fuzz_below(input, 4);
	if ((target->host == PSC_MOVE_HOST_IPV4 &&
	     rule->family == PSC_FAMILY_IPV6) ||
	    (target->host == PSC_MOVE_HOST_IPV6 &&
	     rule->family == PSC_FAMILY_IPV4))
		target->host = PSC_MOVE_HOST_LOOPBACK;
	if (target->host == PSC_MOVE_HOST_IPV4 ||
	    target->host == PSC_MOVE_HOST_IPV6)
		fuzz_address(input, target->host == PSC_MOVE_HOST_IPV6,
			     target->address);
	target->has_port = target->host == PSC_MOVE_HOST_KEEP ||
			   fuzz_below(input, 2);
	if (target->has_port)
		target->port = fuzz_port(input);
}

static void take_rule(struct fuzz_input *input, struct psc_rule *rule)
{
	static const uint16_t errors[] = {EACCES, EPERM, EADDRINUSE, 4095};
	bool ports;

	memset(rule, 0, sizeof(*rule));
	rule->verdict = (uint8_t)fuzz_below(input, 4);
	rule->family = (uint8_t)fuzz_below(input, PSC_FAMILY_OTHER);
	if (rule->verdict == PSC_VERDICT_MOVE &&
	    rule->family > PSC_FAMILY_IPV6)
		rule->family = PSC_FAMILY_ANY;
	ports = rule->family <= PSC_FAMILY_IPV6;
	if (rule->verdict == PSC_VERDICT_DENY)
		rule->error = errors[fuzz_below(input, COUNT_OF(errors))];
	if (ports) {
		rule->match_protocol = (uint8_t)fuzz_below(input, 3);
		rule->match_address = (uint8_t)fuzz_below(input, 4);
	}
	if (rule->match_address == PSC_ADDRESS_PREFIX) {
		/* The grammar knows no address without its family. */
		if (rule->family == PSC_FAMILY_ANY)
			rule->family = PSC_FAMILY_IPV4;
		fuzz_address(input, rule->family == PSC_FAMILY_IPV6,
			     rule->address);
		rule->prefix_length = (uint8_t)fuzz_below(
			input, rule->family == PSC_FAMILY_IPV6 ? 129 : 33);
	}
	if (rule->family != PSC_FAMILY_UNIX)
		take_ports(input, rule);
	if (rule->verdict == PSC_VERDICT_MOVE)
		take_target(input, rule);
}

void fuzz_policy(struct fuzz_input *input, struct fuzz_policy *ret_policy)
{
	static const enum psc_verdict defaults[] = {
		PSC_VERDICT_ALLOW, PSC_VERDICT_DENY, PSC_VERDICT_ASK};

	memset(ret_policy, 0, sizeof(*ret_policy));
	ret_policy->policy.rules = ret_policy->rules;
	ret_policy->policy.count = fuzz_below(input, FUZZ_RULES + 1);
	ret_policy->policy.default_verdict = defaults[fuzz_below(input, 3)];
	ret_policy->policy.error = EACCES;
	ret_policy->policy.unix_continue = fuzz_below(input, 4) == 0;
	for (size_t i = 0; i < ret_policy->policy.count; i++)
		take_rule(input, &ret_policy->rules[i]);
}

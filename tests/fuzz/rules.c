/* SPDX-License-Identifier: MIT */
/* Random policies over random sockets: the matcher against the slow one. */
#include <string.h>
#include <sys/socket.h>

#include "fuzz.h"

static void take_socket(struct fuzz_input *input, struct psc_endpoint *socket)
{
	static const uint16_t protocols[] = {0,	 1,   6,   17, 33,
					     132, 136, 255, 256, 262};
	static const uint16_t types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_RAW};
	static const uint16_t afs[] = {AF_UNIX, AF_INET, AF_INET6, AF_VSOCK, 43};

	memset(socket, 0, sizeof(*socket));
	socket->family = (uint8_t)fuzz_below(input, PSC_FAMILY_OTHER + 1);
	socket->protocol = protocols[fuzz_below(input, COUNT_OF(protocols))];
	socket->type = types[fuzz_below(input, COUNT_OF(types))];
	socket->af = afs[fuzz_below(input, COUNT_OF(afs))];
	socket->port = fuzz_port(input);
	if (socket->family == PSC_FAMILY_VSOCK && fuzz_below(input, 2))
		socket->port = fuzz_u32(input);
	if (socket->family == PSC_FAMILY_IPV4 ||
	    socket->family == PSC_FAMILY_IPV6)
		fuzz_address(input, socket->family == PSC_FAMILY_IPV6,
			     socket->address);
	else
		fuzz_bytes(input, socket->address, 4);
	if (socket->family == PSC_FAMILY_IPV6) {
		static const uint8_t wildcard[16];

		socket->dual_stack =
			memcmp(socket->address, wildcard, 16) == 0 &&
			fuzz_below(input, 2);
	}
}

static bool ever_other_than_allow(const struct psc_policy *policy)
{
	bool found = policy->default_verdict != PSC_VERDICT_ALLOW;

	for (size_t i = 0; i < policy->count; i++)
		found |= policy->rules[i].verdict != PSC_VERDICT_ALLOW;
	return found;
}

static void check_decision(const struct psc_policy *policy,
			   const struct psc_endpoint *socket)
{
	const struct psc_decision got = psc_rules_decide(policy, socket);
	int rule;

	MUST(got.verdict == slow_judge(policy, socket, &rule));
	MUST(got.rule == rule);
	if (got.verdict != PSC_VERDICT_DENY)
		MUST(got.error == 0);
	else if (rule == PSC_RULE_DEFAULT)
		MUST(got.error == policy->error);
	else
		MUST(got.error == policy->rules[rule].error);
	if (got.verdict == PSC_VERDICT_MOVE) {
		const struct psc_target *target = &policy->rules[rule].target;

		MUST(got.target.host == target->host);
		MUST(got.target.has_port == target->has_port);
		MUST(got.target.port == target->port);
		MUST(memcmp(got.target.address, target->address, 16) == 0);
	}
	if (got.verdict != PSC_VERDICT_ALLOW)
		MUST(psc_rules_can_deny(policy));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
	struct fuzz_input input = {bytes, length};
	struct fuzz_policy made;
	struct psc_endpoint socket;

	fuzz_policy(&input, &made);
	MUST(psc_rules_can_deny(&made.policy) ==
	     ever_other_than_allow(&made.policy));
	do {
		take_socket(&input, &socket);
		for (size_t i = 0; i < made.policy.count; i++)
			MUST(psc_rules_match(&made.rules[i], &socket) ==
			     slow_match(&made.rules[i], &socket));
		check_decision(&made.policy, &socket);
	} while (input.left > 0);
	return 0;
}

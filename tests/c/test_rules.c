/* SPDX-License-Identifier: MIT */
/* The matcher beside one that is slow and obvious. */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>

#include "check.h"
#include "kernel.h"
#include "rules.h"

#define CASES 200000
#define RULES_MAX 8

static bool bit_of(const uint8_t *bytes, unsigned int bit)
{
	return bytes[bit / 8] >> (7 - bit % 8) & 1;
}

/* ---- the obvious matcher ---- */

static bool slow_protocol(const struct psc_rule *rule,
			  const struct psc_endpoint *endpoint, bool internet)
{
	const unsigned int protocol = endpoint->protocol;

	if (rule->match_protocol == PSC_PROTOCOL_ANY)
		return true;
	if (!internet)
		return false;
	if (rule->match_protocol == PSC_PROTOCOL_TCP)
		return protocol == 6 || protocol == 262 || endpoint->af == 43;
	return protocol == 17 || protocol == 136;
}

static bool slow_address(const struct psc_rule *rule,
			 const struct psc_endpoint *endpoint,
			 enum psc_family family)
{
	const unsigned int bits = family == PSC_FAMILY_IPV4   ? 32
				  : family == PSC_FAMILY_IPV6 ? 128
							      : 0;
	unsigned int ones = 0;

	for (unsigned int bit = 0; bit < bits; bit++)
		ones += bit_of(endpoint->address, bit);

	switch (rule->match_address) {
	case PSC_ADDRESS_ANY:
		return true;
	case PSC_ADDRESS_PREFIX:
		for (unsigned int bit = 0; bit < rule->prefix_length; bit++)
			if (bit_of(rule->address, bit) !=
			    bit_of(endpoint->address, bit))
				return false;
		return true;
	case PSC_ADDRESS_LOOPBACK:
		if (family == PSC_FAMILY_IPV4)
			return endpoint->address[0] == 127;
		return family == PSC_FAMILY_IPV6 && ones == 1 &&
		       bit_of(endpoint->address, 127);
	default: /* the wildcard */
		return bits != 0 && ones == 0;
	}
}

static bool slow_ports(const struct psc_rule *rule, uint32_t port)
{
	if (rule->match_ports == PSC_PORTS_ANY)
		return true;
	if (rule->match_ports == PSC_PORTS_EPHEMERAL)
		return port == 0;
	return port != 0 && rule->port_first <= port && port <= rule->port_last;
}

static struct psc_decision slow_single(const struct psc_policy *policy,
				       const struct psc_endpoint *endpoint,
				       enum psc_family family)
{
	const bool internet =
		family == PSC_FAMILY_IPV4 || family == PSC_FAMILY_IPV6;
	struct psc_decision decision = {.verdict = PSC_VERDICT_ALLOW,
					.rule = PSC_RULE_DEFAULT};

	for (size_t i = 0; i < policy->count; i++) {
		const struct psc_rule *rule = &policy->rules[i];
		const bool family_fits = rule->family == PSC_FAMILY_ANY
						 ? internet
						 : rule->family == family;

		if (family_fits && slow_protocol(rule, endpoint, internet) &&
		    slow_address(rule, endpoint, family) &&
		    slow_ports(rule, endpoint->port)) {
			decision.verdict = (enum psc_verdict)rule->verdict;
			decision.rule = (int)i;
			if (rule->verdict == PSC_VERDICT_DENY)
				decision.error = rule->error;
			if (rule->verdict == PSC_VERDICT_MOVE)
				decision.target = rule->target;
			return decision;
		}
	}
	if (internet)
		decision.verdict = policy->default_verdict;
	if (decision.verdict == PSC_VERDICT_DENY)
		decision.error = policy->error;
	return decision;
}

static struct psc_decision slow_decide(const struct psc_policy *policy,
				       const struct psc_endpoint *endpoint)
{
	struct psc_decision as_own, as_ipv4;

	as_own = slow_single(policy, endpoint,
			     (enum psc_family)endpoint->family);
	if (!endpoint->dual_stack)
		return as_own;
	as_ipv4 = slow_single(policy, endpoint, PSC_FAMILY_IPV4);
	return as_ipv4.verdict > as_own.verdict ? as_ipv4 : as_own;
}

static bool same_target(const struct psc_target *first,
			const struct psc_target *second)
{
	return first->host == second->host &&
	       first->has_port == second->has_port &&
	       first->port == second->port &&
	       memcmp(first->address, second->address, 16) == 0;
}

/* ---- rules and endpoints that meet often enough ---- */

static const uint32_t ports[] = {0,    1,    79,   80,	 81,	7999,
				 8000, 8001, 8999, 9000, 65535, 4294967295u};

static uint32_t some_port(uint64_t *random)
{
	return ports[check_below(random, COUNT_OF(ports))];
}

static void some_address(uint64_t *random, bool ipv6, uint8_t address[16])
{
	static const uint8_t pool4[][4] = {
		{0},	       {127, 0, 0, 1},	{127, 9, 9, 9},
		{10, 0, 0, 1}, {10, 255, 0, 1}, {192, 168, 1, 1},
	};
	static const uint8_t pool6[][16] = {
		{0},
		{[15] = 1},
		{0xfd, [15] = 1},
		{0xfd, 1, [15] = 1},
		{0x20, 1, 0xd, 0xb8, [15] = 7},
	};

	memset(address, 0, 16);
	if (ipv6)
		memcpy(address, pool6[check_below(random, COUNT_OF(pool6))],
		       16);
	else
		memcpy(address, pool4[check_below(random, COUNT_OF(pool4))], 4);
	if (check_below(random, 4) == 0) {
		const unsigned int bit = check_below(random, ipv6 ? 128 : 32);

		address[bit / 8] ^= (uint8_t)(0x80 >> bit % 8);
	}
}

static struct psc_rule some_rule(uint64_t *random)
{
	struct psc_rule rule = {
		.verdict = (uint8_t)check_below(random, 4),
		.family = (uint8_t)check_below(random, PSC_FAMILY_OTHER),
		.match_protocol = (uint8_t)check_below(random, 3),
		.match_address = (uint8_t)check_below(random, 4),
		.match_ports = (uint8_t)check_below(random, 3),
		.error = (uint16_t)(1 + check_below(random, 100)),
		.port_first = some_port(random),
		.port_last = some_port(random),
		.target = {.host = (uint8_t)check_below(random, 4),
			   .has_port = check_below(random, 2),
			   .port = (uint16_t)some_port(random),
			   .address = {(uint8_t)check_below(random, 256)}},
	};

	if (check_below(random, 2))
		rule.match_protocol = PSC_PROTOCOL_ANY;
	if (rule.match_address == PSC_ADDRESS_PREFIX) {
		const bool ipv6 = check_below(random, 2);

		rule.family = ipv6 ? PSC_FAMILY_IPV6 : PSC_FAMILY_IPV4;
		some_address(random, ipv6, rule.address);
		rule.prefix_length =
			(uint8_t)check_below(random, ipv6 ? 129 : 33);
	}
	return rule;
}

static struct psc_endpoint some_endpoint(uint64_t *random)
{
	static const uint16_t protocols[] = {6, 6, 6, 262, 17, 136, 132};
	static const uint8_t families[] = {PSC_FAMILY_IPV4, PSC_FAMILY_IPV4,
					   PSC_FAMILY_IPV6, PSC_FAMILY_IPV6,
					   PSC_FAMILY_UNIX, PSC_FAMILY_VSOCK,
					   PSC_FAMILY_OTHER};
	static const uint8_t zero[16];
	struct psc_endpoint endpoint = {
		.family = families[check_below(random, COUNT_OF(families))],
		.protocol = protocols[check_below(random, COUNT_OF(protocols))],
		.port = some_port(random),
	};

	switch (endpoint.family) {
	case PSC_FAMILY_IPV4:
		endpoint.af = AF_INET;
		some_address(random, false, endpoint.address);
		break;
	case PSC_FAMILY_IPV6:
		endpoint.af = AF_INET6;
		some_address(random, true, endpoint.address);
		if (memcmp(endpoint.address, zero, 16) == 0)
			endpoint.dual_stack = check_below(random, 2);
		break;
	case PSC_FAMILY_UNIX:
		endpoint.af = AF_UNIX;
		endpoint.port = 0;
		break;
	case PSC_FAMILY_VSOCK:
		endpoint.af = AF_VSOCK;
		endpoint.address[0] = 3;
		break;
	default:
		endpoint.af = AF_NETLINK;
		endpoint.port = 0;
		break;
	}
	if (psc_endpoint_has_ports(&endpoint) && check_below(random, 10) == 0) {
		endpoint.af = AF_SMC;
		endpoint.protocol = (uint16_t)check_below(random, 2);
	}
	return endpoint;
}

static void test_against_slow(void)
{
	static const enum psc_verdict defaults[] = {
		PSC_VERDICT_ALLOW, PSC_VERDICT_DENY, PSC_VERDICT_ASK};
	unsigned int by_rule = 0, by_default = 0, by_ipv4 = 0,
		     verdicts[4] = {0};
	uint64_t random = 20251101;

	for (int i = 0; i < CASES; i++) {
		struct psc_rule rules[RULES_MAX];
		struct psc_policy policy = {
			.rules = rules,
			.count = check_below(&random, RULES_MAX + 1),
			.default_verdict = defaults[check_below(&random, 3)],
			.error = EACCES};
		struct psc_endpoint endpoint, single;
		struct psc_decision got, wanted;
		bool can_deny = policy.default_verdict != PSC_VERDICT_ALLOW;

		for (size_t j = 0; j < policy.count; j++) {
			rules[j] = some_rule(&random);
			can_deny |= rules[j].verdict != PSC_VERDICT_ALLOW;
		}
		endpoint = some_endpoint(&random);
		got = psc_rules_decide(&policy, &endpoint);
		wanted = slow_decide(&policy, &endpoint);
		if (got.verdict != wanted.verdict || got.rule != wanted.rule ||
		    got.error != wanted.error)
			FAIL("case %d: verdict %d error %d rule %d, not "
			     "verdict %d error %d rule %d",
			     i, got.verdict, got.error, got.rule,
			     wanted.verdict, wanted.error, wanted.rule);
		if (!same_target(&got.target, &wanted.target))
			FAIL("case %d: the target is not rule %d's", i,
			     got.rule);
		CHECK_INT(psc_rules_can_deny(&policy), can_deny);

		single = endpoint;
		single.dual_stack = false;
		by_rule += got.rule >= 0;
		by_default += got.rule == PSC_RULE_DEFAULT;
		by_ipv4 += psc_rules_decide(&policy, &single).verdict !=
			   got.verdict;
		verdicts[got.verdict]++;
	}

	/* The cases are worth something only if they differ. */
	CHECK(by_rule > CASES / 10);
	CHECK(by_default > CASES / 10);
	CHECK(by_ipv4 > CASES / 1000);
	for (size_t i = 0; i < COUNT_OF(verdicts); i++)
		CHECK(verdicts[i] > CASES / 100);
}

/* ---- one promise at a time ---- */

static struct psc_endpoint tcp4(uint32_t port)
{
	return (struct psc_endpoint){.family = PSC_FAMILY_IPV4,
				     .af = AF_INET,
				     .protocol = IPPROTO_TCP,
				     .address = {10, 0, 0, 1},
				     .port = port};
}

static void test_first_match(void)
{
	struct psc_rule rules[4] = {
		{.verdict = PSC_VERDICT_ASK,
		 .match_ports = PSC_PORTS_RANGE,
		 .port_first = 1,
		 .port_last = 1},
		{.verdict = PSC_VERDICT_DENY, .error = EPERM},
		{.verdict = PSC_VERDICT_ALLOW},
		{.verdict = PSC_VERDICT_MOVE},
	};
	struct psc_policy policy = {.rules = rules,
				    .count = 4,
				    .default_verdict = PSC_VERDICT_DENY,
				    .error = EACCES};
	struct psc_endpoint endpoint = tcp4(2);
	struct psc_decision decision = psc_rules_decide(&policy, &endpoint);

	CHECK_INT(decision.verdict, PSC_VERDICT_DENY);
	CHECK_INT(decision.error, EPERM);
	CHECK_INT(decision.rule, 1);

	endpoint.port = 1;
	decision = psc_rules_decide(&policy, &endpoint);
	CHECK_INT(decision.verdict, PSC_VERDICT_ASK);
	CHECK_INT(decision.error, 0);
	CHECK_INT(decision.rule, 0);

	policy.count = 1;
	endpoint.port = 2;
	decision = psc_rules_decide(&policy, &endpoint);
	CHECK_INT(decision.verdict, PSC_VERDICT_DENY);
	CHECK_INT(decision.error, EACCES);
	CHECK_INT(decision.rule, PSC_RULE_DEFAULT);
}

static void check_prefixes(enum psc_family family, unsigned int bits)
{
	uint64_t random = 7;

	for (unsigned int length = 0; length <= bits; length++) {
		struct psc_rule rule = {.family = (uint8_t)family,
					.match_address = PSC_ADDRESS_PREFIX,
					.prefix_length = (uint8_t)length};
		struct psc_endpoint endpoint = {.family = (uint8_t)family};

		for (unsigned int i = 0; i < bits / 8; i++)
			rule.address[i] = (uint8_t)check_random(&random);
		memcpy(endpoint.address, rule.address, 16);
		CHECK(psc_rules_match(&rule, &endpoint));
		for (unsigned int bit = 0; bit < bits; bit++) {
			const uint8_t mask = (uint8_t)(0x80 >> bit % 8);

			endpoint.address[bit / 8] ^= mask;
			if (psc_rules_match(&rule, &endpoint) !=
			    (bit >= length))
				FAIL("/%u, bit %u differs", length, bit);
			endpoint.address[bit / 8] ^= mask;
		}
	}
}

static void test_prefixes(void)
{
	check_prefixes(PSC_FAMILY_IPV4, 32);
	check_prefixes(PSC_FAMILY_IPV6, 128);
}

static void test_prefix_family(void)
{
	const struct psc_rule all4 = {.family = PSC_FAMILY_IPV4,
				      .match_address = PSC_ADDRESS_PREFIX};
	const struct psc_rule all6 = {.family = PSC_FAMILY_IPV6,
				      .match_address = PSC_ADDRESS_PREFIX};
	const struct psc_endpoint on4 = tcp4(1);
	const struct psc_endpoint on6 = {.family = PSC_FAMILY_IPV6};

	CHECK(psc_rules_match(&all4, &on4) && !psc_rules_match(&all4, &on6));
	CHECK(psc_rules_match(&all6, &on6) && !psc_rules_match(&all6, &on4));
}

static void test_ports(void)
{
	const struct psc_rule any = {.match_ports = PSC_PORTS_ANY};
	const struct psc_rule all = {.match_ports = PSC_PORTS_RANGE,
				     .port_first = 0,
				     .port_last = UINT32_MAX};
	const struct psc_rule some = {.match_ports = PSC_PORTS_RANGE,
				      .port_first = 8000,
				      .port_last = 8999};
	const struct psc_rule ephemeral = {.match_ports = PSC_PORTS_EPHEMERAL};

	for (uint32_t port = 0; port < 65536; port++) {
		const struct psc_endpoint endpoint = tcp4(port);

		CHECK(psc_rules_match(&any, &endpoint));
		CHECK_INT(psc_rules_match(&all, &endpoint), port != 0);
		CHECK_INT(psc_rules_match(&some, &endpoint),
			  port >= 8000 && port <= 8999);
		CHECK_INT(psc_rules_match(&ephemeral, &endpoint), port == 0);
	}
}

static void test_dual_stack(void)
{
	struct psc_endpoint both = {.family = PSC_FAMILY_IPV6,
				    .af = AF_INET6,
				    .protocol = IPPROTO_TCP,
				    .port = 80,
				    .dual_stack = true};
	struct psc_endpoint only6 = both;

	only6.dual_stack = false;
	for (uint8_t on6 = 0; on6 < 4; on6++) {
		for (uint8_t on4 = 0; on4 < 4; on4++) {
			const struct psc_rule rules[2] = {
				{.family = PSC_FAMILY_IPV6,
				 .verdict = on6,
				 .error = 6},
				{.family = PSC_FAMILY_IPV4,
				 .verdict = on4,
				 .error = 4},
			};
			const struct psc_policy policy = {
				.rules = rules,
				.count = 2,
				.default_verdict = PSC_VERDICT_ALLOW,
				.error = EACCES};
			struct psc_decision decision =
				psc_rules_decide(&policy, &both);

			CHECK_INT(decision.verdict, on6 > on4 ? on6 : on4);
			CHECK_INT(decision.rule, on4 > on6 ? 1 : 0);
			if (decision.verdict == PSC_VERDICT_DENY)
				CHECK_INT(decision.error, on4 > on6 ? 4 : 6);
			decision = psc_rules_decide(&policy, &only6);
			CHECK_INT(decision.verdict, on6);
		}
	}
}

static void test_named_families(void)
{
	for (uint8_t family = PSC_FAMILY_UNIX; family <= PSC_FAMILY_OTHER;
	     family++) {
		struct psc_rule rule = {.verdict = PSC_VERDICT_DENY,
					.error = EPERM};
		const struct psc_policy policy = {.rules = &rule,
						  .count = 1,
						  .default_verdict =
							  PSC_VERDICT_DENY,
						  .error = EACCES};
		const struct psc_endpoint endpoint = {.family = family,
						      .port = 9};
		struct psc_decision decision;

		/* Neither a rule for any port, nor the default. */
		decision = psc_rules_decide(&policy, &endpoint);
		CHECK_INT(decision.verdict, PSC_VERDICT_ALLOW);
		CHECK_INT(decision.error, 0);
		CHECK_INT(decision.rule, PSC_RULE_DEFAULT);

		rule.family = family;
		decision = psc_rules_decide(&policy, &endpoint);
		CHECK_INT(decision.verdict, PSC_VERDICT_DENY);
		CHECK_INT(decision.error, EPERM);
		CHECK_INT(decision.rule, 0);
	}
}

static void test_default(void)
{
	static const enum psc_verdict defaults[] = {
		PSC_VERDICT_ALLOW, PSC_VERDICT_DENY, PSC_VERDICT_ASK};
	const struct psc_endpoint endpoint = tcp4(80);

	for (size_t i = 0; i < COUNT_OF(defaults); i++) {
		const struct psc_policy policy = {
			.default_verdict = defaults[i], .error = EADDRINUSE};
		struct psc_decision decision =
			psc_rules_decide(&policy, &endpoint);

		CHECK_INT(decision.verdict, defaults[i]);
		CHECK_INT(decision.rule, PSC_RULE_DEFAULT);
		CHECK_INT(decision.error,
			  defaults[i] == PSC_VERDICT_DENY ? EADDRINUSE : 0);
	}
}

static const struct check_test tests[] = {
	{"the first rule that matches decides, then the default",
	 test_first_match},
	{"a prefix of any length compares its bits and no other",
	 test_prefixes},
	{"an empty prefix still keeps to its family", test_prefix_family},
	{"a range never covers ephemeral; `any` does", test_ports},
	{"on a dual-stack wildcard the stricter of two verdicts holds",
	 test_dual_stack},
	{"families without ports are denied only by rules that name them",
	 test_named_families},
	{"without rules the default decides, with the policy's errno",
	 test_default},
	{"200,000 random policies decide as the obvious matcher does",
	 test_against_slow},
	{NULL, NULL},
};

const struct check_suite rules_suite = {"rules", tests};

/* SPDX-License-Identifier: MIT */
#include "rules.h"

#include <string.h>

static bool match_family(uint8_t wanted, const struct psc_endpoint *endpoint)
{
	if (wanted == PSC_FAMILY_ANY)
		return psc_endpoint_has_ports(endpoint);
	return wanted == endpoint->family;
}

static bool match_protocol(uint8_t wanted, const struct psc_endpoint *endpoint)
{
	switch (wanted) {
	case PSC_PROTOCOL_TCP:
		return psc_endpoint_is_tcp(endpoint);
	case PSC_PROTOCOL_UDP:
		return psc_endpoint_is_udp(endpoint);
	default:
		return true;
	}
}

static bool match_prefix(const uint8_t *prefix, unsigned int bits,
			 const uint8_t *address)
{
	const size_t whole = bits / 8;
	const unsigned int rest = bits % 8;

	if (memcmp(prefix, address, whole) != 0)
		return false;
	return rest == 0 ||
	       ((prefix[whole] ^ address[whole]) >> (8 - rest)) == 0;
}

static bool match_address(const struct psc_rule *rule,
			  const struct psc_endpoint *endpoint)
{
	switch (rule->match_address) {
	case PSC_ADDRESS_PREFIX:
		return match_prefix(rule->address, rule->prefix_length,
				    endpoint->address);
	case PSC_ADDRESS_LOOPBACK:
		return psc_endpoint_is_loopback(endpoint);
	case PSC_ADDRESS_WILDCARD:
		return psc_endpoint_is_wildcard(endpoint);
	default:
		return true;
	}
}

static bool match_ports(const struct psc_rule *rule, uint32_t port)
{
	switch (rule->match_ports) {
	case PSC_PORTS_RANGE:
		return port != PSC_PORT_EPHEMERAL && port >= rule->port_first &&
		       port <= rule->port_last;
	case PSC_PORTS_EPHEMERAL:
		return port == PSC_PORT_EPHEMERAL;
	default:
		return true;
	}
}

bool psc_rules_match(const struct psc_rule *rule,
		     const struct psc_endpoint *endpoint)
{
	return match_family(rule->family, endpoint) &&
	       match_protocol(rule->match_protocol, endpoint) &&
	       match_ports(rule, endpoint->port) &&
	       match_address(rule, endpoint);
}

static struct psc_decision decide_single(const struct psc_policy *policy,
					 const struct psc_endpoint *endpoint)
{
	struct psc_decision decision = {.rule = PSC_RULE_DEFAULT};

	for (size_t i = 0; i < policy->count; i++) {
		const struct psc_rule *rule = &policy->rules[i];

		if (!psc_rules_match(rule, endpoint))
			continue;
		decision.verdict = (enum psc_verdict)rule->verdict;
		decision.rule = (int)i;
		if (decision.verdict == PSC_VERDICT_DENY)
			decision.error = rule->error;
		else if (decision.verdict == PSC_VERDICT_MOVE)
			decision.target = rule->target;
		return decision;
	}

	if (psc_endpoint_has_ports(endpoint)) {
		decision.verdict = policy->default_verdict;
		if (decision.verdict == PSC_VERDICT_DENY)
			decision.error = policy->error;
	}
	return decision;
}

struct psc_decision psc_rules_decide(const struct psc_policy *policy,
				     const struct psc_endpoint *endpoint)
{
	struct psc_decision decision = decide_single(policy, endpoint);

	if (endpoint->dual_stack) {
		struct psc_endpoint on_ipv4 = *endpoint;
		struct psc_decision other;

		on_ipv4.family = PSC_FAMILY_IPV4;
		on_ipv4.dual_stack = false;
		other = decide_single(policy, &on_ipv4);
		if (other.verdict > decision.verdict)
			decision = other;
	}
	return decision;
}

bool psc_rules_can_deny(const struct psc_policy *policy)
{
	if (policy->default_verdict != PSC_VERDICT_ALLOW)
		return true;
	for (size_t i = 0; i < policy->count; i++)
		if (policy->rules[i].verdict != PSC_VERDICT_ALLOW)
			return true;
	return false;
}

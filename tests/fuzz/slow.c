/* SPDX-License-Identifier: MIT */
/*
 * The rules as the README tells them, one sentence after the other. Nothing in
 * here is shared with the core but its structures.
 */
#include <sys/socket.h>

#include "fuzz.h"

/* Numbers of the protocols, as the kernel knows them. */
enum {
	TCP = 6,
	UDP = 17,
	UDP_LITE = 136,
	SMC = 256,
	MPTCP = 262,
	SMC_FAMILY = 43
};

static bool is_internet(const struct psc_endpoint *socket)
{
	return socket->family == PSC_FAMILY_IPV4 ||
	       socket->family == PSC_FAMILY_IPV6;
}

static int bits_of(const struct psc_endpoint *socket)
{
	return socket->family == PSC_FAMILY_IPV4 ? 32 : 128;
}

static int bit_at(const uint8_t *bytes, int position)
{
	const uint8_t byte = bytes[position / 8];

	return (byte / (128 >> position % 8)) % 2;
}

static bool family_fits(const struct psc_rule *rule,
			const struct psc_endpoint *socket)
{
	switch (rule->family) {
	case PSC_FAMILY_ANY:
		return is_internet(socket);
	case PSC_FAMILY_IPV4:
		return socket->family == PSC_FAMILY_IPV4;
	case PSC_FAMILY_IPV6:
		return socket->family == PSC_FAMILY_IPV6;
	case PSC_FAMILY_UNIX:
		return socket->family == PSC_FAMILY_UNIX;
	case PSC_FAMILY_VSOCK:
		return socket->family == PSC_FAMILY_VSOCK;
	default:
		return socket->family == PSC_FAMILY_OTHER;
	}
}

static bool protocol_fits(const struct psc_rule *rule,
			  const struct psc_endpoint *socket)
{
	/* A raw socket's protocol is a number that it made up. */
	const bool has_port = is_internet(socket) && socket->type != SOCK_RAW;

	if (rule->match_protocol == PSC_PROTOCOL_TCP)
		return has_port &&
		       (socket->protocol == TCP || socket->protocol == MPTCP ||
			socket->protocol == SMC ||
			socket->af == SMC_FAMILY);
	if (rule->match_protocol == PSC_PROTOCOL_UDP)
		return has_port && (socket->protocol == UDP ||
				    socket->protocol == UDP_LITE);
	return true;
}

static bool address_fits(const struct psc_rule *rule,
			 const struct psc_endpoint *socket)
{
	const int bits = bits_of(socket);
	int ones = 0;

	for (int i = 0; i < bits; i++)
		ones += bit_at(socket->address, i);
	switch (rule->match_address) {
	case PSC_ADDRESS_PREFIX:
		for (int i = 0; i < rule->prefix_length; i++)
			if (bit_at(rule->address, i) !=
			    bit_at(socket->address, i))
				return false;
		return true;
	case PSC_ADDRESS_LOOPBACK:
		if (socket->family == PSC_FAMILY_IPV4)
			return socket->address[0] == 127;
		return ones == 1 && bit_at(socket->address, 127) == 1;
	case PSC_ADDRESS_WILDCARD:
		return ones == 0;
	default:
		return true;
	}
}

static bool port_fits(const struct psc_rule *rule,
		      const struct psc_endpoint *socket)
{
	if (rule->match_ports == PSC_PORTS_ANY)
		return true;
	if (socket->port == 0)
		return rule->match_ports == PSC_PORTS_EPHEMERAL;
	if (rule->match_ports == PSC_PORTS_EPHEMERAL)
		return false;
	return !(socket->port < rule->port_first) &&
	       !(socket->port > rule->port_last);
}

bool slow_match(const struct psc_rule *rule, const struct psc_endpoint *socket)
{
	if (!family_fits(rule, socket))
		return false;
	if (!protocol_fits(rule, socket))
		return false;
	if (!address_fits(rule, socket))
		return false;
	return port_fits(rule, socket);
}

static enum psc_verdict judge_half(const struct psc_policy *policy,
				   const struct psc_endpoint *socket,
				   int *ret_rule)
{
	for (int i = 0; i < (int)policy->count; i++) {
		if (slow_match(&policy->rules[i], socket)) {
			*ret_rule = i;
			return (enum psc_verdict)policy->rules[i].verdict;
		}
	}
	*ret_rule = PSC_RULE_DEFAULT;
	return is_internet(socket) ? policy->default_verdict
				   : PSC_VERDICT_ALLOW;
}

enum psc_verdict slow_judge(const struct psc_policy *policy,
			    const struct psc_endpoint *socket, int *ret_rule)
{
	/* From the mildest to the strictest. */
	static const enum psc_verdict order[] = {
		PSC_VERDICT_ALLOW, PSC_VERDICT_MOVE, PSC_VERDICT_ASK,
		PSC_VERDICT_DENY};
	struct psc_endpoint half = *socket;
	enum psc_verdict verdict, on_ipv4;
	int rule_on_ipv4;

	verdict = judge_half(policy, socket, ret_rule);
	if (!socket->dual_stack)
		return verdict;
	half.family = PSC_FAMILY_IPV4;
	on_ipv4 = judge_half(policy, &half, &rule_on_ipv4);
	for (size_t i = 0; order[i] != on_ipv4; i++)
		if (order[i] == verdict) {
			*ret_rule = rule_on_ipv4;
			return on_ipv4;
		}
	return verdict;
}

/* SPDX-License-Identifier: MIT */
/*
 * Policies: ordered rules, the first that matches decides, then the default.
 * Pure: the text of rules is parsed in Python; here they are a table.
 */
#ifndef PSC_RULES_H
#define PSC_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "endpoint.h"
#include "filter.h"

/* In order of strictness: of two verdicts on one socket the greater holds. */
enum psc_verdict {
	PSC_VERDICT_ALLOW,
	PSC_VERDICT_MOVE,
	PSC_VERDICT_ASK,
	PSC_VERDICT_DENY,
};

/** How a rule selects addresses. */
enum psc_match_address {
	PSC_ADDRESS_ANY,
	PSC_ADDRESS_PREFIX,   /* @address and @prefix_length */
	PSC_ADDRESS_LOOPBACK, /* 127.0.0.0/8 and ::1 */
	PSC_ADDRESS_WILDCARD, /* 0.0.0.0 and :: */
};

/** How a rule selects ports. */
enum psc_match_ports {
	PSC_PORTS_ANY,
	PSC_PORTS_RANGE, /* @port_first to @port_last; never ephemeral */
	PSC_PORTS_EPHEMERAL,
};

/** How a rule selects protocols. */
enum psc_match_protocol {
	PSC_PROTOCOL_ANY,
	PSC_PROTOCOL_TCP,
	PSC_PROTOCOL_UDP,
};

/** What a move changes of an address; the rest stays as it was asked for. */
enum psc_move_host {
	PSC_MOVE_HOST_KEEP,
	PSC_MOVE_HOST_IPV4,	/* @address, 4 bytes */
	PSC_MOVE_HOST_IPV6,	/* @address, 16 bytes */
	PSC_MOVE_HOST_LOOPBACK, /* of the socket's own family */
};

/**
 * struct psc_target - where a move goes
 * @host: an enum psc_move_host
 * @has_port: whether @port counts; 0 is ephemeral
 */
struct psc_target {
	uint8_t host;
	bool has_port;
	uint16_t port;
	uint8_t address[16];
};

/**
 * struct psc_rule - one rule
 * @verdict: an enum psc_verdict
 * @family: an enum psc_family; PSC_FAMILY_ANY is IPv4 or IPv6
 * @match_protocol, @match_address, @match_ports: the enums above
 * @prefix_length: bits of @address that count, with PSC_ADDRESS_PREFIX
 * @error: a positive errno, the answer of a PSC_VERDICT_DENY
 * @address: IPv4 in the first 4 bytes, or IPv6; @family says which
 * @target: of a PSC_VERDICT_MOVE
 */
struct psc_rule {
	uint8_t verdict;
	uint8_t family;
	uint8_t match_protocol;
	uint8_t match_address;
	uint8_t match_ports;
	uint8_t prefix_length;
	uint16_t error;
	uint32_t port_first;
	uint32_t port_last;
	uint8_t address[16];
	struct psc_target target;
};

/** Index of the default, where a rule's index is asked for. */
#define PSC_RULE_DEFAULT (-1)

/**
 * struct psc_policy - a table of rules
 * @rules, @count: the rules; owned by whoever made the policy, unchanged for
 *   as long as a supervisor uses it
 * @default_verdict: ALLOW, DENY or ASK
 * @error: a positive errno: the answer of a denial by default, by a hook, and
 *   wherever portseccomp itself fails closed
 * @unix_continue: let the kernel continue `listen` on unix sockets, although
 *   the policy can deny: SO_PEERCRED stays the target's, and the swap attack
 *   is open
 * @quiet_binds: no rule speaks of binds; they are only remembered for `listen`,
 *   without an event and uncounted
 */
struct psc_policy {
	const struct psc_rule *rules;
	size_t count;
	enum psc_verdict default_verdict;
	int error;
	bool unix_continue;
	bool quiet_binds;
};

/**
 * struct psc_decision - what a policy says of an endpoint
 * @error: the errno of a denial, else 0
 * @rule: index of the rule that decided, or PSC_RULE_DEFAULT
 * @target: of a move
 */
struct psc_decision {
	enum psc_verdict verdict;
	int error;
	int rule;
	struct psc_target target;
};

/** psc_rules_match - whether one rule selects an endpoint */
bool psc_rules_match(const struct psc_rule *rule,
		     const struct psc_endpoint *endpoint);

/**
 * psc_rules_decide - judge an endpoint
 *
 * A dual-stack wildcard is judged as IPv6 and as IPv4, and the stricter
 * verdict holds. Families without ports, or with ports of their own, are
 * allowed unless a rule names their family.
 */
struct psc_decision psc_rules_decide(const struct psc_policy *policy,
				     const struct psc_endpoint *endpoint);

/** psc_rules_can_deny - whether a policy can ever deny, ask or move */
bool psc_rules_can_deny(const struct psc_policy *policy);

#endif

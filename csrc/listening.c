/* SPDX-License-Identifier: MIT */
#include "listening.h"

#include <errno.h>
#include <linux/vm_sockets.h>
#include <string.h>

#include "move.h"
#include "privilege.h"
#include "socket.h"

/* Where the socket was bound, whatever it calls itself now. */
static void take_known_place(struct psc_request *request,
			     const struct psc_memory_entry *known)
{
	struct psc_endpoint *bound = &request->bound;

	bound->family = known->family;
	memcpy(bound->address, known->address, sizeof(bound->address));
	bound->dual_stack = bound->family == PSC_FAMILY_IPV6 &&
			    psc_endpoint_is_wildcard(bound) &&
			    psc_socket_is_open_on_ipv4(request->copy_fd);
}

/*
 * The socket got its port where nobody saw it: connect gave it one, its bind
 * has been forgotten, or it comes from outside. It may be ephemeral, and open
 * to everybody once its connection is gone: the strictest verdict holds.
 */
static void judge_unknown(struct psc_request *request)
{
	const struct psc_policy *policy = request->source->policy;
	const struct psc_endpoint *own = &request->event.requested;
	struct psc_endpoint everywhere = *own;

	memset(everywhere.address, 0, sizeof(everywhere.address));
	everywhere.family =
		own->af == AF_INET ? PSC_FAMILY_IPV4 : PSC_FAMILY_IPV6;
	everywhere.dual_stack = everywhere.family == PSC_FAMILY_IPV6 &&
				psc_socket_is_open_on_ipv4(request->copy_fd);

	request->decision = psc_rules_decide(policy, own);
	for (int i = 1; i < 4; i++) {
		struct psc_endpoint place = i & 2 ? everywhere : *own;
		struct psc_decision other;

		if (i & 1)
			place.port = PSC_PORT_EPHEMERAL;
		other = psc_rules_decide(policy, &place);
		if (other.verdict > request->decision.verdict)
			request->decision = other;
	}
	/* The hook is to know the most that it may let open. */
	if (request->decision.verdict == PSC_VERDICT_ASK)
		request->event.requested = everywhere;
}

/*
 * Whether a socket is where it was when it was bound. One that a connection has
 * given a narrower name is; one that lost its port, and has been bound again by
 * a call that nobody saw, is not.
 */
static bool still_there(const struct psc_request *request,
			const struct psc_memory_entry *known)
{
	static const uint8_t everywhere[16];
	const struct psc_endpoint *bound = &request->bound;

	if (known->actual_port != bound->port)
		/* Where nothing is denied the kernel bound it: it is not known.
		 */
		return !request->source->can_deny && known->actual_port == 0 &&
		       known->kind == PSC_MEMORY_EPHEMERAL;
	return memcmp(known->actual_address, everywhere, 16) == 0 ||
	       (known->actual_family == bound->family &&
		memcmp(known->actual_address, bound->address, 16) == 0);
}

void psc_listening_judge(struct psc_request *request, struct psc_memory *memory)
{
	const struct psc_policy *policy = request->source->policy;
	const bool strict = request->source->can_deny &&
			    request->source->sees_binds &&
			    psc_endpoint_is_tcp(&request->bound);
	struct psc_endpoint *asked = &request->event.requested;
	struct psc_memory_entry known;

	*asked = request->bound;
	/* Its address alone, without a port (IP_BIND_ADDRESS_NO_PORT). */
	if (strict && asked->port == PSC_PORT_EPHEMERAL &&
	    psc_socket_may_wander(request->copy_fd, asked)) {
		judge_unknown(request);
		return;
	}
	if (!psc_endpoint_has_ports(asked) ||
	    asked->port == PSC_PORT_EPHEMERAL) {
		request->decision = psc_rules_decide(policy, asked);
		return;
	}

	psc_memory_find(memory, request->event.cookie, &known);
	if (!still_there(request, &known))
		known.kind = PSC_MEMORY_NOTHING;
	switch (known.kind) {
	case PSC_MEMORY_MOVED:
		/* Judged once, at bind, by what it asked for. */
		asked->family = known.family;
		asked->dual_stack = known.dual_stack;
		asked->port = known.port;
		memcpy(asked->address, known.address, sizeof(asked->address));
		request->decision = (struct psc_decision){
			.verdict = PSC_VERDICT_MOVE, .rule = known.rule};
		request->made = true;
		if (request->bound.dual_stack && !known.dual_stack) {
			/* V6ONLY was taken off just before the bind. */
			asked->dual_stack = true;
			request->decision = psc_rules_decide(policy, asked);
		}
		return;
	case PSC_MEMORY_EPHEMERAL:
	case PSC_MEMORY_CHOSEN:
		request->by_number = known.kind == PSC_MEMORY_CHOSEN;
		/* Who hands a socket on may have lost its port before. */
		request->keeps_port = request->by_number && known.owner;
		take_known_place(request, &known);
		*asked = request->bound;
		if (known.kind == PSC_MEMORY_EPHEMERAL)
			asked->port = PSC_PORT_EPHEMERAL;
		break;
	default:
		if (strict) {
			judge_unknown(request);
			return;
		}
		break;
	}
	request->decision = psc_rules_decide(policy, asked);
}

/* Whether nothing is known of a socket that is bound, or could be. */
static bool is_unknown(int fd, struct psc_memory *memory, uint64_t cookie)
{
	struct psc_memory_entry known;

	psc_memory_find(memory, cookie, &known);
	return known.kind == PSC_MEMORY_NOTHING && psc_socket_may_be_bound(fd);
}

bool psc_listening_wants_trust(int fd, struct psc_memory *memory)
{
	const uint64_t cookie = psc_socket_cookie(fd);

	return cookie && is_unknown(fd, memory, cookie);
}

void psc_listening_trust(int fd, struct psc_memory *memory)
{
	const uint64_t cookie = psc_socket_cookie(fd);
	struct psc_endpoint place;

	/* A copy of a target's socket, in a round: its name is not to be
	 * trusted. */
	if (!cookie || !psc_memory_claim(memory, cookie))
		return;
	if (is_unknown(fd, memory, cookie) &&
	    psc_socket_read(fd, &place) == 0 && psc_endpoint_is_tcp(&place) &&
	    place.port != PSC_PORT_EPHEMERAL && !psc_socket_is_connected(fd) &&
	    !psc_socket_may_wander(fd, &place))
		psc_memory_store(memory,
				 (struct psc_memory_entry){
					 .cookie = cookie,
					 .kind = PSC_MEMORY_CHOSEN,
					 .rule = PSC_RULE_DEFAULT,
				 },
				 &place, &place);
	psc_memory_unclaim(memory, cookie);
}

bool psc_listening_still_holds(const struct psc_request *request,
			       struct psc_memory *memory)
{
	const struct psc_endpoint *before = &request->event.requested;
	const struct psc_endpoint *bound = &request->bound;
	struct psc_request again = *request;
	const int result =
		psc_endpoint_has_ports(bound)
			? psc_socket_reread(request->copy_fd, bound,
					    &again.bound)
			: psc_socket_read(request->copy_fd, &again.bound);

	if (result < 0)
		return false;
	psc_listening_judge(&again, memory);
	return again.decision.verdict == PSC_VERDICT_ASK &&
	       again.decision.rule == request->decision.rule &&
	       again.event.requested.port == before->port &&
	       psc_endpoint_same_place(&again.event.requested, before);
}

/*
 * The copy has just been bound: see that it is where it was to be, and remember
 * that for the next `listen`.
 */
static int check_settled(struct psc_request *request,
			 const struct psc_endpoint *wanted,
			 struct psc_memory *memory)
{
	struct psc_endpoint *actual = &request->event.actual;
	struct psc_memory_entry entry = {
		.cookie = request->event.cookie,
		.kind = request->decision.verdict == PSC_VERDICT_MOVE
				? PSC_MEMORY_MOVED
				: PSC_MEMORY_EPHEMERAL,
		.owner = request->event.pid,
		.rule = request->event.rule,
	};
	int result;

	result = psc_socket_reread(request->copy_fd, &request->bound, actual);
	if (result < 0 || actual->port == PSC_PORT_EPHEMERAL ||
	    (wanted->port && actual->port != wanted->port) ||
	    !psc_endpoint_same_place(actual, wanted))
		return -ESTALE;
	request->bound = *actual;
	if (entry.cookie && !psc_socket_may_wander(request->copy_fd, actual))
		psc_memory_store(memory, entry, &request->event.requested,
				 actual);
	return 0;
}

/* Give an unbound socket its port before it listens, moved or not. */
static int settle_port(struct psc_request *request, struct psc_memory *memory)
{
	struct psc_endpoint wanted = request->bound;
	int result;

	if (request->decision.verdict == PSC_VERDICT_MOVE) {
		union psc_sockaddr address;
		socklen_t length;

		psc_socket_want_port(request->copy_fd);
		result =
			psc_socket_address(request->copy_fd, &address, &length);
		if (result == 0 &&
		    psc_move_address(&request->decision.target, &request->bound,
				     &address, &length) < 0)
			return -EXDEV;
		psc_endpoint_from_sockaddr(&address, length, &wanted);
		wanted.dual_stack =
			wanted.dual_stack && psc_endpoint_is_wildcard(&wanted);
		if (result == 0)
			result = psc_privilege_bind(
				request->copy_fd, &address, length,
				request->decision.target.has_port
					? request->decision.target.port
					: 0,
				request);
	} else {
		result = psc_socket_bind_ephemeral(request->copy_fd);
	}
	if (result == -EINVAL)
		return -ESTALE; /* bound by another thread, meanwhile */
	if (result < 0)
		return result;
	return check_settled(request, &wanted, memory);
}

/* Whether what allowed the call has allowed one port, and no other. */
static bool is_for_number(const struct psc_request *request)
{
	return (request->asked || request->by_number) &&
	       request->event.requested.port != PSC_PORT_EPHEMERAL;
}

/*
 * A port that was not asked for by its number is lost by a connection that
 * fails, or ends; getsockname(2) may show it still. Then `listen` would take
 * another one, and everything else could have changed with it: so it gets one
 * now, and is known by it. What allowed that number allows no other: then the
 * next call is judged anew.
 */
static int regain_port(struct psc_request *request, struct psc_memory *memory)
{
	const bool for_number = is_for_number(request);
	struct psc_endpoint wanted = request->bound;
	int result = psc_socket_bind_ephemeral(request->copy_fd);

	if (result == -EINVAL) {
		/* It has one, or is connected. */
		if (!for_number || request->by_number ||
		    !request->source->sees_binds)
			return 0;
		/* Nobody saw its bind: it may lose its port at any time. */
		return psc_socket_is_connected(request->copy_fd) ? -EINVAL
								 : -ESTALE;
	}
	if (result < 0)
		return result;
	wanted.port = PSC_PORT_EPHEMERAL;
	result = check_settled(request, &wanted, memory);
	return result == 0 && for_number ? -ESTALE : result;
}

int psc_listening_act(struct psc_request *request, struct psc_memory *memory)
{
	struct psc_event *event = &request->event;
	struct psc_endpoint *actual = &event->actual;
	const bool moves = request->decision.verdict == PSC_VERDICT_MOVE;
	const bool ports = psc_endpoint_has_ports(&request->bound);
	/* Others fail by themselves, and are not to be bound by the attempt. */
	const bool can_listen = request->bound.type == SOCK_STREAM ||
				request->bound.type == SOCK_SEQPACKET;
	const bool guarded = ports && can_listen && request->source->can_deny;
	bool was_listening;
	int result;

	/*
	 * The kernel's own answer. Not by asking it: another thread could bind
	 * the socket in between, and only unbound internet sockets can be bound
	 * by us first.
	 */
	if (request->bound.family == PSC_FAMILY_VSOCK && can_listen &&
	    request->bound.port == VMADDR_PORT_ANY && request->source->can_deny)
		return -EINVAL;
	was_listening = psc_socket_is_listening(request->copy_fd);
	if (guarded && request->bound.port == PSC_PORT_EPHEMERAL) {
		result = settle_port(request, memory);
		if (result < 0)
			return result;
	} else if (moves && !request->made && !was_listening) {
		return -EXDEV; /* it was bound before we saw it */
	} else if (guarded && !request->keeps_port &&
		   (!was_listening || is_for_number(request))) {
		result = regain_port(request, memory);
		if (result < 0)
			return result;
	}

	result = psc_socket_listen(request->copy_fd, event->backlog);
	if (result < 0)
		return result;

	result = ports ? psc_socket_reread(request->copy_fd, &request->bound,
					   actual)
		       : 0;
	if (guarded && (result < 0 || actual->port != request->bound.port ||
			!psc_endpoint_same_place(actual, &request->bound))) {
		psc_socket_unlisten(request->copy_fd);
		return -ESTALE;
	}
	if (!ports)
		*actual = request->bound;
	event->open = result == 0;
	event->first = !was_listening;
	return 0;
}

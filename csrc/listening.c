/* SPDX-License-Identifier: MIT */
#include "listening.h"

#include <errno.h>
#include <string.h>

#include "move.h"
#include "privilege.h"
#include "socket.h"

void psc_listening_judge(struct psc_request *request, struct psc_memory *memory)
{
	const struct psc_policy *policy = request->source->policy;
	struct psc_endpoint *asked = &request->event.requested;
	struct psc_memory_entry known;
	bool certain;

	*asked = request->bound;
	if (!psc_endpoint_has_ports(asked) || asked->port == PSC_PORT_EPHEMERAL) {
		request->decision = psc_rules_decide(policy, asked);
		return;
	}

	certain = psc_memory_find(memory, request->event.cookie, &known);
	if (known.actual_port && known.actual_port != asked->port)
		known.kind = PSC_MEMORY_CHOSEN;
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
		asked->port = PSC_PORT_EPHEMERAL;
		break;
	default:
		break;
	}

	request->decision = psc_rules_decide(policy, asked);
	if (!certain && psc_endpoint_is_tcp(asked)) {
		/* It may be ephemeral, and forgotten: the stricter holds. */
		struct psc_endpoint ephemeral = *asked;
		struct psc_decision other;

		ephemeral.port = PSC_PORT_EPHEMERAL;
		other = psc_rules_decide(policy, &ephemeral);
		if (other.verdict > request->decision.verdict)
			request->decision = other;
	}
}

/* Give an unbound socket its port before it listens, moved or not. */
static int settle_port(struct psc_request *request)
{
	struct psc_endpoint *actual = &request->event.actual;
	int result;

	if (request->decision.verdict == PSC_VERDICT_MOVE) {
		union psc_sockaddr address;
		socklen_t length;

		psc_socket_want_port(request->copy_fd);
		result = psc_socket_address(request->copy_fd, &address,
					    &length);
		if (result == 0 &&
		    psc_move_address(&request->decision.target, &request->bound,
				     &address, &length) < 0)
			return -EXDEV;
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

	result = psc_socket_reread(request->copy_fd, &request->bound, actual);
	if (result < 0 || actual->port == PSC_PORT_EPHEMERAL)
		return -ESTALE;
	if (request->decision.verdict == PSC_VERDICT_MOVE)
		request->bound = *actual;
	else
		request->bound.port = actual->port;
	return 0;
}

int psc_listening_act(struct psc_request *request)
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

	was_listening = psc_socket_is_listening(request->copy_fd);
	if (guarded && request->bound.port == PSC_PORT_EPHEMERAL) {
		result = settle_port(request);
		if (result < 0)
			return result;
	} else if (moves && !request->made && !was_listening) {
		return -EXDEV; /* it was bound before we saw it */
	}

	result = psc_socket_listen(request->copy_fd, event->backlog);
	if (result < 0)
		return result;

	result = ports ? psc_socket_reread(request->copy_fd, &request->bound, actual) : 0;
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

/* SPDX-License-Identifier: MIT */
#include "binding.h"

#include <errno.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <string.h>

#include "move.h"
#include "privilege.h"
#include "socket.h"

/* The shortest IPv6 address that the kernel takes: without a scope. */
#define SHORTEST_IN6 24

static int read_address(struct psc_request *request, int32_t tid,
			uint64_t address, int length)
{
	ssize_t got;

	memset(&request->address, 0, sizeof(request->address));
	request->address_length = 0;
	if (length < 0 || (size_t)length > sizeof(request->address))
		return -EINVAL;
	if (length > 0) {
		got = psc_callers_read(tid, address, &request->address,
				       (size_t)length);
		if (got < 0)
			return (int)got;
		if (got != length)
			return -EFAULT;
	}
	request->address_length = (socklen_t)length;
	return 0;
}

/*
 * What an address means to this socket. Its own family decides: an AF_UNSPEC
 * address on an IPv4 socket is an IPv4 address.
 * Return: 0, or what the kernel says: -EINVAL, -EAFNOSUPPORT.
 */
static int read_meaning(const struct psc_request *request,
			struct psc_endpoint *asked)
{
	union psc_sockaddr address = request->address;
	const sa_family_t family = address.generic.sa_family;

	*asked = request->bound;
	if (asked->af == AF_INET) {
		if (request->address_length < sizeof(struct sockaddr_in))
			return -EINVAL;
		if (family != AF_INET && family != AF_UNSPEC)
			return -EAFNOSUPPORT;
		address.generic.sa_family = AF_INET;
	} else if (asked->af == AF_INET6) {
		if (request->address_length < SHORTEST_IN6)
			return -EINVAL;
		if (family != AF_INET6)
			return -EAFNOSUPPORT;
		if (request->address_length < sizeof(struct sockaddr_in6))
			((struct sockaddr_in6 *)&address)->sin6_scope_id = 0;
	} else if (family != AF_INET && family != AF_INET6) {
		return -EAFNOSUPPORT; /* SMC takes either */
	}
	psc_endpoint_from_sockaddr(&address, sizeof(address), asked);
	/*
	 * V6ONLY can be taken off until the bind is made. Then the socket is
	 * deafened; one that has made sure that it can't be is judged as both.
	 */
	asked->dual_stack = asked->family == PSC_FAMILY_IPV6 &&
			    psc_endpoint_is_wildcard(asked) &&
			    (psc_socket_is_open_on_ipv4(request->copy_fd) ||
			     psc_socket_is_filter_locked(request->copy_fd));
	return 0;
}

int psc_binding_judge(struct psc_request *request, int32_t tid,
		      uint64_t address, int length)
{
	const struct psc_policy *policy = request->source->policy;
	const bool can_deny = request->source->can_deny;
	struct psc_endpoint *asked = &request->event.requested;
	struct psc_decision decision;
	int result;

	*asked = request->bound;
	request->decision = (struct psc_decision){.rule = PSC_RULE_DEFAULT};
	request->quiet = true;
	if (asked->family == PSC_FAMILY_UNIX) {
		/*
		 * A path means what it means to the caller: its directory, its
		 * root, its credentials. So only a rule that denies unix
		 * sockets keeps the kernel from running the call.
		 */
		request->decision = psc_rules_decide(policy, asked);
		request->let_continue = true; /* should it be allowed */
		request->quiet = request->decision.verdict == PSC_VERDICT_ALLOW;
		if (!request->quiet &&
		    read_address(request, tid, address, length) == 0)
			psc_endpoint_from_sockaddr(&request->address,
						   request->address_length,
						   asked);
		return 0;
	}
	if (!psc_endpoint_has_ports(asked) && !can_deny) {
		request->let_continue = true;
		return 0;
	}

	result = read_address(request, tid, address, length);
	if (result < 0)
		return result;
	if (!psc_endpoint_is_udp(asked) && !psc_endpoint_is_tcp(asked))
		return 0; /* raw sockets, SCTP: made as asked */
	result = read_meaning(request, asked);
	if (result < 0) {
		*asked = request->bound;
		return result;
	}

	decision = psc_rules_decide(policy, asked);
	if (psc_endpoint_is_udp(asked)) {
		request->decision = decision;
		request->quiet = policy->quiet_binds;
	} else if (psc_endpoint_is_tcp(asked) &&
		   decision.verdict == PSC_VERDICT_MOVE) {
		request->decision = decision;
		request->quiet = false;
	} else {
		/* Nothing opens, and nothing can be denied: not ours to make.
		 */
		request->let_continue = !can_deny;
	}
	return 0;
}

bool psc_binding_still_holds(const struct psc_request *request)
{
	const struct psc_endpoint *before = &request->event.requested;
	struct psc_endpoint again;

	/* Those of TCP are judged once more, when they listen. */
	if (!psc_endpoint_is_udp(before))
		return true;
	return read_meaning(request, &again) == 0 &&
	       again.dual_stack == before->dual_stack;
}

static uint32_t port_of(const union psc_sockaddr *address)
{
	const void *raw = address;

	if (address->generic.sa_family == AF_INET6)
		return ntohs(((const struct sockaddr_in6 *)raw)->sin6_port);
	if (address->generic.sa_family == AF_INET ||
	    address->generic.sa_family == AF_UNSPEC)
		return ntohs(((const struct sockaddr_in *)raw)->sin_port);
	return 0;
}

static uint64_t hash_bytes(const void *bytes, size_t length)
{
	const uint8_t *next = bytes;
	uint64_t hash = 14695981039346656037u; /* FNV-1a */

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ next[i]) * 1099511628211u;
	return hash;
}

static struct psc_memory_interrupted describe(const struct psc_request *request)
{
	return (struct psc_memory_interrupted){
		.cookie = request->event.cookie,
		.tid = request->event.tid,
		.address_hash =
			hash_bytes(&request->address, request->address_length),
	};
}

void psc_binding_interrupted(const struct psc_request *request,
			     struct psc_memory *memory)
{
	struct psc_memory_interrupted bind;

	if (!request->made)
		return; /* then there may be no address either */
	bind = describe(request);
	psc_memory_interrupt(memory, &bind);
}

/* Whether a socket is where it was judged, or on less than that. */
static bool judged_place(const struct psc_endpoint *actual,
			 const struct psc_endpoint *judged)
{
	struct psc_endpoint same = *judged;

	same.dual_stack = actual->dual_stack && judged->dual_stack;
	return psc_endpoint_same_place(actual, &same) &&
	       (judged->port == PSC_PORT_EPHEMERAL ||
		actual->port == judged->port);
}

/*
 * What `listen` has to know of a TCP socket that is bound now, to @actual. One
 * that is not where it was to be (@wanted: a BPF program of the target's chose
 * for itself), or that a connection can take elsewhere, is better not known.
 */
static void remember(struct psc_request *request, struct psc_memory *memory,
		     const struct psc_endpoint *wanted,
		     const struct psc_endpoint *actual)
{
	const struct psc_endpoint *asked = &request->event.requested;
	struct psc_memory_entry entry = {
		.cookie = request->event.cookie,
		.kind = PSC_MEMORY_CHOSEN,
		.owner = request->event.pid,
		.rule = request->event.rule,
	};

	if (request->decision.verdict == PSC_VERDICT_MOVE)
		entry.kind = PSC_MEMORY_MOVED;
	else if (asked->port == PSC_PORT_EPHEMERAL)
		entry.kind = PSC_MEMORY_EPHEMERAL;
	if (!entry.cookie)
		return;
	if (actual && (!judged_place(actual, wanted) ||
		       psc_socket_may_wander(request->copy_fd, actual))) {
		psc_memory_forget(memory, entry.cookie);
		return;
	}
	psc_memory_store(memory, entry, asked, actual);
}

void psc_binding_continues(struct psc_request *request,
			   struct psc_memory *memory)
{
	if (psc_endpoint_is_tcp(&request->event.requested))
		remember(request, memory, NULL, NULL);
}

/*
 * Netlink gives an unnamed socket the number of the process that binds it:
 * that is not us. Where it is taken, the kernel's next choice is as good.
 */
static int bind_netlink(struct psc_request *request)
{
	union psc_sockaddr address = request->address;
	struct sockaddr_nl *netlink = (struct sockaddr_nl *)&address;
	const socklen_t length = request->address_length;
	struct sockaddr_nl bound = {0};
	socklen_t bound_length = sizeof(bound);
	int result = -EADDRINUSE;

	getsockname(request->copy_fd, (struct sockaddr *)&bound, &bound_length);
	if (length >= sizeof(*netlink) && netlink->nl_pid == 0 &&
	    bound.nl_pid == 0) {
		netlink->nl_pid = (uint32_t)request->event.pid;
		result = psc_privilege_bind(request->copy_fd, &address, length,
					    0, request);
	}
	if (result == -EADDRINUSE)
		result = psc_privilege_bind(request->copy_fd, &request->address,
					    length, 0, request);
	return result;
}

int psc_binding_act(struct psc_request *request, struct psc_memory *memory)
{
	struct psc_event *event = &request->event;
	const struct psc_endpoint *asked = &event->requested;
	const bool moves = request->decision.verdict == PSC_VERDICT_MOVE;
	const struct psc_memory_interrupted bind = describe(request);
	union psc_sockaddr address = request->address;
	socklen_t length = request->address_length;
	struct psc_endpoint wanted = *asked;
	bool changed;
	int result;

	if (moves)
		psc_socket_want_port(request->copy_fd);
	if (moves && psc_move_address(&request->decision.target, asked,
				      &address, &length) < 0)
		return -EXDEV;
	if (request->bound.af == AF_NETLINK)
		return bind_netlink(request);
	if (moves)
		psc_endpoint_from_sockaddr(&address, length, &wanted);
	result = psc_privilege_bind(
		request->copy_fd, &address, length,
		psc_endpoint_has_ports(asked) ? port_of(&address) : 0, request);
	if (result == -EINVAL && psc_memory_resume(memory, &bind)) {
		/* Made before, and recorded, but the answer did not arrive. */
		request->quiet = true;
		result = 0;
	}
	if (result < 0)
		return result;

	request->made = true;
	if (request->quiet && !psc_endpoint_is_tcp(asked))
		return 0;
	result = psc_socket_reread(request->copy_fd, &request->bound,
				   &event->actual);
	if (psc_endpoint_is_tcp(asked) && result == 0)
		remember(request, memory, &wanted, &event->actual);
	if (request->quiet)
		return 0;

	/* Nothing that was not judged, and nowhere else than it was moved. */
	changed = result < 0 || !judged_place(&event->actual, &wanted);
	/* With IP_BIND_ADDRESS_NO_PORT a port is chosen later, or never. */
	event->open = result == 0 && event->actual.port != 0;
	event->first = event->open && psc_endpoint_is_udp(asked);
	if (psc_endpoint_is_udp(asked) && changed &&
	    request->source->can_deny) {
		psc_socket_deafen(request->copy_fd);
		return -ESTALE;
	}
	return 0;
}

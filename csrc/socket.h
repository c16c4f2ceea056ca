/* SPDX-License-Identifier: MIT */
/*
 * Reading a copied socket, and acting on it.
 */
#ifndef PSC_SOCKET_H
#define PSC_SOCKET_H

#include <stdbool.h>
#include <stdint.h>

#include "endpoint.h"

/**
 * psc_socket_read - read where a socket is
 * @fd: the copy
 * @ret_endpoint: all of it
 *
 * Return: 0; -ENOTSOCK; -EBADF (opened with O_PATH); any other -errno means
 * that an internet socket could not be read.
 */
int psc_socket_read(int fd, struct psc_endpoint *ret_endpoint);

/**
 * psc_socket_reread - read again where an internet socket is
 * @before: what psc_socket_read() said of it: what can't change is taken over
 *
 * Return: 0 or -errno.
 */
int psc_socket_reread(int fd, const struct psc_endpoint *before,
		      struct psc_endpoint *ret_endpoint);

/** psc_socket_cookie - the number that names the socket for life; 0: unknown */
uint64_t psc_socket_cookie(int fd);

/** psc_socket_inode - the number that /proc/net shows; 0: unknown */
uint64_t psc_socket_inode(int fd);

/**
 * psc_socket_is_open_on_ipv4 - whether a wildcard bind of an IPv6 socket would
 * be open on IPv4 too: it is not V6ONLY, or can't tell
 */
bool psc_socket_is_open_on_ipv4(int fd);

/** psc_socket_is_filter_locked - whether psc_socket_deafen() would fail */
bool psc_socket_is_filter_locked(int fd);

/**
 * psc_socket_may_wander - whether a connection can take a bound socket elsewhere
 * @bound: where it is bound
 *
 * It can where the address is no address of one machine: Linux lets a TCP socket
 * be bound to an IPv4 broadcast or multicast address, and connect(2) then puts
 * the address of some interface in its place, for good.
 *
 * Return: true also where that can't be told.
 */
bool psc_socket_may_wander(int fd, const struct psc_endpoint *bound);

/** psc_socket_want_port - let the next bind to port 0 choose a port at once */
void psc_socket_want_port(int fd);

/**
 * psc_socket_may_be_bound - whether it is a TCP socket that is not connected
 *
 * Never waits: asks nothing that needs the socket's lock.
 */
bool psc_socket_may_be_bound(int fd);

/** psc_socket_is_connected - whether it has a peer, or may have one */
bool psc_socket_is_connected(int fd);

/** psc_socket_is_listening - whether connections are accepted already */
bool psc_socket_is_listening(int fd);

/**
 * psc_socket_bind_ephemeral - give an unbound socket a port of the kernel's
 * choice
 * @fd: the copy, bound to no port
 *
 * Return: 0; -EINVAL when it has been bound in the meantime; -EADDRINUSE when
 * no port is free; whatever else bind(2) says.
 */
int psc_socket_bind_ephemeral(int fd);

/** psc_socket_listen - listen(2) on the copy: 0 or -errno */
int psc_socket_listen(int fd, int backlog);

/**
 * psc_socket_address - the address of a socket, to be bound again
 *
 * Return: 0 or -errno.
 */
int psc_socket_address(int fd, union psc_sockaddr *ret_address,
		       socklen_t *ret_length);

/**
 * psc_socket_stop_linger - let close(2) of a connected socket not wait
 *
 * If the copy is the last descriptor, it is close of the copy that waits for the
 * peer (SO_LINGER), for as long as the target has said. A process that is at its
 * end would not wait either. For calls that fail, as they do on such sockets.
 */
void psc_socket_stop_linger(int fd);

/** psc_socket_deafen - let a bound socket receive nothing, ever again */
void psc_socket_deafen(int fd);

/** psc_socket_unlisten - close a port that listen(2) on the copy has opened */
void psc_socket_unlisten(int fd);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* The port to the host: bytes out through one bounded buffer, frames in, and the session between. */
#ifndef PORT_H
#define PORT_H

#include "frame.h"

#include <stdbool.h>

#ifndef PVC_RELEASE
#define PVC_RELEASE "unknown"
#endif

#define PORT_OUT (8 * (FRAME_MAX + FRAME_HEADER))
/* Kept free of DATA, so that short frames always have room. */
#define PORT_RESERVE (4 * (FRAME_MAX + FRAME_HEADER))

struct port {
	int fd;
	bool hung_up;     /* the host is not there; looked at again after a pause */
	bool established; /* HELLOs were exchanged */
	uint64_t session, agent;
	size_t start, end;
	struct decoder decoder;
	uint8_t out[PORT_OUT];
};

/* Take bytes from the port; false: the host is not there, or the port is gone for good (errno ENODEV). */
bool port_fill(struct port *port);

/* Give the port what it takes; false as port_fill(). */
bool port_flush(struct port *port);

/* Bytes of room for frames. */
size_t port_room(const struct port *port);
bool port_has_output(const struct port *port);

/* Add a frame. There must be room. */
void port_send(struct port *port, enum kind kind, uint8_t flags, uint32_t stream, const void *payload, size_t length);
void port_send_credit(struct port *port, uint32_t stream, size_t count);

/* DATA without a copy: read(2) up to *size bytes to where this points, then commit; NULL: no room now. */
uint8_t *port_data_room(struct port *port, size_t *size);
void port_data_commit(struct port *port, uint8_t flags, uint32_t stream, size_t length);

/* Begin with the host anew, or answer its HELLO. */
void port_hello(struct port *port, uint64_t session);

/* What a HELLO of the host changes. */
enum greeting { GREETING_BAD, GREETING_STRANGER, GREETING_SAME, GREETING_NEW };
enum greeting port_greet(struct port *port, const struct frame *frame);

#endif

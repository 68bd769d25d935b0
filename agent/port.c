/* SPDX-License-Identifier: Apache-2.0 */
#include "port.h"

#include "words.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>


bool port_fill(struct port *port)
{
	for (;;) {
		size_t size;
		uint8_t *room = frame_room(&port->decoder, &size);
		ssize_t count;

		if (size < FRAME_MAX)
			return true;
		/* One page a read is what virtio-serial gives; several reads a turn spare calls of poll(2). */
		count = read(port->fd, room, size);
		if (count > 0) {
			frame_filled(&port->decoder, (size_t)count);
			if (port->decoder.end - port->decoder.start >= FRAME_MAX)
				return true;
			continue;
		}
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && errno == EAGAIN)
			return true;
		return false;
	}
}

bool port_flush(struct port *port)
{
	while (port->start < port->end) {
		ssize_t count = write(port->fd, port->out + port->start, port->end - port->start);

		if (count > 0) {
			port->start += (size_t)count;
			continue;
		}
		if (count < 0 && errno == EINTR)
			continue;
		/* 0: virtio-serial without a host. */
		if (count < 0 && errno == EAGAIN)
			return true;
		return false;
	}
	port->start = port->end = 0;
	return true;
}

size_t port_room(const struct port *port)
{
	return PORT_OUT - (port->end - port->start);
}

bool port_has_output(const struct port *port)
{
	return port->start < port->end;
}

static uint8_t *make_room(struct port *port, size_t size)
{
	if (port->start == port->end)
		port->start = port->end = 0;
	if (PORT_OUT - port->end < size) {
		memmove(port->out, port->out + port->start, port->end - port->start);
		port->end -= port->start;
		port->start = 0;
	}
	return PORT_OUT - port->end < size ? NULL : port->out + port->end;
}

void port_send(struct port *port, enum kind kind, uint8_t flags, uint32_t stream, const void *payload, size_t length)
{
	uint8_t *at = make_room(port, FRAME_HEADER + length);

	if (at == NULL)
		return;
	frame_header(at, kind, flags, stream, (uint32_t)length);
	if (length > 0)
		memcpy(at + FRAME_HEADER, payload, length);
	port->end += FRAME_HEADER + length;
}

void port_send_credit(struct port *port, uint32_t stream, size_t count)
{
	uint8_t payload[4];

	frame_put32(payload, (uint32_t)count);
	port_send(port, CREDIT, 0, stream, payload, sizeof payload);
}

uint8_t *port_data_room(struct port *port, size_t *size)
{
	uint8_t *at;

	if (port_room(port) < PORT_RESERVE + FRAME_MAX + FRAME_HEADER)
		return NULL;
	at = make_room(port, FRAME_MAX + FRAME_HEADER);
	if (*size > FRAME_MAX)
		*size = FRAME_MAX;
	return at == NULL ? NULL : at + FRAME_HEADER;
}

void port_data_commit(struct port *port, uint8_t flags, uint32_t stream, size_t length)
{
	frame_header(port->out + port->end, DATA, flags, stream, (uint32_t)length);
	port->end += FRAME_HEADER + length;
}

void port_hello(struct port *port, uint64_t session)
{
	uint8_t payload[FRAME_HELLO + 64];
	struct answer words = {.length = 0};
	uint8_t *at;

	if (session == 0) {
		/* Whatever the host reads now, it is over before the HELLO. */
		at = make_room(port, FRAME_SYNC);
		if (at == NULL)
			return;
		memset(at, 0, FRAME_SYNC);
		port->end += FRAME_SYNC;
	}
	memcpy(payload, FRAME_MAGIC, 16);
	frame_put64(payload + 16, session);
	frame_put64(payload + 24, port->agent);
	words_add(&words, "protocol", "1");
	words_add(&words, "release", "%.40s", PVC_RELEASE);
	memcpy(payload + FRAME_HELLO, words.text, words.length);
	port_send(port, HELLO, 0, 0, payload, FRAME_HELLO + words.length);
}

enum greeting port_greet(struct port *port, const struct frame *frame)
{
	uint64_t session, agent;

	if (frame->length < FRAME_HELLO || memcmp(frame->payload, FRAME_MAGIC, 16) != 0)
		return GREETING_BAD;
	session = frame_get64(frame->payload + 16);
	agent = frame_get64(frame->payload + 24);
	if (agent != port->agent || session == 0)
		return GREETING_STRANGER;
	if (port->established && session == port->session)
		return GREETING_SAME;
	port->established = true;
	port->session = session;
	return GREETING_NEW;
}

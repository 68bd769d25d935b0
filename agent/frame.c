/* SPDX-License-Identifier: Apache-2.0 */
#include "frame.h"

#include <string.h>

void frame_put32(uint8_t *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> 8 * i);
}

void frame_put64(uint8_t *at, uint64_t value)
{
	frame_put32(at, (uint32_t)value);
	frame_put32(at + 4, (uint32_t)(value >> 32));
}

uint64_t frame_get64(const uint8_t *at)
{
	return frame_get32(at) | (uint64_t)frame_get32(at + 4) << 32;
}

void frame_header(uint8_t *at, enum kind kind, uint8_t flags, uint32_t stream, uint32_t length)
{
	at[0] = (uint8_t)kind;
	at[1] = flags;
	at[2] = FRAME_CHECK & 0xff;
	at[3] = FRAME_CHECK >> 8;
	frame_put32(at + 4, stream);
	frame_put32(at + 8, length);
}

uint8_t *frame_room(struct decoder *decoder, size_t *size)
{
	if (decoder->start == decoder->end) {
		decoder->start = decoder->end = 0;
	} else if (sizeof decoder->buffer - decoder->start < 2 * (FRAME_MAX + FRAME_HEADER)) {
		memmove(decoder->buffer, decoder->buffer + decoder->start, decoder->end - decoder->start);
		decoder->end -= decoder->start;
		decoder->start = 0;
	}
	*size = sizeof decoder->buffer - decoder->end;
	return decoder->buffer + decoder->end;
}

void frame_filled(struct decoder *decoder, size_t count)
{
	decoder->end += count;
}

static bool is_hello(const uint8_t *at)
{
	uint8_t wanted[FRAME_HEADER];

	frame_header(wanted, HELLO, 0, 0, 0);
	return memcmp(at, wanted, 8) == 0 && frame_get32(at + 8) >= FRAME_HELLO && frame_get32(at + 8) <= 1024;
}

static void skip_to_hello(struct decoder *decoder)
{
	const size_t head = FRAME_HEADER + 16;

	while (decoder->end - decoder->start >= head) {
		uint8_t *at = decoder->buffer + decoder->start;
		const uint8_t *next;

		if (is_hello(at) && memcmp(at + FRAME_HEADER, FRAME_MAGIC, 16) == 0) {
			decoder->in_step = true;
			return;
		}
		next = memchr(at + 1, HELLO, decoder->end - decoder->start - 1);
		decoder->start = next != NULL ? (size_t)(next - decoder->buffer) : decoder->end;
	}
}

int frame_next(struct decoder *decoder, struct frame *frame)
{
	uint8_t *at;
	uint32_t length;

	if (!decoder->in_step) {
		skip_to_hello(decoder);
		if (!decoder->in_step)
			return 0;
	}
	while (decoder->start < decoder->end && decoder->buffer[decoder->start] == 0)
		decoder->start++;
	if (decoder->end - decoder->start < FRAME_HEADER)
		return 0;
	at = decoder->buffer + decoder->start;
	length = frame_get32(at + 8);
	if (at[0] < HELLO || at[0] > CLOSE || at[1] > 1 || at[2] != (FRAME_CHECK & 0xff) || at[3] != FRAME_CHECK >> 8 ||
	    length > FRAME_MAX) {
		decoder->in_step = false;
		decoder->start++;
		return -1;
	}
	if (decoder->end - decoder->start < FRAME_HEADER + length)
		return 0;
	frame->kind = (enum kind)at[0];
	frame->flags = at[1];
	frame->stream = frame_get32(at + 4);
	frame->length = length;
	frame->payload = at + FRAME_HEADER;
	decoder->start += FRAME_HEADER + length;
	return 1;
}

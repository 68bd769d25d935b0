/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of pvc-agent(7). */
#ifndef FRAME_H
#define FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_HEADER 12u
#define FRAME_MAX 65536u
#define FRAME_CHECK 0x5650u
#define FRAME_SYNC (FRAME_MAX + FRAME_HEADER - 1) /* zeros before a HELLO */
#define FRAME_MAGIC "\x89pvc-agent\r\n\x1a\n\0"  /* 16 bytes with the final zero */
#define FRAME_HELLO 32u

enum kind { HELLO = 1, PING, PONG, OPEN, DATA, END, CREDIT, NOTE, CLOSE };

struct frame {
	enum kind kind;
	uint8_t flags;
	uint32_t stream;
	uint32_t length;
	uint8_t *payload; /* valid until the decoder is filled again */
};

struct decoder {
	bool in_step;
	size_t start, end;
	uint8_t buffer[4 * (FRAME_MAX + FRAME_HEADER)];
};

/* Where the next bytes go, and how many; then frame_filled() says how many came. */
uint8_t *frame_room(struct decoder *decoder, size_t *size);
void frame_filled(struct decoder *decoder, size_t count);

/* 1: a frame, 0: not yet, -1: what came is no frame, and all until the next HELLO will be skipped. */
int frame_next(struct decoder *decoder, struct frame *frame);

void frame_header(uint8_t *at, enum kind kind, uint8_t flags, uint32_t stream, uint32_t length);
void frame_put32(uint8_t *at, uint32_t value);
void frame_put64(uint8_t *at, uint64_t value);
/* In the header, for a checksum calls it with every four bytes. */
static inline uint32_t frame_get32(const uint8_t *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}
uint64_t frame_get64(const uint8_t *at);

#endif

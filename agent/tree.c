/* SPDX-License-Identifier: Apache-2.0 */
#include "tree.h"

#include "frame.h"

#include <errno.h>
#include <sys/uio.h>

#define POLYNOMIAL 0xedb88320u

/* Eight tables: eight bytes a step. */
static uint32_t tables[8][256];

static void make_tables(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t value = i;

		for (int bit = 0; bit < 8; bit++)
			value = (value & 1) != 0 ? value >> 1 ^ POLYNOMIAL : value >> 1;
		tables[0][i] = value;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int k = 1; k < 8; k++)
			tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xff];
}

uint32_t tree_crc(uint32_t crc, const uint8_t *data, size_t size)
{
	if (tables[0][1] == 0)
		make_tables();
	crc = ~crc;
	for (; size >= 8; size -= 8, data += 8) {
		uint32_t low = frame_get32(data) ^ crc;
		uint32_t high = frame_get32(data + 4);

		crc = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^
		      tables[4][low >> 24] ^ tables[3][high & 0xff] ^ tables[2][high >> 8 & 0xff] ^
		      tables[1][high >> 16 & 0xff] ^ tables[0][high >> 24];
	}
	for (; size > 0; size--, data++)
		crc = crc >> 8 ^ tables[0][(crc ^ *data) & 0xff];
	return ~crc;
}

/* readv(2) or writev(2) until all of it is moved. */
static bool move(ssize_t (*transfer)(int, const struct iovec *, int), int fd, struct iovec piece)
{
	while (piece.iov_len > 0) {
		ssize_t count = transfer(fd, &piece, 1);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return false;
		piece.iov_base = (char *)piece.iov_base + count;
		piece.iov_len -= (size_t)count;
	}
	return true;
}

bool tree_write(const void *data, size_t size)
{
	return move(writev, 1, (struct iovec){.iov_base = (void *)data, .iov_len = size});
}

bool tree_read(void *data, size_t size)
{
	return move(readv, 0, (struct iovec){.iov_base = data, .iov_len = size});
}

bool tree_write_words(const struct answer *words)
{
	uint8_t head[4];

	frame_put32(head, (uint32_t)words->length);
	return tree_write(head, sizeof head) && tree_write(words->text, words->length);
}

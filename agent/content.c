/* SPDX-License-Identifier: Apache-2.0 */
/* The pieces of a file that is written: data, holes, and their checksum. */
#include "put.h"
#include "frame.h"
#include "spawn.h"
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static uint8_t block[TREE_BLOCK];
volatile sig_atomic_t put_told_to_end;

bool put_fail(const char *name)
{
	spawn_say("cannot write %s: %s", name, strerror(errno));
	return false;
}

bool put_refuse(const char *name, const char *what)
{
	spawn_say("%s: %s", name, what);
	return false;
}

static bool write_block(int fd, size_t size)
{
	size_t done = 0;

	while (done < size) {
		ssize_t count = write(fd, block + done, size - done);

		if (count < 0 && errno == EINTR && !put_told_to_end)
			continue;
		if (count <= 0)
			return false;
		done += (size_t)count;
	}
	return true;
}

/* Whether there is room is known before it is sent; a file system that cannot tell will when it is written. */
static bool has_room(int fd, uint64_t size, uint64_t stored)
{
	struct statvfs room;

	if (stored < size) {
		errno = ENOSPC;
		return fstatvfs(fd, &room) < 0 || stored / room.f_frsize <= room.f_bavail;
	}
	return size == 0 || fallocate(fd, 0, 0, (off_t)size) == 0 || errno == EOPNOTSUPP || errno == ENOSYS ||
	       errno == EINVAL;
}

static bool copy_piece(int fd, const char *name, uint64_t left, uint32_t *crc)
{
	while (left > 0) {
		size_t size = left < sizeof block ? (size_t)left : sizeof block;

		if (!tree_read(block, size))
			return put_refuse(name, "the copy was broken off");
		*crc = tree_crc(*crc, block, size);
		if (!write_block(fd, size))
			return put_fail(name);
		left -= size;
	}
	return true;
}

static bool read_size(const struct words *words, const char *key, uint64_t other, uint64_t *size)
{
	const char *text = words_find(words, key);

	*size = text != NULL ? strtoull(text, NULL, 10) : other;
	return text == NULL || (*text >= '0' && *text <= '9' && strlen(text) <= 18);
}

bool put_content(int fd, const char *name, const struct words *words)
{
	uint64_t at = 0, piece, size, stored;
	uint32_t crc = 0;
	uint8_t head[TREE_HEAD];

	if (!read_size(words, "size", 0, &size) || !read_size(words, "stored", size, &stored))
		return put_refuse(name, "a file of no size");
	if (!has_room(fd, size, stored))
		return put_fail(name);
	for (;;) {
		if (!tree_read(head, sizeof head))
			return put_refuse(name, "the copy was broken off");
		crc = tree_crc(crc, head, sizeof head);
		piece = frame_get64(head);
		if (piece == 0)
			break;
		if ((piece & ~TREE_HOLE) > TREE_SIZE - at)
			return put_refuse(name, "this is no tree");
		at += piece & ~TREE_HOLE;
		if ((piece & TREE_HOLE) == 0) {
			if (!copy_piece(fd, name, piece, &crc))
				return false;
		} else if (lseek(fd, (off_t)at, SEEK_SET) < 0) {
			return put_fail(name);
		}
	}
	if (!tree_read(head, 4))
		return put_refuse(name, "the copy was broken off");
	if (frame_get32(head) != crc)
		return put_refuse(name, "its checksum is wrong: it was changed on its way");
	/* What was reserved may be more than what came; a hole at the end is less. */
	return ftruncate(fd, (off_t)at) == 0 || put_fail(name);
}

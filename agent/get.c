/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a file or a directory, as the user who asked, into a tree. */
#include "ops.h"
#include "spawn.h"
#include "tree.h"
#include "frame.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A piece: its head, then its bytes. */
static uint8_t block[TREE_HEAD + TREE_BLOCK];
static bool complained;

static void complain(const char *name, const char *what)
{
	spawn_say("%s: %s", name, what);
	complained = true;
}

static void add_common(struct answer *words, const char *type, const char *name, const struct stat *facts)
{
	words_add(words, "type", "%s", type);
	words_add(words, "name", "%s", name);
	words_add(words, "mode", "%o", (unsigned)facts->st_mode & 07777u);
	words_add(words, "mtime", "%lld.%09ld", (long long)facts->st_mtim.tv_sec, facts->st_mtim.tv_nsec);
}

static bool send_bad(const char *name, const char *what)
{
	struct answer words = {.length = 0};

	complain(name, what);
	words_add(&words, "type", "bad");
	words_add(&words, "name", "%s", name);
	words_add(&words, "error", "%s", what);
	return tree_write_words(&words);
}

static bool send_changed(const char *name)
{
	struct answer words = {.length = 0};

	words_add(&words, "type", "changed");
	words_add(&words, "name", "%s", name);
	return tree_write_words(&words);
}

static bool send_hole(uint64_t size, uint32_t *crc)
{
	frame_put64(block, size | TREE_HOLE);
	*crc = tree_crc(*crc, block, TREE_HEAD);
	return tree_write(block, TREE_HEAD);
}

/* How many bytes from `at` on are no hole; the hole before them is sent. 0: there are none, -1: nobody is there. */
static ssize_t skip_hole(int fd, uint64_t *at, uint32_t *crc)
{
	off_t data = lseek(fd, (off_t)*at, SEEK_DATA), end;

	if (data < 0 && errno != ENXIO)
		return lseek(fd, (off_t)*at, SEEK_SET) >= 0 ? (ssize_t)TREE_BLOCK : 0;
	end = data < 0 ? lseek(fd, 0, SEEK_END) : data;
	if (end > (off_t)*at && !send_hole((uint64_t)end - *at, crc))
		return -1;
	*at = end > (off_t)*at ? (uint64_t)end : *at;
	if (data < 0)
		return 0;
	end = lseek(fd, data, SEEK_HOLE);
	if (lseek(fd, data, SEEK_SET) < 0)
		return 0;
	return end - data < (off_t)TREE_BLOCK && end > data ? (ssize_t)(end - data) : (ssize_t)TREE_BLOCK;
}

/* To its end, wherever that is: files of /proc have no size, and others grow. */
static bool send_pieces(int fd, bool sparse, uint32_t *crc, const char **problem)
{
	uint64_t at = 0;

	for (;;) {
		ssize_t most = sparse ? skip_hole(fd, &at, crc) : (ssize_t)TREE_BLOCK;
		ssize_t count = most > 0 ? read(fd, block + TREE_HEAD, (size_t)most) : most;

		if (most < 0)
			return false;
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			*problem = strerror(errno);
		if (count <= 0)
			return true;
		frame_put64(block, (uint64_t)count);
		*crc = tree_crc(*crc, block, TREE_HEAD + (size_t)count);
		if (!tree_write(block, TREE_HEAD + (size_t)count))
			return false;
		at += (uint64_t)count;
	}
}

static bool send_file(int fd, const char *name, const struct stat *facts)
{
	struct answer words = {.length = 0};
	uint64_t stored = (uint64_t)facts->st_blocks * 512;
	bool sparse = stored < (uint64_t)facts->st_size;
	const char *problem = NULL;
	struct stat after;
	uint32_t crc = 0;

	add_common(&words, "file", name, facts);
	words_add(&words, "size", "%llu", (unsigned long long)facts->st_size);
	if (sparse)
		words_add(&words, "stored", "%llu", (unsigned long long)stored);
	if (!tree_write_words(&words) || !send_pieces(fd, sparse, &crc, &problem))
		return false;
	frame_put64(block, 0);
	crc = tree_crc(crc, block, TREE_HEAD);
	frame_put32(block + TREE_HEAD, crc);
	if (!tree_write(block, TREE_HEAD + 4))
		return false;
	if (problem != NULL)
		return send_bad(name, problem);
	if (fstat(fd, &after) == 0 &&
	    (after.st_size != facts->st_size || after.st_mtim.tv_sec != facts->st_mtim.tv_sec ||
	     after.st_mtim.tv_nsec != facts->st_mtim.tv_nsec))
		return send_changed(name);
	return true;
}

static bool send_entry(int parent, const char *entry, const char *name, int depth);

static bool send_directory(int fd, const char *name, const struct stat *facts, int depth)
{
	struct answer words = {.length = 0};
	DIR *directory;
	const struct dirent *each;
	bool good = true;

	add_common(&words, "dir", name, facts);
	directory = tree_write_words(&words) ? fdopendir(fd) : NULL;
	if (directory == NULL) {
		close(fd);
		return false;
	}
	while (good && (each = readdir(directory)) != NULL) {
		char *inner;

		if (strcmp(each->d_name, ".") == 0 || strcmp(each->d_name, "..") == 0)
			continue;
		inner = malloc(strlen(name) + strlen(each->d_name) + 2);
		if (inner == NULL)
			break;
		strcat(strcat(memcpy(inner, name, strlen(name) + 1), "/"), each->d_name);
		if (strlen(inner) > TREE_WORDS / 2)
			complain(inner, "the name is too long");
		else
			good = send_entry(dirfd(directory), each->d_name, inner, depth + 1);
		free(inner);
	}
	closedir(directory);
	return good;
}

static bool send_link(int parent, const char *entry, const char *name)
{
	struct answer words = {.length = 0};
	char target[4096];
	ssize_t length = readlinkat(parent, entry, target, sizeof target - 1);

	if (length < 0) {
		complain(name, strerror(errno));
		return true;
	}
	target[length] = 0;
	words_add(&words, "type", "link");
	words_add(&words, "name", "%s", name);
	words_add(&words, "target", "%s", target);
	return tree_write_words(&words);
}

static bool send_entry(int parent, const char *entry, const char *name, int depth)
{
	struct stat facts;
	bool good;
	int fd;

	if (fstatat(parent, entry, &facts, depth > 0 ? AT_SYMLINK_NOFOLLOW : 0) < 0) {
		complain(name, strerror(errno));
		return true;
	}
	if (S_ISLNK(facts.st_mode))
		return send_link(parent, entry, name);
	if (!S_ISREG(facts.st_mode) && !S_ISDIR(facts.st_mode)) {
		complain(name, "neither a file, a directory nor a link: left out");
		return true;
	}
	fd = openat(parent, entry, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (depth > 0 ? O_NOFOLLOW : 0));
	if (fd < 0 || fstat(fd, &facts) < 0) {
		complain(name, strerror(errno));
		if (fd >= 0)
			close(fd);
		return true;
	}
	if (S_ISDIR(facts.st_mode) && depth < TREE_DEEP)
		return send_directory(fd, name, &facts, depth);
	if (S_ISREG(facts.st_mode))
		good = send_file(fd, name, &facts);
	else {
		complain(name, "too deep");
		good = true;
	}
	close(fd);
	return good;
}

int ops_get(const struct words *words)
{
	struct answer end = {.length = 0};
	const char *path = words_find(words, "path");
	const char *name;
	char *real, *found = NULL;
	bool sent;

	if (path == NULL || *path == 0) {
		spawn_say("a get has a path");
		return 2;
	}
	/* The name of "." or "dir/.." is that of the directory itself. */
	real = strdup(path);
	if (real == NULL)
		return 1;
	while (strlen(real) > 1 && real[strlen(real) - 1] == '/')
		real[strlen(real) - 1] = 0;
	name = strrchr(real, '/') != NULL ? strrchr(real, '/') + 1 : real;
	if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || *name == 0) {
		found = realpath(real, NULL);
		name = found != NULL ? strrchr(found, '/') + 1 : "";
		if (*name == 0)
			name = "root";
	}
	sent = send_entry(AT_FDCWD, real, name, 0);
	free(found);
	free(real);
	if (!sent)
		return 1;
	words_add(&end, "type", "end");
	return tree_write_words(&end) && !complained ? 0 : 1;
}

/* The paths that a pattern means, each with a zero behind it; itself, if a file is called so, or nothing fits. */
int ops_glob(const struct words *words)
{
	const char *path = words_find(words, "path");
	struct stat facts;
	glob_t found;
	bool good = true;

	if (path == NULL || *path == 0) {
		spawn_say("a glob has a path");
		return 2;
	}
	if (lstat(path, &facts) == 0)
		return tree_write(path, strlen(path) + 1) ? 0 : 1;
	if (glob(path, GLOB_NOCHECK | GLOB_NOESCAPE, NULL, &found) != 0) {
		spawn_say("%s: no memory for so many files", path);
		return 1;
	}
	for (size_t i = 0; good && i < found.gl_pathc; i++)
		good = tree_write(found.gl_pathv[i], strlen(found.gl_pathv[i]) + 1);
	globfree(&found);
	return good ? 0 : 1;
}

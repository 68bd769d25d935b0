/* Reading a file or a directory, as the user who asked, into a tree. */
#include "ops.h"
#include "spawn.h"
#include "tree.h"
#include "frame.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint8_t block[TREE_BLOCK];
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

/* A file that shrinks or cannot be read on is filled up, and told to be bad. */
static bool send_file(int fd, const char *name, const struct stat *facts)
{
	struct answer words = {.length = 0};
	uint64_t left = (uint64_t)facts->st_size;
	const char *problem = NULL;
	uint32_t crc = 0;
	uint8_t tail[4];

	add_common(&words, "file", name, facts);
	words_add(&words, "size", "%llu", (unsigned long long)left);
	if (!tree_write_words(&words))
		return false;
	while (left > 0) {
		size_t size = left < sizeof block ? (size_t)left : sizeof block;
		ssize_t count = problem == NULL ? read(fd, block, size) : 0;

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0) {
			if (problem == NULL)
				problem = count < 0 ? strerror(errno) : "became shorter while it was read";
			memset(block, 0, size);
			count = (ssize_t)size;
		}
		crc = tree_crc(crc, block, (size_t)count);
		if (!tree_write(block, (size_t)count))
			return false;
		left -= (uint64_t)count;
	}
	frame_put32(tail, crc);
	return tree_write(tail, sizeof tail) && (problem == NULL || send_bad(name, problem));
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
	char *real;

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
		char *found = realpath(real, NULL);

		name = found != NULL ? strrchr(found, '/') + 1 : "";
		if (*name == 0)
			name = "root";
	}
	if (!send_entry(AT_FDCWD, real, name, 0))
		return 1;
	words_add(&end, "type", "end");
	return tree_write_words(&end) && !complained ? 0 : 1;
}

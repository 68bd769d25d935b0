/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a tree, as the user who asked. What is not complete never has its name: see ops_put(). */
#include "ops.h"
#include "put.h"
#include "spawn.h"
#include "tree.h"
#include "frame.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct later {
	struct later *next;
	mode_t mode;
	struct timespec times[2];
	char name[];
};

struct put {
	int parent;          /* where the top goes */
	char *final;         /* its name there; NULL: that of the tree */
	char temporary[32];  /* its name until it is complete */
	int top;             /* a directory: opened */
	bool merges;         /* the top is a directory that was there before */
	struct later *later; /* directories get mode and time when nothing is written into them any more */
	char file[32];       /* a file's name until it is complete, "": there is none */
	int where;           /* its directory */
	char last[4096];     /* the directory below the top that was opened last, and its descriptor */
	int last_fd;
};

static void note_signal(int number)
{
	(void)number;
	put_told_to_end = 1;
	/* Whoever waits for input finds its end. */
	close(0);
}

static void make_name(char name[32])
{
	static unsigned count;

	snprintf(name, 32, ".pvc-%d-%u", (int)getpid(), count++);
}

static void remove_all(int parent, const char *name)
{
	int fd;
	DIR *directory;
	const struct dirent *each;

	if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
		return;
	fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	directory = fd >= 0 ? fdopendir(fd) : NULL;
	while (directory != NULL && (each = readdir(directory)) != NULL)
		if (strcmp(each->d_name, ".") != 0 && strcmp(each->d_name, "..") != 0)
			remove_all(fd, each->d_name);
	if (directory != NULL)
		closedir(directory);
	unlinkat(parent, name, AT_REMOVEDIR);
}

static bool good_name(const char *name)
{
	size_t length = strlen(name);

	if (length == 0 || length >= sizeof ((struct put *)0)->last)
		return false;
	while (*name != 0) {
		size_t part = strcspn(name, "/");

		if (part == 0 || part > 255 || (part == 1 && *name == '.') ||
		    (part == 2 && strncmp(name, "..", 2) == 0))
			return false;
		name += part;
		if (*name == '/' && *++name == 0)
			return false;
	}
	return true;
}

static void read_facts(const struct words *words, mode_t *mode, struct timespec times[2])
{
	const char *text = words_find(words, "mode");
	char *end;

	/* Set-uid bits were given by the owner of the source, and here it is another one's file. */
	*mode = text != NULL ? (mode_t)strtoul(text, NULL, 8) & 01777 : 0755;
	times[0] = times[1] = (struct timespec){.tv_nsec = UTIME_NOW};
	text = words_find(words, "mtime");
	if (text == NULL)
		return;
	times[1].tv_sec = (time_t)strtoll(text, &end, 10);
	times[1].tv_nsec = *end == '.' ? strtol(end + 1, NULL, 10) : 0;
	if (times[1].tv_nsec < 0 || times[1].tv_nsec > 999999999)
		times[1].tv_nsec = 0;
}

/* The directory that an entry goes to, part by part from the top; symbolic links are not followed. -1: it is none. */
static int open_place(struct put *put, const char *name, const char **base)
{
	const char *at = strchr(name, '/') + 1;
	const char *slash = strrchr(at, '/');
	size_t length = slash != NULL ? (size_t)(slash - at) : 0;
	int fd = put->top, next;

	*base = slash != NULL ? slash + 1 : at;
	if (length == 0)
		return put->top;
	if (put->last_fd >= 0 && strlen(put->last) == length && strncmp(put->last, at, length) == 0)
		return put->last_fd;
	if (put->last_fd >= 0)
		close(put->last_fd);
	put->last_fd = -1;
	memcpy(put->last, at, length);
	put->last[length] = 0;
	for (char *part = put->last; part != NULL;) {
		char *end = strchr(part, '/');

		if (end != NULL)
			*end = 0;
		next = openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (end != NULL)
			*end = '/';
		if (fd != put->top)
			close(fd);
		if (next < 0)
			return -1;
		fd = next;
		part = end != NULL ? end + 1 : NULL;
	}
	return put->last_fd = fd;
}

/* The first record says what the top is. */
static bool find_base(struct put *put, const char *name, bool directory, int *where, const char **base)
{
	*where = -1;
	*base = name;
	if (strchr(name, '/') != NULL) {
		if (put->top < 0)
			return put_refuse(name, "a tree that does not begin with its top");
		*where = open_place(put, name, base);
		return *where >= 0 || put_fail(name);
	}
	if (put->final == NULL && (put->final = strdup(name)) == NULL)
		return put_fail(name);
	*where = put->parent;
	*base = put->final;
	if (!directory || put->top >= 0)
		return put->top < 0 || put_refuse(name, "a second top");
	put->top = openat(put->parent, put->final, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	put->merges = put->top >= 0;
	if (!put->merges && errno != ENOENT)
		return put_fail(put->final);
	if (!put->merges)
		make_name(put->temporary);
	return true;
}

static bool put_directory(struct put *put, const struct words *words, const char *name)
{
	struct later *later = malloc(sizeof *later + strlen(name) + 1);
	const char *base;
	int where;
	bool top = strchr(name, '/') == NULL;

	if (later == NULL)
		return put_fail(name);
	strcpy(later->name, name);
	read_facts(words, &later->mode, later->times);
	later->next = put->later;
	put->later = later;
	if (!find_base(put, name, true, &where, &base))
		return false;
	if (top && put->merges)
		return true;
	if (mkdirat(where, top ? put->temporary : base, 0700) < 0 && (top || errno != EEXIST))
		return put_fail(name);
	if (top)
		put->top = openat(where, put->temporary, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return !top || put->top >= 0 || put_fail(name);
}

static bool finish_file(struct put *put, const char *name, const char *base)
{
	if (renameat(put->where, put->file, put->where, base) < 0)
		return put_fail(name);
	put->file[0] = 0;
	return true;
}

static bool put_link(struct put *put, const struct words *words, const char *name)
{
	const char *target = words_find(words, "target");
	const char *base;

	if (target == NULL || !find_base(put, name, false, &put->where, &base))
		return target != NULL ? false : put_refuse(name, "a link without a target");
	make_name(put->file);
	return (symlinkat(target, put->where, put->file) == 0 || put_fail(name)) && finish_file(put, name, base);
}

static bool put_file(struct put *put, const struct words *words, const char *name)
{
	const char *base;
	struct timespec times[2];
	struct stat there;
	mode_t mode;
	bool good;
	int fd;

	read_facts(words, &mode, times);
	if (!find_base(put, name, false, &put->where, &base))
		return false;
	/* Said now, not when all of it is there. */
	if (fstatat(put->where, base, &there, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(there.st_mode)) {
		errno = EISDIR;
		return put_fail(name);
	}
	make_name(put->file);
	fd = openat(put->where, put->file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0) {
		put->file[0] = 0;
		return put_fail(name);
	}
	good = put_content(fd, name, words);
	if (good && (fchmod(fd, mode) < 0 || futimens(fd, times) < 0))
		good = put_fail(name);
	/* Some file systems tell only now that there was no room. */
	if (close(fd) < 0 && good)
		good = put_fail(name);
	return good && finish_file(put, name, base);
}

static bool finish_directories(struct put *put)
{
	for (const struct later *each = put->later; each != NULL; each = each->next) {
		const char *base;
		int fd = put->top;

		if (strchr(each->name, '/') != NULL) {
			int where = open_place(put, each->name, &base);

			fd = where < 0 ? -1 : openat(where, base, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		}
		if (fd < 0 || fchmod(fd, each->mode) < 0 || futimens(fd, each->times) < 0)
			return put_fail(each->name);
		if (fd != put->top)
			close(fd);
	}
	if (put->temporary[0] == 0)
		return true;
	if (renameat(put->parent, put->temporary, put->parent, put->final) < 0)
		return put_fail(put->final);
	put->temporary[0] = 0;
	return true;
}

/* Until the end of the tree. */
static bool take_records(struct put *put)
{
	static uint8_t text[TREE_WORDS];
	struct words words = {.at = (const char *)text};

	for (;;) {
		uint8_t head[4];
		const char *type, *name;

		if (!tree_read(head, sizeof head))
			return put_refuse("the copy", "it was broken off");
		words.length = frame_get32(head);
		if (words.length > sizeof text || !tree_read(text, words.length) || !words_good(text, words.length))
			return put_refuse("the copy", "this is no tree");
		type = words_find(&words, "type");
		name = words_find(&words, "name");
		if (type != NULL && strcmp(type, "end") == 0)
			return finish_directories(put);
		if (type == NULL || name == NULL || !good_name(name))
			return put_refuse("the copy", "a file without a good name");
		if (strcmp(type, "changed") == 0)
			continue;
		if (strcmp(type, "dir") == 0 ? !put_directory(put, &words, name)
		    : strcmp(type, "link") == 0 ? !put_link(put, &words, name)
		    : strcmp(type, "file") == 0 ? !put_file(put, &words, name)
						: !put_refuse(name, "could not be read at its source"))
			return false;
	}
}

/* The top's parent, and its name if `path` is not a directory that it goes into. */
static bool find_parent(struct put *put, const struct words *words)
{
	const char *path = words_find(words, "path");
	char *copy, *slash;

	if (path == NULL || *path == 0)
		return put_refuse("put", "a put has a path");
	put->parent = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (put->parent >= 0 && words_is(words, "exact", "1")) {
		errno = EISDIR;
		return put_fail(path);
	}
	if (put->parent >= 0)
		return true;
	if (words_is(words, "into", "1") || path[strlen(path) - 1] == '/')
		return put_fail(path);
	copy = strdup(path);
	if (copy == NULL)
		return put_fail(path);
	slash = strrchr(copy, '/');
	put->final = strdup(slash != NULL ? slash + 1 : copy);
	if (slash != NULL)
		slash[slash == copy ? 1 : 0] = 0;
	put->parent = open(slash != NULL ? copy : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(copy);
	return (put->parent >= 0 && put->final != NULL) || put_fail(path);
}

int ops_put(const struct words *words)
{
	static struct put put = {.parent = -1, .top = -1, .last_fd = -1};
	bool good;

	umask(0);
	signal(SIGHUP, note_signal);
	signal(SIGTERM, note_signal);
	good = find_parent(&put, words) && take_records(&put);
	if (put.file[0] != 0)
		unlinkat(put.where, put.file, 0);
	/* Files that replaced others one by one, in a directory that was there, stay: each of them is complete. */
	if (put.temporary[0] != 0)
		remove_all(put.parent, put.temporary);
	return good ? 0 : 1;
}

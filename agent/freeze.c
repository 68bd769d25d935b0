/* SPDX-License-Identifier: Apache-2.0 */
/* Freezing file systems, by a process that thaws them whatever becomes of the agent: its input ends with the agent. */
#include "ops.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 64
/* linux/fs.h */
#define FREEZE _IOWR('X', 119, int)
#define THAW _IOWR('X', 120, int)

/* The C libraries do not agree on the type of a request. */
static bool control(int fd, unsigned long request)
{
	return syscall(SYS_ioctl, fd, request, 0) == 0;
}

struct frozen {
	size_t count;
	int fds[MOST];
};

/* mountinfo writes blanks and the like as \040. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from != 0; from++) {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[3] >= '0') {
			*to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
			from += 3;
		} else {
			*to++ = *from;
		}
	}
	*to = 0;
}

/* Open the file systems that a disk is behind, each once. The later ones may rest on the earlier ones. */
static size_t find_all(int fds[MOST])
{
	char line[4096], device[32], point[2048];
	char seen[MOST][32];
	size_t count = 0;
	FILE *file = fopen("/proc/self/mountinfo", "re");

	while (file != NULL && count < MOST && fgets(line, sizeof line, file) != NULL) {
		const char *rest = strstr(line, " - ");
		char source[1024] = "", type[64] = "";
		bool known = false;

		if (rest == NULL || sscanf(line, "%*d %*d %31s %*s %2047s", device, point) != 2 ||
		    sscanf(rest + 3, "%63s %1023s", type, source) != 2)
			continue;
		for (size_t i = 0; i < count; i++)
			known = known || strcmp(seen[i], device) == 0;
		if (known || source[0] != '/' || strcmp(type, "iso9660") == 0 || strcmp(type, "squashfs") == 0)
			continue;
		unescape(point);
		fds[count] = open(point, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
		if (fds[count] >= 0)
			memcpy(seen[count++], device, sizeof device);
	}
	if (file != NULL)
		fclose(file);
	return count;
}

static void thaw(struct frozen *frozen)
{
	while (frozen->count > 0) {
		int fd = frozen->fds[--frozen->count];

		if (!control(fd, THAW))
			spawn_say("cannot thaw a file system: %s", strerror(errno));
		close(fd);
	}
}

static bool freeze(struct frozen *frozen)
{
	int fds[MOST];
	size_t count = find_all(fds);

	frozen->count = 0;
	while (count > 0) {
		int fd = fds[--count];

		if (control(fd, FREEZE)) {
			frozen->fds[frozen->count++] = fd;
			continue;
		}
		/* Not every file system can, and a read-only one need not. EBUSY: somebody else froze it. */
		if (errno != EOPNOTSUPP && errno != EROFS && errno != ENOTTY && errno != EINVAL && errno != EBUSY) {
			spawn_say("cannot freeze a file system: %s", strerror(errno));
			thaw(frozen);
			return false;
		}
		close(fd);
	}
	return true;
}

int ops_freeze(const struct words *words)
{
	long timeout = words_number(words, "timeout", 10, 60);
	int64_t deadline;
	struct frozen frozen;
	char byte[64];
	int left;

	if (timeout < 1) {
		spawn_say("a freeze lasts from 1 to 60 seconds");
		return 2;
	}
	/* Nothing of this process may have to be read from what is frozen. */
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
		spawn_say("cannot lock memory: %s", strerror(errno));
	/* Whoever wants it to end closes its input. */
	signal(SIGHUP, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	deadline = job_now() + timeout * 1000;
	if (!freeze(&frozen))
		return 1;
	printf("frozen %zu\n", frozen.count);
	fflush(stdout);
	/* Until the input ends: END of the host, or the death of the agent. */
	while ((left = (int)(deadline - job_now())) > 0) {
		if (poll(&(struct pollfd){.fd = 0, .events = POLLIN}, 1, left) > 0 && read(0, byte, sizeof byte) <= 0)
			break;
	}
	thaw(&frozen);
	if (left > 0)
		return 0;
	spawn_say("thawed after %ld s, because nobody did so before", timeout);
	return 1;
}

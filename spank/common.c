/* SPDX-License-Identifier: Apache-2.0 */
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <slurm/slurm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int64_t pvc_common_now_ms(void)
{
	struct timespec now = {0};

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int pvc_common_left_ms(int64_t deadline_ms)
{
	int64_t left = deadline_ms - pvc_common_now_ms();

	if (left < 0)
		return 0;
	return left > INT32_MAX ? INT32_MAX : (int)left;
}

void pvc_common_close(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

int pvc_common_above_stdio(int fd)
{
	int moved = -1;

	if (fd < 0 || fd > STDERR_FILENO)
		return fd;
	moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	(void)close(fd);
	return moved;
}

int pvc_common_memfd(const char *name)
{
	return pvc_common_above_stdio(memfd_create(name, MFD_CLOEXEC));
}

ptrdiff_t pvc_common_read_end(int fd, char *text, size_t size)
{
	size_t length = 0;
	off_t start = lseek(fd, 0, SEEK_END) - (off_t)(size - 1);

	text[0] = '\0';
	if (start < 0)
		start = 0;
	while (length < size - 1) {
		ssize_t count = pread(fd, text + length, size - 1 - length, start + (off_t)length);

		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0)
			return -1;
		if (count == 0)
			break;
		length += (size_t)count;
	}
	text[length] = '\0';
	return (ptrdiff_t)length;
}

static bool is_control(char byte)
{
	return (unsigned char)byte < ' ' || byte == 0x7f;
}

bool pvc_common_is_line(const char *text, size_t size)
{
	size_t length = strnlen(text, size);

	if (length == 0 || length >= size)
		return false;
	for (size_t i = 0; i < length; i++)
		if (is_control(text[i]))
			return false;
	return true;
}

const char *pvc_common_last_line(char *text)
{
	char *line = text + strlen(text);

	do {
		*line = '\0';
		line = strrchr(text, '\n');
	} while (line != NULL && (line[1] == '\0' || strncmp(line + 1, "hint: ", 6) == 0));
	return line == NULL ? text : line + 1;
}

/* Bytes of what is shown: ASCII and, in UTF-8, letters of Latin, Greek, Cyrillic and CJK; none is drawn as nothing. */
static size_t shown_bytes(const unsigned char *text)
{
	if (text[0] < 0x80)
		return is_control((char)text[0]) ? 0 : 1;
	if (text[0] < 0xc3 || text[0] > 0xe9 || (text[1] & 0xc0) != 0x80)
		return 0;
	if (text[0] <= 0xd5)
		return text[0] == 0xcc || text[0] == 0xcd ? 0 : 2;
	return text[0] >= 0xe3 && (text[2] & 0xc0) == 0x80 && memcmp(text, "\xe3\x85\xa4", 3) != 0 ? 3 : 0;
}

void pvc_common_clean(char *text)
{
	for (size_t length = 0; *text != '\0'; text += length > 0 ? length : 1) {
		length = shown_bytes((const unsigned char *)text);
		if (length == 0)
			*text = '?';
	}
}

void pvc_common_say(void (*say)(const char *format, ...) __attribute__((format(printf, 1, 2))),
		    const char *prefix, char *text)
{
	char *rest = NULL;

	for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
		pvc_common_clean(line);
		say("%s%s", prefix, line);
	}
}

uint32_t pvc_common_job_id(const char *name)
{
	const char *text = getenv(name);
	char *end = NULL;
	/* No sign and no blank before it. */
	unsigned long id = text == NULL || text[0] < '0' || text[0] > '9' ? NO_VAL : strtoul(text, &end, 10);

	return id >= NO_VAL || *end != '\0' ? 0 : (uint32_t)id;
}

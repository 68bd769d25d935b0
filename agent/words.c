/* SPDX-License-Identifier: Apache-2.0 */
#include "words.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_key(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
}

bool words_good(const uint8_t *data, size_t length)
{
	const char *at = (const char *)data;
	const char *end = length > 0 ? at + length : at;

	while (at != end) {
		const char *stop = memchr(at, 0, (size_t)(end - at));
		const char *key = at;

		if (stop == NULL)
			return false;
		while (is_key(*at))
			at++;
		if (at == key || at - key > 32 || *at != '=')
			return false;
		at = stop + 1;
	}
	return true;
}

const char *words_next(const struct words *words, const char *key, const char *before)
{
	const char *end = words->at + words->length;
	const char *at = before != NULL ? before + strlen(before) + 1 : words->at;
	size_t length = strlen(key);

	for (; at < end; at += strlen(at) + 1)
		if (strncmp(at, key, length) == 0 && at[length] == '=')
			return at + length + 1;
	return NULL;
}

const char *words_find(const struct words *words, const char *key)
{
	return words_next(words, key, NULL);
}

bool words_is(const struct words *words, const char *key, const char *text)
{
	const char *value = words_find(words, key);

	return value != NULL && strcmp(value, text) == 0;
}

long words_number(const struct words *words, const char *key, long other, long most)
{
	const char *value = words_find(words, key);
	char *end;
	long found;

	if (value == NULL)
		return other;
	if (*value < '0' || *value > '9')
		return -1;
	errno = 0;
	found = strtol(value, &end, 10);
	return errno != 0 || *end != 0 || found > most ? -1 : found;
}

void words_add(struct answer *answer, const char *key, const char *format, ...)
{
	size_t room = sizeof answer->text - answer->length;
	size_t head = strlen(key) + 1;
	va_list arguments;
	int size;

	if (room < head + 2)
		return;
	memcpy(answer->text + answer->length, key, head - 1);
	answer->text[answer->length + head - 1] = '=';
	va_start(arguments, format);
	size = vsnprintf(answer->text + answer->length + head, room - head, format, arguments);
	va_end(arguments);
	if (size >= 0 && (size_t)size < room - head)
		answer->length += head + (size_t)size + 1;
}

static const struct {
	int number;
	const char *name;
} names[] = {
	{EACCES, "EACCES"}, {EADDRINUSE, "EADDRINUSE"}, {ECONNREFUSED, "ECONNREFUSED"}, {EEXIST, "EEXIST"},
	{EINVAL, "EINVAL"}, {EISDIR, "EISDIR"}, {EMFILE, "EMFILE"}, {ENETUNREACH, "ENETUNREACH"}, {ENOENT, "ENOENT"},
	{ENOMEM, "ENOMEM"}, {ENOSPC, "ENOSPC"}, {ENOTDIR, "ENOTDIR"}, {EPERM, "EPERM"}, {EROFS, "EROFS"},
	{ETIMEDOUT, "ETIMEDOUT"}, {EHOSTUNREACH, "EHOSTUNREACH"}, {EAGAIN, "EAGAIN"},
};

void words_add_error(struct answer *answer, const char *what, int number)
{
	words_add(answer, "error", "%.512s: %s", what, strerror(number));
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (names[i].number == number)
			words_add(answer, "errno", "%s", names[i].name);
}

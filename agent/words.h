/* SPDX-License-Identifier: Apache-2.0 */
/* KEY=VALUE, each ended by a zero byte: what requests and results are made of. */
#ifndef WORDS_H
#define WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct words {
	const char *at;
	size_t length;
};

/* Whether all of it is words. Nothing else may be given to the functions below. */
bool words_good(const uint8_t *data, size_t length);

/* The first value of a key, NULL: there is none. */
const char *words_find(const struct words *words, const char *key);

/* The next value of a key after one that was found (NULL: the first), NULL: no more. */
const char *words_next(const struct words *words, const char *key, const char *before);

/* Whether the value of a key is this text. */
bool words_is(const struct words *words, const char *key, const char *text);

/* The value of a key as a number from 0 to most; -1: it is none; absent: other. */
long words_number(const struct words *words, const char *key, long other, long most);

/* Words that are made. What does not fit is left out. */
struct answer {
	size_t length;
	char text[8192];
};

__attribute__((format(printf, 3, 4))) void words_add(struct answer *answer, const char *key, const char *format, ...);

/* "error" and "errno" of a system call that failed. */
void words_add_error(struct answer *answer, const char *what, int number);

#endif

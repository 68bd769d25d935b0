/* SPDX-License-Identifier: Apache-2.0 */
/* What the two halves of put share. */
#ifndef PUT_H
#define PUT_H

#include "words.h"

#include <signal.h>
#include <stdbool.h>

extern volatile sig_atomic_t put_told_to_end;

/* Say what went wrong: false. */
bool put_fail(const char *name);
bool put_refuse(const char *name, const char *what);

/* What follows the record of a file, into `fd`. */
bool put_content(int fd, const char *name, const struct words *words);

#endif

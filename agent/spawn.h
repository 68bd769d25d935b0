/* SPDX-License-Identifier: Apache-2.0 */
/* The child's side of a job. */
#ifndef SPAWN_H
#define SPAWN_H

#include "words.h"

/* Become the user of "user", in "cwd" or the home; says on standard error what is wrong. 0, or an exit code. */
int spawn_become(const struct words *words);

/* Execute the command of "arg" with "env"; returns an exit code if that fails. */
int spawn_exec(const struct words *words);

/* Complain on standard error. */
__attribute__((format(printf, 1, 2))) void spawn_say(const char *format, ...);

#endif

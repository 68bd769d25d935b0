/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest test frame that does: every test is a process of its own, so environment and statics are fresh. */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/types.h>

struct test {
	const char *name;
	void (*run)(void);
};

#define TEST(function) {#function, function}
#define TESTS_END {NULL, NULL}

/* One table a file. */
extern const struct test client_tests[], config_tests[], gres_tests[], helper_tests[], het_tests[], job_tests[],
	late_tests[], options_tests[], slurmd_tests[], stepd_tests[], submit_tests[];

void check_that(bool good, const char *file, int line, const char *text, const char *seen);

#define CHECK(condition) check_that((condition), __FILE__, __LINE__, #condition, NULL)
#define CHECK_HAS(text, part) check_that(strstr((text), (part)) != NULL, __FILE__, __LINE__, #text " has " #part, (text))
#define CHECK_NOT(text, part) check_that(strstr((text), (part)) == NULL, __FILE__, __LINE__, #text " lacks " #part, (text))
#define CHECK_IS(text, other) check_that(strcmp((text), (other)) == 0, __FILE__, __LINE__, #text " is " #other, (text))

/* A path below this test's own empty directory; valid until the process ends. */
char *scratch(const char *name);

/* An executable shell script at scratch(name). */
char *make_script(const char *name, const char *body);

/* The content of a file, "" where there is none; valid until the process ends. */
char *read_text(const char *path);

/* "key=value" as an argument of plugstack.conf; valid until the process ends. */
char *argument(const char *key, const char *value);

/* How a daemon behaves that was asked. */
enum manner {
	ANSWER,         /* read everything, then send the text */
	ANSWER_AT_ONCE, /* send the text and close without reading */
	NEVER,          /* accept, read and say nothing */
	NOT_LISTENING,  /* a socket file that nobody listens on */
};

/* Start one at path for a single question; what it read goes to scratch("heard"). Stop it with stop_daemon. */
pid_t start_daemon(const char *path, enum manner manner, const char *text);
void stop_daemon(pid_t pid);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define TESTS 256
#define AT_ONCE 8

static int failures;
static char directory[PATH_MAX];

void check_that(bool good, const char *file, int line, const char *text, const char *seen)
{
	if (good)
		return;
	failures++;
	fprintf(stderr, "%s:%d: not so: %s\n", file, line, text);
	if (seen != NULL)
		fprintf(stderr, "  seen: %s\n", seen);
}

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(2);
}

/* Texts that tests use until their process ends; kept here, or the leak checker would call them lost. */
static char *keep(char *text)
{
	static char *kept[256];
	static size_t used;

	must(text != NULL && used < sizeof(kept) / sizeof(kept[0]), "keep");
	kept[used++] = text;
	return text;
}

char *scratch(const char *name)
{
	char *path = NULL;

	must(asprintf(&path, "%s/%s", directory, name) > 0, "asprintf");
	return keep(path);
}

char *argument(const char *key, const char *value)
{
	char *text = NULL;

	must(asprintf(&text, "%s=%s", key, value) > 0, "asprintf");
	return keep(text);
}

char *make_script(const char *name, const char *body)
{
	char *path = scratch(name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);

	must(fd >= 0, path);
	must(dprintf(fd, "#!/bin/sh\ncd '%s' || exit 99\n%s\n", directory, body) > 0, path);
	must(close(fd) == 0, path);
	return path;
}

char *read_text(const char *path)
{
	size_t size = 256 * 1024;
	char *text = keep(calloc(1, size));
	FILE *file = fopen(path, "re");

	if (file != NULL) {
		(void)fread(text, 1, size - 1, file);
		(void)fclose(file);
	}
	return text;
}

static void serve(int listener, enum manner manner, const char *text)
{
	char buffer[4096] = "";
	ssize_t count = 0;
	int heard = open(scratch("heard"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int peer = accept(listener, NULL, NULL);

	while (manner != ANSWER_AT_ONCE && (count = read(peer, buffer, sizeof(buffer))) > 0)
		must(write(heard, buffer, (size_t)count) == count, "heard");
	while (manner == NEVER)
		(void)pause();
	(void)send(peer, text, strlen(text), MSG_NOSIGNAL);
	_exit(0);
}

pid_t start_daemon(const char *path, enum manner manner, const char *text)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = ""};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid = -1;

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	must(bind(listener, (const struct sockaddr *)&address, sizeof(address)) == 0, path);
	if (manner != NOT_LISTENING) {
		must(listen(listener, 4) == 0, "listen");
		pid = fork();
		must(pid >= 0, "fork");
		if (pid == 0)
			serve(listener, manner, text);
	}
	(void)close(listener);
	return pid;
}

void stop_daemon(pid_t pid)
{
	if (pid <= 0)
		return;
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *where)
{
	(void)info;
	(void)type;
	(void)where;
	return remove(path);
}

static void remove_directory(void)
{
	(void)nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* What a developer's own shell (perhaps inside a job) would change. */
static void clean_environment(void)
{
	char *home = getenv("PVC_SCRATCH");
	char *kept = home == NULL ? NULL : strdup(home);

	must(clearenv() == 0, "clearenv");
	must(setenv("PATH", "/usr/bin:/bin", 1) == 0, "setenv");
	must(kept == NULL || setenv("PVC_SCRATCH", kept, 1) == 0, "setenv");
	free(kept);
}

static pid_t start_test(const struct test *test)
{
	const char *home = getenv("PVC_SCRATCH");
	pid_t pid = fork();

	must(pid >= 0, "fork");
	if (pid > 0)
		return pid;
	(void)snprintf(directory, sizeof(directory), "%s/XXXXXX", home == NULL ? "/tmp" : home);
	must(mkdtemp(directory) != NULL, directory);
	test->run();
	remove_directory();
	exit(failures == 0 ? 0 : 1); /* the leak checker speaks here */
}

struct running {
	pid_t pid;
	const char *name;
};

/* Wait for any of them; whether it failed. */
static size_t end_test(const struct running running[], size_t count)
{
	int status = 0;
	pid_t pid = wait(&status);

	must(pid > 0, "wait");
	for (size_t i = 0; status != 0 && i < count; i++)
		if (running[i].pid == pid)
			fprintf(stderr, "FAILED %s (status %#x)\n", running[i].name, (unsigned int)status);
	return status != 0;
}

int main(void)
{
	const struct test *const tables[] = {client_tests, config_tests, gres_tests, helper_tests, het_tests, job_tests,
					     late_tests, options_tests, slurmd_tests, stepd_tests, submit_tests};
	struct running running[TESTS] = {0};
	size_t count = 0;
	size_t ended = 0;
	size_t failed = 0;

	clean_environment();
	for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
		for (const struct test *test = tables[i]; test->name != NULL; test++, count++) {
			must(count < TESTS, "too many tests");
			/* Several at once: many do nothing but wait for a deadline. */
			if (count - ended >= AT_ONCE) {
				failed += end_test(running, count);
				ended++;
			}
			running[count].name = test->name;
			running[count].pid = start_test(test);
		}
	}
	for (; ended < count; ended++)
		failed += end_test(running, count);
	printf("%zu tests, %zu failed\n", count, failed);
	return failed == 0 ? 0 : 1;
}

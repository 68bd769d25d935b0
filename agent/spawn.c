/* SPDX-License-Identifier: Apache-2.0 */
#include "spawn.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

void spawn_say(const char *format, ...)
{
	char text[8192];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	/* A file's name may have the ends of lines in it. */
	for (char *at = text; *at != 0; at++)
		if ((unsigned char)*at < ' ' || *at == 0x7f)
			*at = '?';
	fprintf(stderr, "pvc-agent: %s\n", text);
}

int spawn_become(const struct words *words)
{
	const char *name = words_find(words, "user");
	const char *cwd = words_find(words, "cwd");
	const char *term = words_find(words, "term");
	const struct passwd *user = getpwnam(name != NULL ? name : "root");
	const char *home = user != NULL ? user->pw_dir : "/";
	const char *shell = user != NULL && *user->pw_shell != 0 ? user->pw_shell : "/bin/sh";

	/* An image may have no /etc/passwd at all; root needs none. */
	if (user == NULL && name != NULL && strcmp(name, "root") != 0) {
		spawn_say("this guest has no user %s", name);
		return 126;
	}
	if (user != NULL && user->pw_uid != geteuid() &&
	    (initgroups(user->pw_name, user->pw_gid) < 0 || setgid(user->pw_gid) < 0 || setuid(user->pw_uid) < 0)) {
		spawn_say("cannot become %s: %s", name, strerror(errno));
		return 126;
	}
	if (clearenv() != 0 || setenv("PATH", PATH_DEFAULT, 1) < 0 || setenv("HOME", home, 1) < 0 ||
	    setenv("SHELL", shell, 1) < 0 || setenv("USER", name != NULL ? name : "root", 1) < 0 ||
	    setenv("LOGNAME", name != NULL ? name : "root", 1) < 0 || (term != NULL && setenv("TERM", term, 1) < 0)) {
		spawn_say("no memory for an environment");
		return 126;
	}
	if (cwd != NULL && chdir(cwd) < 0) {
		spawn_say("cannot enter %s: %s", cwd, strerror(errno));
		return 126;
	}
	/* A home that is missing is no reason not to run a command. */
	if (cwd == NULL && chdir(home) < 0 && chdir("/") < 0)
		return 126;
	return 0;
}

static int set_environment(const struct words *words)
{
	const char *each = NULL;

	while ((each = words_next(words, "env", each)) != NULL) {
		const char *equals = strchr(each, '=');
		char *name;

		if (equals == NULL || equals == each)
			continue;
		name = strndup(each, (size_t)(equals - each));
		if (name == NULL || setenv(name, equals + 1, 1) < 0) {
			free(name);
			return 126;
		}
		free(name);
	}
	return 0;
}

int spawn_exec(const struct words *words)
{
	const char *each = NULL;
	const char *file;
	char *shell = NULL;
	char **argv;
	size_t count = 0;
	int code;

	if (set_environment(words) != 0) {
		spawn_say("no memory for an environment");
		return 126;
	}
	while ((each = words_next(words, "arg", each)) != NULL)
		count++;
	if (count == 0) {
		/* A login shell: its name begins with a hyphen. */
		const char *base;

		file = getenv("SHELL");
		base = file != NULL ? strrchr(file, '/') : NULL;
		shell = base != NULL ? strdup(base) : NULL;
		if (shell == NULL)
			return 126;
		*shell = '-';
	} else {
		file = words_find(words, "arg");
	}
	argv = calloc(count + 2, sizeof *argv);
	if (argv == NULL) {
		free(shell);
		return 126;
	}
	argv[0] = shell;
	for (size_t i = 0; i < count; i++) {
		each = words_next(words, "arg", each);
		argv[i] = (char *)each;
	}
	execvp(file, argv);
	code = errno == ENOENT ? 127 : 126;
	spawn_say("cannot run %s: %s", file, strerror(errno));
	free(shell);
	free(argv);
	return code;
}

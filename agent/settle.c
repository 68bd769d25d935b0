/* SPDX-License-Identifier: Apache-2.0 */
/* What a guest is that nobody else makes so: its name, addresses, keys and mounts, as the host knows them. */
#include "ops.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DHCP_MS 10000 /* for a guest that asks for its address by itself */

/* Programs that take the same from the seed; where one is, the guest is theirs. */
static const char *const others[] = {"cloud-init", "pvc-seed", "tiny-cloud", "cloudbase-init"};
static const char *const places[] = {"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin",
				     "/usr/lib", "/usr/libexec"};

static bool is_others(void)
{
	char path[64];

	for (size_t i = 0; i < sizeof others / sizeof *others; i++)
		for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
			snprintf(path, sizeof path, "%s/%s", places[k], others[i]);
			if (access(path, X_OK) == 0)
				return true;
		}
	return false;
}

/* The whole file, or NULL; too much is as good as none. */
static char *read_file(const char *path)
{
	const size_t most = 1 << 20;
	char *text = malloc(most + 1);
	size_t size = 0;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	while (text != NULL && fd >= 0 && size < most) {
		ssize_t count = read(fd, text + size, most - size);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			break;
		size += (size_t)count;
	}
	if (fd >= 0)
		close(fd);
	if (text == NULL || fd < 0 || size == most) {
		free(text);
		return NULL;
	}
	text[size] = 0;
	return text;
}

/* Whether a line begins so, and one of "ends" or the text's end comes then. */
static bool has_line(const char *text, const char *line, const char *ends)
{
	size_t length = strlen(line);

	for (const char *at = text; at != NULL; at = strchr(at, '\n')) {
		at += *at == '\n';
		if (strncmp(at, line, length) == 0 && strchr(ends, at[length]) != NULL)
			return true;
	}
	return false;
}

/* Whether the file says that already, but for the line's end. */
static bool says(const char *path, const char *text)
{
	char *found = read_file(path);
	size_t length = strlen(text);
	bool same;

	while (length > 0 && text[length - 1] == '\n')
		length--;
	same = found != NULL && strncmp(found, text, length) == 0 &&
	       strspn(found + length, "\n") == strlen(found + length);
	free(found);
	return same;
}

/* Add keys that are not there to root's. */
static bool add_keys(const struct words *words)
{
	const struct passwd *root = getpwuid(0);
	const char *key = NULL;
	char path[320], *text;
	bool good = true;
	int fd;

	if (words_find(words, "authorized-key") == NULL)
		return true;
	snprintf(path, sizeof path, "%.256s/.ssh", root != NULL ? root->pw_dir : "/root");
	if (mkdir(path, 0700) < 0 && errno == ENOENT && mkdir("/root", 0700) == 0)
		mkdir(path, 0700);
	strcat(path, "/authorized_keys");
	text = read_file(path);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_CLOEXEC, 0600);
	/* A last line without its end would swallow the first key. */
	if (fd >= 0 && text != NULL && *text != 0 && text[strlen(text) - 1] != '\n')
		good = write(fd, "\n", 1) == 1;
	while (fd >= 0 && good && (key = words_next(words, "authorized-key", key)) != NULL)
		if (text == NULL || !has_line(text, key, "\n"))
			good = dprintf(fd, "%s\n", key) > 0;
	free(text);
	if (fd < 0 || close(fd) < 0 || !good) {
		spawn_say("cannot write %s: %s", path, strerror(errno));
		return false;
	}
	return true;
}

/* A server that runs reads its keys again. */
static void wake_sshd(void)
{
	char *text = read_file("/run/sshd.pid");
	long pid = text != NULL ? strtol(text, NULL, 10) : 0;
	char path[64], name[16] = "";
	FILE *file;

	free(text);
	if (pid < 2 || pid > 1 << 22)
		return;
	snprintf(path, sizeof path, "/proc/%ld/comm", pid);
	file = fopen(path, "re");
	if (file == NULL)
		return;
	if (fgets(name, sizeof name, file) != NULL && strncmp(name, "sshd", 4) == 0)
		kill((pid_t)pid, SIGHUP);
	fclose(file);
}

static bool set_host_key(const struct words *words)
{
	const char *private = words_find(words, "host-key");
	const char *public = words_find(words, "host-key-pub");
	bool good;

	if (private == NULL || access("/etc/ssh", F_OK) < 0 || says(OPS_HOST_KEY, private))
		return true;
	good = ops_write_file(OPS_HOST_KEY, private, 0600);
	good = (public == NULL || ops_write_file(OPS_HOST_KEY ".pub", public, 0644)) && good;
	wake_sshd();
	return good;
}

/* TYPE MODE TAG TARGET, for a tag that is mounted nowhere yet. */
static bool mount_share(const char *text)
{
	char *copy = strdup(text), *rest = copy, *mounted = read_file("/proc/mounts");
	const char *type = strsep(&rest, " "), *mode = strsep(&rest, " "), *tag = strsep(&rest, " ");
	bool good = true;

	if (mode == NULL || tag == NULL || rest == NULL || *rest != '/') {
		spawn_say("no mount: %s", text);
		good = false;
	} else if (mounted == NULL || !has_line(mounted, tag, " ")) {
		good = ops_mount_share(type, strcmp(mode, "ro") == 0, tag, rest);
	}
	free(mounted);
	free(copy);
	return good;
}

int ops_settle(const struct words *words)
{
	const int64_t until = job_now() + DHCP_MS;
	const char *text;
	bool good = true;

	if (is_others())
		return 0;
	text = words_find(words, "hostname");
	if (text != NULL && !says("/proc/sys/kernel/hostname", text))
		good = ops_set_hostname(text);
	good = add_keys(words) && good;
	good = set_host_key(words) && good;
	for (text = NULL; (text = words_next(words, "mount", text)) != NULL;)
		good = mount_share(text) && good;
	good = ops_grow_root() && good;
	for (text = NULL; (text = words_next(words, "address", text)) != NULL;)
		good = ops_give_address(text, until) && good;
	return good ? 0 : 1;
}

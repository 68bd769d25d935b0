/* SPDX-License-Identifier: Apache-2.0 */
#include "ops.h"

#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)

static const struct {
	const char *name;
	job_work *work;
} table[] = {
	{"get", ops_get}, {"put", ops_put}, {"glob", ops_glob}, {"mount", ops_mount}, {"identity", ops_identity},
	{"freeze", ops_freeze}, {"power", ops_power}, {"settle", ops_settle},
};

job_work *ops_find(const char *name)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (strcmp(table[i].name, name) == 0)
			return table[i].work;
	return NULL;
}

static void add_line(struct answer *answer, const char *key, const char *path)
{
	char line[128] = "";
	FILE *file = fopen(path, "re");

	if (file == NULL)
		return;
	if (fgets(line, sizeof line, file) != NULL) {
		line[strcspn(line, "\n")] = 0;
		words_add(answer, key, "%s", line);
	}
	fclose(file);
}

static void add_memory(struct answer *answer)
{
	static const char *const keys[][2] = {{"MemTotal:", "memory-total"}, {"MemAvailable:", "memory-available"}};
	char line[128];
	FILE *file = fopen("/proc/meminfo", "re");

	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		for (int i = 0; i < 2; i++)
			if (strncmp(line, keys[i][0], strlen(keys[i][0])) == 0)
				words_add(answer, keys[i][1], "%llu",
					  strtoull(line + strlen(keys[i][0]), NULL, 10) * 1024);
	if (file != NULL)
		fclose(file);
}

static void add_load(struct answer *answer)
{
	char load[3][16], line[128] = "";
	unsigned long running, all;
	FILE *file = fopen("/proc/loadavg", "re");

	if (file == NULL)
		return;
	if (fgets(line, sizeof line, file) != NULL &&
	    sscanf(line, "%15s %15s %15s %lu/%lu", load[0], load[1], load[2], &running, &all) == 5) {
		words_add(answer, "load1", "%s", load[0]);
		words_add(answer, "load5", "%s", load[1]);
		words_add(answer, "load15", "%s", load[2]);
		words_add(answer, "processes", "%lu", all);
	}
	fclose(file);
}

/* JSON of several lines as one, without the white space before each; what is too long ends early. */
static void add_json(struct answer *answer, const char *key, const char *path)
{
	char text[6144];
	size_t length = 0;
	bool begins = true;
	FILE *file = fopen(path, "re");
	int found;

	if (file == NULL)
		return;
	while (length < sizeof text - 1 && (found = fgetc(file)) != EOF) {
		if (found == '\n' || found == 0 || (begins && found == ' ')) {
			begins = true;
			continue;
		}
		begins = false;
		text[length++] = (char)found;
	}
	text[length] = 0;
	words_add(answer, key, "%s", text);
	fclose(file);
}

void ops_metrics(const struct words *words, struct answer *answer)
{
	struct timespec now;
	struct statvfs root;

	if (clock_gettime(CLOCK_BOOTTIME, &now) == 0)
		words_add(answer, "uptime", "%lld.%02ld", (long long)now.tv_sec, now.tv_nsec / 10000000);
	if (clock_gettime(CLOCK_REALTIME, &now) == 0)
		words_add(answer, "clock", "%lld.%06ld", (long long)now.tv_sec, now.tv_nsec / 1000);
	add_load(answer);
	add_memory(answer);
	if (statvfs("/", &root) == 0) {
		words_add(answer, "disk-total", "%llu", (unsigned long long)root.f_blocks * root.f_frsize);
		words_add(answer, "disk-available", "%llu", (unsigned long long)root.f_bavail * root.f_frsize);
	}
	add_line(answer, "boot-id", "/proc/sys/kernel/random/boot_id");
	add_line(answer, "hostname", "/proc/sys/kernel/hostname");
	if (words_is(words, "with", "cloud-init"))
		add_json(answer, "cloud-init", "/run/cloud-init/status.json");
}

static void make_dirs(char *path)
{
	for (char *at = path + 1; (at = strchr(at, '/')) != NULL; at++) {
		*at = 0;
		mkdir(path, 0755);
		*at = '/';
	}
	mkdir(path, 0755);
}

bool ops_mount_share(const char *type, bool read_only, const char *tag, const char *target)
{
	bool virtiofs = strcmp(type, "virtiofs") == 0;
	char *made = strdup(target);
	bool good = false;

	if (made != NULL) {
		make_dirs(made);
		good = mount(tag, made, virtiofs ? "virtiofs" : "9p", read_only ? MS_RDONLY : 0,
			     virtiofs ? "" : "trans=virtio,version=9p2000.L,msize=262144") == 0;
	}
	if (!good)
		spawn_say("cannot mount %s at %s: %s", tag, target, strerror(errno));
	free(made);
	return good;
}

int ops_mount(const struct words *words)
{
	const char *tag = words_find(words, "tag");
	const char *target = words_find(words, "target");
	const char *type = words_find(words, "type");

	if (tag == NULL || target == NULL || *target != '/') {
		spawn_say("a mount has a tag and an absolute target");
		return 2;
	}
	return ops_mount_share(type != NULL ? type : "9p", words_is(words, "mode", "ro"), tag, target) ? 0 : 1;
}

bool ops_write_file(const char *path, const char *text, mode_t mode)
{
	char temporary[256];
	size_t size = strlen(text);
	int fd;

	snprintf(temporary, sizeof temporary, "%s.pvc-agent", path);
	fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
	if (fd >= 0 && fchmod(fd, mode) == 0 && write(fd, text, size) == (ssize_t)size &&
	    (size == 0 || text[size - 1] == '\n' || write(fd, "\n", 1) == 1) && close(fd) == 0 &&
	    rename(temporary, path) == 0)
		return true;
	spawn_say("cannot write %s: %s", path, strerror(errno));
	unlink(temporary);
	return false;
}

/* Whoever was cloned would repeat the random numbers of its siblings. */
static bool stir(const char *hex)
{
	/* struct rand_pool_info of linux/random.h, which musl does not bring along */
	struct {
		int entropy_count;
		int buf_size;
		unsigned char bytes[256];
	} pool;
	size_t count = 0;
	unsigned byte;
	bool good;
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	for (; count < sizeof pool.bytes && sscanf(hex + 2 * count, "%2x", &byte) == 1; count++)
		pool.bytes[count] = (unsigned char)byte;
	pool.buf_size = (int)count;
	pool.entropy_count = (int)count * 8;
	good = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0;
	if (!good)
		spawn_say("cannot add to the kernel's random numbers: %s", strerror(errno));
	/* Kernels before 4.14 have no such request, and mix at once. */
	if (good)
		ioctl(fd, RNDRESEEDCRNG);
	if (fd >= 0)
		close(fd);
	return good;
}

bool ops_set_hostname(const char *name)
{
	bool good = sethostname(name, strlen(name)) == 0;

	if (!good)
		spawn_say("cannot set the host name: %s", strerror(errno));
	/* A guest may have no more than a kernel and its agent. */
	return (access("/etc", F_OK) < 0 || ops_write_file("/etc/hostname", name, 0644)) && good;
}

int ops_identity(const struct words *words)
{
	const char *text;
	bool good = true;

	if ((text = words_find(words, "hostname")) != NULL)
		good = ops_set_hostname(text);
	if ((text = words_find(words, "machine-id")) != NULL)
		good = ops_write_file("/etc/machine-id", text, 0444) && good;
	if ((text = words_find(words, "random")) != NULL)
		good = stir(text) && good;
	if ((text = words_find(words, "clock")) != NULL) {
		double seconds = strtod(text, NULL);
		struct timeval now = {.tv_sec = (time_t)seconds};

		now.tv_usec = (suseconds_t)((seconds - (double)now.tv_sec) * 1e6);
		errno = EINVAL;
		if (seconds < 1 || settimeofday(&now, NULL) < 0) {
			spawn_say("cannot set the clock: %s", strerror(errno));
			good = false;
		}
	}
	for (text = NULL; (text = words_next(words, "address", text)) != NULL;)
		good = ops_set_address(text) && good;
	if ((text = words_find(words, "host-key")) != NULL) {
		good = ops_write_file(OPS_HOST_KEY, text, 0600) && good;
		/* Where pvc's own images keep the cluster's key. */
		if (access("/etc/ssh/seed_host_ed25519_key", F_OK) == 0)
			good = ops_write_file("/etc/ssh/seed_host_ed25519_key", text, 0600) && good;
	}
	if ((text = words_find(words, "host-key-pub")) != NULL)
		good = ops_write_file(OPS_HOST_KEY ".pub", text, 0644) && good;
	return good ? 0 : 1;
}

int ops_power(const struct words *words)
{
	const char *how = words_find(words, "how");
	bool again = words_is(words, "how", "reboot");
	const char *command = again ? "reboot" : words_is(words, "how", "halt") ? "halt" : "poweroff";

	if (how == NULL || (!again && strcmp(how, "off") != 0 && strcmp(how, "halt") != 0)) {
		spawn_say("power is off, reboot or halt");
		return 2;
	}
	sync();
	execlp(command, command, (char *)NULL);
	/* A guest without an init that could be asked. */
	reboot((int)(again ? RB_AUTOBOOT : strcmp(how, "halt") == 0 ? RB_HALT_SYSTEM : RB_POWER_OFF));
	spawn_say("cannot %s: %s", command, strerror(errno));
	return 1;
}

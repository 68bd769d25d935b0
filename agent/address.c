/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of a guest that becomes another one, set by its own ip(8). */
#include "ops.h"
#include "spawn.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAC_LENGTH 17

/* struct sockaddr_nl, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR of headers that musl does not bring along */
struct netlink_place {
	sa_family_t family;
	unsigned short pad;
	uint32_t process, groups;
};
#define NEW_ADDRESSES 0x110u

struct wanted {
	int parts;
	char address[64], gateway[64], name[IF_NAMESIZE], family[3];
};

/* The interface with this MAC; of several (bonds and VLANs take that of a device) the one that is a device. */
static bool find_interface(const char *mac, char name[IF_NAMESIZE])
{
	DIR *all = opendir("/sys/class/net");
	const struct dirent *each;
	bool found = false, device = false;

	while (all != NULL && !device && (each = readdir(all)) != NULL) {
		char path[320], text[32] = "";
		FILE *file;

		snprintf(path, sizeof path, "/sys/class/net/%.200s/address", each->d_name);
		file = strlen(each->d_name) < IF_NAMESIZE ? fopen(path, "re") : NULL;
		if (file == NULL)
			continue;
		if (fgets(text, sizeof text, file) != NULL && strncasecmp(text, mac, MAC_LENGTH) == 0 &&
		    text[MAC_LENGTH] == '\n') {
			strcpy(name, each->d_name);
			found = true;
			snprintf(path, sizeof path, "/sys/class/net/%.200s/device", each->d_name);
			device = access(path, F_OK) == 0;
		}
		fclose(file);
	}
	if (all != NULL)
		closedir(all);
	return found;
}

static bool run(char *const argv[])
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		execvp(argv[0], argv);
		spawn_say("cannot run %s: %s", argv[0], strerror(errno));
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		continue;
	return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#define IP(...) run((char *const[]){(char *)"ip", __VA_ARGS__, NULL})

/* Its parts; false: it is none, or there is no such interface. */
static bool parse(struct wanted *wanted, const char *text)
{
	char mac[32];

	*wanted = (struct wanted){.family = "-4"};
	wanted->parts = sscanf(text, "%31s %63s %63s", mac, wanted->address, wanted->gateway);
	if (wanted->parts < 2 || strlen(mac) != MAC_LENGTH || !isxdigit((unsigned char)wanted->address[0])) {
		spawn_say("an address is MAC ADDRESS/PREFIX and perhaps a gateway");
		return false;
	}
	if (!find_interface(mac, wanted->name)) {
		spawn_say("no interface has the address %s", mac);
		return false;
	}
	wanted->family[1] = strchr(wanted->address, ':') != NULL ? '6' : '4';
	return true;
}

static bool set(struct wanted *wanted)
{
	char *name = wanted->name, *family = wanted->family;
	bool good = IP(family, (char *)"address", (char *)"flush", (char *)"dev", name, (char *)"scope",
		       (char *)"global") &&
		    IP((char *)"link", (char *)"set", name, (char *)"up") &&
		    IP(family, (char *)"address", (char *)"add", wanted->address, (char *)"dev", name) &&
		    (wanted->parts < 3 || IP(family, (char *)"route", (char *)"replace", (char *)"default",
					     (char *)"via", wanted->gateway, (char *)"dev", name));

	if (!good)
		spawn_say("cannot give %s the address %s", wanted->name, wanted->address);
	return good;
}

static bool has_address(const struct wanted *wanted)
{
	const int family = wanted->family[1] == '6' ? AF_INET6 : AF_INET;
	struct ifaddrs *all = NULL;
	bool found = false;

	if (getifaddrs(&all) < 0)
		return false;
	for (const struct ifaddrs *each = all; each != NULL && !found; each = each->ifa_next) {
		const struct sockaddr_in6 *six = (const void *)each->ifa_addr;

		found = six != NULL && six->sin6_family == family && strcmp(each->ifa_name, wanted->name) == 0 &&
			(family == AF_INET || !IN6_IS_ADDR_LINKLOCAL(&six->sin6_addr));
	}
	freeifaddrs(all);
	return found;
}

bool ops_set_address(const char *text)
{
	struct wanted wanted;

	return parse(&wanted, text) && set(&wanted);
}

bool ops_give_address(const char *text, int64_t until)
{
	struct netlink_place place = {.family = AF_NETLINK, .groups = NEW_ADDRESSES};
	struct wanted wanted;
	char news[4096];
	int changes;

	if (!parse(&wanted, text))
		return false;
	/* Somebody may be asking for one: it would be the same. */
	changes = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (changes >= 0 && bind(changes, (struct sockaddr *)&place, sizeof place) == 0)
		while (!has_address(&wanted) && job_now() < until)
			if (poll(&(struct pollfd){.fd = changes, .events = POLLIN}, 1, (int)(until - job_now())) > 0)
				(void)!recv(changes, news, sizeof news, 0);
	if (changes >= 0)
		close(changes);
	return has_address(&wanted) || set(&wanted);
}

/* Addresses of a guest that becomes another one, set by its own ip(8). */
#include "ops.h"
#include "spawn.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAC_LENGTH 17

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

bool ops_set_address(const char *text)
{
	char mac[32], address[64], gateway[64] = "", name[IF_NAMESIZE];
	char family[3] = "-4";
	int parts = sscanf(text, "%31s %63s %63s", mac, address, gateway);
	bool good;

	if (parts < 2 || strlen(mac) != MAC_LENGTH || !isxdigit((unsigned char)address[0])) {
		spawn_say("an address is MAC ADDRESS/PREFIX and perhaps a gateway");
		return false;
	}
	if (!find_interface(mac, name)) {
		spawn_say("no interface has the address %s", mac);
		return false;
	}
	family[1] = strchr(address, ':') != NULL ? '6' : '4';
	good = IP(family, (char *)"address", (char *)"flush", (char *)"dev", name, (char *)"scope", (char *)"global") &&
	       IP((char *)"link", (char *)"set", name, (char *)"up") &&
	       IP(family, (char *)"address", (char *)"add", address, (char *)"dev", name) &&
	       (parts < 3 || IP(family, (char *)"route", (char *)"replace", (char *)"default", (char *)"via", gateway,
				(char *)"dev", name));
	if (!good)
		spawn_say("cannot give %s the address %s", name, address);
	return good;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* pvc-agent(7): finds its port and serves it for ever. */
#include "job.h"
#include "session.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "pvc.agent"
#define HELLO_MS 1000
#define PAUSE_MS 250

static struct port port;
static struct chans chans = {.port = &port};

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* The kernel names ports in /sys; the links in /dev/virtio-ports are udev's, which not every guest has. */
static int open_named_port(void)
{
	DIR *ports = opendir("/sys/class/virtio-ports");
	const struct dirent *entry;
	int fd = -1;

	while (fd < 0 && ports != NULL && (entry = readdir(ports)) != NULL) {
		char path[320], name[64] = "";
		FILE *file;

		snprintf(path, sizeof path, "/sys/class/virtio-ports/%.255s/name", entry->d_name);
		file = fopen(path, "re");
		if (file == NULL)
			continue;
		if (fgets(name, sizeof name, file) != NULL && strcmp(name, PORT_NAME "\n") == 0) {
			snprintf(path, sizeof path, "/dev/%.255s", entry->d_name);
			fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		}
		fclose(file);
	}
	if (ports != NULL)
		closedir(ports);
	return fd;
}

static int open_path(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0 || errno != ENXIO || strlen(path) >= sizeof address.sun_path)
		return fd;
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
			fcntl(fd, F_SETFL, O_NONBLOCK) < 0)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* One turn: wait, then move what can be moved. Returns false when the port is gone. */
static bool turn(int signals)
{
	static struct pollfd polls[2 + 3 * CHAN_MOST];
	static size_t counts[CHAN_MOST];
	int64_t now = job_now(), next = job_tend(&chans, now);
	size_t total = 2;
	int timeout = port.established ? -1 : HELLO_MS;
	struct signalfd_siginfo info;

	if (next != 0 && (timeout < 0 || next - now < timeout))
		timeout = (int)(next > now ? next - now : 0);
	polls[0] = (struct pollfd){.fd = port.fd, .events = 0};
	if (port_room(&port) >= PORT_RESERVE)
		polls[0].events |= POLLIN;
	if (port_has_output(&port))
		polls[0].events |= POLLOUT;
	polls[1] = (struct pollfd){.fd = signals, .events = POLLIN};
	for (size_t i = 0; i < CHAN_MOST; i++) {
		counts[i] = chans.table[i].behind != NOTHING ? chan_polls(&chans, &chans.table[i], polls + total) : 0;
		total += counts[i];
	}
	if (poll(polls, total, timeout) < 0 && errno != EINTR)
		return false;
	if ((polls[1].revents & POLLIN) != 0 && read(signals, &info, sizeof info) > 0)
		job_tend(&chans, job_now());
	if ((polls[0].revents & (POLLHUP | POLLERR)) != 0 && (polls[0].revents & POLLIN) == 0)
		return false;
	if ((polls[0].revents & POLLIN) != 0 && !port_fill(&port))
		return false;
	session_take(&chans);
	total = 2;
	for (size_t k = 0; k < CHAN_MOST; k++) {
		bool ready = false;

		for (size_t i = 0; i < counts[k]; i++)
			ready = ready || polls[total + i].revents != 0;
		total += counts[k];
		chans.table[k].ready = ready;
	}
	/* Each turn begins with another stream, so that none is always last. */
	chans.turn = (chans.turn + 1) % CHAN_MOST;
	for (size_t k = 0; k < CHAN_MOST; k++) {
		struct chan *chan = &chans.table[(chans.turn + k) % CHAN_MOST];

		if (chan->behind != NOTHING && (chan->ready || chan->exited || chan->in_over || chan->ring_length > 0))
			chan_pump(&chans, chan);
	}
	return port_flush(&port);
}

static bool serve(int signals)
{
	int64_t said = 0;

	for (;;) {
		int64_t now = job_now();

		if (!port.established && !port_has_output(&port) && now - said >= HELLO_MS) {
			port_hello(&port, 0);
			said = now;
		}
		if (!turn(signals))
			return errno != ENODEV;
	}
}

int main(int argc, char **argv)
{
	const char *path = NULL;
	sigset_t wanted;
	int signals, null;

	if (argc == 2 && strcmp(argv[1], "--version") == 0) {
		printf("pvc-agent %s, protocol 1\n", PVC_RELEASE);
		return 0;
	}
	if (argc == 3 && strcmp(argv[1], "--port") == 0) {
		path = argv[2];
	} else if (argc != 1) {
		fprintf(stderr, "usage: pvc-agent [--port FILE | --version]\n");
		return 2;
	}
	/* Children get their pipes in place of these three; none of them may be a pipe itself. */
	do
		null = open("/dev/null", O_RDWR);
	while (null >= 0 && null <= 2);
	close(null);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGCHLD);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	signal(SIGPIPE, SIG_IGN);
	signals = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0 || getrandom(&port.agent, sizeof port.agent, GRND_NONBLOCK) < 0)
		port.agent = (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid();
	for (;;) {
		port.fd = path != NULL ? open_path(path) : open_named_port();
		/* The module that makes the port may come later. */
		if (port.fd < 0) {
			if (path != NULL && errno != EBUSY && errno != ENOENT) {
				perror(path);
				return 1;
			}
			/* Those that were told to end when the port went do. */
			job_tend(&chans, job_now());
			pause_ms(PAUSE_MS);
			continue;
		}
		serve(signals);
		session_end(&chans);
		port.established = false;
		port.start = port.end = 0;
		memset(&port.decoder, 0, offsetof(struct decoder, buffer));
		close(port.fd);
		pause_ms(PAUSE_MS);
	}
}

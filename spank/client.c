/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common.h"

/* 1: ready, 0: the deadline has passed. Errors of the socket show in the call that follows. */
static int wait_for(int fd, short events, int64_t deadline_ms)
{
	for (;;) {
		struct pollfd ready = {.fd = fd, .events = events, .revents = 0};
		int left = pvc_common_left_ms(deadline_ms);
		int count = poll(&ready, 1, left);

		if (count > 0)
			return 1;
		if (left == 0)
			return 0;
	}
}

/* Connected, or -1. A full backlog (EAGAIN) counts as no daemon: the cold path shares its locks. */
static int open_socket(const char *path, const char *end)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = ""};
	struct ucred peer = {0};
	socklen_t length = sizeof(peer);
	int fd = pvc_common_above_stdio(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));

	if (fd < 0)
		goto fail;
	if (snprintf(address.sun_path, sizeof(address.sun_path), "%s%s", path, end) >= (int)sizeof(address.sun_path))
		goto fail;
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		goto fail;
	/* A socket that someone else holds open at this path is not the daemon. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 || peer.uid != geteuid()) {
		slurm_error("pvc: %s belongs to uid %u: not asked", path, (unsigned int)peer.uid);
		goto fail;
	}
	return fd;
fail:
	pvc_common_close(&fd);
	return -1;
}

/* 0: sent, or the daemon has closed its end (its answer may be there all the same); -1: the deadline. */
static int send_text(int fd, const char *text, int64_t deadline_ms)
{
	size_t left = strlen(text);

	while (left > 0) {
		ssize_t count = send(fd, text, left, MSG_NOSIGNAL);

		if (count >= 0) {
			text += count;
			left -= (size_t)count;
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			if (wait_for(fd, POLLOUT, deadline_ms) == 0)
				return -1;
		} else if (errno != EINTR) {
			return 0;
		}
	}
	return 0;
}

/* 0: a line, or what came before the end; -1: the deadline. */
static int read_line(int fd, char *line, size_t size, int64_t deadline_ms)
{
	size_t length = 0;

	while (length < size - 1 && memchr(line, '\n', length) == NULL) {
		ssize_t count = recv(fd, line + length, size - 1 - length, 0);

		if (count > 0)
			length += (size_t)count;
		else if (count == 0)
			break;
		else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			if (wait_for(fd, POLLIN, deadline_ms) == 0)
				return -1;
		} else if (errno != EINTR)
			break;
	}
	line[length] = '\0';
	return 0;
}

/* "CODE TEXT\n": a code of one to three digits up to 255. */
static int parse_answer(const char *line, int *code, char *text, size_t size)
{
	int value = 0;
	size_t digits = strspn(line, "0123456789");
	const char *end = strchr(line, '\n');

	if (end == NULL || digits < 1 || digits > 3 || (line[digits] != ' ' && line[digits] != '\n'))
		return -1;
	for (size_t i = 0; i < digits; i++)
		value = value * 10 + (line[i] - '0');
	if (value > 255)
		return -1;
	*code = value;
	line += digits + (line[digits] == ' ');
	(void)snprintf(text, size, "%.*s", (int)(end - line), line);
	pvc_common_clean(text);
	return 0;
}

enum pvc_client_result pvc_client_ask(const char *path, const char *verb, char *const facts[], int64_t deadline_ms,
				      int *code, char *text, size_t size)
{
	enum pvc_client_result result = PVC_CLIENT_NO_ANSWER;
	char line[PVC_LINE_SIZE] = "";
	/* Users fill the backlog of their socket. Root has one of its own, in any but an older pvc-node. */
	int fd = open_socket(path, ".root");

	if (fd < 0)
		fd = open_socket(path, "");
	if (fd < 0)
		goto done;
	result = PVC_CLIENT_TIMED_OUT;
	(void)snprintf(line, sizeof(line), "PVC1 %s\n", verb);
	if (send_text(fd, line, deadline_ms) < 0)
		goto done;
	for (size_t i = 0; facts[i] != NULL; i++)
		if (send_text(fd, facts[i], deadline_ms) < 0 || send_text(fd, "\n", deadline_ms) < 0)
			goto done;
	if (send_text(fd, "\n", deadline_ms) < 0)
		goto done;
	(void)shutdown(fd, SHUT_WR);
	if (read_line(fd, line, sizeof(line), deadline_ms) < 0)
		goto done;
	result = parse_answer(line, code, text, size) < 0 ? PVC_CLIENT_NO_ANSWER : PVC_CLIENT_ANSWERED;
done:
	if (result == PVC_CLIENT_TIMED_OUT)
		slurm_error("pvc: no answer from pvc-node at %s in time", path);
	pvc_common_close(&fd);
	return result;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define RESOLVE_S 60
#define FDS_MOST 1200 /* more than a full table of streams has */

/* What a process that was asked to connect to a name says; with a socket beside it if there is no error. */
struct found {
	int name_error; /* of getaddrinfo(3) */
	int error;      /* of connect(2) */
};

struct place {
	const char *name; /* no address: somebody has to look for it */
	int type;
	socklen_t length;
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
	} address;
};

static bool find_unix(struct place *place, const struct words *words)
{
	const char *path = words_find(words, "path");

	if (path == NULL || strlen(path) >= sizeof place->address.un.sun_path)
		return false;
	place->address.un.sun_family = AF_UNIX;
	memcpy(place->address.un.sun_path, path, strlen(path));
	place->length = sizeof place->address.un;
	return true;
}

/* An address, or the name of a host if the caller can do with one: a resolver would hold up all other streams. */
static bool find_place(struct place *place, const struct words *words, struct answer *answer)
{
	const char *host = words_find(words, "host");
	long port = words_number(words, "port", -1, 65535);
	struct addrinfo *found = NULL;
	struct addrinfo wanted;
	char text[24];
	int error;

	memset(place, 0, sizeof *place);
	place->type = words_is(words, "net", "udp") ? SOCK_DGRAM : SOCK_STREAM;
	if (words_is(words, "net", "unix")) {
		if (!find_unix(place, words))
			words_add(answer, "error", "a socket needs a path, and not a long one");
		return place->length > 0;
	}
	if ((!words_is(words, "net", "tcp") && !words_is(words, "net", "udp")) || port < 0) {
		words_add(answer, "error", "a connection is net=tcp, udp or unix, with a port from 0 to 65535");
		return false;
	}
	if (host == NULL || strcmp(host, "localhost") == 0)
		host = "127.0.0.1";
	snprintf(text, sizeof text, "%ld", port);
	memset(&wanted, 0, sizeof wanted);
	wanted.ai_socktype = place->type;
	wanted.ai_flags = AI_NUMERICSERV | AI_NUMERICHOST;
	error = getaddrinfo(host, text, &wanted, &found);
	if (error == EAI_NONAME && strlen(host) < 256) {
		place->name = host;
		return true;
	}
	if (error != 0 || found->ai_addrlen > sizeof place->address) {
		words_add(answer, "error", "%.255s is no address", host);
		if (error == 0)
			freeaddrinfo(found);
		return false;
	}
	memcpy(&place->address, found->ai_addr, found->ai_addrlen);
	place->length = found->ai_addrlen;
	freeaddrinfo(found);
	return true;
}

static void refuse(struct chans *chans, uint32_t stream, const struct answer *answer)
{
	port_send(chans->port, CLOSE, 0, stream, answer->text, answer->length);
}

static bool pump(struct chans *chans, struct chan *chan);

static const struct chan_kind KIND = {.pump = pump};

static struct chan *new_chan(struct chans *chans, uint32_t stream, enum behind behind, int fd, struct answer *answer)
{
	struct chan *chan = chan_new(chans, behind, &KIND, stream);

	if (chan == NULL) {
		close(fd);
		words_add(answer, "error", "the agent has %d streams already", CHAN_MOST);
		return NULL;
	}
	chan->in = chan->out[0] = fd;
	return chan;
}

static struct chan *new_socket(struct chans *chans, uint32_t stream, enum behind behind, const struct place *place,
			       struct answer *answer)
{
	int one = 1;
	int fd = socket(place->address.any.sa_family, place->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0) {
		words_add_error(answer, "no socket", errno);
		return NULL;
	}
	if (place->type == SOCK_STREAM && place->address.any.sa_family != AF_UNIX)
		setsockopt(fd, behind == LISTENER ? SOL_SOCKET : IPPROTO_TCP,
			   behind == LISTENER ? SO_REUSEADDR : TCP_NODELAY, &one, sizeof one);
	return new_chan(chans, stream, behind, fd, answer);
}

static void connected(struct chans *chans, struct chan *chan)
{
	struct answer answer = {.length = 0};

	chan->connecting = false;
	words_add(&answer, "connected", "1");
	port_send(chans->port, NOTE, 0, chan->stream, answer.text, answer.length);
	chan_grant(chans, chan);
	if (chan->in_over)
		chan_end(chan);
}

static void send_found(int to, struct found found, int fd)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof fd)];
	} control = {.header = {.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
	struct iovec data = {.iov_base = &found, .iov_len = sizeof found};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
		message.msg_control = &control;
		message.msg_controllen = sizeof control.space;
	}
	sendmsg(to, &message, MSG_NOSIGNAL);
}

/* A process of its own: look for the name, and connect to the first of its addresses that takes us. */
static _Noreturn void run_resolver(const struct place *place, long port, int to)
{
	struct addrinfo wanted = {.ai_socktype = place->type, .ai_flags = AI_NUMERICSERV};
	struct found found = {.error = 0};
	struct addrinfo *list = NULL;
	int fd = -1, one = 1;
	sigset_t none;
	char text[24];

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	alarm(RESOLVE_S);
	/* Others' pipes and sockets would stay open with this process. */
	for (int each = 3; each < FDS_MOST; each++)
		if (each != to)
			close(each);
	snprintf(text, sizeof text, "%ld", port);
	found.name_error = getaddrinfo(place->name, text, &wanted, &list);
	for (const struct addrinfo *at = list; found.name_error == 0 && at != NULL && fd < 0; at = at->ai_next) {
		fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, 0);
		if (fd < 0 || connect(fd, at->ai_addr, at->ai_addrlen) < 0) {
			found.error = errno;
			if (fd >= 0)
				close(fd);
			fd = -1;
		}
	}
	if (fd >= 0) {
		found.error = 0;
		if (place->type == SOCK_STREAM)
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	}
	send_found(to, found, fd);
	_exit(0);
}

static struct chan *start_resolver(struct chans *chans, uint32_t stream, const struct place *place, long port,
				   struct answer *answer)
{
	struct chan *chan;
	int ends[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0) {
		words_add_error(answer, "no socket", errno);
		return NULL;
	}
	pid = fork();
	if (pid == 0)
		run_resolver(place, port, ends[1]);
	close(ends[1]);
	if (pid < 0) {
		words_add_error(answer, "no process", errno);
		close(ends[0]);
		return NULL;
	}
	chan = new_chan(chans, stream, place->type == SOCK_DGRAM ? DATAGRAMS : SOCKET, ends[0], answer);
	if (chan != NULL)
		chan->connecting = chan->resolving = true;
	return chan;
}

/* The resolver has spoken or ended. Returns the connected socket, or -1 and says why. */
static int take_found(const struct chan *chan, struct answer *answer)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct found found = {.error = ETIMEDOUT};
	struct iovec data = {.iov_base = &found, .iov_len = sizeof found};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
				 .msg_controllen = sizeof control.space};
	ssize_t count = recvmsg(chan->in, &message, MSG_CMSG_CLOEXEC);
	int fd = -1;

	if (count == (ssize_t)sizeof found && CMSG_FIRSTHDR(&message) != NULL) {
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
		return fd;
	}
	if (count == (ssize_t)sizeof found && found.name_error == EAI_NONAME)
		words_add(answer, "error", "cannot connect: the name is not known in the guest");
	else if (count == (ssize_t)sizeof found && found.name_error != 0)
		words_add(answer, "error", "cannot connect: the guest cannot look for the name: %s",
			  gai_strerror(found.name_error));
	else
		words_add_error(answer, "cannot connect", count == (ssize_t)sizeof found ? found.error : ETIMEDOUT);
	return -1;
}

static void resolved(struct chans *chans, struct chan *chan)
{
	struct answer answer = {.length = 0};
	int fd = take_found(chan, &answer);

	if (fd < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		if (fd >= 0)
			close(fd);
		chan_close(chans, chan, &answer);
		return;
	}
	close(chan->in);
	chan->in = chan->out[0] = fd;
	chan->resolving = false;
	connected(chans, chan);
}

void sock_connect(struct chans *chans, uint32_t stream, const struct words *words)
{
	struct answer answer = {.length = 0};
	struct chan *chan = NULL;
	struct place place;

	if (!find_place(&place, words, &answer))
		chan = NULL;
	else if (place.name != NULL)
		chan = start_resolver(chans, stream, &place, words_number(words, "port", -1, 65535), &answer);
	else
		chan = new_socket(chans, stream, place.type == SOCK_DGRAM ? DATAGRAMS : SOCKET, &place, &answer);
	if (chan == NULL) {
		refuse(chans, stream, &answer);
	} else if (chan->resolving) {
		return;
	} else if (connect(chan->in, &place.address.any, place.length) == 0) {
		connected(chans, chan);
	} else if (errno == EINPROGRESS) {
		chan->connecting = true;
	} else {
		words_add_error(&answer, "cannot connect", errno);
		chan_close(chans, chan, &answer);
	}
}

void sock_listen(struct chans *chans, uint32_t stream, const struct words *words)
{
	struct answer answer = {.length = 0};
	struct chan *chan = NULL;
	struct place place;

	if (words_is(words, "net", "udp"))
		words_add(&answer, "error", "a datagram socket does not listen");
	else if (!find_place(&place, words, &answer))
		chan = NULL;
	else if (place.name != NULL)
		words_add(&answer, "error", "%.255s is no address", place.name);
	else
		chan = new_socket(chans, stream, LISTENER, &place, &answer);
	if (chan == NULL) {
		refuse(chans, stream, &answer);
		return;
	}
	if (bind(chan->in, &place.address.any, place.length) < 0 || listen(chan->in, 64) < 0) {
		words_add_error(&answer, "cannot listen", errno);
		chan_close(chans, chan, &answer);
		return;
	}
	if (place.address.any.sa_family == AF_UNIX) {
		chan->path = strdup(place.address.un.sun_path);
		words_add(&answer, "port", "0");
	} else if (getsockname(chan->in, &place.address.any, &place.length) == 0) {
		words_add(&answer, "port", "%u", (unsigned)ntohs(place.address.in.sin_port));
	}
	port_send(chans->port, NOTE, 0, stream, answer.text, answer.length);
}

static void accept_one(struct chans *chans, const struct chan *listener)
{
	struct place place = {.length = sizeof place.address};
	int fd = accept4(listener->in, &place.address.any, &place.length, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct answer answer = {.length = 0};
	char host[64] = "";
	struct chan *chan;

	if (fd < 0)
		return;
	chans->last_stream = (chans->last_stream + 1) & 0x7fffffff;
	chan = chan_new(chans, SOCKET, &KIND, 0x80000000u | chans->last_stream);
	if (chan == NULL) {
		close(fd);
		return;
	}
	chan->in = chan->out[0] = fd;
	if (place.address.any.sa_family != AF_UNIX)
		getnameinfo(&place.address.any, place.length, host, sizeof host, NULL, 0, NI_NUMERICHOST);
	words_add(&answer, "op", "accepted");
	words_add(&answer, "parent", "%u", (unsigned)listener->stream);
	words_add(&answer, "peer", "%s", host);
	port_send(chans->port, OPEN, 0, chan->stream, answer.text, answer.length);
	chan_grant(chans, chan);
}

/* A connection that is being made, or a listener that has one: no data moves. */
static bool pump(struct chans *chans, struct chan *chan)
{
	struct answer answer = {.length = 0};
	int error = 0;
	socklen_t length = sizeof error;

	if (chan->behind != LISTENER && !chan->connecting)
		return false;
	if (port_room(chans->port) < PORT_RESERVE)
		return true;
	if (chan->behind == LISTENER) {
		if (poll(&(struct pollfd){.fd = chan->in, .events = POLLIN}, 1, 0) > 0)
			accept_one(chans, chan);
		return true;
	}
	if (poll(&(struct pollfd){.fd = chan->in, .events = chan->resolving ? POLLIN : POLLOUT}, 1, 0) <= 0)
		return true;
	if (chan->resolving) {
		resolved(chans, chan);
		return true;
	}
	getsockopt(chan->in, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error == 0) {
		connected(chans, chan);
		return true;
	}
	words_add_error(&answer, "cannot connect", error);
	chan_close(chans, chan, &answer);
	return true;
}

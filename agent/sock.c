#include "sock.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct place {
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

/* Addresses only: a resolver would hold up all other streams. */
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

static struct chan *new_socket(struct chans *chans, uint32_t stream, enum behind behind, const struct place *place,
			       struct answer *answer)
{
	int one = 1;
	int fd = socket(place->address.any.sa_family, place->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct chan *chan;

	if (fd < 0) {
		words_add_error(answer, "no socket", errno);
		return NULL;
	}
	if (place->type == SOCK_STREAM && place->address.any.sa_family != AF_UNIX)
		setsockopt(fd, behind == LISTENER ? SOL_SOCKET : IPPROTO_TCP,
			   behind == LISTENER ? SO_REUSEADDR : TCP_NODELAY, &one, sizeof one);
	chan = chan_new(chans, behind, stream);
	if (chan == NULL) {
		close(fd);
		words_add(answer, "error", "the agent has %d streams already", CHAN_MOST);
		return NULL;
	}
	chan->in = chan->out[0] = fd;
	return chan;
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

void sock_connect(struct chans *chans, uint32_t stream, const struct words *words)
{
	struct answer answer = {.length = 0};
	struct chan *chan = NULL;
	struct place place;

	if (find_place(&place, words, &answer))
		chan = new_socket(chans, stream, place.type == SOCK_DGRAM ? DATAGRAMS : SOCKET, &place, &answer);
	if (chan == NULL) {
		refuse(chans, stream, &answer);
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
	else if (find_place(&place, words, &answer))
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
	chan = chan_new(chans, SOCKET, 0x80000000u | chans->last_stream);
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

void sock_pump(struct chans *chans, struct chan *chan)
{
	struct answer answer = {.length = 0};
	int error = 0;
	socklen_t length = sizeof error;

	if (port_room(chans->port) < PORT_RESERVE)
		return;
	if (chan->behind == LISTENER) {
		if (poll(&(struct pollfd){.fd = chan->in, .events = POLLIN}, 1, 0) > 0)
			accept_one(chans, chan);
		return;
	}
	if (poll(&(struct pollfd){.fd = chan->in, .events = POLLOUT}, 1, 0) <= 0)
		return;
	getsockopt(chan->in, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error == 0) {
		connected(chans, chan);
		return;
	}
	words_add_error(&answer, "cannot connect", error);
	chan_close(chans, chan, &answer);
}

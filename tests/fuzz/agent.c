/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's side of the port under libFuzzer: bytes of a host in pieces, down to the streams behind them. What its
   requests would do to a guest (processes, files, addresses) is left out here; each gets a socket in its place. */
#include "job.h"
#include "ops.h"
#include "session.h"
#include "sock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEERS 64

static struct port port;
static struct chans chans = {.port = &port};
static int peers[PEERS];
static size_t peer_count;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool good)
{
	if (!good)
		abort();
}

/* All that a request says is looked at, as those do that are left out. */
static void read_words(const struct words *words)
{
	static const char *const keys[] = {"op", "arg", "env", "user", "cwd", "id", "port", "rows", "path", "net"};

	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
		const char *each = NULL;

		while ((each = words_next(words, keys[i], each)) != NULL)
			must(strlen(each) < words->length);
		must(words_number(words, keys[i], 7, 65535) <= 65535);
	}
}

static const struct chan_kind KIND = {NULL, NULL, NULL};

static void give_socket(uint32_t stream, const struct words *words, enum behind behind)
{
	int pair[2];
	struct chan *chan;

	read_words(words);
	if (peer_count == PEERS || (chan = chan_new(&chans, behind, &KIND, stream)) == NULL)
		return;
	must(socketpair(AF_UNIX, (behind == SOCKET ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0, pair) == 0);
	peers[peer_count++] = pair[1];
	chan->in = chan->out[0] = pair[0];
	chan_grant(&chans, chan);
	must(write(pair[1], "hello", 5) == 5);
}

void job_start(struct chans *all, uint32_t stream, const struct words *words, job_work *work)
{
	(void)all;
	give_socket(stream, words, work != NULL ? DATAGRAMS : SOCKET);
}

void job_attach(struct chans *all, uint32_t stream, const struct words *words)
{
	(void)all;
	give_socket(stream, words, SOCKET);
}

void job_list(struct chans *all, uint32_t stream)
{
	port_send(all->port, CLOSE, 0, stream, NULL, 0);
}

void job_note(struct chan *chan, const struct words *words)
{
	(void)chan;
	read_words(words);
}

void sock_connect(struct chans *all, uint32_t stream, const struct words *words)
{
	(void)all;
	give_socket(stream, words, SOCKET);
}

void sock_listen(struct chans *all, uint32_t stream, const struct words *words)
{
	(void)all;
	give_socket(stream, words, DATAGRAMS);
}

static int no_work(const struct words *words)
{
	(void)words;
	return 0;
}

job_work *ops_find(const char *name)
{
	return strcmp(name, "put") == 0 || strcmp(name, "get") == 0 ? no_work : NULL;
}

void ops_metrics(const struct words *words, struct answer *answer)
{
	(void)words;
	words_add(answer, "load1", "%s", "0.5");
}

/* What was said is frames, and nothing else. */
static void check_output(void)
{
	for (size_t at = port.start; at < port.end;) {
		const uint8_t *head = port.out + at;

		if (*head == 0) {
			at++;
			continue;
		}
		must(port.end - at >= FRAME_HEADER && head[0] <= CLOSE && frame_get32(head + 8) <= FRAME_MAX);
		at += FRAME_HEADER + frame_get32(head + 8);
		must(at <= port.end);
	}
	port.start = port.end = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* The first byte says in what pieces it comes. */
	size_t piece = size > 0 && data[0] > 0 ? data[0] : 65536;

	port.established = true;
	port.session = 1;
	port.agent = 2;
	port.decoder.in_step = true;
	port.decoder.start = port.decoder.end = 0;
	for (size_t at = 1; at < size; at += piece) {
		size_t room, count = size - at < piece ? size - at : piece;
		uint8_t *place = frame_room(&port.decoder, &room);

		must(count <= room);
		memcpy(place, data + at, count);
		frame_filled(&port.decoder, count);
		session_take(&chans);
		for (size_t i = 0; i < CHAN_MOST; i++)
			if (chans.table[i].behind != NOTHING)
				chan_pump(&chans, &chans.table[i]);
		check_output();
	}
	session_end(&chans);
	while (peer_count > 0)
		close(peers[--peer_count]);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "job.h"

#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_MS 2000
#define WORK_PATIENCE_MS 60000 /* our own work tidies up */

int64_t job_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void set_size(int terminal, const struct words *words)
{
	long rows = words_number(words, "rows", 24, 9999);
	long columns = words_number(words, "cols", 80, 9999);
	struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns};

	if (rows > 0 && columns > 0)
		ioctl(terminal, TIOCSWINSZ, &size);
}

/* ends[0] is the parent's. */
static bool make_pipe(int ends[2], bool to_child)
{
	int both[2];

	if (pipe2(both, O_CLOEXEC) < 0)
		return false;
	ends[0] = both[to_child ? 1 : 0];
	ends[1] = both[to_child ? 0 : 1];
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	/* Fewer turns for much data; a kernel that refuses keeps its default. */
	fcntl(ends[0], F_SETPIPE_SZ, (int)CHAN_PIPE);
	return true;
}

static bool open_ends(struct chan *chan, const struct words *words, int child[3])
{
	int ends[2];

	if (chan->pty) {
		const char *name;

		chan->in = chan->out[0] = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
		if (chan->in < 0 || grantpt(chan->in) < 0 || unlockpt(chan->in) < 0 ||
		    (name = ptsname(chan->in)) == NULL)
			return false;
		set_size(chan->in, words);
		child[0] = child[1] = child[2] = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
		return child[0] >= 0;
	}
	if (words_is(words, "stdin", "0")) {
		child[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	} else if (make_pipe(ends, true)) {
		chan->in = ends[0];
		child[0] = ends[1];
	}
	for (int i = 0; i < 2; i++) {
		if (!make_pipe(ends, false))
			return false;
		chan->out[i] = ends[0];
		child[1 + i] = ends[1];
	}
	return child[0] >= 0;
}

static _Noreturn void run_child(struct chans *chans, const struct chan *chan, const struct words *words,
				job_work *work, const int child[3])
{
	sigset_t none;
	int code, fd;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* What the agent's own parent ignored (nohup does) a shell could not trap. */
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	setsid();
	if (chan->pty)
		ioctl(child[0], TIOCSCTTY, 0);
	for (int i = 0; i < 3; i++)
		if (dup2(child[i], i) < 0)
			_exit(126);
	/* The agent is not to be killed for memory; its children are. */
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "0", 1) == 1)
		close(fd);
	code = spawn_become(words);
	if (code != 0)
		_exit(code);
	if (work == NULL)
		_exit(spawn_exec(words));
	/* No exec closes what only the agent needs. */
	for (int i = 0; i < CHAN_MOST; i++) {
		struct chan *each = &chans->table[i];

		if (each->behind != NOTHING) {
			if (each->in > 2)
				close(each->in);
			if (each->out[0] > 2 && each->out[0] != each->in)
				close(each->out[0]);
			if (each->out[1] > 2)
				close(each->out[1]);
		}
	}
	for (int i = 0; i < 3; i++)
		if (child[i] > 2)
			close(child[i]);
	close(chans->port->fd);
	code = work(words);
	_exit(fflush(NULL) == 0 ? code : 1);
}

static void keep_title(struct chan *chan, const struct words *words)
{
	const char *each = NULL;
	size_t length = 0;

	chan->title = calloc(1, 1024);
	while (chan->title != NULL && (each = words_next(words, "arg", each)) != NULL && length < 1000) {
		int size = snprintf(chan->title + length, 1024 - length, "\targ=%.*s", 200, each);

		length += size > 0 ? (size_t)size : 0;
	}
	for (char *at = chan->title; at != NULL && *at != 0; at++)
		if (*at == '\n' || (*at == '\t' && strncmp(at, "\targ=", 5) != 0))
			*at = ' ';
}

/* The child leads its group only once it has come that far. */
static void signal_group(pid_t group, int number)
{
	if (kill(-group, number) < 0)
		kill(group, number);
}

static void ask_to_end(struct chan *chan)
{
	signal_group(chan->pid, SIGHUP);
	signal_group(chan->pid, SIGTERM);
	signal_group(chan->pid, SIGCONT);
	chan->kill_at = job_now() + (chan->work ? WORK_PATIENCE_MS : PATIENCE_MS);
}

static void add_result(struct answer *answer, const struct chan *chan)
{
	if (WIFSIGNALED(chan->status))
		words_add(answer, "signal", "%d", WTERMSIG(chan->status));
	else
		words_add(answer, "exit", "%d", WEXITSTATUS(chan->status));
}

static void forget_oldest(struct chans *chans)
{
	struct chan *oldest = NULL;
	size_t count = 0;

	for (size_t i = 0; i < CHAN_MOST; i++) {
		struct chan *chan = &chans->table[i];

		if (chan->behind == PROCESS && chan->detach && chan->exited && chan->stream == 0) {
			count++;
			if (oldest == NULL || chan->job < oldest->job)
				oldest = chan;
		}
	}
	if (count > CHAN_ENDED)
		chan_close(chans, oldest, &(struct answer){.length = 0});
}

/* Nobody is attached any more: it ends, unless it was to go on. */
static void left(struct chan *chan)
{
	chan->queued = 0;
	if (chan->detach)
		return;
	if (chan->in != chan->out[0])
		chan_shut(&chan->in);
	if (!chan->exited)
		ask_to_end(chan);
}

/* It has exited and all it said was sent. */
static void finish(struct chans *chans, struct chan *chan)
{
	struct answer answer = {.length = 0};

	if (chan->stream == 0 && chan->detach) {
		chan_shut(&chan->out[1]);
		if (chan->in == chan->out[0])
			chan->out[0] = -1;
		chan_shut(&chan->out[0]);
		chan_shut(&chan->in);
		forget_oldest(chans);
		return;
	}
	/* Its group may have more members that were told to end. */
	if (chan->kill_at != 0 && kill(-chan->pid, 0) == 0)
		return;
	/* There may be more to say than there is credit for. */
	if (chan->stream != 0 && chan->credit == 0 && chan->since_exit <= 2 * CHAN_PIPE)
		for (int i = 0; i < 2; i++)
			if (chan->out[i] >= 0 && poll(&(struct pollfd){.fd = chan->out[i], .events = POLLIN}, 1, 0) > 0)
				return;
	add_result(&answer, chan);
	chan_close(chans, chan, &answer);
}

/* Send what a detached command said before. */
static bool replay(struct chans *chans, struct chan *chan)
{
	size_t size = chan->ring_length < chan->credit ? chan->ring_length : chan->credit;

	if (chan->stream == 0 || size == 0 || port_room(chans->port) < PORT_RESERVE + FRAME_MAX + FRAME_HEADER)
		return false;
	port_send(chans->port, DATA, 0, chan->stream, chan->ring, size);
	chan->credit -= size;
	chan->ring_length -= size;
	memmove(chan->ring, chan->ring + size, chan->ring_length);
	return false;
}

static const struct chan_kind KIND = {.pump = replay, .left = left, .over = finish};

void job_start(struct chans *chans, uint32_t stream, const struct words *words, job_work *work)
{
	struct chan *chan = chan_new(chans, PROCESS, &KIND, stream);
	struct answer answer = {.length = 0};
	int child[3] = {-1, -1, -1};

	if (chan == NULL) {
		words_add(&answer, "error", "the agent has %d streams already", CHAN_MOST);
		port_send(chans->port, CLOSE, 0, stream, answer.text, answer.length);
		return;
	}
	chan->work = work != NULL;
	chan->pty = work == NULL && words_is(words, "pty", "1");
	chan->detach = work == NULL && words_is(words, "detach", "1");
	if (open_ends(chan, words, child))
		chan->pid = fork();
	else
		chan->pid = -1;
	if (chan->pid == 0)
		run_child(chans, chan, words, work, child);
	if (chan->pid < 0)
		words_add_error(&answer, "cannot start a process", errno);
	for (int i = 0; i < (chan->pty ? 1 : 3); i++)
		chan_shut(&child[i]);
	if (chan->pid < 0) {
		chan_close(chans, chan, &answer);
		return;
	}
	chan->job = ++chans->last_job;
	if (chan->detach)
		keep_title(chan, words);
	words_add(&answer, "pid", "%d", (int)chan->pid);
	words_add(&answer, "id", "%u", (unsigned)chan->job);
	port_send(chans->port, NOTE, 0, stream, answer.text, answer.length);
	chan_grant(chans, chan);
}

void job_attach(struct chans *chans, uint32_t stream, const struct words *words)
{
	long id = words_number(words, "id", -1, INT32_MAX);
	struct chan *chan = id < 0 ? NULL : chan_find_job(chans, (uint32_t)id);
	struct answer answer = {.length = 0};

	if (chan == NULL || !chan->detach) {
		words_add(&answer, "error", "no detached command has this number");
		port_send(chans->port, CLOSE, 0, stream, answer.text, answer.length);
		return;
	}
	if (chan->stream != 0) {
		words_add(&answer, "error", "somebody else has attached to this command");
		port_send(chans->port, CLOSE, 0, chan->stream, answer.text, answer.length);
		answer.length = 0;
	}
	chan->stream = stream;
	chan->credit = 0;
	chan->in_over = chan->in < 0;
	words_add(&answer, "pid", "%d", (int)chan->pid);
	words_add(&answer, "id", "%u", (unsigned)chan->job);
	words_add(&answer, "pty", "%d", (int)chan->pty);
	port_send(chans->port, NOTE, 0, stream, answer.text, answer.length);
	chan_grant(chans, chan);
	if (chan->pty)
		set_size(chan->in, words);
}

void job_list(struct chans *chans, uint32_t stream)
{
	struct answer answer = {.length = 0};

	/* As NOTEs: a list is short, and needs no CREDIT. */
	for (size_t i = 0; i < CHAN_MOST; i++) {
		const struct chan *chan = &chans->table[i];

		if (chan->behind != PROCESS || !chan->detach || port_room(chans->port) < PORT_RESERVE / 2)
			continue;
		answer.length = 0;
		words_add(&answer, "id", "%u", (unsigned)chan->job);
		words_add(&answer, "pid", "%d", (int)chan->pid);
		words_add(&answer, "state", "%s", chan->exited ? "ended" : "running");
		if (chan->exited)
			add_result(&answer, chan);
		words_add(&answer, "attached", "%d", chan->stream != 0);
		words_add(&answer, "command", "%s", chan->title != NULL ? chan->title : "");
		port_send(chans->port, NOTE, 0, stream, answer.text, answer.length);
	}
	port_send(chans->port, CLOSE, 0, stream, NULL, 0);
}

void job_note(struct chan *chan, const struct words *words)
{
	long number = words_number(words, "signal", 0, 64);
	pid_t group = -1;

	if (words_find(words, "rows") != NULL && chan->pty)
		set_size(chan->in, words);
	if (number <= 0 || chan->exited)
		return;
	/* The terminal knows which group a person would have meant. */
	if (!chan->pty || ioctl(chan->in, TIOCGPGRP, &group) < 0 || group <= 0)
		group = chan->pid;
	signal_group(group, (int)number);
}

int64_t job_tend(struct chans *chans, int64_t now)
{
	int64_t next = 0;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (size_t i = 0; i < CHAN_MOST; i++) {
			struct chan *chan = &chans->table[i];

			if (chan->behind == PROCESS && chan->pid == pid && !chan->exited) {
				chan->exited = true;
				chan->status = status;
			}
		}
	for (size_t i = 0; i < CHAN_MOST; i++) {
		struct chan *chan = &chans->table[i];

		if (chan->behind != PROCESS || chan->kill_at == 0)
			continue;
		if (chan->kill_at <= now) {
			/* The group outlives its leader; an id that is taken again leads another group. */
			kill(-chan->pid, SIGKILL);
			chan->kill_at = 0;
		} else if (next == 0 || chan->kill_at < next) {
			next = chan->kill_at;
		}
	}
	return next;
}

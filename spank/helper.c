/* SPDX-License-Identifier: Apache-2.0 */
#include "helper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define EXIT_NO_EXEC 127
/* How often to look where nothing tells: at forks, and at ends before Linux 5.3 (pidfd_open). */
#define LOOK_MS 10
#define KILL_WAIT_MS 2000

static void close_from(int lowest)
{
	if (syscall(SYS_close_range, (unsigned int)lowest, ~0U, 0U) == 0)
		return;
	for (int fd = lowest; fd < (int)sysconf(_SC_OPEN_MAX); fd++)
		(void)close(fd);
}

/* slurmd protects itself from the OOM killer; what we start must not inherit that. */
static void drop_oom_protection(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, "0", 1) != 1) {
		/* as it was */
	}
	(void)close(fd);
}

/* Between fork and exec only what is safe after the fork of a threaded process. */
static void run_child(const struct pvc_helper *helper, pid_t parent)
{
	sigset_t none;
	int null = -1;

	(void)setpgid(0, 0);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_NO_EXEC);
	for (int number = 1; number < NSIG; number++)
		(void)signal(number, SIG_DFL);
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	null = pvc_common_above_stdio(open("/dev/null", O_RDWR | O_CLOEXEC));
	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(helper->out, STDOUT_FILENO) < 0 ||
	    dup2(helper->err, STDERR_FILENO) < 0)
		_exit(EXIT_NO_EXEC);
	close_from(STDERR_FILENO + 1);
	if (helper->as_daemon) {
		drop_oom_protection();
		if (chdir("/") < 0)
			_exit(EXIT_NO_EXEC);
	}
	(void)execve(helper->argv[0], helper->argv, helper->envp);
	(void)dprintf(STDERR_FILENO, "cannot start %s: %s\n", helper->argv[0], strerror(errno));
	_exit(EXIT_NO_EXEC);
}

/* 1: ended, with its status; 0: still there at the deadline; -1: cannot say. */
static int wait_until(pid_t pid, int64_t deadline_ms, int *status)
{
	int rv = -1;
	int pidfd = pvc_common_above_stdio((int)syscall(SYS_pidfd_open, pid, 0U));

	for (;;) {
		struct pollfd ended = {.fd = pidfd, .events = POLLIN, .revents = 0};
		pid_t found = waitpid(pid, status, WNOHANG);
		int left = pvc_common_left_ms(deadline_ms);

		if (found == pid) {
			rv = 1;
			break;
		}
		if (found < 0 && errno != EINTR)
			break;
		if (left == 0) {
			rv = 0;
			break;
		}
		(void)poll(&ended, 1, pidfd < 0 && left > LOOK_MS ? LOOK_MS : left);
	}
	pvc_common_close(&pidfd);
	return rv;
}

int pvc_helper_run(const struct pvc_helper *helper, int *exit_code)
{
	int rv = -1;
	int status = 0;
	int ended = -1;
	pid_t parent = getpid();
	pid_t pid = -1;

	/* Users can have all processes that a node may have, for a moment or until somebody sees to it. */
	while ((pid = fork()) < 0 && errno == EAGAIN && pvc_common_left_ms(helper->deadline_ms) > 0)
		(void)poll(NULL, 0, LOOK_MS);
	if (pid < 0) {
		slurm_error("pvc: cannot fork: %s", strerror(errno));
		goto fail;
	}
	if (pid == 0)
		run_child(helper, parent);
	/* In both: whoever is first, the group is there before a kill of it. */
	(void)setpgid(pid, pid);
	ended = wait_until(pid, helper->deadline_ms, &status);
	if (ended < 0) {
		slurm_error("pvc: cannot wait for %s: %s", helper->argv[0], strerror(errno));
		goto fail;
	}
	if (ended == 0) {
		slurm_error("pvc: %s did not end in time: killed", helper->argv[0]);
		(void)kill(-pid, SIGKILL);
		/* Not for ever: a process that waits for a device does not die before it comes back. */
		(void)wait_until(pid, pvc_common_now_ms() + KILL_WAIT_MS, &status);
		goto fail;
	}
	*exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
	rv = 0;
fail:
	return rv;
}

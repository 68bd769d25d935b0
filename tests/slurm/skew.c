/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded, it makes the clock of a node's programs OFFSET seconds wrong; what counts from the boot stays as it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Later than any time since a boot: an absolute time of the wall clock. */
#define WALL 1000000000L

int clock_gettime(clockid_t which, struct timespec *now)
{
	int rv = (int)syscall(SYS_clock_gettime, which, now);

	if (rv == 0 && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
		now->tv_sec += OFFSET;
	return rv;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec exact;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &exact);
	now->tv_sec = exact.tv_sec;
	now->tv_usec = exact.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *where)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (where != NULL)
		*where = now.tv_sec;
	return now.tv_sec;
}

/* The kernel waits by its own clock. */
static struct timespec undone(const struct timespec *until)
{
	struct timespec real = *until;

	if (real.tv_sec > WALL)
		real.tv_sec -= OFFSET;
	return real;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
			   const struct timespec *restrict until)
{
	static int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
	struct timespec real = undone(until);

	if (wait == NULL)
		*(void **)&wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
	return wait(condition, mutex, &real);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until)
{
	static int (*wait)(sem_t *, const struct timespec *);
	struct timespec real = undone(until);

	if (wait == NULL)
		*(void **)&wait = dlsym(RTLD_NEXT, "sem_timedwait");
	return wait(semaphore, &real);
}

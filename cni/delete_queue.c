// SPDX-License-Identifier: Apache-2.0
/* DELs that the agent did not answer: a pod can be deleted while there is no agent.
 *
 * The directory `cni-queue` beside the socket has one file an attachment, which is the request as
 * it would be sent: NETWORK:CONTAINER:INTERFACE.delete. The agent works them off before it serves.
 * It holds `lockfile` exclusively meanwhile; this holds it shared, and asks the agent once more
 * before it writes, so that nothing is left behind by an agent that has begun to serve. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>
#include "cilia-cni.h"

#ifndef LOCK_S /* an agent that starts works off what is queued in this time, or is slow */
#define LOCK_S 30
#endif
#define MAX_QUEUED 256
#define NEW ".new"
#define SUFFIX ".delete"
#define MAX_NETWORK 100 /* these three fit into a file's name */
#define MAX_CONTAINER 128
#define MAX_INTERFACE 15
#define NAME_BYTES "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"

static void interrupt(int signal)
{
	(void)signal;
}

/* Waits no longer than LOCK_S. */
static bool lock(int descriptor, int how)
{
	struct sigaction action = {.sa_handler = interrupt};
	/* Again and again once it is time: a signal just before flock interrupts nothing. */
	struct itimerval none = {0}, limit = {{.tv_usec = 100000}, {.tv_sec = LOCK_S}};
	bool is_locked;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &limit, NULL);
	is_locked = !flock(descriptor, how);
	errno = !is_locked && errno == EINTR ? ETIME : errno;
	setitimer(ITIMER_REAL, &none, NULL);
	return is_locked;
}

static int is_request(const struct dirent *entry)
{
	const char *suffix = strrchr(entry->d_name, '.');
	return suffix && !strcmp(suffix, SUFFIX);
}

/* True if a file of this name may be written in the queue, the working directory. */
static bool has_room(const char *name)
{
	struct dirent **entries;
	int count = access(name, F_OK) ? scandir(".", &entries, is_request, NULL) : 0;

	if (count >= MAX_QUEUED)
		errno = ENOBUFS;
	return count >= 0 && count < MAX_QUEUED;
}

/* Writes the request whole or not at all, so that it outlasts a power cut. */
static bool write_request(int queue, const char *name)
{
	int file = open(NEW, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600), failure;
	ssize_t count = 0;

	for (size_t at = 0; file >= 0 && at < request_size && count >= 0; at += count)
		count = write(file, request + at, request_size - at);
	if (file >= 0 && count >= 0 && !fsync(file) && !rename(NEW, name) && !fsync(queue))
		return true;
	failure = errno;
	unlink(NEW);
	errno = failure;
	return false;
}

static void check_part(int code, const char *what, const char *part, size_t most)
{
	if (!part || !*part || strlen(part) > most || part[strspn(part, NAME_BYTES)])
		fail(code, "%s must be 1 to %zu letters, digits, '-', '_' and '.'", what, most);
}

void queue_delete(int netns, unsigned answer_s)
{
	const char *container = getenv("CNI_CONTAINERID"), *interface = getenv("CNI_IFNAME");
	char directory[SOCKET_PATH_BYTES + sizeof("/cni-queue")], network[MAX_NETWORK + 1] = "";
	char name[MAX_NETWORK + MAX_CONTAINER + MAX_INTERFACE + sizeof("::" SUFFIX)];
	int queue, lockfile = -1;

	member("name", network, sizeof(network));
	check_part(7, "name in the network configuration", network, MAX_NETWORK);
	check_part(4, "CNI_CONTAINERID", container, MAX_CONTAINER);
	check_part(4, "CNI_IFNAME", interface, MAX_INTERFACE);
	sprintf(name, "%s:%s:%s" SUFFIX, network, container, interface);
	strcpy(directory, socket_path);
	*strrchr(directory, '/') = '\0';
	mkdir(directory, 0700); /* there may have been no agent since the machine started */
	strcat(directory, "/cni-queue");
	mkdir(directory, 0700);
	queue = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (queue >= 0 && !fchdir(queue))
		lockfile = open("lockfile", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (lockfile >= 0 && lock(lockfile, LOCK_SH)) {
		if (!is_silent)
			ask(netns, answer_s);
		/* The second lock has one writer at a time, and never a request too many. */
		if (lock(queue, LOCK_EX) && has_room(name) && write_request(queue, name))
			exit(0);
	}
	fail(11,
	     "cilia's agent does not answer on %s (%s), and DEL cannot be kept for it in %s (%s): start"
	     " the agent on this node, the runtime tries again",
	     socket_path, why, directory, errno == ENOBUFS ? "it is full" : strerror(errno));
}

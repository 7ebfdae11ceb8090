// SPDX-License-Identifier: Apache-2.0
/* The CNI plugin as container runtimes call it: it hands each request to cilia's agent and prints
 * the agent's answer (https://www.cni.dev/docs/spec/). It is static, because node images may have
 * neither an interpreter nor a C library. It judges nothing: cilia/endpoints/cni does.
 *
 * On the socket, numbers in network order:
 *   request  "CNI" 1, u32 bytes of environment, u32 bytes of input, environment ("CNI_X=...\0"
 *            each), input; the opened CNI_NETNS comes with the first byte, by SCM_RIGHTS
 *   answer   "CNI" 1, u32 exit status, u32 bytes of output, output */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>
#include "cilia-cni.h"

#ifndef CONNECT_S /* seconds */
#define CONNECT_S 10
#define ANSWER_S 100	  /* the agent's own limits are below */
#define SHORT_ANSWER_S 20 /* of DEL, which is queued then, and STATUS, which is asked again */
#endif
#define DEFAULT_SOCKET "/run/cilia/cni.sock"
#define NEWEST "1.1.0"
#define MAX_INPUT (1u << 20) /* also of an answer */
#define MAX_ENVIRONMENT (256u << 10)
/* After a stop the kernel restarts no call on a socket that has time limits. */
#define RETRIED(call)                                             \
	({                                                        \
		ssize_t result_;                                  \
		while ((result_ = (call)) < 0 && errno == EINTR); \
		result_;                                          \
	})

extern char **environ;

struct header {
	char magic[4];
	uint32_t first, second; /* see above */
};

static const char magic[4] = {'C', 'N', 'I', 1};
static char buffer[sizeof(struct header) + MAX_ENVIRONMENT + MAX_INPUT + 1];
const char *const request = buffer;
size_t request_size;
char socket_path[SOCKET_PATH_BYTES];
const char *why;
bool is_silent;
static const char *input, *input_end; /* the network configuration, in the request */
static char answer[MAX_INPUT];

void fail(int code, const char *format, ...)
{
	static char text[4096];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	printf("{\"cniVersion\":\"" NEWEST "\",\"code\":%d,\"msg\":\"", code);
	for (const unsigned char *c = (unsigned char *)text; *c; c++)
		printf(*c < ' ' || *c > '~' || *c == '"' || *c == '\\' ? "\\u%04x" : "%c", *c);
	printf("\"}\n");
	fflush(stdout);
	exit(1);
}

/* Puts all variables CNI_* and the input into the request. */
static void gather(void)
{
	struct header header;
	char *into = buffer + sizeof(header);
	size_t environment = 0, used = 0;
	ssize_t count;

	for (char **variable = environ; *variable; variable++) {
		size_t size = strlen(*variable) + 1;
		if (strncmp(*variable, "CNI_", 4))
			continue;
		if (environment + size > MAX_ENVIRONMENT)
			fail(4, "%.64s... makes the variables CNI_* longer than %u bytes", *variable,
			     MAX_ENVIRONMENT);
		memcpy(into + environment, *variable, size);
		environment += size;
	}
	input = into += environment;
	while ((count = read(STDIN_FILENO, into + used, MAX_INPUT + 1 - used)) != 0) {
		if (count < 0)
			fail(5, "standard input cannot be read: %s", strerror(errno));
		if ((used += count) > MAX_INPUT)
			fail(6, "the network configuration is longer than %u bytes", MAX_INPUT);
	}
	input_end = input + used;
	memcpy(header.magic, magic, sizeof(magic));
	header.first = htonl(environment);
	header.second = htonl(used);
	memcpy(buffer, &header, sizeof(header));
	request_size = sizeof(header) + environment + used;
}

/* Knows strings and depth and nothing else of JSON: what is none is the agent's to refuse. */
bool member(const char *key, char *into, size_t size)
{
	const char *value = NULL, *start;
	size_t length = 0, key_length = strlen(key);
	bool is_value = false, is_key = false;
	int depth = 0;

	for (const char *at = input; at < input_end; at++) {
		depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
		if (depth == 1 && (*at == ':' || *at == ','))
			is_value = *at == ':';
		if (*at != '"')
			continue;
		for (start = ++at; at < input_end && *at != '"'; at++)
			at += *at == '\\';
		if (at >= input_end || depth != 1)
			continue;
		if (!is_value) {
			is_key = (size_t)(at - start) == key_length && !memcmp(start, key, key_length);
		} else if (is_key) {
			value = start;
			length = at - start;
		}
	}
	if (!value)
		return false;
	if (length >= size || memchr(value, '\\', length) || memchr(value, '\0', length))
		fail(7, "%s has an escape, or is longer than %zu bytes: write it plainly", key, size - 1);
	memcpy(into, value, length);
	into[length] = '\0';
	return true;
}

static void find_socket(void)
{
	const char *own = getenv("CILIA_SOCK");

	if (own && strlen(own) >= sizeof(socket_path))
		fail(4, "CILIA_SOCK is longer than %zu bytes", sizeof(socket_path) - 1);
	if (own && *own)
		strcpy(socket_path, own);
	else if (!member("socket-path", socket_path, sizeof(socket_path)))
		strcpy(socket_path, DEFAULT_SOCKET);
	if (*socket_path != '/')
		fail(own && *own ? 4 : 7, "%s is %s: it must be an absolute path",
		     own && *own ? "CILIA_SOCK" : "socket-path", socket_path);
}

static bool send_request(int agent, int netns)
{
	union {
		char space[CMSG_SPACE(sizeof(netns))];
		struct cmsghdr header;
	} control = {.header = {CMSG_LEN(sizeof(netns)), SOL_SOCKET, SCM_RIGHTS}};
	struct iovec part = {buffer, request_size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t count;

	memcpy(CMSG_DATA(&control.header), &netns, sizeof(netns));
	if (netns >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
	}
	for (; part.iov_len; part.iov_base = (char *)part.iov_base + count, part.iov_len -= count) {
		if ((count = RETRIED(sendmsg(agent, &message, MSG_NOSIGNAL))) < 0)
			return false;
		message.msg_controllen = 0; /* it went with the first byte */
	}
	return true;
}

static bool receive(int agent, void *into, size_t size)
{
	ssize_t count;

	for (size_t got = 0; got < size; got += count)
		if ((count = RETRIED(recv(agent, (char *)into + got, size - got, 0))) <= 0) {
			is_silent = count < 0 && errno == EAGAIN;
			why = is_silent ? "it gives no answer in time"
			      : count	? strerror(errno)
					: "it ended the connection without an answer";
			return false;
		}
	return true;
}

void ask(int netns, unsigned answer_s)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval to_send = {.tv_sec = CONNECT_S}, to_answer = {.tv_sec = answer_s};
	struct header header;
	int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, socket_path);
	if (agent < 0 || setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &to_send, sizeof(to_send)) ||
	    setsockopt(agent, SOL_SOCKET, SO_RCVTIMEO, &to_answer, sizeof(to_answer)) ||
	    RETRIED(connect(agent, (struct sockaddr *)&address, sizeof(address))) ||
	    /* An agent that refuses ends the connection before it has read all, and has answered. */
	    (!send_request(agent, netns) && errno == EAGAIN)) {
		is_silent = errno == EAGAIN;
		why = is_silent ? "it takes no request in time" : strerror(errno);
	} else if (receive(agent, &header, sizeof(header))) {
		size_t size = ntohl(header.second);
		unsigned status = ntohl(header.first);
		if (memcmp(header.magic, magic, sizeof(magic)) || size > sizeof(answer)) {
			why = "what listens there is no CNI server of cilia";
		} else if (receive(agent, answer, size)) {
			size -= fwrite(answer, 1, size, stdout);
			exit(size || fflush(stdout) || status > 255 ? 1 : status);
		}
	}
	if (agent >= 0)
		close(agent); /* before the request is queued: the agent acts for nobody who has gone */
}

static void print_versions(void)
{
	char version[16];

	if (!member("cniVersion", version, sizeof(version)) || version[strspn(version, "0123456789.")])
		strcpy(version, NEWEST);
	printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"%s\"]}\n",
	       version, NEWEST);
	exit(fflush(stdout) ? 1 : 0);
}

int main(void)
{
	const char *command = getenv("CNI_COMMAND"), *path = getenv("CNI_NETNS");
	bool is_delete, is_status, needs_netns;
	int netns = -1;

	signal(SIGPIPE, SIG_IGN);
	if (!command || !*command)
		fail(4, "CNI_COMMAND is not set: container runtimes run this program, people do not");
	gather();
	if (!strcmp(command, "VERSION"))
		print_versions();
	find_socket();
	is_delete = !strcmp(command, "DEL");
	is_status = !strcmp(command, "STATUS");
	needs_netns = !strcmp(command, "ADD") || !strcmp(command, "CHECK");
	if (path && *path && (needs_netns || is_delete))
		netns = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (path && *path && netns < 0 && needs_netns)
		fail(4, "CNI_NETNS is %s, which cannot be opened: %s", path, strerror(errno));
	ask(netns, is_delete || is_status ? SHORT_ANSWER_S : ANSWER_S);
	if (is_delete)
		queue_delete(netns, SHORT_ANSWER_S);
	fail(is_status ? 50 : 11,
	     "cilia's agent does not answer on %s (%s): start it on this node, or name its socket by"
	     " socket-path in the network configuration; the runtime tries again",
	     socket_path, why);
}

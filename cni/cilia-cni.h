// SPDX-License-Identifier: Apache-2.0
/* One request to the agent, and what is known of it; the process serves no other. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/un.h>

#define SOCKET_PATH_BYTES sizeof(((struct sockaddr_un *)0)->sun_path)

extern const char *const request; /* as it goes through the socket */
extern size_t request_size;
extern char socket_path[SOCKET_PATH_BYTES];
extern const char *why; /* the agent gave no answer */
extern bool is_silent;	/* it takes connections, and gives none in time */

/* Prints an error in CNI's form and ends; what others wrote may be in the text. */
_Noreturn __attribute__((format(printf, 2, 3))) void fail(int code, const char *format, ...);

/* Copies a member of the configuration's outermost object, a string; false if there is none. */
bool member(const char *key, char *into, size_t size);

/* Prints the agent's answer and ends with its status; returns if there is none. */
void ask(int netns, unsigned answer_s);

/* Keeps a DEL for an agent that does not answer, unless it does by now; ends. */
_Noreturn void queue_delete(int netns, unsigned answer_s);

/* SPDX-License-Identifier: Apache-2.0 */

/* The C half of bpf/libbpf.py: what libbpf prints, flattened views of unions, and calls that libbpf
 * 1.1 lacks. Functions return 0 or a descriptor, or a negative errno as libbpf does. */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

/* -- what libbpf prints: kept a thread, because loads run in worker threads -- */

static __thread struct {
	char *text;
	size_t length;
	size_t capacity;
} cilia_log;

static void cilia_log_reserve(size_t more)
{
	size_t capacity = cilia_log.capacity ? cilia_log.capacity : 4096;
	char *text;

	while (capacity < cilia_log.length + more + 1)
		capacity *= 2;
	if (capacity == cilia_log.capacity)
		return;
	text = realloc(cilia_log.text, capacity);
	if (!text)
		return;
	cilia_log.text = text;
	cilia_log.capacity = capacity;
}

static int cilia_log_append(const char *format, va_list args)
{
	va_list again;
	int length;

	va_copy(again, args);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	if (length <= 0)
		return 0;
	cilia_log_reserve(length);
	if (cilia_log.capacity < cilia_log.length + length + 1)
		return 0;
	vsnprintf(cilia_log.text + cilia_log.length, length + 1, format, args);
	cilia_log.length += length;
	return length;
}

static int cilia_log_print(enum libbpf_print_level level, const char *format, va_list args)
{
	return level == LIBBPF_DEBUG ? 0 : cilia_log_append(format, args);
}

static void cilia_log_capture(void)
{
	libbpf_set_print(cilia_log_print);
}

static const char *cilia_log_text(void)
{
	return cilia_log.length ? cilia_log.text : "";
}

static void cilia_log_clear(void)
{
	free(cilia_log.text);
	cilia_log.text = NULL;
	cilia_log.length = 0;
	cilia_log.capacity = 0;
}

/* -- flattened views -- */

struct cilia_map_info {
	uint32_t type, id, key_size, value_size, max_entries, flags;
	uint32_t btf_id, btf_key_type_id, btf_value_type_id;
	char name[16];
};

struct cilia_prog_info {
	uint32_t type, id, xlated_len, jited_len, verified_insns, btf_id;
	uint64_t run_time_ns, run_count;
	uint8_t tag[8];
	char name[16];
};

struct cilia_link_info {
	uint32_t type, id, prog_id, attach_type;
	uint64_t target;
};

static int cilia_info(int fd, void *info, uint32_t size)
{
	memset(info, 0, size);
	return bpf_obj_get_info_by_fd(fd, info, &size);
}

static int cilia_map_info(int fd, struct cilia_map_info *out)
{
	struct bpf_map_info info;
	int rc = cilia_info(fd, &info, sizeof(info));

	if (rc)
		return rc;
	out->type = info.type;
	out->id = info.id;
	out->key_size = info.key_size;
	out->value_size = info.value_size;
	out->max_entries = info.max_entries;
	out->flags = info.map_flags;
	out->btf_id = info.btf_id;
	out->btf_key_type_id = info.btf_key_type_id;
	out->btf_value_type_id = info.btf_value_type_id;
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

static int cilia_prog_info(int fd, struct cilia_prog_info *out)
{
	struct bpf_prog_info info;
	int rc = cilia_info(fd, &info, sizeof(info));

	if (rc)
		return rc;
	out->type = info.type;
	out->id = info.id;
	out->xlated_len = info.xlated_prog_len;
	out->jited_len = info.jited_prog_len;
	out->verified_insns = info.verified_insns;
	out->btf_id = info.btf_id;
	out->run_time_ns = info.run_time_ns;
	out->run_count = info.run_cnt;
	memcpy(out->tag, info.tag, sizeof(out->tag));
	memcpy(out->name, info.name, sizeof(out->name));
	return 0;
}

/* The ids of the maps that a program uses, into an array of room elements; returns how many. */
static int cilia_prog_maps(int fd, uint32_t *ids, uint32_t room)
{
	struct bpf_prog_info info = { .nr_map_ids = room, .map_ids = (uintptr_t)ids };
	uint32_t size = sizeof(info);
	int rc = bpf_obj_get_info_by_fd(fd, &info, &size);

	if (rc)
		return rc;
	return info.nr_map_ids < room ? info.nr_map_ids : room;
}

/* Link types that these kernel headers may not name yet. */
#define CILIA_LINK_CGROUP 3
#define CILIA_LINK_NETNS 5
#define CILIA_LINK_XDP 6
#define CILIA_LINK_TCX 11

/* target: cgroup id, inode of the network namespace, or interface index; 0 once it is gone. */
static int cilia_link_info(int fd, struct cilia_link_info *out)
{
	struct bpf_link_info info;
	int rc = cilia_info(fd, &info, sizeof(info));

	if (rc)
		return rc;
	out->type = info.type;
	out->id = info.id;
	out->prog_id = info.prog_id;
	out->attach_type = 0;
	out->target = 0;
	switch (info.type) {
	case CILIA_LINK_CGROUP:
		out->target = info.cgroup.cgroup_id;
		out->attach_type = info.cgroup.attach_type;
		break;
	case CILIA_LINK_XDP:
		out->target = info.xdp.ifindex;
		break;
	case CILIA_LINK_NETNS:
	case CILIA_LINK_TCX:	/* the same two words: interface, attach type */
		out->target = info.netns.netns_ino;
		out->attach_type = info.netns.attach_type;
		break;
	}
	return 0;
}

/* -- calls that libbpf 1.1 lacks -- */

/* The link_create part of union bpf_attr with the TCX fields of Linux 6.6; all zero beyond target
 * and attach type is what older kernels and other link types expect. */
static int cilia_link_create(int prog_fd, int target, uint32_t attach_type, uint32_t flags,
			     int relative_fd, uint64_t expected_revision)
{
	struct {
		uint32_t prog_fd, target, attach_type, flags;
		uint32_t relative_fd, pad;
		uint64_t expected_revision;
	} attr = {
		.prog_fd = prog_fd,
		.target = target,
		.attach_type = attach_type,
		.flags = flags,
		.relative_fd = relative_fd,
		.expected_revision = expected_revision,
	};
	int fd = syscall(__NR_bpf, BPF_LINK_CREATE, &attr, sizeof(attr));

	return fd < 0 ? -errno : fd;
}

/* Offset and size of a variable in a data section, from the object's BTF. */
static int cilia_variable(const struct bpf_object *obj, const char *section, const char *name,
			  uint32_t *offset, uint32_t *size)
{
	const struct btf *btf = bpf_object__btf(obj);
	const struct btf_var_secinfo *var;
	const struct btf_type *type;
	int id;

	if (!btf)
		return -ENOENT;
	id = btf__find_by_name_kind(btf, section, BTF_KIND_DATASEC);
	if (id < 0)
		return id;
	type = btf__type_by_id(btf, id);
	var = btf_var_secinfos(type);
	for (int i = 0; i < btf_vlen(type); i++, var++) {
		const struct btf_type *var_type = btf__type_by_id(btf, var->type);

		if (strcmp(btf__name_by_offset(btf, var_type->name_off), name))
			continue;
		*offset = var->offset;
		*size = var->size;
		return 0;
	}
	return -ENOENT;
}

/* Give a "const volatile" variable its value, before load. -EINVAL if the size differs. */
static int cilia_set_rodata(struct bpf_object *obj, const char *name, const void *value,
			    uint32_t size)
{
	uint32_t offset, var_size;
	struct bpf_map *map;
	size_t map_size;
	char *data;
	int rc;

	rc = cilia_variable(obj, ".rodata", name, &offset, &var_size);
	if (rc)
		return rc;
	if (size != var_size)
		return -EINVAL;
	bpf_object__for_each_map(map, obj) {
		const char *map_name = bpf_map__name(map);
		const char *dot = strstr(map_name, ".rodata");

		if (!bpf_map__is_internal(map) || !dot || strcmp(dot, ".rodata"))
			continue;
		data = (char *)bpf_map__initial_value(map, &map_size);
		if (!data || offset + size > map_size)
			return -EINVAL;
		memcpy(data + offset, value, size);
		return 0;
	}
	return -ENOENT;
}

static int cilia_mount_bpffs(const char *path)
{
	return mount("bpf", path, "bpf", 0, "mode=0700") ? -errno : 0;
}

/* The magic number of the file system below a path, or a negative errno. */
static int64_t cilia_fs_type(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) ? -errno : (int64_t)(uint32_t)fs.f_type;
}

/* -- hooks with a list of programs -- */

struct cilia_hook {
	uint32_t count;
	uint64_t revision;
	uint32_t prog_ids[64], link_ids[64];
};

/* The query part of union bpf_attr as of Linux 6.6. */
static int cilia_hook_query(int target, uint32_t attach_type, struct cilia_hook *out)
{
	struct {
		uint32_t target, attach_type, query_flags, attach_flags;
		uint64_t prog_ids;
		uint32_t count, pad;
		uint64_t prog_attach_flags, link_ids, link_attach_flags, revision;
	} attr = {
		.target = target,
		.attach_type = attach_type,
		.prog_ids = (uint64_t)(uintptr_t)out->prog_ids,
		.link_ids = (uint64_t)(uintptr_t)out->link_ids,
		.count = 64,
	};

	if (syscall(__NR_bpf, BPF_PROG_QUERY, &attr, sizeof(attr))) {
		/* Kernels before 6.6 refuse to be asked for links. */
		attr.link_ids = 0;
		if (errno != EINVAL || syscall(__NR_bpf, BPF_PROG_QUERY, &attr, sizeof(attr)))
			return -errno;
	}
	out->count = attr.count;
	out->revision = attr.revision;
	return 0;
}

/* -- records of ring and perf buffers --
 *
 * The callback runs in C and gathers records as { u32 length; u32 lost; data, padded to 8 }, so that
 * Python is entered once a batch. libbpf counts a record as consumed before it calls back, whatever
 * the callback returns: so a record is always kept, and an error only ends the round.
 */
struct cilia_reader {
	char *data;
	size_t length, capacity, limit;
	uint64_t records, lost;
	struct ring_buffer *ring;
	struct perf_buffer *perf;
};

static int cilia_reader_keep(struct cilia_reader *reader, const void *data, size_t size)
{
	size_t padded = (size + 7) & ~(size_t)7;
	size_t needed = reader->length + 8 + padded;
	uint32_t head[2] = { size, 0 };

	if (needed > reader->capacity) {
		size_t capacity = needed * 2;
		char *bigger = realloc(reader->data, capacity);

		if (!bigger) {
			reader->lost++;
			return -ENOMEM;
		}
		reader->data = bigger;
		reader->capacity = capacity;
	}
	memcpy(reader->data + reader->length, head, sizeof(head));
	memcpy(reader->data + reader->length + 8, data, size);
	memset(reader->data + reader->length + 8 + size, 0, padded - size);
	reader->length = needed;
	reader->records++;
	return reader->length >= reader->limit ? -ENOSPC : 0;
}

static int cilia_ring_record(void *ctx, void *data, size_t size)
{
	return cilia_reader_keep(ctx, data, size);
}

static enum bpf_perf_event_ret cilia_perf_event(void *ctx, int cpu, struct perf_event_header *event)
{
	struct { struct perf_event_header header; uint32_t size; char data[]; } *sample = (void *)event;
	struct { struct perf_event_header header; uint64_t id, lost; } *lost = (void *)event;
	struct cilia_reader *reader = ctx;

	(void)cpu;
	if (event->type == PERF_RECORD_LOST)
		reader->lost += lost->lost;
	else if (event->type == PERF_RECORD_SAMPLE)
		cilia_reader_keep(reader, sample->data, sample->size);
	return LIBBPF_PERF_EVENT_CONT;
}

static void cilia_reader_close(struct cilia_reader *reader)
{
	if (!reader)
		return;
	ring_buffer__free(reader->ring);
	perf_buffer__free(reader->perf);
	free(reader->data);
	free(reader);
}

static int cilia_ring_open(int map_fd, struct cilia_reader **out)
{
	struct cilia_reader *reader = calloc(1, sizeof(*reader));
	int rc;

	if (!reader)
		return -ENOMEM;
	reader->ring = ring_buffer__new(map_fd, cilia_ring_record, reader, NULL);
	if (!reader->ring) {
		rc = -errno;
		cilia_reader_close(reader);
		return rc;
	}
	*out = reader;
	return 0;
}

static int cilia_perf_open(int map_fd, uint32_t pages_per_cpu, struct cilia_reader **out)
{
	struct cilia_reader *reader = calloc(1, sizeof(*reader));
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.type = PERF_TYPE_SOFTWARE,
		.config = PERF_COUNT_SW_BPF_OUTPUT,
		.sample_type = PERF_SAMPLE_RAW,
		.sample_period = 1,
		.wakeup_events = 1,
	};
	int rc;

	if (!reader)
		return -ENOMEM;
	reader->perf = perf_buffer__new_raw(map_fd, pages_per_cpu, &attr, cilia_perf_event, reader,
					    NULL);
	if (!reader->perf) {
		rc = -errno;
		cilia_reader_close(reader);
		return rc;
	}
	*out = reader;
	return 0;
}

/* Readable when there are records: an epoll descriptor, which can be polled itself. */
static int cilia_reader_fd(const struct cilia_reader *reader)
{
	return reader->ring ? ring_buffer__epoll_fd(reader->ring)
			    : perf_buffer__epoll_fd(reader->perf);
}

/* Gather what is there, up to about limit bytes; 1 if there may be more, 0 if the buffer is empty. */
static int cilia_reader_consume(struct cilia_reader *reader, size_t limit)
{
	int rc;

	reader->length = 0;
	reader->records = 0;
	reader->limit = limit;
	rc = reader->ring ? ring_buffer__consume(reader->ring) : perf_buffer__consume(reader->perf);
	if (rc == -ENOSPC)
		return 1;
	return rc < 0 ? rc : 0;
}

/* -- BTF for people -- */

static int cilia_btf_open(uint32_t btf_id, struct btf **out)
{
	*out = btf__load_from_kernel_by_id(btf_id);
	return *out ? 0 : -errno;
}

static void cilia_btf_print(void *ctx, const char *format, va_list args)
{
	(void)ctx;
	cilia_log_append(format, args);
}

/* Print a value of a type into this thread's log. */
static int cilia_btf_format(const struct btf *btf, uint32_t type_id, const void *data, size_t size)
{
	LIBBPF_OPTS(btf_dump_type_data_opts, opts, .compact = true,
		    .emit_zeroes = true);
	struct btf_dump *dump = btf_dump__new(btf, cilia_btf_print, NULL, NULL);
	int rc;

	if (!dump)
		return -errno;
	rc = btf_dump__dump_type_data(dump, type_id, data, size, &opts);
	btf_dump__free(dump);
	return rc < 0 ? rc : 0;
}

/* -- entries that programs replace meanwhile -- */

/* Delete the entries whose values still have the size bytes at from that they had when they were read;
 * gone[i] says whether the i-th went. What a program put there between the look and the deletion is
 * taken out as one with it, and is put back unless something newer is there by then. */
static int cilia_map_delete_unchanged(int fd, const char *keys, const char *values, uint32_t count,
				      uint32_t key_size, uint32_t value_size, uint32_t from,
				      uint32_t size, char *gone)
{
	char *now = malloc(value_size);
	int rc = now ? 0 : -ENOMEM;

	for (uint32_t i = 0; !rc && i < count; i++) {
		const char *key = keys + (size_t)i * key_size;
		const char *read = values + (size_t)i * value_size + from;

		gone[i] = 0;
		rc = bpf_map_lookup_elem(fd, key, now);
		if (!rc && memcmp(now + from, read, size))
			continue;
		if (!rc)
			rc = bpf_map_lookup_and_delete_elem(fd, key, now);
		if (!rc && memcmp(now + from, read, size)) {
			rc = bpf_map_update_elem(fd, key, now, BPF_NOEXIST);
			if (rc == -EEXIST)
				rc = 0;
			continue;
		}
		gone[i] = !rc;
		if (rc == -ENOENT)
			rc = 0;
	}
	free(now);
	return rc;
}

/* -- Maglev tables -- */

/* Fill a table in turns: see bpf/lb/maglev.py. All arrays have count entries, the table has size, a
 * prime above count and every skip. Returns 0, -EINVAL or -ENOMEM. */
static int cilia_maglev_fill(const uint32_t *offsets, const uint32_t *skips,
			     const uint32_t *weights, const uint32_t *ids, uint32_t count,
			     uint32_t size, uint32_t *table)
{
	uint64_t total = 0;
	uint32_t *next;
	uint8_t *taken;
	double *shares;
	int rc = -ENOMEM;

	if (!count || count > size)
		return -EINVAL;
	next = malloc(count * sizeof(*next));
	shares = malloc(count * sizeof(*shares));
	taken = calloc(size, 1);
	if (!next || !shares || !taken)
		goto out;
	for (uint32_t i = 0; i < count; i++) {
		next[i] = offsets[i];
		shares[i] = (double)weights[i] / count;
		total += weights[i];
	}
	for (uint32_t turn = 0; turn < size; turn++) {
		uint32_t i = turn % count, at;

		if (total / count > 1) {
			while ((uint64_t)(turn + 1) * weights[i] < (uint64_t)shares[i])
				i = i + 1 == count ? 0 : i + 1;
			shares[i] += (double)total;
		}
		for (at = next[i]; taken[at]; at = at >= size ? at - size : at)
			at += skips[i];
		taken[at] = 1;
		table[at] = ids[i];
		at += skips[i];
		next[i] = at >= size ? at - size : at;
	}
	rc = 0;
out:
	free(next);
	free(shares);
	free(taken);
	return rc;
}

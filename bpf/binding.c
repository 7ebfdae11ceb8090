/* SPDX-License-Identifier: Apache-2.0 */

/* The C half of bpf/libbpf.py: what libbpf prints, flattened views of unions, and calls that libbpf
 * 1.1 lacks. Functions return 0 or a descriptor, or a negative errno as libbpf does. */
#include <errno.h>
#include <linux/bpf.h>
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

static int cilia_log_print(enum libbpf_print_level level, const char *format, va_list args)
{
	va_list again;
	int length;

	if (level == LIBBPF_DEBUG)
		return 0;
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

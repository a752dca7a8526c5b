/*
 * A plugin of QEMU: counts the instructions that the emulated program carries out, all threads together. The count is the
 * first eight bytes of the file that is named to it, so that others can look at it while the program runs, and after `kill -9`.
 *
 *     cc -O2 -shared -fPIC -o instructions.so instructions.c
 *     qemu-aarch64 -plugin instructions.so,count=FILE PROGRAM
 *
 * Debian's packages have no header for plugins; what is used of it is declared here. It is that of QEMU 6 to 8.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct qemu_plugin_tb;
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*callback)(uint64_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*callback)(unsigned, void *), int flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

#define OURS __attribute__((visibility("default")))
OURS int qemu_plugin_version = 1;

static _Atomic uint64_t *count;

static void carried_out(unsigned processor, void *instructions)
{
    (void)processor;
    atomic_fetch_add_explicit(count, (uintptr_t)instructions, memory_order_relaxed);
}

/* A block of instructions was translated: it is told to us each time that it is carried out. */
static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, carried_out, 0, (void *)qemu_plugin_tb_n_insns(block));
}

OURS int qemu_plugin_install(uint64_t id, const void *about, int arguments, char **argument)
{
    (void)about;
    if (arguments != 1 || strncmp(argument[0], "count=", 6) != 0)
        return -1;
    int file = open(argument[0] + 6, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || ftruncate(file, sizeof *count) != 0)
        return -1;
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (count == MAP_FAILED)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}

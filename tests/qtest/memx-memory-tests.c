/*
 * memory-backend-memx: guest memory keeps its contents, whatever happens to
 * its size, its pages and its host.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ring.h"
#include "memx-helpers.h"

#define MIB (1024ull * 1024)
#define PAGE 4096u

/* "At most 2 % over it, at any time." */
#define LOCAL_MAX(bytes) ((bytes) + (bytes) / 50)

static void test_eviction(const void *keep_copies)
{
    MemxServer *server = memx_server_new("128M", "");
    g_autofree char *option = g_strdup_printf(",keep-copies=%s",
                                              (const char *)keep_copies);
    QTestState *vm = memx_vm(server, "64M", "16M", option, "");
    unsigned round;

    for (round = 0; round < 2; round++) {
        memx_fill(vm, 0, 64 * MIB, round);
        memx_verify(vm, 0, 64 * MIB, round);
    }
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "local"), <=,
                     LOCAL_MAX(16 * MIB));
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "remote"), >=,
                     40 * MIB);
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "faults.remote"), >, 0);
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "paging.evicted"), >, 0);
    memx_quit(vm);
    memx_server_free(server);
}

static void set_local_size(QTestState *vm, uint64_t bytes)
{
    qtest_qmp_assert_success(vm,
        "{ 'execute': 'qom-set', 'arguments': { 'path': '/objects/pc.ram',"
        "  'property': 'local-size', 'value': %" PRIu64 " } }", bytes);
}

static void test_local_size(void)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "64M", "48M", "", "");

    memx_fill(vm, 0, 64 * MIB, 1);
    set_local_size(vm, 16 * MIB);
    memx_wait_number(vm, "pc.ram", "local", 0, LOCAL_MAX(16 * MIB));
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "local-size"), ==,
                     16 * MIB);
    memx_verify(vm, 0, 64 * MIB, 1);
    set_local_size(vm, 64 * MIB);
    memx_verify(vm, 0, 64 * MIB, 1);
    memx_fill(vm, 0, 64 * MIB, 2);
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "local"), >, 48 * MIB);
    set_local_size(vm, 20 * MIB);
    memx_verify(vm, 0, 64 * MIB, 2);
    memx_quit(vm);
    memx_server_free(server);
}

static void assert_local_size_error(QTestState *vm, uint64_t bytes)
{
    memx_assert_error(vm, "pc.ram",
        "{ 'execute': 'qom-set', 'arguments': { 'path': '/objects/pc.ram',"
        "  'property': 'local-size', 'value': %" PRIu64 " } }", bytes);
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "local-size"), ==,
                     96 * MIB);
}

static void test_bad_local_size(void)
{
    MemxServer *server = memx_server_new("64M", "");
    QTestState *vm = memx_vm(server, "128M", "96M", "", "");

    assert_local_size_error(vm, 0);
    assert_local_size_error(vm, MIB);
    assert_local_size_error(vm, 256 * MIB);
    /* The server is too small for it. */
    assert_local_size_error(vm, 16 * MIB);
    memx_quit(vm);
    memx_server_free(server);
}

/* --- hot-plug ---------------------------------------------------------- */

#define ACPI_SLOT 0xa00         /* docs/specs/acpi_mem_hotplug.rst */
#define ACPI_CONTROL 0xa14
#define ACPI_EJECT 8

static uint64_t dimm_address(QTestState *vm)
{
    QDict *r = qtest_qmp(vm, "{ 'execute': 'query-memory-devices' }");
    const QListEntry *first = qlist_first(qdict_get_qlist(r, "return"));
    QDict *device = qobject_to(QDict, qlist_entry_obj(first));
    uint64_t address = qdict_get_int(qdict_get_qdict(device, "data"), "addr");

    qobject_unref(r);
    return address;
}

static void test_dimm(void)
{
    MemxServer *server = memx_server_new("160M", "");
    QTestState *vm = memx_plain_vm("-m 64M,slots=2,maxmem=1G");
    unsigned round;

    for (round = 0; round < 2; round++) {
        uint64_t at;

        qtest_qmp_assert_success(vm,
            "{ 'execute': 'object-add', 'arguments': { 'id': 'm0',"
            "  'qom-type': 'memory-backend-memx', 'size': 67108864,"
            "  'local-size': 16777216, 'servers': [ %s ] } }",
            server->address);
        qtest_qmp_device_add(vm, "pc-dimm", "d0", "{ 'memdev': 'm0' }");
        at = dimm_address(vm);
        memx_fill(vm, at, at + 64 * MIB, round);
        memx_verify(vm, at, at + 64 * MIB, round);
        g_assert_cmpuint(memx_query_number(vm, "m0", "remote"), >, 40 * MIB);
        memx_assert_error(vm, "in use",
            "{ 'execute': 'object-del', 'arguments': { 'id': 'm0' } }");

        /* What the guest does when it is asked to let it go. */
        qtest_qmp_device_del_send(vm, "d0");
        qtest_outl(vm, ACPI_SLOT, 0);
        qtest_outb(vm, ACPI_CONTROL, ACPI_EJECT);
        qtest_qmp_eventwait(vm, "DEVICE_DELETED");
        qtest_qmp_assert_success(vm,
            "{ 'execute': 'object-del', 'arguments': { 'id': 'm0' } }");
        memx_assert_none(vm);
    }
    memx_quit(vm);
    memx_server_free(server);
}

/* --- memory given back ------------------------------------------------- */

#define GIVEN_FROM (64 * MIB)
#define GIVEN_BYTES (8 * MIB)

typedef struct Balloon {
    QTestState *vm;
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *device;
} Balloon;

static void balloon_begin(Balloon *b, QTestState *vm)
{
    QPCIAddress at = { .devfn = QPCI_DEVFN(4, 0) };
    QVirtioDevice *d;

    b->vm = vm;
    pc_alloc_init(&b->alloc, vm, 0);
    b->bus = qpci_new_pc(vm, &b->alloc);
    b->device = virtio_pci_new(b->bus, &at);
    g_assert_nonnull(b->device);
    qvirtio_pci_device_enable(b->device);
    d = &b->device->vdev;
    qvirtio_start_device(d);
    qvirtio_set_features(d, qvirtio_get_features(d) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           1ull << VIRTIO_RING_F_INDIRECT_DESC |
                           1ull << VIRTIO_RING_F_EVENT_IDX));
}

static void balloon_end(Balloon *b)
{
    qvirtio_pci_device_disable(b->device);
    g_free(b->device->pdev);
    g_free(b->device);
    qpci_free_pc(b->bus);
    alloc_destroy(&b->alloc);
}

static void balloon_send(Balloon *b, QVirtQueue *vq, uint64_t data,
                         uint32_t bytes, bool write)
{
    QVirtioDevice *d = &b->device->vdev;
    uint32_t head = qvirtqueue_add(b->vm, vq, data, bytes, write, false);

    qvirtqueue_kick(b->vm, d, vq, head);
    qvirtio_wait_used_elem(b->vm, d, vq, head, NULL, 30 * G_USEC_PER_SEC);
}

/* The guest lists page numbers. */
static void inflate(Balloon *b)
{
    QVirtQueue *vq = qvirtqueue_setup(&b->device->vdev, &b->alloc, 0);
    uint32_t pfns[GIVEN_BYTES / PAGE];
    uint64_t list = guest_alloc(&b->alloc, sizeof(pfns));
    unsigned i;

    qvirtio_set_driver_ok(&b->device->vdev);
    for (i = 0; i < G_N_ELEMENTS(pfns); i++) {
        pfns[i] = cpu_to_le32(GIVEN_FROM / PAGE + i);
    }
    qtest_memwrite(b->vm, list, pfns, sizeof(pfns));
    balloon_send(b, vq, list, sizeof(pfns), false);
    qvirtqueue_cleanup(b->device->vdev.bus, vq, &b->alloc);
}

/* The guest lists the memory itself.  Queues 0 to 2 exist always. */
static void report(Balloon *b)
{
    QVirtQueue *vq = qvirtqueue_setup(&b->device->vdev, &b->alloc, 3);

    qvirtio_set_driver_ok(&b->device->vdev);
    balloon_send(b, vq, GIVEN_FROM, GIVEN_BYTES / 2, true);
    balloon_send(b, vq, GIVEN_FROM + GIVEN_BYTES / 2, GIVEN_BYTES / 2, true);
    qvirtqueue_cleanup(b->device->vdev.bus, vq, &b->alloc);
}

static void assert_zero(QTestState *vm, uint64_t from, uint64_t to)
{
    char found[PAGE];
    uint64_t at;

    for (at = from; at < to; at += PAGE) {
        qtest_bufread(vm, at, found, PAGE);
        g_assert_true(buffer_is_zero(found, PAGE));
    }
}

static void test_give_back(const void *how)
{
    MemxServer *server = memx_server_new("256M", "");
    QTestState *vm = memx_vm(server, "128M", "16M", "",
        "-device virtio-balloon-pci,addr=4,free-page-reporting=on");
    uint64_t before;
    Balloon b;

    memx_fill(vm, 32 * MIB, 128 * MIB, 1);
    before = memx_query_number(vm, "pc.ram", "never-written");
    balloon_begin(&b, vm);
    if (g_str_equal(how, "balloon")) {
        inflate(&b);
    } else {
        report(&b);
    }
    balloon_end(&b);

    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "paging.discarded"), >=,
                     GIVEN_BYTES / PAGE);
    g_assert_cmpuint(memx_query_number(vm, "pc.ram", "never-written"), >,
                     before + GIVEN_BYTES - 2 * MIB);
    assert_zero(vm, GIVEN_FROM, GIVEN_FROM + GIVEN_BYTES);
    memx_verify(vm, 32 * MIB, GIVEN_FROM, 1);
    memx_verify(vm, GIVEN_FROM + GIVEN_BYTES, 128 * MIB, 1);

    /* It may be written again. */
    memx_fill(vm, GIVEN_FROM, GIVEN_FROM + GIVEN_BYTES, 2);
    memx_fill(vm, 96 * MIB, 128 * MIB, 2);
    memx_verify(vm, GIVEN_FROM, GIVEN_FROM + GIVEN_BYTES, 2);
    memx_quit(vm);
    memx_server_free(server);
}

/* --- migration --------------------------------------------------------- */

static void migrate(QTestState *from, const char *uri)
{
    bool completed = false;

    qtest_qmp_assert_success(from,
        "{ 'execute': 'migrate', 'arguments': { 'uri': %s } }", uri);
    memx_wait_until(({
        QDict *r = qtest_qmp_assert_success_ref(
            from, "{ 'execute': 'query-migrate' }");
        const char *status = qdict_get_try_str(r, "status");

        g_assert_cmpstr(status, !=, "failed");
        completed = g_strcmp0(status, "completed") == 0;
        qobject_unref(r);
        completed;
    }));
}

/* Ordinary precopy reads all of memory on one side, and writes all of it on
 * the other. */
static void test_migrate(const void *to)
{
    static const char plain[] = "-object memory-backend-ram,id=pc.ram,"
                                "size=128M -machine memory-backend=pc.ram ";
    MemxServer *server = memx_server_new("256M", "");
    g_autofree char *path = memx_tmp_path("migrate");
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    g_autofree char *incoming = g_strdup_printf("-incoming %s", uri);
    bool to_memx = g_str_equal(to, "memx");
    QTestState *from, *dest;

    if (to_memx) {
        from = memx_plain_vm(plain);
        dest = memx_vm(server, "128M", "16M", "", incoming);
    } else {
        g_autofree char *args = g_strdup_printf("%s %s", plain, incoming);

        from = memx_vm(server, "128M", "16M", "", "");
        dest = memx_plain_vm(args);
    }
    memx_fill(from, MIB, 120 * MIB, 1);
    migrate(from, uri);
    memx_wait_status(dest, "running");
    memx_verify(dest, MIB, 120 * MIB, 1);
    if (to_memx) {
        g_assert_cmpuint(memx_query_number(dest, "pc.ram", "local"), <=,
                         LOCAL_MAX(16 * MIB));
    }
    memx_quit(from);
    memx_quit(dest);
    memx_server_free(server);
}

void memx_add_memory_tests(void)
{
    qtest_add_data_func("/memx/memory/evict/keep-copies", "on",
                        test_eviction);
    qtest_add_data_func("/memx/memory/evict/exclusive", "off", test_eviction);
    qtest_add_func("/memx/memory/local-size/change", test_local_size);
    qtest_add_func("/memx/memory/local-size/bad", test_bad_local_size);
    qtest_add_func("/memx/memory/dimm", test_dimm);
    if (qtest_has_device("virtio-balloon-pci")) {
        qtest_add_data_func("/memx/memory/give-back/balloon", "balloon",
                            test_give_back);
        qtest_add_data_func("/memx/memory/give-back/free-page-reporting",
                            "report", test_give_back);
    }
    qtest_add_data_func("/memx/migrate/from-memx", "plain", test_migrate);
    qtest_add_data_func("/memx/migrate/to-memx", "memx", test_migrate);
}

/* Packets: the only file that looks inside "struct dp_packet", mbufs and
 * batches, which differ between Open vSwitch's versions and between builds
 * with and without DPDK.
 *
 * Rust sees slots: an address and a length per packet, one call per burst.
 *
 * Where DPDK's EAL runs, received packets are mbufs of the plugin's own pools:
 * netdev-dpdk transmits them without a copy and rte_pktmbuf_free() brings them
 * home from anywhere in the process.  Elsewhere they come from the heap. */

#include <config.h>

#include "shim.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "dpdk.h"
#include "ovs-numa.h"
#include "ovs-thread.h"
#include "packets.h"
#include "util.h"

#ifdef DPDK_NETDEV
#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

/* What tunnels may push in front of a packet: an mbuf cannot grow. */
#define PACKET_HEADROOM RTE_PKTMBUF_HEADROOM
#else
#define PACKET_HEADROOM 128
#endif

/* Bytes of a frame with MTU 'mtu', rounded so that MTUs share pools: header,
 * two VLAN tags and a CRC that a guest does not send, as stock counts. */
static uint32_t
packet_room(uint32_t mtu)
{
    return ROUND_UP(mtu + ETH_HEADER_LEN + 4 + 2 * VLAN_HEADER_LEN, 1024);
}

/* Pools. */

#ifdef DPDK_NETDEV

/* A pool holds enough mbufs that a port never runs dry while every place where
 * its packets can wait is full:
 *
 *   - per receive queue: its stash, the bursts in its poll thread's hands, and
 *     one transmit ring of a physical port (SHARE_PER_RXQ);
 *   - per core: what the mempool's cache there may keep to itself, one and a
 *     half times its nominal size;
 *   - some for whoever keeps single packets (POOL_SPARE).
 *
 * Ports of the same room and NUMA node share a pool until the shares in it
 * (POOL_SHARES mbufs, or one port's if that is more) are taken; the next port
 * opens another. */
#define SHARE_PER_RXQ (2048 + 4 * NETDEV_MAX_BURST)
#define POOL_SHARES 16384
#define POOL_SPARE 4096
#define POOL_CACHE RTE_MEMPOOL_CACHE_MAX_SIZE

/* No pool is smaller than this: it would starve on its caches. */
#define POOL_FLOOR 4096
BUILD_ASSERT_DECL(POOL_FLOOR >= POOL_CACHE * 3 / 2);

struct packet_pool {
    struct ovs_list node;       /* In 'pools'. */
    struct rte_mempool *mp;
    unsigned int n_ports;       /* Ports that receive into it. */
    int share;                  /* mbufs not yet counted on by a port; negative
                                 * in a crowded pool. */
    uint32_t room;
    int numa;
};

static struct ovs_mutex pools_mutex = OVS_MUTEX_INITIALIZER;
static struct ovs_list pools OVS_GUARDED_BY(pools_mutex)
    = OVS_LIST_INITIALIZER(&pools);

/* mbufs of a pool that are nobody's share. */
static unsigned int
pool_overhead(void)
{
    unsigned int n_cores = MIN(ovs_numa_get_n_cores(), RTE_MAX_LCORE);

    return n_cores * (POOL_CACHE * 3 / 2) + POOL_SPARE;
}

static void
pool_init_packet(struct rte_mempool *mp OVS_UNUSED, void *aux OVS_UNUSED,
                 void *packet, unsigned int index OVS_UNUSED)
{
    dp_packet_init_dpdk(packet);
}

static struct rte_mempool *
pool_create_mempool(const char *name, unsigned int n, uint32_t room, int numa)
{
    /* The private area of an mbuf is the rest of its "struct dp_packet",
     * padded so that a whole element is a multiple of a cache line. */
    size_t packet_size = sizeof(struct dp_packet) + room;
    size_t private_size = sizeof(struct dp_packet) - sizeof(struct rte_mbuf)
        + (ROUND_UP(packet_size, RTE_CACHE_LINE_SIZE) - packet_size);
    struct rte_mempool *mp
        = rte_pktmbuf_pool_create(name, n, POOL_CACHE,
                                  ROUND_UP(private_size, RTE_MBUF_PRIV_ALIGN),
                                  room + PACKET_HEADROOM,
                                  numa < 0 ? SOCKET_ID_ANY : numa);

    if (mp) {
        rte_mempool_obj_iter(mp, pool_init_packet, NULL);
    }
    return mp;
}

/* Makes a pool with room for 'share', or with less if memory is short.  Stores
 * a positive errno in '*error' and returns NULL if there is not even memory
 * for POOL_FLOOR. */
static struct packet_pool *
pool_create(const char *port_name, uint32_t room, int numa, int share,
            int *error)
{
    static unsigned int serial;
    unsigned int overhead = pool_overhead();
    unsigned int n = overhead + MAX(share, POOL_SHARES);
    char name[RTE_MEMPOOL_NAMESIZE];
    struct rte_mempool *mp;

    snprintf(name, sizeof name, "ovs-vhost-%u", serial++);
    for (;;) {
        shim_log(VLL_DBG, "Port %s: Requesting a mempool of %u mbufs of size "
                 "%"PRIu32" on socket %d", port_name, n, room, numa);
        mp = pool_create_mempool(name, n, room, numa);
        if (mp || rte_errno != ENOMEM || n / 2 < POOL_FLOOR) {
            break;
        }
        n /= 2;
    }
    if (!mp) {
        *error = rte_errno;
        shim_log(VLL_ERR, "Failed to create mempool \"%s\" with a request of "
                 "%u mbufs", name, n);
        return NULL;
    }

    struct packet_pool *pool = xmalloc(sizeof *pool);
    *pool = (struct packet_pool) {
        .mp = mp,
        .share = (int) n - (int) overhead,
        .room = room,
        .numa = numa,
    };
    return pool;
}

/* Frees the pools that no port uses and that every mbuf has come home to.
 * rte_mempool_full() looks at the ring before the caches: as nobody takes from
 * these pools any more, it can be wrong only by saying no. */
static void
pools_sweep(void)
    OVS_REQUIRES(pools_mutex)
{
    struct packet_pool *pool;

    LIST_FOR_EACH_SAFE (pool, node, &pools) {
        if (!pool->n_ports && rte_mempool_full(pool->mp)) {
            shim_log(VLL_DBG, "Freeing mempool \"%s\"", pool->mp->name);
            ovs_list_remove(&pool->node);
            rte_mempool_free(pool->mp);
            free(pool);
        }
    }
}

static struct packet_pool *
pool_find(uint32_t room, int numa, int share)
    OVS_REQUIRES(pools_mutex)
{
    struct packet_pool *pool;

    LIST_FOR_EACH (pool, node, &pools) {
        if (pool->room == room && pool->numa == numa && pool->share >= share) {
            shim_log(VLL_DBG, "Reusing mempool \"%s\"", pool->mp->name);
            return pool;
        }
    }
    return NULL;
}

/* Takes 'share' mbufs of a pool for a port.  A crowded pool is better than
 * none. */
static struct packet_pool *
pool_get(const char *port_name, uint32_t room, int numa, int share, int *error)
{
    ovs_mutex_lock(&pools_mutex);
    struct packet_pool *pool = pool_find(room, numa, share);

    pools_sweep();
    if (!pool) {
        pool = pool_create(port_name, room, numa, share, error);
        if (pool) {
            ovs_list_push_back(&pools, &pool->node);
        } else {
            pool = pool_find(room, numa, INT_MIN);
        }
    }
    if (pool) {
        pool->n_ports++;
        pool->share -= share;
    }
    ovs_mutex_unlock(&pools_mutex);
    return pool;
}

static void
pool_put(struct packet_pool *pool, int share)
{
    ovs_mutex_lock(&pools_mutex);
    pool->n_ports--;
    pool->share += share;
    pools_sweep();
    ovs_mutex_unlock(&pools_mutex);
}

void
packet_pools_sweep(void)
{
    ovs_mutex_lock(&pools_mutex);
    pools_sweep();
    ovs_mutex_unlock(&pools_mutex);
}

#else /* !DPDK_NETDEV */

void
packet_pools_sweep(void)
{
}

#endif

/* Sources. */

void
packet_source_release(struct packet_source *source)
{
#ifdef DPDK_NETDEV
    if (source->kind == SOURCE_POOL) {
        pool_put(source->pool, source->share);
    }
#endif
    *source = (struct packet_source) { .kind = SOURCE_HELD };
}

#ifdef DPDK_NETDEV
/* Moves '*source' to a pool fit for 'topology', if it is not in one. */
static void
packet_source_use_pool(struct packet_source *source, const char *port_name,
                       const struct ovsv_topology *topology)
{
    uint32_t room = packet_room(topology->mtu);
    int share = topology->n_rxq * SHARE_PER_RXQ;
    bool pooled = source->kind == SOURCE_POOL && source->room == room;
    int error = 0;

    if (pooled && (!topology->attached
                   || (source->share == share
                       && source->pool->numa == topology->numa))) {
        return;
    }
    if (!topology->attached) {
        /* No guest, no packets: no memory. */
        packet_source_release(source);
        return;
    }

    struct packet_source new = { .kind = SOURCE_POOL, .room = room };
    new.pool = pool_get(port_name, room, topology->numa, share, &error);
    new.share = share;
    if (!new.pool) {
        shim_log(VLL_ERR, "Failed to create memory pool for netdev %s, with "
                 "MTU %"PRIu32" on socket %d: %s", port_name, topology->mtu,
                 topology->numa, rte_strerror(error));
        new = (struct packet_source) { .kind = SOURCE_HELD,
                                       .exhausted = true };
    }
    packet_source_release(source);
    *source = new;
}
#endif

/* Makes '*source' the best there is for a port of this topology.  Main thread,
 * with none of the port's stashes in existence. */
void
packet_source_configure(struct packet_source *source,
                        const char *port_name OVS_UNUSED,
                        const struct ovsv_topology *topology)
{
#ifdef DPDK_NETDEV
    if (dpdk_available()) {
        packet_source_use_pool(source, port_name, topology);
        return;
    }
#endif
    *source = (struct packet_source) { .kind = SOURCE_MALLOC,
                                       .room = packet_room(topology->mtu) };
}

/* Whether packet_source_configure() would now find something better: EAL came
 * up, or a guest came for whom there is no pool yet.  A lack of memory is not
 * tried again before the next change of configuration. */
bool
packet_source_is_stale(const struct packet_source *source, bool carrier)
{
    return dpdk_available()
           && (source->kind == SOURCE_MALLOC
               || (source->kind == SOURCE_HELD && carrier
                   && !source->exhausted));
}

/* Receiving. */

/* Makes packets[index] ready for 'packet', which is new and empty. */
static inline void
stash_put(struct packet_stash *stash, size_t index, struct dp_packet *packet)
{
    stash->packets[index] = packet;
    stash->slots[index] = (struct ovsv_rx_slot) {
        .data = dp_packet_data(packet),
        .room = dp_packet_tailroom(packet),
    };
}

#ifdef DPDK_NETDEV
/* An mbuf comes reset, but for what only Open vSwitch knows of. */
static inline void
stash_put_mbuf(struct packet_stash *stash, size_t index, struct rte_mbuf *mbuf)
{
    struct dp_packet *packet = CONTAINER_OF(mbuf, struct dp_packet, mbuf);

    dp_packet_reset_cutlen(packet);
    packet->packet_type = htonl(PT_ETH);
    stash_put(stash, index, packet);
}

static void
stash_refill_from_pool(struct packet_stash *stash)
{
    struct rte_mempool *mp = stash->source.pool->mp;
    struct rte_mbuf *mbufs[NETDEV_MAX_BURST];

    if (OVS_LIKELY(!rte_pktmbuf_alloc_bulk(mp, mbufs, stash->first))) {
        for (size_t i = 0; i < stash->first; i++) {
            stash_put_mbuf(stash, i, mbufs[i]);
        }
        stash->first = 0;
        return;
    }

    /* Not a burst's worth is left: take what there is. */
    while (stash->first > 0) {
        struct rte_mbuf *mbuf = rte_pktmbuf_alloc(mp);

        if (!mbuf) {
            break;
        }
        stash_put_mbuf(stash, --stash->first, mbuf);
    }
}
#endif

/* Replaces the packets that were handed out, as far as there is memory. */
static void
stash_refill(struct packet_stash *stash)
{
    switch (stash->source.kind) {
    case SOURCE_MALLOC:
        while (stash->first > 0) {
            stash_put(stash, --stash->first,
                      dp_packet_new_with_headroom(stash->source.room,
                                                  PACKET_HEADROOM));
        }
        break;
    case SOURCE_POOL:
#ifdef DPDK_NETDEV
        stash_refill_from_pool(stash);
#endif
        break;
    case SOURCE_HELD:
        break;
    }
}

/* The stash fills on its first use, by the thread that polls it. */
void
packet_stash_init(struct packet_stash *stash,
                  const struct packet_source *source)
{
    stash->source = *source;
    stash->first = NETDEV_MAX_BURST;
}

void
packet_stash_uninit(struct packet_stash *stash)
{
    for (size_t i = stash->first; i < NETDEV_MAX_BURST; i++) {
        dp_packet_delete(stash->packets[i]);
    }
    stash->first = NETDEV_MAX_BURST;
}

/* Receives a burst into 'batch', which is empty.  Returns 0, or EAGAIN if
 * there was nothing.  A guest whose packets there is no memory for keeps them
 * in its ring: nothing is dropped here. */
int
packet_stash_receive(struct packet_stash *stash, const struct ovsv_port *port,
                     const struct ovsv_queue *queue,
                     struct dp_packet_batch *batch, int *qfill)
{
    if (stash->first) {
        stash_refill(stash);
    }

    size_t first = stash->first;
    size_t ready = NETDEV_MAX_BURST - first;
    size_t n = ready ? ovsv.dequeue(port, queue, &stash->slots[first], ready)
                     : 0;

    if (!n) {
        return EAGAIN;
    }
    for (size_t i = first; i < first + n; i++) {
        dp_packet_set_size(stash->packets[i], stash->slots[i].len);
        dp_packet_batch_add(batch, stash->packets[i]);
    }
    stash->first += n;

    if (qfill) {
        *qfill = n == NETDEV_MAX_BURST ? ovsv.backlog(port, queue) : 0;
    }
    return 0;
}

/* Sending. */

static inline bool
packet_is_segmented(const struct dp_packet *packet OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    return packet->mbuf.nb_segs > 1;
#else
    return false;
#endif
}

/* Returns the whole of a segmented packet in one piece, using '*buffer', which
 * the caller frees.  Open vSwitch makes no such packets, but the driver of a
 * physical port may. */
static const void *
packet_flatten(const struct dp_packet *packet, void **buffer)
{
    *buffer = xmalloc(dp_packet_size(packet));
#ifdef DPDK_NETDEV
    return rte_pktmbuf_read(&packet->mbuf, 0, dp_packet_size(packet), *buffer);
#else
    OVS_NOT_REACHED();
#endif
}

static inline bool
packets_are_mbufs(struct dp_packet *const *packets OVS_UNUSED,
                  size_t n OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    for (size_t i = 0; i < n; i++) {
        if (packets[i]->source != DPBUF_DPDK) {
            return false;
        }
    }
    return true;
#else
    return false;
#endif
}

static void
packets_delete(struct dp_packet **packets, size_t n)
{
    if (packets_are_mbufs(packets, n)) {
#ifdef DPDK_NETDEV
        rte_pktmbuf_free_bulk((struct rte_mbuf **) packets, n);
#endif
        return;
    }
    for (size_t i = 0; i < n; i++) {
        dp_packet_delete(packets[i]);
    }
}

static void
packets_send(const struct ovsv_port *port, uint16_t qid,
             struct dp_packet **packets, size_t n)
{
    struct ovsv_tx_slot slots[NETDEV_MAX_BURST];
    void *flat[NETDEV_MAX_BURST];
    size_t n_flat = 0;

    for (size_t i = 0; i < n; i++) {
        slots[i].data = dp_packet_data(packets[i]);
        slots[i].len = dp_packet_size(packets[i]);
        if (OVS_UNLIKELY(packet_is_segmented(packets[i]))) {
            slots[i].data = packet_flatten(packets[i], &flat[n_flat++]);
        }
    }
    ovsv.send(port, qid, slots, n);

    while (n_flat > 0) {
        free(flat[--n_flat]);
    }
    packets_delete(packets, n);
}

/* Sends what the guest has room for, and frees all. */
void
packet_batch_send(const struct ovsv_port *port, uint16_t qid,
                  struct dp_packet_batch *batch)
{
    size_t n = dp_packet_batch_size(batch);

    for (size_t i = 0; i < n; i += NETDEV_MAX_BURST) {
        packets_send(port, qid, &batch->packets[i],
                     MIN(n - i, NETDEV_MAX_BURST));
    }
}

/* Where received packets come from.
 *
 * Where DPDK's EAL runs they are mbufs of the plugin's own pools: netdev-dpdk
 * transmits them without a copy and rte_pktmbuf_free() brings them home from
 * anywhere in the process.  Elsewhere they come from the heap. */

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
    if (new.pool) {
        new.mp = new.pool->mp;
        new.mbuf_data = sizeof(struct rte_mbuf)
                        + rte_pktmbuf_priv_size(new.mp)
                        + RTE_PKTMBUF_HEADROOM;
        new.mbuf_room = rte_pktmbuf_data_room_size(new.mp)
                        - RTE_PKTMBUF_HEADROOM;
        new.share = share;
    } else {
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

/* Tells 'stream' of the pool of '*source', in the words of netdev-dpdk.  Main
 * thread.  Returns 0, or ENODATA if there is none. */
int
packet_source_dump(const struct packet_source *source OVS_UNUSED,
                   FILE *stream OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    if (source->kind == SOURCE_POOL) {
        rte_mempool_dump(stream, source->mp);
        fprintf(stream, "    count: avail (%u), in use (%u)\n",
                rte_mempool_avail_count(source->mp),
                rte_mempool_in_use_count(source->mp));
        return 0;
    }
#endif
    return ENODATA;
}

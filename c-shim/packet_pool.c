/* Pools of packets, in a process with DPDK's EAL.
 *
 * Their mbufs are such that netdev-dpdk transmits them without a copy, and
 * rte_pktmbuf_free() brings them home from anywhere in the process. */

#include <config.h>

#include "shim.h"

#ifdef DPDK_NETDEV

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include "openvswitch/ofp-parse.h"
#include "ovs-numa.h"
#include "ovs-thread.h"
#include "smap.h"
#include "util.h"

/* Settings, from "other_config".  Set once, before there is any port. */

/* other_config:per-port-memory: no two ports share a pool. */
static bool per_port_memory;

/* other_config:shared-mempool-config: what pools there may be, so that ports of
 * several MTUs share them.  None: of whatever size a port needs. */
struct pool_size {
    uint32_t room;
    int numa;                   /* INT_MAX: on any node. */
};

static struct pool_size *pool_sizes;
static size_t n_pool_sizes;

/* Reads "MTU[:NUMA],...".  As in netdev-dpdk, which has a word on it, a list
 * with something wrong in it counts for nothing. */
static void
pool_sizes_parse(char *list)
{
    size_t allocated = 0;
    char *key, *value;

    while (ofputil_parse_key_value(&list, &key, &value)) {
        int mtu, numa;

        if (!str_to_int(value, 0, &numa)) {
            numa = INT_MAX;
        }
        if (!str_to_int(key, 0, &mtu) || mtu < 0 || numa < 0) {
            n_pool_sizes = 0;
            return;
        }
        if (n_pool_sizes == allocated) {
            pool_sizes = x2nrealloc(pool_sizes, &allocated,
                                    sizeof *pool_sizes);
        }
        pool_sizes[n_pool_sizes++] = (struct pool_size) {
            .room = packet_room(mtu),
            .numa = numa,
        };
    }
}

void
packet_pools_init(const struct smap *other_config)
{
    const char *sizes = smap_get(other_config, "shared-mempool-config");

    per_port_memory = smap_get_bool(other_config, "per-port-memory", false);
    if (sizes) {
        char *copy = xstrdup(sizes);

        pool_sizes_parse(copy);
        free(copy);
    }
}

/* Bytes of a packet in the pool for a port of that MTU on that NUMA node: of
 * the sizes that pools may have, the smallest that will do. */
uint32_t
packet_pool_room(uint32_t mtu, int numa)
{
    uint32_t needed = packet_room(mtu);
    uint32_t best = UINT32_MAX;

    if (per_port_memory || !n_pool_sizes) {
        return needed;
    }
    for (size_t i = 0; i < n_pool_sizes; i++) {
        const struct pool_size *size = &pool_sizes[i];

        if (size->room >= needed
            && (size->numa == INT_MAX || size->numa == numa)) {
            best = MIN(best, size->room);
        }
    }
    if (best == UINT32_MAX) {
        shim_log(VLL_DBG, "No user configured shared mempool mbuf sizes found "
                 "suitable for port with MTU %"PRIu32", NUMA %d.", mtu, numa);
        return needed;
    }
    shim_log(VLL_DBG, "Found user configured shared mempool with mbufs of size "
             "%"PRIu32", suitable for port with MTU %"PRIu32", NUMA %d.",
             best + PACKET_HEADROOM, mtu, numa);
    return best;
}

/* Pools. */

/* A pool holds enough mbufs that a port never runs dry while every place where
 * its packets can wait is full:
 *
 *   - per receive queue: its stash, the bursts in its poll thread's hands, and
 *     one transmit ring of a physical port (PACKET_POOL_SHARE);
 *   - per core: what the mempool's cache there may keep to itself, one and a
 *     half times its nominal size;
 *   - some for whoever keeps single packets (POOL_SPARE).
 *
 * Ports of the same room and NUMA node share a pool until the shares in it
 * (POOL_SHARES mbufs, or one port's if that is more) are taken; the next port
 * opens another.  With per-port memory each port has a pool for itself, and no
 * more in it than it needs. */
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
    unsigned int wanted = overhead
        + (per_port_memory ? share : MAX(share, POOL_SHARES));
    unsigned int n = wanted;
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
    if (n < wanted) {
        shim_log(VLL_INFO, "Port %s: memory is short: mempool \"%s\" has %u "
                 "mbufs, not %u", port_name, name, n, wanted);
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

/* A pool that ports may share with room for 'share', or NULL. */
static struct packet_pool *
pool_find(uint32_t room, int numa, int share)
    OVS_REQUIRES(pools_mutex)
{
    struct packet_pool *pool;

    if (per_port_memory) {
        return NULL;
    }
    LIST_FOR_EACH (pool, node, &pools) {
        if (pool->room == room && pool->numa == numa && pool->share >= share) {
            shim_log(VLL_DBG, "Reusing mempool \"%s\"", pool->mp->name);
            return pool;
        }
    }
    return NULL;
}

/* Takes 'share' mbufs of a pool for a port, and stores where they are in
 * '*mpp'.  A crowded pool is better than none, where ports may share.  Stores a positive errno in
 * '*error' and returns NULL if there is none at all. */
struct packet_pool *
packet_pool_get(const char *port_name, uint32_t room, int numa, int share,
                struct rte_mempool **mpp, int *error)
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
        *mpp = pool->mp;
    }
    ovs_mutex_unlock(&pools_mutex);
    return pool;
}

void
packet_pool_put(struct packet_pool *pool, int share)
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
packet_pools_init(const struct smap *other_config OVS_UNUSED)
{
}

void
packet_pools_sweep(void)
{
}

#endif

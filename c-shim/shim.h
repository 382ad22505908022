/* What the files of the shim know of each other.
 *
 *   - host.c: Open vSwitch's services for Rust, and the plugin's registration.
 *   - netdev_class.c: the two netdev classes over "struct ovsv_entries".
 *   - qos.c: their callbacks that limit what a port carries.
 *   - stats.c: a port's counters in Open vSwitch's structures.
 *   - tap.c: commands of those who look at packets.
 *   - pairs.c: keys and their values, from and to Open vSwitch's maps.
 *   - packet_source.c: the memory that received packets are made of.
 *   - packet_pool.c: the pools that it comes from where there is DPDK.
 *   - packet_large.c: buffers for packets larger than a pool's.
 *   - packet_heap.c: what it comes from elsewhere.
 *   - packet.c: packets, mbufs and batches.
 *   - offload.c: what is left to be done to a packet, in either side's terms.
 *
 * Nothing but packet*.c and offload.c looks inside a packet.
 *
 * Rust sees none of this; its border is ovs_vhost.h. */

#ifndef OVS_VHOST_SHIM_H
#define OVS_VHOST_SHIM_H 1

#include "ovs_vhost.h"

#include <stdio.h>

#include "dp-packet.h"
#include "netdev-provider.h"
#include "openvswitch/vlog.h"

/* host.c */

/* Rust, from ovsv_plugin() on. */
extern struct ovsv_entries ovsv;

void shim_log(enum vlog_level, const char *format, ...)
    OVS_PRINTF_FORMAT(2, 3);

/* netdev_class.c */

int netdev_vhost_register(void);

/* The port behind a netdev of either class. */
struct ovsv_port *netdev_vhost_port(const struct netdev *);

/* Calls 'cb' with the port of that name or, if it is NULL, with every port.
 * Returns false if there is none. */
bool netdev_vhost_each_port(const char *name,
                            void (*cb)(struct ovsv_port *, void *aux),
                            void *aux);

/* qos.c */

struct sset;

int qos_set_policing(struct netdev *, uint32_t kbits_rate,
                     uint32_t kbits_burst, uint32_t kpkts_rate,
                     uint32_t kpkts_burst);
int qos_get_types(const struct netdev *, struct sset *types);
int qos_get(const struct netdev *, const char **typep, struct smap *details);
int qos_set(struct netdev *, const char *type, const struct smap *details);
int qos_get_queue(const struct netdev *, unsigned int queue_id,
                  struct smap *details);
int qos_set_queue(struct netdev *, unsigned int queue_id,
                  const struct smap *details);
int qos_delete_queue(struct netdev *, unsigned int queue_id);
int qos_get_queue_stats(const struct netdev *, unsigned int queue_id,
                        struct netdev_queue_stats *);
int qos_queue_dump_start(const struct netdev *, void **dumpp);
int qos_queue_dump_next(const struct netdev *, void *dump,
                        unsigned int *queue_id, struct smap *details);
int qos_queue_dump_done(const struct netdev *, void *dump);

/* The callbacks of "struct netdev_class" that are these. */
#define QOS_CALLBACKS                               \
    .set_policing = qos_set_policing,               \
    .get_qos_types = qos_get_types,                 \
    .get_qos = qos_get,                             \
    .set_qos = qos_set,                             \
    .get_queue = qos_get_queue,                     \
    .set_queue = qos_set_queue,                     \
    .delete_queue = qos_delete_queue,               \
    .get_queue_stats = qos_get_queue_stats,         \
    .queue_dump_start = qos_queue_dump_start,       \
    .queue_dump_next = qos_queue_dump_next,         \
    .queue_dump_done = qos_queue_dump_done

/* tap.c */

void tap_register(void);

/* pairs.c */

struct ovsv_option *pairs_from_smap(const struct smap *, size_t *n);
void pair_to_smap(void *smap, const char *key, size_t key_len,
                  const char *value, size_t value_len);

/* stats.c */

void port_get_stats(const struct ovsv_port *, struct netdev_stats *);
void port_get_custom_stats(const struct ovsv_port *,
                           struct netdev_custom_stats *);

/* packet_source.c */

/* What tunnels may push in front of a packet: an mbuf cannot grow. */
#ifdef DPDK_NETDEV
#define PACKET_HEADROOM RTE_PKTMBUF_HEADROOM
#else
#define PACKET_HEADROOM 128
#endif

struct packet_pool;
struct rte_mempool;

enum packet_source_kind {
    SOURCE_HELD,                /* From nowhere: nothing is received. */
    SOURCE_HEAP,                /* The heap, in a process without EAL. */
    SOURCE_POOL,                /* mbufs of 'pool'. */
};

struct packet_source {
    enum packet_source_kind kind;
    struct packet_pool *pool;   /* SOURCE_POOL only, with a share of it. */
    struct rte_mempool *mp;     /* Its mbufs. */
    uint32_t mbuf_data;         /* From an mbuf to the first byte of a packet
                                 * in it, in bytes. */
    uint32_t mbuf_room;         /* Bytes from there on. */
    int share;                  /* mbufs of 'pool' that this port counts on. */
    int numa;                   /* Where it wants them. */
    uint32_t room;              /* Bytes that fit in a packet. */
    bool exhausted;             /* Held because there was no memory. */
};

void packet_source_configure(struct packet_source *, const char *port_name,
                             const struct ovsv_topology *);
void packet_source_release(struct packet_source *);
bool packet_source_is_stale(const struct packet_source *, bool carrier);
int packet_source_dump(const struct packet_source *, FILE *);
uint32_t packet_room(uint32_t mtu);

/* packet_pool.c */

/* mbufs that a port counts on for each receive queue: its stash, the bursts in
 * its poll thread's hands, and one transmit ring of a physical port. */
#define PACKET_POOL_SHARE (2048 + 4 * NETDEV_MAX_BURST)

void packet_pools_init(const struct smap *other_config);
uint32_t packet_pool_room(uint32_t mtu, int numa);
struct packet_pool *packet_pool_get(const char *port_name, uint32_t room,
                                    int numa, int share,
                                    struct rte_mempool **, int *error);
void packet_pool_put(struct packet_pool *, int share);
void packet_pools_sweep(void);

/* packet_heap.c: a heap is one receive queue's. */

struct packet_heap;

struct packet_heap *packet_heap_open(uint32_t room);
void packet_heap_close(struct packet_heap *);
void packet_heap_get(struct packet_heap *, struct dp_packet **, size_t n);
size_t packet_heap_put(struct dp_packet **, size_t n);

/* packet_large.c */

bool packet_enlarge(struct dp_packet *);

/* packet.c: receiving.  A receive queue keeps a burst's worth of packets
 * ready, so that an empty poll costs no allocation. */
struct packet_stash {
    struct packet_source source; /* The port's; holds no share itself. */
    struct packet_heap *heap;   /* SOURCE_HEAP only. */
    size_t first;               /* Ready are [first, NETDEV_MAX_BURST). */
    struct ovsv_rx_slot slots[NETDEV_MAX_BURST];
    struct dp_packet *packets[NETDEV_MAX_BURST];
};

void packet_stash_init(struct packet_stash *, const struct packet_source *);
void packet_stash_uninit(struct packet_stash *);
int packet_stash_receive(struct packet_stash *, const struct ovsv_port *,
                         const struct ovsv_queue *, struct dp_packet_batch *,
                         int *qfill);

/* packet.c: sending.  Takes ownership of the packets.  'mtu' is the port's. */
void packet_batch_send(const struct ovsv_port *, uint16_t qid, uint32_t mtu,
                       struct dp_packet_batch *);

/* Whether it is spread over several mbufs.  One of the heap counts none. */
static inline bool
packet_is_segmented(const struct dp_packet *packet OVS_UNUSED)
{
#ifdef DPDK_NETDEV
    return packet->mbuf.nb_segs > 1;
#else
    return false;
#endif
}

/* offload.c */

/* What a port of either kind leaves to its guests, in netdev's terms. */
uint64_t offload_netdev_flags(void);

/* Says in the packet what is left to be done to it. */
void offload_to_packet(struct dp_packet *, const struct ovsv_offload *);

/* What the packet says is left to be done to it, for segments that keep to
 * 'mtu'.  Completes what VIRTIO wants to find in its headers. */
struct ovsv_offload offload_from_packet(struct dp_packet *, uint32_t mtu);

/* Whether anything is. */
static inline bool
offload_is_asked(const struct dp_packet *packet)
{
    return *dp_packet_ol_flags_ptr(packet)
           & (DP_PACKET_OL_TX_TCP_SEG | DP_PACKET_OL_TX_L4_MASK);
}

#endif /* shim.h */

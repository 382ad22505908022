/* The netdev classes "dpdkvhostuser" and "dpdkvhostuserclient".
 *
 * Cast, call: what a port does is decided in Rust, what a packet is in
 * packet.c.  This file keeps only what Open vSwitch wants remembered per
 * netdev.  The contract of each callback is in netdev-provider.h. */

#include <config.h>

#include "shim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dpdk.h"
#include "hash.h"
#include "openvswitch/list.h"
#include "ovs-atomic.h"
#include "ovs-thread.h"
#include "packets.h"
#include "smap.h"
#include "util.h"

struct netdev_vhost {
    struct netdev up;

    /* Set in construct, constant until destruct. */
    struct ovsv_port *port;
    struct ovs_list node;       /* In 'ports'. */

    /* NETDEV_UP of 'flags', for the poll threads. */
    atomic_bool admin_up;

    /* Changed in reconfigure only, that is by the main thread with no poll
     * thread on this port. */
    struct ovsv_topology topology;
    struct packet_source source;
    bool reconfigure_requested; /* By netdev_vhost_run(), not yet done. */

    struct ovs_mutex mutex;
    struct eth_addr hwaddr OVS_GUARDED;
    enum netdev_flags flags OVS_GUARDED;
};

struct netdev_vhost_rxq {
    struct netdev_rxq up;
    const struct netdev_vhost *dev;
    const struct ovsv_queue *queue;
    struct packet_stash stash;
};

/* Every port, for work that is not Open vSwitch's idea. */
static struct ovs_mutex ports_mutex = OVS_MUTEX_INITIALIZER;
static struct ovs_list ports OVS_GUARDED_BY(ports_mutex)
    = OVS_LIST_INITIALIZER(&ports);

static const struct netdev_class server_class;

static struct netdev_vhost *
netdev_vhost_cast(const struct netdev *netdev)
{
    return CONTAINER_OF(netdev, struct netdev_vhost, up);
}

static struct netdev_vhost_rxq *
netdev_vhost_rxq_cast(const struct netdev_rxq *rxq)
{
    return CONTAINER_OF(rxq, struct netdev_vhost_rxq, up);
}

struct ovsv_port *
netdev_vhost_port(const struct netdev *netdev)
{
    return netdev_vhost_cast(netdev)->port;
}

/* Life. */

static struct netdev *
netdev_vhost_alloc(void)
{
    struct netdev_vhost *dev = xzalloc_cacheline(sizeof *dev);

    return &dev->up;
}

static void
netdev_vhost_dealloc(struct netdev *netdev)
{
    free_cacheline(netdev_vhost_cast(netdev));
}

static int
netdev_vhost_construct(struct netdev *netdev)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);
    enum ovsv_mode mode
        = netdev->netdev_class == &server_class ? OVSV_SERVER : OVSV_CLIENT;

    /* The port may call back for 'netdev' before port_create() returns, so
     * everything else is in place first. */
    ovs_mutex_init(&dev->mutex);
    ovs_mutex_lock(&dev->mutex);
    dev->flags = NETDEV_UP | NETDEV_PROMISC;
    ovs_mutex_unlock(&dev->mutex);
    atomic_init(&dev->admin_up, true);
    dev->topology = (struct ovsv_topology) {
        .n_rxq = 1,
        .n_txq = 1,
        .mtu = ETH_PAYLOAD_MAX,
        .numa = -1,
    };

    int error = ovsv.port_create(netdev, netdev->name, mode, &dev->port);
    if (error) {
        ovs_mutex_destroy(&dev->mutex);
        return error;
    }

    ovs_mutex_lock(&ports_mutex);
    ovs_list_push_back(&ports, &dev->node);
    ovs_mutex_unlock(&ports_mutex);

    /* As ever, server ports take packets only as they go on the wire. */
    netdev->ol_flags = mode == OVSV_CLIENT ? offload_netdev_flags() : 0;

    /* Queues exist from the first reconfigure on. */
    netdev->n_rxq = 0;
    netdev->n_txq = 0;
    netdev_request_reconfigure(netdev);
    return 0;
}

static void
netdev_vhost_destruct(struct netdev *netdev)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    ovs_mutex_lock(&ports_mutex);
    ovs_list_remove(&dev->node);
    ovs_mutex_unlock(&ports_mutex);

    ovsv.port_destroy(dev->port);
    packet_source_release(&dev->source);
    ovs_mutex_destroy(&dev->mutex);
}

/* Work of the main thread in every round of its loop: ports whose packets can
 * come from a better place than they do are reconfigured. */
static void
netdev_vhost_run(const struct netdev_class *class)
{
    struct netdev_vhost *dev;

    ovs_mutex_lock(&ports_mutex);
    LIST_FOR_EACH (dev, node, &ports) {
        if (dev->up.netdev_class == class && !dev->reconfigure_requested
            && packet_source_is_stale(&dev->source,
                                      ovsv.port_carrier(dev->port))) {
            dev->reconfigure_requested = true;
            netdev_request_reconfigure(&dev->up);
        }
    }
    ovs_mutex_unlock(&ports_mutex);

    packet_pools_sweep();
}

static int
netdev_vhost_reconfigure(struct netdev *netdev)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    ovsv.port_reconfigure(dev->port, &dev->topology);
    packet_source_configure(&dev->source, netdev->name, &dev->topology);
    netdev->n_rxq = dev->topology.n_rxq;
    netdev->n_txq = dev->topology.n_txq;
    dev->reconfigure_requested = false;
    netdev_change_seq_changed(netdev);
    return 0;
}

bool
netdev_vhost_each_port(const char *name,
                       void (*cb)(struct ovsv_port *, void *aux), void *aux)
{
    struct netdev_vhost *dev;
    bool found = false;

    ovs_mutex_lock(&ports_mutex);
    LIST_FOR_EACH (dev, node, &ports) {
        if (!name || !strcmp(dev->up.name, name)) {
            cb(dev->port, aux);
            found = true;
        }
    }
    ovs_mutex_unlock(&ports_mutex);
    return found;
}

/* Configuration. */

static int
netdev_vhost_get_config(const struct netdev *netdev, struct smap *args)
{
    const struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    smap_add_format(args, "requested_rx_queues", "%d", dev->topology.n_rxq);
    smap_add_format(args, "configured_rx_queues", "%d", netdev->n_rxq);
    smap_add_format(args, "requested_tx_queues", "%d", dev->topology.n_txq);
    smap_add_format(args, "configured_tx_queues", "%d", netdev->n_txq);
    smap_add_format(args, "mtu", "%"PRIu32, dev->topology.mtu);
    return 0;
}

static void
take_error(void *errp_, const char *text, size_t len)
{
    char **errp = errp_;

    free(*errp);
    *errp = xmemdup0(text, len);
}

static int
netdev_vhost_set_config(struct netdev *netdev, const struct smap *args,
                        char **errp)
{
    size_t n;
    struct ovsv_option *options = pairs_from_smap(args, &n);
    char *text = NULL;
    int error = ovsv.port_set_config(netdev_vhost_cast(netdev)->port,
                                     options, n, take_error, &text);
    free(options);

    if (error && errp) {
        *errp = text;
    } else {
        free(text);
    }
    return error;
}

static int
netdev_vhost_get_numa_id(const struct netdev *netdev)
{
    /* A node that is not known must not look like a far one. */
    return MAX(netdev_vhost_cast(netdev)->topology.numa, 0);
}

static int
netdev_vhost_get_mtu(const struct netdev *netdev, int *mtup)
{
    *mtup = netdev_vhost_cast(netdev)->topology.mtu;
    return 0;
}

static int
netdev_vhost_set_mtu(struct netdev *netdev, int mtu)
{
    return ovsv.port_set_mtu(netdev_vhost_cast(netdev)->port, mtu);
}

static int
netdev_vhost_get_etheraddr(const struct netdev *netdev, struct eth_addr *mac)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    ovs_mutex_lock(&dev->mutex);
    *mac = dev->hwaddr;
    ovs_mutex_unlock(&dev->mutex);
    return 0;
}

static int
netdev_vhost_set_etheraddr(struct netdev *netdev, const struct eth_addr mac)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    ovs_mutex_lock(&dev->mutex);
    bool changed = !eth_addr_equals(dev->hwaddr, mac);
    dev->hwaddr = mac;
    ovs_mutex_unlock(&dev->mutex);

    if (changed) {
        netdev_change_seq_changed(netdev);
    }
    return 0;
}

static int
netdev_vhost_get_ifindex(const struct netdev *netdev)
{
    /* 24 bits and positive, as RFC 2863 wants it; the same as ever for the
     * same name. */
    return hash_string(netdev->name, 0) % 0xfffffe + 1;
}

static int
netdev_vhost_update_flags(struct netdev *netdev,
                          enum netdev_flags off, enum netdev_flags on,
                          enum netdev_flags *old_flagsp)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    if ((off | on) & ~(NETDEV_UP | NETDEV_PROMISC)) {
        return EINVAL;
    }

    ovs_mutex_lock(&dev->mutex);
    enum netdev_flags old = dev->flags;
    enum netdev_flags new = (old | on) & ~off;
    dev->flags = new;
    ovs_mutex_unlock(&dev->mutex);

    if ((old ^ new) & NETDEV_UP) {
        bool up = new & NETDEV_UP;

        atomic_store_relaxed(&dev->admin_up, up);
        ovsv.port_set_up(dev->port, up);
        netdev_change_seq_changed(netdev);
    }
    *old_flagsp = old;
    return 0;
}

/* State. */

static int
netdev_vhost_get_carrier(const struct netdev *netdev, bool *carrier)
{
    *carrier = ovsv.port_carrier(netdev_vhost_cast(netdev)->port);
    return 0;
}

static int
netdev_vhost_get_status(const struct netdev *netdev, struct smap *args)
{
    ovsv.port_status(netdev_vhost_cast(netdev)->port, pair_to_smap, args);
    return 0;
}

static int
netdev_vhost_get_stats(const struct netdev *netdev, struct netdev_stats *stats)
{
    port_get_stats(netdev_vhost_cast(netdev)->port, stats);
    return 0;
}

static int
netdev_vhost_get_custom_stats(const struct netdev *netdev,
                              struct netdev_custom_stats *stats)
{
    port_get_custom_stats(netdev_vhost_cast(netdev)->port, stats);
    return 0;
}

static int
netdev_vhost_dump_mempool(const struct netdev *netdev, FILE *stream)
{
    return packet_source_dump(&netdev_vhost_cast(netdev)->source, stream);
}

/* Packets. */

static struct netdev_rxq *
netdev_vhost_rxq_alloc(void)
{
    struct netdev_vhost_rxq *rxq = xzalloc_cacheline(sizeof *rxq);

    return &rxq->up;
}

static int
netdev_vhost_rxq_construct(struct netdev_rxq *rxq_)
{
    struct netdev_vhost_rxq *rxq = netdev_vhost_rxq_cast(rxq_);

    rxq->dev = netdev_vhost_cast(rxq->up.netdev);
    rxq->queue = ovsv.port_rx_queue(rxq->dev->port, rxq->up.queue_id);
    if (!rxq->queue) {
        return ENODEV;
    }
    packet_stash_init(&rxq->stash, &rxq->dev->source);
    return 0;
}

static void
netdev_vhost_rxq_destruct(struct netdev_rxq *rxq)
{
    packet_stash_uninit(&netdev_vhost_rxq_cast(rxq)->stash);
}

static void
netdev_vhost_rxq_dealloc(struct netdev_rxq *rxq)
{
    free_cacheline(netdev_vhost_rxq_cast(rxq));
}

static bool
netdev_vhost_rxq_enabled(struct netdev_rxq *rxq_)
{
    const struct netdev_vhost_rxq *rxq = netdev_vhost_rxq_cast(rxq_);

    return ovsv.port_rxq_enabled(rxq->dev->port, rxq->up.queue_id);
}

static int
netdev_vhost_rxq_recv(struct netdev_rxq *rxq_, struct dp_packet_batch *batch,
                      int *qfill)
{
    struct netdev_vhost_rxq *rxq = netdev_vhost_rxq_cast(rxq_);
    bool up;

    atomic_read_relaxed(&rxq->dev->admin_up, &up);
    if (OVS_UNLIKELY(!up)) {
        return EAGAIN;
    }
    return packet_stash_receive(&rxq->stash, rxq->dev->port, rxq->queue,
                                batch, qfill);
}

static int
netdev_vhost_send(struct netdev *netdev, int qid,
                  struct dp_packet_batch *batch,
                  bool concurrent_txq OVS_UNUSED)
{
    struct netdev_vhost *dev = netdev_vhost_cast(netdev);

    packet_batch_send(dev->port, qid, dev->topology.mtu, batch);
    return 0;
}

#define NETDEV_VHOST_CLASS(TYPE)                        \
    {                                                   \
        .type = TYPE,                                   \
        .is_pmd = true,                                 \
        .run = netdev_vhost_run,                        \
        .alloc = netdev_vhost_alloc,                    \
        .construct = netdev_vhost_construct,            \
        .destruct = netdev_vhost_destruct,              \
        .dealloc = netdev_vhost_dealloc,                \
        .get_config = netdev_vhost_get_config,          \
        .set_config = netdev_vhost_set_config,          \
        .get_numa_id = netdev_vhost_get_numa_id,        \
        .send = netdev_vhost_send,                      \
        .set_etheraddr = netdev_vhost_set_etheraddr,    \
        .get_etheraddr = netdev_vhost_get_etheraddr,    \
        .get_mtu = netdev_vhost_get_mtu,                \
        .set_mtu = netdev_vhost_set_mtu,                \
        .get_ifindex = netdev_vhost_get_ifindex,        \
        .get_carrier = netdev_vhost_get_carrier,        \
        .get_stats = netdev_vhost_get_stats,            \
        .get_custom_stats = netdev_vhost_get_custom_stats, \
        QOS_CALLBACKS,                                  \
        .get_status = netdev_vhost_get_status,          \
        .dump_mempool = netdev_vhost_dump_mempool,      \
        .update_flags = netdev_vhost_update_flags,      \
        .reconfigure = netdev_vhost_reconfigure,        \
        .rxq_alloc = netdev_vhost_rxq_alloc,            \
        .rxq_construct = netdev_vhost_rxq_construct,    \
        .rxq_destruct = netdev_vhost_rxq_destruct,      \
        .rxq_dealloc = netdev_vhost_rxq_dealloc,        \
        .rxq_enabled = netdev_vhost_rxq_enabled,        \
        .rxq_recv = netdev_vhost_rxq_recv,              \
    }

static const struct netdev_class server_class
    = NETDEV_VHOST_CLASS("dpdkvhostuser");
static const struct netdev_class client_class
    = NETDEV_VHOST_CLASS("dpdkvhostuserclient");

/* Registers both classes or, if it returns an error, none. */
int
netdev_vhost_register(void)
{
    int error = netdev_register_provider(&server_class);

    if (!error) {
        error = netdev_register_provider(&client_class);
        if (error) {
            netdev_unregister_provider(server_class.type);
        }
    }
    return error;
}

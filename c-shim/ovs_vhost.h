/* The border between Open vSwitch (C) and the vhost-user ports (Rust).
 *
 * Everything that crosses is here, in plain C types: neither side sees a type
 * of the other beyond an opaque pointer.  Two directions:
 *
 *   - "struct ovsv_entries": what Rust does for the shim.  One table of
 *     functions, handed over once by ovsv_plugin().  It is a table because a
 *     cdylib exports every symbol by which C could call Rust, and the plugin
 *     must export one symbol only.
 *
 *   - ovsv_host_*(): what Open vSwitch does for Rust.  Ordinary functions of
 *     the shim, hidden from the rest of the process.
 *
 * Each function says who calls it on which thread and whether it may block.
 * "main" is Open vSwitch's main thread; "poll" is any thread that moves
 * packets (PMD threads and, for sending, main and its helpers); "control" is
 * the plugin's own thread; "any" is all of them.
 *
 * Ownership, once for all:
 *
 *   - A "struct ovsv_port" belongs to the netdev from port_create() until
 *     port_destroy(), which ends the last use of it by C.
 *   - A "struct ovsv_queue" belongs to its port and has the port's life.
 *   - Strings and arrays belong to their caller and are valid for the length
 *     of the call; who wants to keep one copies it.
 *   - A "struct netdev" given to port_create() outlives the port.  Rust calls
 *     no ovsv_host_*() function for it once port_destroy() has returned.
 *
 * No entry ever unwinds into C.  An entry in which Rust panics takes its port
 * down, says so in the log, and answers as its comment says under "panic". */

#ifndef OVS_VHOST_H
#define OVS_VHOST_H 1

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct netdev;          /* Open vSwitch's: a port as its datapath knows it. */
struct ovsv_port;       /* Rust's: a vhost-user port. */
struct ovsv_queue;      /* Rust's: one receive queue of a port. */
struct packet_stash;    /* The shim's: the packets behind slots. */
struct dp_packet;       /* Open vSwitch's: a packet. */

/* Which end of the socket Open vSwitch is. */
enum ovsv_mode {
    OVSV_SERVER,                /* "dpdkvhostuser": it creates the socket. */
    OVSV_CLIENT,                /* "dpdkvhostuserclient": it connects. */
};

enum ovsv_level {
    OVSV_ERR,
    OVSV_WARN,
    OVSV_INFO,
    OVSV_DBG,
};

/* Where a panic can be injected. */
enum ovsv_site {
    OVSV_DEQUEUE,
    OVSV_ENQUEUE,
    OVSV_CONTROL,
};

/* A key of a column of the database, and its value. */
struct ovsv_option {
    const char *key;
    const char *value;
};

/* What the plugin needs to know of Open vSwitch's configuration, read once. */
struct ovsv_config {
    const char *rundir;         /* Where sockets live. */
    const struct ovsv_option *other_config; /* Open_vSwitch's, whole. */
    size_t n_other_config;
    bool tso;                   /* other_config:userspace-tso-enable. */
    bool iommu;                 /* other_config:vhost-iommu-support. */
    bool postcopy;              /* other_config:vhost-postcopy-support. */
    bool memory_locked;         /* ovs-vswitchd runs with --mlockall. */
};

/* What a port is like since its last port_reconfigure(). */
struct ovsv_topology {
    uint16_t n_rxq;             /* Receive queues, at least 1. */
    uint16_t n_txq;             /* Transmit queues, at least 1. */
    uint32_t mtu;               /* Bytes of Ethernet payload. */
    int32_t numa;               /* Node of the guest's memory, -1: unknown. */
    bool attached;              /* A guest is there. */
};

/* What is left to be done to a packet, in the terms of VIRTIO's
 * "struct virtio_net_hdr" (1.2, 5.1.6) and host byte order.  All zero: nothing.
 *
 * What Rust gives is proven: the checksum is TCP's or UDP's over IPv4 or IPv6,
 * 'csum_start' is where that header begins behind at most two VLAN tags, and
 * 'hdr_len' its end if the packet is to be cut into segments. */
struct ovsv_offload {
    uint8_t flags;              /* OVSV_NEEDS_CSUM or 0. */
    uint8_t gso_type;           /* OVSV_GSO_*. */
    uint16_t hdr_len;           /* Bytes of headers of each segment. */
    uint16_t gso_size;          /* Bytes of payload of each but the last. */
    uint16_t csum_start;        /* Offset where the checksum begins. */
    uint16_t csum_offset;       /* Where it goes, from there. */
};

#define OVSV_NEEDS_CSUM 1
#define OVSV_GSO_TCPV4 1
#define OVSV_GSO_TCPV6 4

/* Bytes of the largest packet that ovsv_host_grow() makes room for: with
 * headroom and what else belongs to it, it has less than 64 KiB of memory. */
#define OVSV_MAX_FRAME 65360

/* Room for one received packet. */
struct ovsv_rx_slot {
    uint8_t *data;              /* In: where its first byte goes. */
    uint32_t room;              /* In: bytes that fit there. */
    uint32_t len;               /* Out: bytes written. */
    struct ovsv_offload offload; /* Out if not zero. */
};

/* One packet to send. */
struct ovsv_tx_slot {
    const uint8_t *data;        /* In: its first byte. */
    uint32_t len;               /* In: bytes, all contiguous. */
    struct ovsv_offload offload; /* In. */
};

/* The members of "struct netdev_stats" that a vhost-user port knows, under
 * their names there. */
struct ovsv_stats {
    uint64_t rx_packets, tx_packets;
    uint64_t rx_bytes, tx_bytes;
    uint64_t rx_dropped, tx_dropped;
    uint64_t multicast, tx_multicast_packets;
    uint64_t rx_broadcast_packets, tx_broadcast_packets;
    uint64_t rx_1_to_64_packets, tx_1_to_64_packets;
    uint64_t rx_65_to_127_packets, tx_65_to_127_packets;
    uint64_t rx_128_to_255_packets, tx_128_to_255_packets;
    uint64_t rx_256_to_511_packets, tx_256_to_511_packets;
    uint64_t rx_512_to_1023_packets, tx_512_to_1023_packets;
    uint64_t rx_1024_to_1522_packets, tx_1024_to_1522_packets;
    uint64_t rx_1523_to_max_packets, tx_1523_to_max_packets;
};

/* What the guest may send; a rate of 0 is no limit, a burst of 0 the usual. */
struct ovsv_limits {
    uint32_t kbits_rate;        /* 1000 bits per second. */
    uint32_t kbits_burst;       /* 1000 bits. */
    uint32_t kpkts_rate;        /* 1000 packets per second. */
    uint32_t kpkts_burst;       /* 1000 packets. */
};

/* The members of "struct netdev_queue_stats", under their names there. */
struct ovsv_queue_stats {
    uint64_t tx_bytes, tx_packets, tx_errors;
    int64_t created;            /* Milliseconds of CLOCK_MONOTONIC. */
};

/* Takes one string from Rust; not terminated, copied by whoever keeps it. */
typedef void ovsv_text_cb(void *aux, const char *text, size_t len);

/* Takes one key and its value; neither is terminated. */
typedef void ovsv_pair_cb(void *aux, const char *key, size_t key_len,
                          const char *value, size_t value_len);

/* Takes the number of one queue of a port's QoS. */
typedef void ovsv_queue_id_cb(void *aux, uint32_t id);

/* What can be told of a port at length. */
enum ovsv_topic {
    OVSV_SHOW,                  /* What it is and who is there. */
    OVSV_EVENTS,                /* What happened to it. */
    OVSV_STATS,                 /* What it moved and dropped. */
    OVSV_LATENCY,               /* How long packets waited; "on" or "off". */
    OVSV_RINGS,                 /* What lies in its rings; a vring's number. */
};

/* Takes one counter; 'name' is not terminated. */
typedef void ovsv_counter_cb(void *aux, const char *name, size_t name_len,
                             uint64_t value);

/* What Rust does for the shim. */
struct ovsv_entries {
    /* Prepares the plugin: log, panic hook, environment of ports to come.
     * Main, once, before any other entry, when the process has daemonized.
     * Looks up users that other_config names.  Returns 0 or a positive errno; panic: EFAULT. */
    int (*init)(const struct ovsv_config *);

    /* Creates the port of 'netdev'; a server port has its socket from here on,
     * and listens from its first port_set_config() on.
     * Stores it in '*portp', owned by the caller.  Main, under Open vSwitch's
     * netdev_mutex.  Makes system calls on the socket, waits for nobody.
     * Returns 0 or a positive errno; panic: EFAULT. */
    int (*port_create)(struct netdev *netdev, const char *name,
                       enum ovsv_mode mode, struct ovsv_port **portp);

    /* Ends the port: closes its sockets, removes its socket file, forgets
     * 'netdev'.  'port' and its queues are gone for C.  No burst may be under
     * way and none may follow.  Main or whichever thread drops the last
     * reference to the netdev, under netdev_mutex; waits for no peer. */
    void (*port_destroy)(struct ovsv_port *port);

    /* Takes the interface's options.  Gives 'error' one text if they are
     * refused.  Main; looks up users that the options name, and waits for no
     * peer.  Returns 0 or a positive errno; panic: EFAULT. */
    int (*port_set_config)(struct ovsv_port *port,
                           const struct ovsv_option *options, size_t n_options,
                           ovsv_text_cb *error, void *aux);

    /* Asks for an MTU, which the next port_reconfigure() puts in force.
     * Main; does not block.  Returns 0 or a positive errno; panic: EFAULT. */
    int (*port_set_mtu)(struct ovsv_port *port, int mtu);

    /* Puts in force what was asked for and stores what now holds in
     * '*topology'.  Main, with no burst under way on this port; does not
     * block.  Panic: one queue each way, no guest. */
    void (*port_reconfigure)(struct ovsv_port *port,
                             struct ovsv_topology *topology);

    /* Whether the port is administratively up.  Main; does not block. */
    void (*port_set_up)(struct ovsv_port *port, bool up);

    /* Whether a guest is there and packets flow.  Any thread; does not block.
     * Panic: false. */
    bool (*port_carrier)(const struct ovsv_port *port);

    /* Gives 'emit' the keys of the Interface's status column.  Main; takes
     * locks that are held briefly.  Panic: what came before it stands. */
    void (*port_status)(const struct ovsv_port *port,
                        ovsv_pair_cb *emit, void *aux);

    /* Gives 'emit' a text about the port: lines, or with 'json' one JSON
     * object.  'word' says what of the topic is wanted, where it has such
     * words, or is NULL.  Main; takes locks that are held briefly.  Returns
     * false if the word makes no sense, and gives 'emit' what is wrong with
     * it; panic: false, no text. */
    bool (*port_describe)(const struct ovsv_port *port, enum ovsv_topic topic,
                          const char *word, bool json, ovsv_text_cb *emit,
                          void *aux);

    /* Lets the counters of the topic OVSV_STATS begin anew; no others.  Main;
     * takes a lock that is held briefly. */
    void (*port_reset_stats)(struct ovsv_port *port);

    /* Carries out a command of those who look at packets, for the port:
     * 'words' are "pcap" or "trace"; "start", "stop" or "show"; and options.
     * Files go to 'directory' unless the words say otherwise.  Gives 'emit'
     * the reply, as port_describe() does, and returns true; or what is wrong
     * with the words, and returns false.  Main; allocates, and waits at most a
     * second for a file.  Panic: false, no text. */
    bool (*port_tap)(const struct ovsv_port *port, const char *const *words,
                     size_t n_words, const char *directory, bool json,
                     ovsv_text_cb *emit, void *aux);

    /* Reads the standard counters.  Any thread; takes locks that are held
     * briefly.  Panic: all zero. */
    void (*port_stats)(const struct ovsv_port *port, struct ovsv_stats *);

    /* Gives 'emit' the other counters.  Any thread; takes locks that are held
     * briefly.  Panic: what came before it stands. */
    void (*port_custom_stats)(const struct ovsv_port *port,
                              ovsv_counter_cb *emit, void *aux);

    /* Limits what the guest sends.  Main; takes a lock that is held briefly,
     * as do all that follow up to port_qos_queues().  Returns 0; panic:
     * EFAULT. */
    int (*port_set_policing)(struct ovsv_port *port,
                             const struct ovsv_limits *limits);

    /* Gives 'emit' each type of QoS that port_set_qos() takes.  Main; panic:
     * what came before it stands. */
    void (*port_qos_types)(const struct ovsv_port *port,
                           ovsv_text_cb *emit, void *aux);

    /* Gives 'emit' the settings of the QoS in force and returns its type,
     * which lives forever, or "" if there is none.  Main; panic: "". */
    const char *(*port_qos)(const struct ovsv_port *port,
                            ovsv_pair_cb *emit, void *aux);

    /* Puts QoS of 'type' in force, or none if that is "".  Main.  Returns 0 or
     * a positive errno, and leaves the one before; panic: EFAULT. */
    int (*port_set_qos)(struct ovsv_port *port, const char *type,
                        const struct ovsv_option *options, size_t n_options);

    /* Gives 'emit' the settings of a queue of the QoS in force, and stores
     * what it counted in '*stats'.  Main.  Returns 0 or a positive errno:
     * EOPNOTSUPP if there can be no queues, EINVAL if there is no such one;
     * panic: EFAULT. */
    int (*port_qos_queue)(const struct ovsv_port *port, uint32_t queue_id,
                          struct ovsv_queue_stats *stats,
                          ovsv_pair_cb *emit, void *aux);

    /* Makes a queue, or changes it.  Main.  Returns 0 or a positive errno, and
     * leaves what was before; panic: EFAULT. */
    int (*port_set_qos_queue)(struct ovsv_port *port, uint32_t queue_id,
                              const struct ovsv_option *options,
                              size_t n_options);

    /* Takes a queue away, if it is there.  Main.  Returns 0 or EOPNOTSUPP;
     * panic: EFAULT. */
    int (*port_delete_qos_queue)(struct ovsv_port *port, uint32_t queue_id);

    /* Gives 'emit' the number of each queue.  Main.  Returns 0 or EOPNOTSUPP;
     * panic: EFAULT. */
    int (*port_qos_queues)(const struct ovsv_port *port,
                           ovsv_queue_id_cb *emit, void *aux);

    /* Whether the guest uses receive queue 'queue_id'.  Poll and main; does
     * not block.  Panic: false. */
    bool (*port_rxq_enabled)(const struct ovsv_port *port, uint16_t queue_id);

    /* Receive queue 'queue_id' of 'port', or NULL if it can have no such
     * queue.  Owned by the port.  Main; does not block.  Panic: NULL. */
    const struct ovsv_queue *(*port_rx_queue)(const struct ovsv_port *port,
                                              uint16_t queue_id);

    /* Receives up to 'n' packets of 'queue', a queue of 'port', into the
     * first slots and returns how many.  Asks ovsv_host_grow(), with 'stash',
     * for a packet that is too large for its slot.  Where the guest sent more
     * than it may, stores in '*refused' which packets the caller is to drop,
     * bit i for the i-th; they are counted already.  One poll thread at a time
     * per queue; waits at most for another thread's lookup of the limits.
     * Panic: 0. */
    size_t (*dequeue)(const struct ovsv_port *port,
                      const struct ovsv_queue *queue,
                      struct packet_stash *stash,
                      struct ovsv_rx_slot *slots, size_t n,
                      uint32_t *refused);

    /* Says instead of dequeue() that there is no memory to receive from 'queue'
     * into: its packets stay where they are, and that is counted.  One poll
     * thread at a time per queue; never waits. */
    void (*starve)(const struct ovsv_port *port,
                   const struct ovsv_queue *queue);

    /* Sends 'n' packets on transmit queue 'qid'.  What the guest has no room
     * for, or the QoS forbids, is dropped and counted; all memory stays the
     * caller's.  Asks ovsv_host_qos_queue() about 'packets', which are those
     * in 'slots', if it matters.  Poll; waits at most for another burst on the
     * same ring, and another's lookup of the QoS. */
    void (*send)(const struct ovsv_port *port, uint16_t qid,
                 const struct ovsv_tx_slot *slots, size_t n,
                 struct dp_packet *const *packets);

    /* Packets waiting in 'queue', a queue of 'port'.  Poll; never waits.
     * Panic: 0. */
    uint32_t (*backlog)(const struct ovsv_port *port,
                        const struct ovsv_queue *queue);

    /* Makes the next entry of the given kind panic on this port.  Main; does
     * not block.  NULL unless built with the feature fault-injection. */
    void (*port_inject_panic)(struct ovsv_port *port, enum ovsv_site site);
};

/* The plugin's descriptor, ready to be returned from its one exported symbol
 * to Open vSwitch's loader.  Keeps a copy of '*entries'.  Main, while the
 * process is single-threaded; does not block. */
const void *ovsv_plugin(const struct ovsv_entries *entries);

/* Writes a line to Open vSwitch's log.  Any thread, poll only when a port goes
 * down by a panic; may wait for the log file. */
void ovsv_host_log(enum ovsv_level, const char *line, size_t len);

/* Whether a line of this level would go anywhere.  Any; does not block. */
bool ovsv_host_log_enabled(enum ovsv_level);

/* Names the calling thread in Open vSwitch's log.  A thread of Rust's own;
 * does not block. */
void ovsv_host_thread_name(const char *name, size_t len);

/* Says that carrier, status or enabled queues of 'netdev' changed.  Any; takes
 * Open vSwitch's sequence lock, which is held briefly. */
void ovsv_host_changed(struct netdev *netdev);

/* Asks main to call port_reconfigure() with no burst under way.  Any; takes
 * Open vSwitch's sequence lock, which is held briefly. */
void ovsv_host_request_reconfigure(struct netdev *netdev);

/* Has the file removed when the process ends without port_destroy(), and takes
 * that back.  Any but poll; does not block. */
void ovsv_host_unlink_at_exit(const char *path);
void ovsv_host_keep_at_exit(const char *path);

/* Counts in Open vSwitch's coverage that a send waited for another thread's.
 * Poll; does not block. */
void ovsv_host_tx_contended(void);

/* The queue of its port's QoS for which packets[index] is.  Under send(); does
 * not block. */
uint32_t ovsv_host_qos_queue(struct dp_packet *const *packets, size_t index);

/* Gives 'slot', a slot of 'stash' under dequeue(), room for a packet of 'len'
 * bytes, at most OVSV_MAX_FRAME; what was in it is lost.  Returns false if
 * there is no memory.  Poll; allocates. */
bool ovsv_host_grow(struct packet_stash *stash, struct ovsv_rx_slot *slot,
                    uint32_t len);

#endif /* ovs_vhost.h */

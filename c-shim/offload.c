/* What is left to be done to a packet: VIRTIO's words for it, which Rust
 * speaks, and Open vSwitch's, which are flags in the packet and the offsets of
 * its headers.  An mbuf has fields for lengths and segment size besides. */

#include <config.h>

#include "shim.h"

#include <netinet/in.h>

#include "csum.h"
#include "packets.h"
#include "userspace-tso.h"
#include "util.h"

uint64_t
offload_netdev_flags(void)
{
    if (!userspace_tso_enabled()) {
        return 0;
    }
    /* Whatever a guest negotiates: what it does not take, Rust does. */
    return NETDEV_TX_OFFLOAD_TCP_TSO
           | NETDEV_TX_OFFLOAD_TCP_CKSUM
           | NETDEV_TX_OFFLOAD_UDP_CKSUM
           | NETDEV_TX_OFFLOAD_SCTP_CKSUM
           | NETDEV_TX_OFFLOAD_IPV4_CKSUM;
}

/* From the guest. */

/* Where the IP header is in a packet that is proven to have one. */
static size_t
packet_l3_offset(const struct dp_packet *packet)
{
    const struct eth_header *eth = dp_packet_data(packet);

    return eth_type_vlan(eth->eth_type) ? VLAN_ETH_HEADER_LEN : ETH_HEADER_LEN;
}

void
offload_to_packet(struct dp_packet *packet, const struct ovsv_offload *offload)
{
    const uint8_t *data = dp_packet_data(packet);
    size_t l3 = packet_l3_offset(packet);

    if (data[l3] >> 4 == 4) {
        dp_packet_hwol_set_tx_ipv4(packet);
    } else {
        dp_packet_hwol_set_tx_ipv6(packet);
    }
    if (offload->csum_offset == offsetof(struct tcp_header, tcp_csum)) {
        dp_packet_hwol_set_csum_tcp(packet);
    } else {
        dp_packet_hwol_set_csum_udp(packet);
    }
    if (offload->gso_type) {
        dp_packet_hwol_set_tcp_seg(packet);
    }
#ifdef DPDK_NETDEV
    packet->mbuf.tx_offload = 0;
    packet->mbuf.l2_len = l3;
    packet->mbuf.l3_len = offload->csum_start - l3;
    if (offload->gso_type) {
        packet->mbuf.l4_len = offload->hdr_len - offload->csum_start;
        packet->mbuf.tso_segsz = offload->gso_size;
    }
#endif
}

/* To the guest. */

/* What Rust refuses and counts: a checksum beyond the packet. */
static const struct ovsv_offload nonsense = {
    .flags = OVSV_NEEDS_CSUM,
    .csum_start = UINT16_MAX,
    .csum_offset = UINT16_MAX,
};

/* Bytes of payload in each segment: what whoever made the packet said, where
 * there is a place to say it, and never more than 'mtu' allows. */
static uint16_t
packet_segment_size(const struct dp_packet *packet OVS_UNUSED,
                    uint32_t l3_l4_len, uint32_t mtu)
{
    uint32_t size = mtu > l3_l4_len ? mtu - l3_l4_len : 0;

#ifdef DPDK_NETDEV
    if (packet->mbuf.tso_segsz) {
        size = MIN(size, packet->mbuf.tso_segsz);
    }
#endif
    return MIN(size, UINT16_MAX);
}

/* A checksum that is left to be made: whose, and where it is in the header. */
struct l4_checksum {
    uint8_t protocol;
    uint8_t header_len;
    uint8_t offset;
};

static struct l4_checksum
packet_l4_checksum(struct dp_packet *packet)
{
    if (dp_packet_hwol_l4_is_udp(packet)) {
        return (struct l4_checksum) { IPPROTO_UDP, UDP_HEADER_LEN,
                                      offsetof(struct udp_header, udp_csum) };
    } else if (dp_packet_hwol_l4_is_sctp(packet)
               && !dp_packet_hwol_is_tso(packet)) {
        return (struct l4_checksum) { IPPROTO_SCTP, SCTP_HEADER_LEN,
                                      offsetof(struct sctp_header,
                                               sctp_csum) };
    } else {
        /* Segments of TCP have checksums, said or not. */
        return (struct l4_checksum) { IPPROTO_TCP, TCP_HEADER_LEN,
                                      offsetof(struct tcp_header, tcp_csum) };
    }
}

static bool
packet_has_headers(const struct dp_packet *packet, size_t l4_header_len)
{
    size_t l3_header_len = dp_packet_hwol_is_ipv4(packet) ? IP_HEADER_LEN
                                                          : IPV6_HEADER_LEN;

    return dp_packet_l3(packet) && dp_packet_l4(packet)
           && packet->l4_ofs >= packet->l3_ofs + l3_header_len
           && dp_packet_l4_size(packet) >= l4_header_len
           && !packet_is_segmented(packet);
}

/* The sum of the pseudo-header, which the checksum is to start from: actions
 * may have changed addresses since it was made. */
static ovs_be16
packet_pseudo_checksum(const struct dp_packet *packet, uint8_t protocol)
{
    uint32_t partial = dp_packet_hwol_is_ipv4(packet)
        ? csum_continue(0, &((struct ip_header *) dp_packet_l3(packet))->ip_src,
                        2 * sizeof(ovs_be32))
        : csum_continue(0, &((struct ovs_16aligned_ip6_hdr *)
                             dp_packet_l3(packet))->ip6_src,
                        2 * sizeof(struct in6_addr));

    partial = csum_add16(partial, htons(protocol));
    partial = csum_add16(partial, htons(dp_packet_l4_size(packet)));
    return ~csum_finish(partial);
}

static void
packet_prepare_tso(struct dp_packet *packet, uint32_t mtu,
                   struct ovsv_offload *offload)
{
    const struct tcp_header *tcp = dp_packet_l4(packet);
    size_t tcp_len = TCP_OFFSET(tcp->tcp_ctl) * 4;

    offload->hdr_len = offload->csum_start + tcp_len;
    offload->gso_size
        = packet_segment_size(packet, (packet->l4_ofs - packet->l3_ofs)
                                      + tcp_len, mtu);
    if (dp_packet_hwol_is_ipv4(packet)) {
        struct ip_header *ip = dp_packet_l3(packet);

        offload->gso_type = OVSV_GSO_TCPV4;
        ip->ip_csum = 0;
        ip->ip_csum = csum(ip, MIN(IP_IHL(ip->ip_ihl_ver) * 4,
                                   packet->l4_ofs - packet->l3_ofs));
    } else {
        offload->gso_type = OVSV_GSO_TCPV6;
    }
}

struct ovsv_offload
offload_from_packet(struct dp_packet *packet, uint32_t mtu)
{
    struct l4_checksum l4 = packet_l4_checksum(packet);

    if (!packet_has_headers(packet, l4.header_len)) {
        return nonsense;
    }
    if (l4.protocol != IPPROTO_SCTP) {
        ovs_be16 *field
            = ALIGNED_CAST(ovs_be16 *, (uint8_t *) dp_packet_l4(packet)
                                       + l4.offset);

        *field = packet_pseudo_checksum(packet, l4.protocol);
    }

    struct ovsv_offload offload = {
        .flags = OVSV_NEEDS_CSUM,
        .csum_start = packet->l4_ofs,
        .csum_offset = l4.offset,
    };
    if (dp_packet_hwol_is_tso(packet)) {
        packet_prepare_tso(packet, mtu, &offload);
    }
    return offload;
}

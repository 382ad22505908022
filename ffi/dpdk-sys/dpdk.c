#include "dpdk.h"

int
dpdk_sys_errno(void)
{
    return rte_errno;
}

struct rte_mbuf *
dpdk_sys_pktmbuf_alloc(struct rte_mempool *mp)
{
    return rte_pktmbuf_alloc(mp);
}

int
dpdk_sys_pktmbuf_alloc_bulk(struct rte_mempool *mp, struct rte_mbuf **mbufs,
                            unsigned int n)
{
    return rte_pktmbuf_alloc_bulk(mp, mbufs, n);
}

void
dpdk_sys_pktmbuf_free(struct rte_mbuf *mbuf)
{
    rte_pktmbuf_free(mbuf);
}

void *
dpdk_sys_pktmbuf_data(struct rte_mbuf *mbuf)
{
    return rte_pktmbuf_mtod(mbuf, void *);
}

void *
dpdk_sys_pktmbuf_append(struct rte_mbuf *mbuf, uint16_t len)
{
    return rte_pktmbuf_append(mbuf, len);
}

/* The parts of DPDK that get bindings, and its inline functions that we need
 * as functions that can be linked. */

#include <rte_config.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_vhost.h>

/* The calling thread's rte_errno. */
int dpdk_sys_errno(void);

/* rte_pktmbuf_alloc(), rte_pktmbuf_alloc_bulk(), rte_pktmbuf_free(). */
struct rte_mbuf *dpdk_sys_pktmbuf_alloc(struct rte_mempool *);
int dpdk_sys_pktmbuf_alloc_bulk(struct rte_mempool *, struct rte_mbuf **mbufs,
                                unsigned int n);
void dpdk_sys_pktmbuf_free(struct rte_mbuf *);

/* rte_pktmbuf_mtod(), rte_pktmbuf_append(). */
void *dpdk_sys_pktmbuf_data(struct rte_mbuf *);
void *dpdk_sys_pktmbuf_append(struct rte_mbuf *, uint16_t len);

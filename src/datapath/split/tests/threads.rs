//! Bursts of several threads, and rings swapped under them.

use super::*;

#[test]
fn rings_are_swapped_under_a_burst_without_losing_a_frame() {
    let net: Net = Net::new(256, 2048, V1);
    let (config, queue) = (
        net.driver.config(7),
        Queue::new(Direction::Dequeue, Arc::new(|_| {})),
    );
    queue.set_enabled(true);
    queue.start(config.clone()).unwrap();
    let total = effort::of(50_000_u32, 100);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut net = net;
            let mut next = 0_u32;
            while next < total {
                if net.send(&next.to_le_bytes().repeat(16)) {
                    next += 1;
                    net.driver.publish();
                } else if net.driver.reap().is_none() {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let base = queue.stop().unwrap();
                queue
                    .start(RingConfig {
                        base,
                        ..config.clone()
                    })
                    .unwrap();
                std::thread::yield_now();
            }
        });
        let mut pool = Pool::new(BURST, 2048);
        let mut slots = pool.slots();
        let mut expected = 0_u32;
        while expected < total {
            let count = queue.dequeue(&mut slots);
            for slot in &slots[..count] {
                assert_eq!(slot.frame(), expected.to_le_bytes().repeat(16));
                expected += 1;
            }
            if count == 0 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        (queue.fault(), queue.counters().read().good_packets),
        (None, total.into())
    );
}

#[test]
fn several_threads_may_send_on_one_queue() {
    let mut rig = Rig::new(Direction::Enqueue, 256, MERGE);
    let (queue, each) = (&rig.queue, effort::of(20_000_usize, 30));
    let running = AtomicU32::new(2);
    let received = std::thread::scope(|scope| {
        for seed in [10, 20] {
            let running = &running;
            scope.spawn(move || {
                let frames = [frame(64, seed), frame(64, seed)];
                let slots = frames.each_ref().map(|frame| TxSlot::new(frame));
                let mut sent = 0;
                while sent < each {
                    match queue.enqueue(&slots[..(each - sent).min(2)], 0).packets {
                        0 => std::thread::yield_now(),
                        packets => sent += packets,
                    }
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        let mut received = [0; 2];
        loop {
            let last = running.load(Ordering::Acquire) == 0;
            while let Some(got) = rig.net.receive() {
                let sender = usize::from(got == frame(64, 20));
                assert_eq!(got, frame(64, [10, 20][sender]));
                received[sender] += 1;
            }
            if last {
                break received;
            }
            rig.net.supply(256);
            rig.net.driver.publish();
            std::thread::yield_now();
        }
    });
    assert_eq!(received, [each, each]);
    assert_eq!(rig.stats().good_packets, 2 * each as u64);
}

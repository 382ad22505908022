//! The virtqueue, device side (VIRTIO 1.2, section 2). No I/O, no threads.

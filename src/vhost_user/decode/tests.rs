//! Payloads with values in range and out of it.

use crate::vhost_user::testing::{id, mem_table, numbers, rule, sample, state, Probe};

use super::*;

const VRINGS: u32 = 4;

fn decode(probe: &Probe, name: &str, payload: &[u8], fds: usize) -> Result<Decoded, Malformed> {
    rule(name).decode(payload, probe.fds(fds), VRINGS)
}

#[test]
fn rem_mem_reg_closes_the_descriptor_that_some_front_ends_send() {
    let probe = Probe::new();
    let (payload, _) = sample(id("REM_MEM_REG"));
    let request = decode(&probe, "REM_MEM_REG", &payload, 1);
    assert!(matches!(request, Ok(Decoded::Device(Request::RemMemReg(_)))));
    assert_eq!(probe.leaked(), 0, "closed while the request still lives");
}

#[test]
#[cfg_attr(miri, ignore = "the kernel knows nothing of descriptors here")]
fn a_mem_table_takes_one_to_eight_regions_with_a_descriptor_each() {
    let probe = Probe::new();
    for count in 1..=8 {
        let fds = usize::try_from(count).expect("small");
        match decode(&probe, "SET_MEM_TABLE", &mem_table(count), fds) {
            Ok(Decoded::Device(Request::SetMemTable(regions))) => {
                assert_eq!(regions.len(), fds);
                assert_eq!(probe.leaked(), fds);
                let (last, _) = regions.last().expect("a region");
                assert_eq!(last.guest, GuestAddr(u64::from(count - 1) << 20));
                assert_eq!(
                    last.frontend,
                    FrontendAddr(0x7f00_0000_0000 + (u64::from(count - 1) << 20))
                );
                assert_eq!(
                    (last.size, last.mmap_offset),
                    (1 << 20, u64::from(count - 1) << 20)
                );
            }
            other => panic!("{count} regions: {other:?}"),
        }
    }
}

#[test]
fn a_mem_table_whose_count_is_a_lie_is_refused() {
    let probe = Probe::new();
    for count in [0, 9, 0xffff_ffff, 0x0800_0000, 0x0100_0001] {
        let mut payload = mem_table(8);
        payload.splice(..4, u32::to_ne_bytes(count));
        let result = decode(&probe, "SET_MEM_TABLE", &payload, 8).map(|_| ());
        assert_eq!(result, Err(Malformed::RegionCount(count)));
    }
    let mut payload = mem_table(8);
    payload.splice(..4, 7_u32.to_ne_bytes());
    let result = decode(&probe, "SET_MEM_TABLE", &payload, 8).map(|_| ());
    assert_eq!(
        result,
        Err(Malformed::Payload {
            got: 264,
            expected: 232
        })
    );
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn regions_that_are_empty_or_wrap_are_refused() {
    let probe = Probe::new();
    let high = u64::MAX - 0xfff;
    // guest, size, front-end, offset
    for region in [
        [0x1000, 0, 0x1000, 0],
        [high, 0x1000, 0x1000, 0],
        [0x1000, 0x1000, high, 0],
        [0x1000, 0x1000, 0x1000, high],
        [0x1000, u64::MAX, 0x1000, 0x1000],
        [1, u64::MAX, 0, 0],
    ] {
        let table = [state(1, 0), numbers(&region)].concat();
        let single = [numbers(&[0]), numbers(&region)].concat();
        for (name, payload) in [("SET_MEM_TABLE", table), ("ADD_MEM_REG", single)] {
            let result = decode(&probe, name, &payload, 1);
            assert!(
                matches!(result, Err(Malformed::Region(_))),
                "{name} {region:x?}: {result:?}"
            );
        }
    }
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn the_offset_of_a_region_to_remove_means_nothing() {
    let probe = Probe::new();
    let payload = numbers(&[u64::MAX, 0x1000, 0x1000, 0x1000, u64::MAX]);
    assert!(decode(&probe, "REM_MEM_REG", &payload, 0).is_ok());
    let payload = numbers(&[0, u64::MAX, 0x1000, 0x1000, 0]);
    assert!(decode(&probe, "REM_MEM_REG", &payload, 0).is_err());
}

#[test]
fn a_vring_index_with_high_bits_is_refused_not_cut() {
    let probe = Probe::new();
    for index in [4, 0x100, 0x1_0000, 0x1_0001, 0x8000_0000, 0xffff_ffff] {
        let expected = Malformed::VringIndex {
            index: index.into(),
            vrings: VRINGS,
        };
        for name in [
            "SET_VRING_NUM",
            "SET_VRING_BASE",
            "GET_VRING_BASE",
            "SET_VRING_ENABLE",
        ] {
            let result = decode(&probe, name, &state(index, 1), 0).map(|_| ());
            assert_eq!(result, Err(expected), "{name}");
        }
        let addr = [state(index, 0), numbers(&[0; 4])].concat();
        assert_eq!(
            decode(&probe, "SET_VRING_ADDR", &addr, 0).map(|_| ()),
            Err(expected)
        );
    }
}

#[test]
fn a_vring_descriptor_message_is_index_and_flag_and_nothing_else() {
    let probe = Probe::new();
    for name in ["SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"] {
        let ask = |number: u64, fds| decode(&probe, name, &numbers(&[number]), fds).map(|_| ());
        assert_eq!(ask(3, 1), Ok(()));
        assert_eq!(ask(0x103, 0), Ok(()));
        assert_eq!(
            ask(0x103, 1),
            Err(Malformed::Fds {
                got: 1,
                min: 0,
                max: 0
            }),
            "no descriptor, and one"
        );
        assert_eq!(
            ask(3, 0),
            Err(Malformed::Fds {
                got: 0,
                min: 1,
                max: 1
            })
        );
        assert_eq!(
            ask(4, 1),
            Err(Malformed::VringIndex {
                index: 4,
                vrings: VRINGS
            })
        );
        for bit in 9..64 {
            assert_eq!(ask(1 | 1 << bit, 1), Err(Malformed::VringFd(1 | 1 << bit)));
        }
    }
    assert_eq!(probe.leaked(), 0);
}

#[test]
fn vring_requests_carry_their_values() {
    let probe = Probe::new();
    let ask = |name, payload: &[u8], fds| match decode(&probe, name, payload, fds) {
        Ok(Decoded::Device(request)) => request,
        other => panic!("{name}: {other:?}"),
    };
    assert!(matches!(
        ask("SET_VRING_NUM", &state(2, 1024), 0),
        Request::SetVringNum { index: 2, num: 1024 }
    ));
    assert!(matches!(
        ask("SET_VRING_BASE", &state(1, 0x8003_8002), 0),
        Request::SetVringBase {
            index: 1,
            base: 0x8003_8002
        }
    ));
    assert!(matches!(
        ask("GET_VRING_BASE", &state(3, 0xdead), 0),
        Request::GetVringBase { index: 3 }
    ));
    assert!(matches!(
        ask("SET_VRING_KICK", &numbers(&[2]), 1),
        Request::SetVringKick {
            index: 2,
            fd: Some(_)
        }
    ));
    assert!(matches!(
        ask("SET_VRING_CALL", &numbers(&[0x102]), 0),
        Request::SetVringCall { index: 2, fd: None }
    ));
    assert!(matches!(
        ask("SET_VRING_ERR", &numbers(&[0]), 1),
        Request::SetVringErr {
            index: 0,
            fd: Some(_)
        }
    ));
    let Request::SetVringAddr(addr) = ask(
        "SET_VRING_ADDR",
        &[state(3, 1), numbers(&[0x10, 0x20, 0x30, 0x40])].concat(),
        0,
    ) else {
        panic!("another request");
    };
    // On the wire the used ring comes before the available ring.
    let expected = VringAddr {
        index: 3,
        flags: 1,
        desc: FrontendAddr(0x10),
        used: FrontendAddr(0x20),
        avail: FrontendAddr(0x30),
        log: GuestAddr(0x40),
    };
    assert_eq!(addr, expected);
}

#[test]
fn values_out_of_range_are_refused() {
    let probe = Probe::new();
    let fails = |name, payload: Vec<u8>| decode(&probe, name, &payload, 0).map(|_| ()).expect_err(name);
    for num in [0, 32769, 0x1_0000, 0x1_0100, u32::MAX] {
        assert_eq!(fails("SET_VRING_NUM", state(0, num)), Malformed::VringSize(num));
    }
    for enable in [2, 0x100, 0x1_0001, u32::MAX] {
        assert_eq!(
            fails("SET_VRING_ENABLE", state(0, enable)),
            Malformed::Enable(enable)
        );
    }
    for flags in [2, 3, 0x8000_0001] {
        let payload = [state(0, flags), numbers(&[0; 4])].concat();
        assert_eq!(fails("SET_VRING_ADDR", payload), Malformed::VringFlags(flags));
    }
    for mtu in [0, 67, 65536, 0x1_0000_05dc, u64::MAX] {
        assert_eq!(fails("NET_SET_MTU", numbers(&[mtu])), Malformed::Mtu(mtu));
    }
    for status in [0x100, 0x10f, u64::MAX] {
        assert_eq!(fails("SET_STATUS", numbers(&[status])), Malformed::Status(status));
    }
}

#[test]
fn values_at_the_ends_of_their_range_are_taken() {
    let probe = Probe::new();
    for (name, payload) in [
        ("SET_VRING_NUM", state(0, 1)),
        ("SET_VRING_NUM", state(3, 32768)),
        ("SET_VRING_ENABLE", state(0, 0)),
        ("NET_SET_MTU", numbers(&[68])),
        ("NET_SET_MTU", numbers(&[65535])),
        ("SET_STATUS", numbers(&[0xff])),
    ] {
        assert!(decode(&probe, name, &payload, 0).is_ok(), "{name}");
    }
}

#[test]
fn rarp_takes_the_address_as_it_lies() {
    let probe = Probe::new();
    let payload = [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc, 0xff, 0xff];
    let request = decode(&probe, "SEND_RARP", &payload, 0);
    let Ok(Decoded::Device(Request::SendRarp(mac))) = request else {
        panic!("{request:?}")
    };
    assert_eq!(mac, [0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc]);
}

//! The two domains of docs/libvirt, started by libvirt as docs/quickstart.md says, and one of them moved from a server
//! port to a client port and back by the commands of docs/server-to-client.md.

use anyhow::{bail, ensure, Context, Result};

use super::vm::UNDISTURBED;
use super::world::{self, Kind, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::libvirt::{console, serial_socket, Domain, House, Libvirt};
use crate::netns::{address, mac, Family};
use crate::party::Party;
use crate::ping::HostPing;
use crate::{image, ovs, recipe, tcp, vm, wait};

const QUICKSTART: &str = "docs/quickstart.md";
const MOVE: &str = "docs/server-to-client.md";
/// The documented domains, each with the number that its guest has in the address plan.
const DOMAINS: &[(&str, u8)] = &[("client-mode.xml", 1), ("server-mode.xml", 2)];
/// Where in the house the guest's kernel is.
const BOOT: &str = "/var/lib/libvirt/boot";

pub fn convert(ctx: &Ctx) -> Result<()> {
    let house = House::furnish(&ctx.dir.join("house"), &ctx.dir.join("run"))?;
    let options = ovs::Options {
        mounts: Some(house.mounts.clone()),
        ..world::options(&ctx.settings, false)
    };
    let world = World::with(&ctx.settings, &ctx.dir, options, false)?;
    let libvirt = Libvirt::start(house, &world.ovs, &world.ns)?;
    let scene = Scene {
        ctx,
        world: &world,
        libvirt: &libvirt,
    };
    let (stays, moves) = scene.quick_start()?;
    scene.check(&stays, &moves, Kind::Server)?;
    scene.check_statistics(&stays)?;
    let number = world.ovs.interface("vm2", "ofport")?;
    let mut ping = HostPing::start(&world.ns, stays.id(), PING_INTERVAL, &ctx.dir)?;
    ping.wait_more(10, PATIENCE)?;
    for (heading, kind) in [
        ("With plain QEMU or libvirt", Kind::Client),
        ("Back", Kind::Server),
    ] {
        scene.follow(MOVE, heading)?;
        let moved = libvirt.listen("vm2", moves.id())?.booted()?;
        scene.check(&stays, &moved, kind)?;
        let now = world.ovs.interface("vm2", "ofport")?;
        ensure!(now == number, "OpenFlow port {number} became {now}");
    }
    ping.report().check_undisturbed(UNDISTURBED).context("vm1")?;
    drop((stays, moves, ping, libvirt));
    world.finish(&[])
}

/// What the documents are played in.
struct Scene<'a> {
    ctx: &'a Ctx,
    world: &'a World,
    libvirt: &'a Libvirt<'a>,
}

impl Scene<'_> {
    /// Both ports and both domains, as the quick start has them.
    fn quick_start(&self) -> Result<(Domain, Domain)> {
        let root = &self.ctx.settings.root;
        self.ctx.step("domains");
        let image = image::build(root, |text| eprintln!("  {text}")).context("guest image")?;
        let boot = self.libvirt.folder().join("boot");
        std::fs::create_dir(&boot)?;
        // libvirt gives QEMU's user what a domain boots from.
        std::fs::copy(&image.kernel, boot.join("kernel"))?;
        std::fs::copy(&image.initramfs, boot.join("initramfs"))?;
        for (file, id) in DOMAINS {
            let documented = std::fs::read_to_string(root.join("docs/libvirt").join(file))?;
            let fitted = fit(&documented, &format!("vm{id}"), *id).with_context(|| file.to_string())?;
            std::fs::write(self.libvirt.folder().join(file), fitted)?;
        }
        let with_qemu = recipe::blocks(root, QUICKSTART, "QEMU")?.concat();
        for command in with_qemu.lines().filter(|line| line.starts_with("ovs-vsctl ")) {
            self.libvirt.shell(command)?;
        }
        self.follow(QUICKSTART, "libvirt")?;
        // Both are listened to before either is waited for: the second may be the first to boot.
        let (stays, moves) = (self.libvirt.listen("vm1", 1)?, self.libvirt.listen("vm2", 2)?);
        Ok((stays.booted()?, moves.booted()?))
    }

    /// Does what stands below a heading.
    fn follow(&self, document: &str, heading: &str) -> Result<()> {
        for block in recipe::blocks(&self.ctx.settings.root, document, heading)? {
            self.ctx.step(block.trim());
            self.libvirt.shell(&block)?;
        }
        Ok(())
    }

    /// What everybody says of `moved` when its port is of this kind, and that it talks with `other`.
    fn check(&self, other: &Domain, moved: &Domain, kind: Kind) -> Result<()> {
        self.ctx.step(&format!("which mode: {kind:?}"));
        self.check_mode(kind)?;
        self.ctx.step("traffic");
        wait_reachable(other, moved)?;
        tcp::transfer(other, moved, 4)?;
        tcp::transfer(moved, other, 1)?;
        self.check_statistics(moved)
    }

    /// By the questions that the document has its readers ask.
    fn check_mode(&self, kind: Kind) -> Result<()> {
        let [of_instance, of_host] =
            &recipe::blocks(&self.ctx.settings.root, MOVE, "Which mode has a VM?")?[..]
        else {
            bail!("{MOVE}: not two ways to see a mode");
        };
        let (qemu, switch) = match kind {
            Kind::Server => ("client", "server"),
            Kind::Client => ("server", "client"),
        };
        let xml = self.libvirt.shell(&of_instance.replace("INSTANCE", "vm2"))?;
        ensure!(
            xml.contains(&format!("mode='{qemu}'")),
            "not mode='{qemu}': {xml}"
        );
        for (command, lists) in of_host.lines().zip([Kind::Server, Kind::Client]) {
            let listed = self.libvirt.shell(command)?;
            ensure!(listed.contains("vm2") == (lists == kind), "{command}: {listed}");
        }
        wait::until_true(&format!("vm2 in {switch} mode"), PATIENCE, || {
            let status = self.world.ovs.status("vm2")?;
            let is = |key: &str, value: &str| status.get(key).is_some_and(|found| found == value);
            Ok(is("mode", switch) && is("status", "connected"))
        })
    }

    /// libvirt knows the port behind the domain's NIC, and asks the switch what it has counted: as the guest sees it.
    fn check_statistics(&self, domain: &Domain) -> Result<()> {
        let name = domain.name();
        let nics = self.libvirt.shell(&format!("virsh domiflist {name}"))?;
        let words: Vec<&str> = nics
            .lines()
            .nth(2)
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(
            words.starts_with(&[name, "vhostuser"]) && words.ends_with(&[&mac(domain.id())]),
            "{nics}"
        );
        let mut last = String::new();
        let agree = wait::until_true("virsh domifstat to say what the guest does", PATIENCE, || {
            last = self.libvirt.shell(&format!("virsh domifstat {name} {name}"))?;
            let counted = |what: &str| -> Result<bool> {
                let line = format!("{name} {what} {}", domain.nic_counter(what)?);
                Ok(last.lines().any(|found| found == line))
            };
            Ok(counted("rx_packets")? && counted("tx_packets")? && counted("rx_bytes")?)
        });
        agree.with_context(|| last)
    }
}

/// Pings once and again until there is an answer, then wants every answer.
fn wait_reachable(from: &Domain, to: &Domain) -> Result<()> {
    let ping = |options: &str| {
        let command = format!("/opt/ping -n {options} {}", address(to.id()));
        from.run_within(&command, PATIENCE)
    };
    wait::until_true(
        &format!("{} to reach {}", from.name(), to.name()),
        PATIENCE,
        || Ok(ping("-c 1 -W 1")?.0 == 0),
    )?;
    let (_, said) = ping("-c 20 -i 0.02")?;
    ensure!(said.contains(" 20 received"), "{said}");
    Ok(())
}

/// Fits a documented domain to a machine for tests; what concerns the port stays as it is.
fn fit(documented: &str, name: &str, id: u8) -> Result<String> {
    let kernel_arguments = vm::kernel_arguments(id, 1500, Family::V4);
    // For `no_timer_check` see vm.rs.
    let boot = format!(
        "<kernel>{BOOT}/kernel</kernel><initrd>{BOOT}/initramfs</initrd>\
         <cmdline>{kernel_arguments} no_timer_check</cmdline>"
    );
    let serial = format!(
        "<serial type='file'><source path='{}'/><target port='0'/></serial>\
         <serial type='unix'><source mode='bind' path='{}'/><target port='1'/></serial>",
        console(name),
        serial_socket(name),
    );
    // From where, to where, what instead.
    let changes = [
        // No KVM.
        (
            "<domain type='kvm'",
            ">",
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
        ),
        // Room for two.
        ("<memory ", "</memory>", "<memory unit='MiB'>256</memory>"),
        // The guest is in a kernel and an initramfs, and needs no disk; but it speaks over serial lines.
        ("<boot ", "/>", &boot),
        ("<disk ", "</disk>", &serial),
        // For `vectors` see vm.rs.
        (
            "</domain",
            ">",
            "<qemu:commandline><qemu:arg value='-global'/><qemu:arg value='virtio-net-pci.vectors=0'/>\
             </qemu:commandline></domain>",
        ),
    ];
    changes
        .iter()
        .try_fold(documented.to_owned(), |xml, (from, to, instead)| {
            let parts = xml.split_once(from);
            let (before, rest) = parts.with_context(|| format!("no {from}"))?;
            let (_, after) = rest.split_once(to).with_context(|| format!("no {to}"))?;
            Ok(format!("{before}{instead}{after}"))
        })
}

//! The guest's memory: handed over whole or region by region, and in post-copy only once that was acknowledged.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::Level;

use crate::memory::{MemError, MemTable, Region, RegionDesc, MAX_REGIONS};
use crate::port::postcopy;
use crate::port::MAX_QUEUE_PAIRS;
use crate::vhost_user::{Refusal, Regions, Response};

use super::PortDevice;

impl PortDevice {
    /// Sets all memory. In post-copy it is told where that is, and waits.
    pub(super) fn replace_memory(
        &mut self,
        regions: Vec<(RegionDesc, OwnedFd)>,
    ) -> Result<Response, Refusal> {
        let regions: Result<Vec<_>, _> = regions
            .into_iter()
            .map(|(desc, fd)| self.map_region(desc, fd))
            .collect();
        let regions = regions.map_err(refuse_memory)?;
        let addresses = regions.iter().map(|r| postcopy::with_our_address(r)).collect();
        let table = MemTable::new(regions).map_err(refuse_memory)?;
        self.added_again.clear();
        self.take_memory(table, Regions::Table(addresses))
    }

    pub(super) fn add_memory(&mut self, desc: RegionDesc, fd: OwnedFd) -> Result<Response, Refusal> {
        let memory = self.postcopy.latest(&self.memory);
        let known = |region: &&Arc<Region>| region.desc().is_same_memory(&desc);
        if let Some(region) = memory.regions().iter().find(known) {
            let address = postcopy::with_our_address(region);
            if self.added_again.len() >= MAX_REGIONS * usize::from(MAX_QUEUE_PAIRS) {
                return Err(Refusal::new(
                    "memory region refused: added more often than there are queue pairs",
                ));
            }
            self.added_again.push(desc);
            return Ok(match self.postcopy.is_listening() {
                true => Response::Regions(Regions::One(address)),
                false => Response::Done,
            });
        }
        let region = self.map_region(desc, fd).map_err(refuse_memory)?;
        let address = postcopy::with_our_address(&region);
        let table = memory.with_region(region).map_err(refuse_memory)?;
        self.take_memory(table, Regions::One(address))
    }

    pub(super) fn remove_memory(&mut self, desc: &RegionDesc) -> Result<Response, Refusal> {
        if let Some(again) = self
            .added_again
            .iter()
            .position(|other| other.is_same_memory(desc))
        {
            self.added_again.swap_remove(again);
            return Ok(Response::Done);
        }
        let retracted = self.postcopy.retract(desc);
        match self.memory.without_region(desc) {
            Ok(table) => self.set_memory(table),
            Err(_) if retracted => Ok(Response::Done),
            Err(error) => Err(refuse_memory(error)),
        }
    }

    pub(super) fn acknowledged(&mut self) -> Result<Response, Refusal> {
        match self.postcopy.acknowledged(&self.memory)? {
            Some(table) => self.set_memory(table),
            None => Ok(Response::Done),
        }
    }

    /// POSTCOPY_END: all of it is there, and vrings that waited for it may start.
    pub(super) fn end_postcopy(&mut self) -> Response {
        let remnants = self.postcopy.end();
        let notes = remnants
            .into_iter()
            .map(|remnant| (Level::Warn, remnant.to_string()));
        self.notes.extend(notes);
        self.search();
        Response::U64(0)
    }

    fn set_memory(&mut self, table: MemTable) -> Result<Response, Refusal> {
        self.change_all(|device| device.memory = Arc::new(table));
        Ok(Response::Done)
    }

    /// Uses `table` from now on, or in post-copy when the front-end has acknowledged what it is answered.
    fn take_memory(&mut self, table: MemTable, addresses: Regions) -> Result<Response, Refusal> {
        if !self.postcopy.is_listening() {
            return self.set_memory(table);
        }
        self.postcopy.propose(table);
        Ok(Response::Regions(addresses))
    }

    fn map_region(&self, desc: RegionDesc, fd: OwnedFd) -> Result<Arc<Region>, MemError> {
        let region = match self.postcopy.is_listening() {
            true => Region::map_incomplete(desc, fd),
            false => Region::map(desc, fd),
        };
        region.map(Arc::new)
    }
}

fn refuse_memory(error: MemError) -> Refusal {
    Refusal::new(format!("memory region refused: {error}"))
}

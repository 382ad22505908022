//! A server port's socket as main has it: bound when the port is made, closed until its options have said who may connect.

use super::listener::{ListenError, Listener, SocketFile};
use super::protection::Protection;

pub(super) struct Door {
    file: SocketFile,
    /// What holds for the file; none if that is not known.
    in_force: Option<Protection>,
    /// What could not be had of it.
    complaint: Option<String>,
    /// Until it is opened.
    closed: Option<Listener>,
}

impl Door {
    pub(super) fn new(listener: Listener) -> Door {
        Door {
            file: listener.file().clone(),
            in_force: Some(Protection::default()),
            complaint: None,
            closed: Some(listener),
        }
    }

    pub(super) fn file(&self) -> &SocketFile {
        &self.file
    }

    /// Settles who may connect; says what is wrong with that.
    pub(super) fn protect(&mut self, wanted: Protection) -> Option<String> {
        if self.in_force != Some(wanted) {
            let error = self.file.protect(&wanted).err();
            // Not being able to give the file away leaves it to this process, with the permissions asked for.
            let settled = matches!(error, None | Some(ListenError::Owner { .. }));
            self.in_force = settled.then_some(wanted);
            self.complaint = error.map(|error| error.to_string());
        }
        self.complaint.clone()
    }

    /// Opens the door if it is closed and who may connect is settled: here is who serves it.
    pub(super) fn open(&mut self) -> Result<Option<Listener>, ListenError> {
        if self.in_force.is_none() {
            return Ok(None);
        }
        if let Some(listener) = &self.closed {
            listener.listen()?;
        }
        Ok(self.closed.take())
    }
}

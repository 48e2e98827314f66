//! The account of a device's memory: bytes by kind, now and at the peak.

use crate::error::{Error, Place};
use std::sync::Mutex;

/// What a buffer is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The model's weights.
    Weights = 0,
    /// Activations that the tape keeps for the backward pass.
    SavedActivations = 1,
    /// Everything that lives shorter: activations in flight, scratch, caches of keys and values.
    Workspace = 2,
    /// Gradients, of activations and of the prompt.
    Gradients = 3,
    /// What the optimizer remembers, and the trained parameters themselves.
    Optimizer = 4,
}

impl Kind {
    /// All kinds, in the order of [`MemoryReport`]'s tables.
    pub const ALL: [Self; 5] =
        [Self::Weights, Self::SavedActivations, Self::Workspace, Self::Gradients, Self::Optimizer];

    /// A short name for tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::SavedActivations => "saved_activations",
            Self::Workspace => "workspace",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
        }
    }

    pub(super) const fn from_index(index: u8) -> Self {
        Self::ALL[index as usize]
    }
}

/// Bytes held by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryReport {
    current: [usize; 5],
    peaks: [usize; 5],
    peak_total: usize,
    at_peak: [usize; 5],
    /// The most ever held, which [`Ledger::reset_peak`] leaves alone.
    most: usize,
}

impl MemoryReport {
    /// Bytes held now for `kind`.
    pub fn current(&self, kind: Kind) -> usize {
        self.current[kind as usize]
    }

    /// The most bytes ever held at once for `kind`.
    pub fn peak(&self, kind: Kind) -> usize {
        self.peaks[kind as usize]
    }

    /// Bytes held now, of every kind.
    pub fn current_total(&self) -> usize {
        self.current.iter().sum()
    }

    /// The most bytes ever held at once, of every kind together.
    pub fn peak_total(&self) -> usize {
        self.peak_total
    }

    /// Bytes held for `kind` at the moment of [`MemoryReport::peak_total`].
    pub fn at_peak(&self, kind: Kind) -> usize {
        self.at_peak[kind as usize]
    }
}

/// A [`MemoryReport`] that many threads write.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<MemoryReport>);

impl Ledger {
    fn with<R>(&self, change: impl FnOnce(&mut MemoryReport) -> R) -> R {
        // A thread that panicked while holding the lock left plain numbers behind; they are still the account.
        change(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(super) fn add(&self, bytes: usize, kind: Kind) {
        self.with(|report| {
            let slot = kind as usize;
            report.current[slot] += bytes;
            report.peaks[slot] = report.peaks[slot].max(report.current[slot]);
            let total = report.current_total();
            report.most = report.most.max(total);
            if total > report.peak_total {
                report.peak_total = total;
                report.at_peak = report.current;
            }
        });
    }

    pub(super) fn remove(&self, bytes: usize, kind: Kind) {
        self.with(|report| report.current[kind as usize] -= bytes);
    }

    pub(super) fn retag(&self, bytes: usize, from: Kind, to: Kind) {
        self.with(|report| {
            report.current[from as usize] -= bytes;
            report.current[to as usize] += bytes;
            report.peaks[to as usize] = report.peaks[to as usize].max(report.current[to as usize]);
        });
    }

    pub(super) fn report(&self) -> MemoryReport {
        self.with(|report| *report)
    }

    /// How many bytes a device's pool may keep: held and pooled together never exceed the most ever held, whatever peaks
    /// were looked at in between.
    pub(super) fn room_in_pool(&self) -> usize {
        self.with(|report| report.most.saturating_sub(report.current_total()))
    }

    pub(super) fn reset_peak(&self) {
        self.with(|report| {
            report.peaks = report.current;
            report.at_peak = report.current;
            report.peak_total = report.current_total();
        });
    }
}

/// The reason a device's work was unwound: too little memory.
pub(super) struct OutOfMemory {
    bytes: usize,
    kind: Kind,
    held: usize,
}

impl OutOfMemory {
    /// Unwinds to [`super::Device::run`], which makes an error of it: threading a result through every buffer of every
    /// op would cost more clarity than the rare case is worth. The bytes must have been counted; they no longer are.
    pub(super) fn unwind(ledger: &Ledger, bytes: usize, kind: Kind) -> ! {
        ledger.remove(bytes, kind);
        std::panic::resume_unwind(Box::new(Self { bytes, kind, held: ledger.report().current_total() }))
    }

    pub(super) fn into_error(self, device: &'static str) -> Error {
        let mebibytes = |bytes: usize| bytes.div_ceil(1 << 20);
        let expected = format!("{} MiB more for {}", mebibytes(self.bytes), self.kind.name());
        let got = format!("no memory, with {} MiB held", mebibytes(self.held));
        Error::device(Place::item(device), expected, got).hint("take a smaller batch, or shorter examples or prompt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_of_the_sum_and_remembers_its_parts() {
        let ledger = Ledger::default();
        ledger.add(100, Kind::Weights);
        ledger.add(50, Kind::Workspace);
        ledger.retag(50, Kind::Workspace, Kind::SavedActivations);
        ledger.add(10, Kind::Gradients);
        ledger.remove(50, Kind::SavedActivations);
        ledger.add(20, Kind::Gradients);
        let report = ledger.report();
        assert_eq!(report.peak_total(), 160);
        assert_eq!(report.at_peak(Kind::SavedActivations), 50);
        assert_eq!(report.at_peak(Kind::Gradients), 10);
        assert_eq!(report.peak(Kind::Gradients), 30);
        assert_eq!(report.current_total(), 130);
        ledger.reset_peak();
        assert_eq!(ledger.report().peak_total(), 130);
    }
}

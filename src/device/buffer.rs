//! Memory of a device, whichever it is.

use super::Kind;
use super::cpu::CpuBuffer;
use super::cuda::CudaBuffer;
use crate::error::Result;
use bytemuck::Pod;

/// Bytes of device memory, returned to the device's pool when dropped.
#[derive(Debug)]
pub enum Buffer {
    /// Memory of the process, aligned to 64.
    Cpu(CpuBuffer),
    /// Memory of a GPU, aligned to 256.
    Cuda(CudaBuffer),
}

impl Buffer {
    /// The bytes asked for.
    pub fn len(&self) -> usize {
        match self {
            Self::Cpu(buffer) => buffer.len(),
            Self::Cuda(buffer) => buffer.len(),
        }
    }

    /// Whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the buffer is held for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cpu(buffer) => buffer.kind(),
            Self::Cuda(buffer) => buffer.kind(),
        }
    }

    /// Counts the buffer under another kind from now on.
    pub fn retag(&self, kind: Kind) {
        match self {
            Self::Cpu(buffer) => buffer.retag(kind),
            Self::Cuda(buffer) => buffer.retag(kind),
        }
    }

    /// The contents as elements of `T`; the length must be whole in them.
    ///
    /// # Panics
    /// For memory that is not the process's own: see [`Buffer::download`].
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        match self {
            Self::Cpu(buffer) => buffer.as_slice(),
            Self::Cuda(_) => unreachable!("a GPU's memory read in place"),
        }
    }

    /// The contents as elements of `T`, to be written.
    ///
    /// # Panics
    /// For memory that is not the process's own: see [`Buffer::upload`].
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        match self {
            Self::Cpu(buffer) => buffer.as_mut_slice(),
            Self::Cuda(_) => unreachable!("a GPU's memory written in place"),
        }
    }

    /// Copies `bytes` to the start of the buffer.
    ///
    /// # Errors
    /// [`crate::Error::Op`] if they do not fit; [`crate::Error::Device`] where a GPU fails.
    pub fn upload(&mut self, bytes: &[u8]) -> Result<()> {
        self.upload_at(0, bytes)
    }

    /// Copies `bytes` into the buffer from byte `start` on.
    ///
    /// # Errors
    /// As [`Buffer::upload`].
    pub fn upload_at(&mut self, start: usize, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Cpu(buffer) => {
                let length = buffer.len();
                let range = buffer.as_mut_slice::<u8>().get_mut(start..).and_then(|rest| rest.get_mut(..bytes.len()));
                let wrong = || crate::Error::op("upload", format!("a range within {length} bytes"), start.to_string());
                range.ok_or_else(wrong)?.copy_from_slice(bytes);
                Ok(())
            }
            Self::Cuda(buffer) => buffer.upload_at(start, bytes),
        }
    }

    /// Copies the first bytes of the buffer out; on a GPU when everything asked for before is done.
    ///
    /// # Errors
    /// [`crate::Error::Op`] if there are fewer; [`crate::Error::Device`] where a GPU fails.
    pub fn download(&self, bytes: &mut [u8]) -> Result<()> {
        match self {
            Self::Cpu(buffer) => {
                let length = buffer.len();
                let wrong = || crate::Error::op("download", format!("at most {length} bytes"), bytes.len().to_string());
                let source = buffer.as_slice::<u8>().get(..bytes.len()).ok_or_else(wrong)?;
                bytes.copy_from_slice(source);
                Ok(())
            }
            Self::Cuda(buffer) => buffer.download(bytes),
        }
    }

    /// Copies `length` bytes of `from`, starting at `start`, to byte `to` on. Both are of one device.
    ///
    /// # Errors
    /// [`crate::Error::Op`] for ranges out of bounds or two devices; [`crate::Error::Device`] where a GPU fails.
    pub fn copy_from(&mut self, to: usize, from: &Self, start: usize, length: usize) -> Result<()> {
        match (self, from) {
            (Self::Cpu(buffer), Self::Cpu(from)) => {
                let (have, of) = (buffer.len(), from.len());
                let target = buffer.as_mut_slice::<u8>().get_mut(to..).and_then(|rest| rest.get_mut(..length));
                let source = from.as_slice::<u8>().get(start..).and_then(|rest| rest.get(..length));
                match (target, source) {
                    (Some(target), Some(source)) => target.copy_from_slice(source),
                    _ => {
                        let got = format!("{length} from {start} to {to}");
                        return Err(crate::Error::op("copy", format!("ranges within {have} and {of} bytes"), got));
                    }
                }
                Ok(())
            }
            (Self::Cuda(buffer), Self::Cuda(from)) => buffer.copy_from(to, from, start, length),
            _ => Err(crate::Error::op("copy", "buffers of one device", "buffers of two")),
        }
    }

    /// Sets every byte to 0.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where a GPU fails.
    pub fn clear(&mut self) -> Result<()> {
        match self {
            Self::Cpu(buffer) => {
                buffer.as_mut_slice::<u8>().fill(0);
                Ok(())
            }
            Self::Cuda(buffer) => buffer.clear(),
        }
    }

    /// Sets every 4-byte word to `word`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where a GPU fails.
    pub fn fill_words(&mut self, word: u32) -> Result<()> {
        match self {
            Self::Cpu(buffer) => {
                buffer.as_mut_slice::<u32>().fill(word);
                Ok(())
            }
            Self::Cuda(buffer) => buffer.fill_words(word),
        }
    }

    /// The address on its GPU.
    pub(crate) fn device_address(&self) -> u64 {
        match self {
            Self::Cuda(buffer) => buffer.address(),
            Self::Cpu(_) => unreachable!("memory of the process given to a kernel"),
        }
    }
}

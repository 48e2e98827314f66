//! What the whole process holds in memory, by the system's account: the mapped weights that were read, the heap and the
//! stacks, beside what [`super::Device::memory`] counts.

/// Starts a new peak of the process's resident memory, of which what was freed and kept for later is no part. `false` where
/// the system has no such thing: Linux does (`clear_refs` in proc(5)).
pub fn reset_peak_rss() -> bool {
    give_back_freed();
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Returns to the system what the C library's allocator keeps of freed memory: a model that was dropped, say.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a call of the C library")]
fn give_back_freed() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: malloc_trim(3) may be called at any time, from any thread; it touches free memory only.
    unsafe { malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back_freed() {}

/// The most bytes that were resident since the last [`reset_peak_rss`], or since the start (`VmHWM` in proc(5)).
pub fn peak_rss() -> Option<usize> {
    of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Bytes that new work may take without driving out other work, by the system's estimate (`MemAvailable` in proc(5)).
pub fn available_memory() -> Option<usize> {
    bytes_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn of_status(status: &str) -> Option<usize> {
    bytes_of(status, "VmHWM:")
}

/// The value of a line `name   123 kB`.
fn bytes_of(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_peak_is_read() {
        assert_eq!(of_status("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t  1234 kB\nVmRSS:\t 7 kB\n"), Some(1234 << 10));
        for broken in ["", "VmHWM:", "VmHWM:\t12", "VmHWM:\t-1 kB", "VmHWM:\t18446744073709551615 kB"] {
            assert_eq!(of_status(broken), None, "{broken}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_written_shows_in_the_peak() {
        if !reset_peak_rss() {
            return;
        }
        let before = peak_rss().unwrap();
        let block = vec![1u8; 64 << 20];
        std::hint::black_box(&block);
        assert!(peak_rss().unwrap() >= before + (48 << 20));
    }
}

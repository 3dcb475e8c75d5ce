//! Estimates the size of a stream's entries, to bound the size of a response.

/// The maximum size of a response, in bytes. Only a response with a single entry should be larger.
///
/// A larger response would occupy its connection for long. The leases of its entries are not
/// renewed while the response arrives, since the entries are not in the in-flight table yet.
pub(super) const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// The estimated size of an entry, in bytes: that of the largest entry in the last response, but at
/// least half of the previous estimate. `None` until the first entry.
#[derive(Debug, Default)]
pub(super) struct EntrySize(Option<usize>);

impl EntrySize {
    /// Records the sizes of a response's entries, in bytes.
    pub(super) fn note(&mut self, sizes: impl IntoIterator<Item = usize>) {
        if let Some(largest) = sizes.into_iter().max() {
            self.0 = Some(largest.max(self.0.unwrap_or(0) / 2));
        }
    }

    /// Returns the expected size of one entry, in bytes. While the size is unknown, returns
    /// [`MAX_RESPONSE_BYTES`].
    pub(super) fn expected(&self) -> usize {
        self.0.unwrap_or(MAX_RESPONSE_BYTES).max(1)
    }

    /// Returns the number of entries to request, between one and `max`. Requests one entry while
    /// the size is unknown.
    pub(super) fn fitting_entries(&self, max: usize) -> usize {
        match self.0 {
            None => 1,
            Some(size) => (MAX_RESPONSE_BYTES / size.max(1)).clamp(1, max.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_small_until_the_size_of_entries_is_known_and_after_large_ones() {
        let mut size = EntrySize::default();
        assert_eq!(size.fitting_entries(32), 1);
        size.note([]);
        assert_eq!(size.fitting_entries(32), 1);
        size.note([10, 20]);
        assert_eq!(size.fitting_entries(32), 32);
        size.note([10, 4 << 20]);
        assert_eq!(size.fitting_entries(32), 1);
        let counts = [(); 6].map(|()| {
            size.note([10]);
            size.fitting_entries(32)
        });
        assert_eq!(counts, [1, 1, 2, 4, 8, 16]);
    }
}
